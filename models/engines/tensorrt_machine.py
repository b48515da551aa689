"""What this machine builds TensorRT engines with: asked of ONNX Runtime, TensorRT, the driver and the GPU.

Owns the one place where their libraries are looked for, and the error that says what to install. They are
loaded into whoever asks: an agent asks a process of its own, ``python -m models.engines.tensorrt_machine``,
which prints JSON.
"""

import ctypes
import importlib.util
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.engines.cuda import load_cuda
from models.errors import ModelsError, NoTensorRt
from models.tensorrt_recipe import TensorRtMachine

TENSORRT_PROVIDER = "TensorrtExecutionProvider"
_LIBRARY = "libonnxruntime_providers_tensorrt.so"
_NEEDED = re.compile(rb"libnv(?:infer|infer_plugin|onnxparser)\.so\.\d+")
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h."""


def read_machine() -> TensorRtMachine:
    """Versions and GPU. Raises ``NoTensorRt`` that says what is missing."""
    import onnxruntime

    if TENSORRT_PROVIDER not in onnxruntime.get_available_providers():
        raise NoTensorRt(
            "this ONNX Runtime has no TensorRT: install onnxruntime-gpu instead of onnxruntime (extra "
            "edge-gpu; on a Jetson the build for its JetPack)"
        )
    sm, memory = _gpu()
    load_cuda()
    return TensorRtMachine(
        runtime=f"onnxruntime {onnxruntime.__version__}",
        tensorrt=_tensorrt(Path(onnxruntime.__file__).parent / "capi" / _LIBRARY),
        sm=sm,
        driver=_driver(),
        memory_bytes=memory,
    )


def _gpu() -> tuple[int, int]:
    """Compute capability and bytes of memory of the first GPU (CUDA driver API)."""
    cuda = _load("libcuda.so.1", "NVIDIA's driver is missing")
    device, major, minor, size = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    asked = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
        or cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    )
    if asked != 0:
        raise NoTensorRt(f"there is no NVIDIA GPU that the driver can use (CUDA error {asked})")
    return 10 * major.value + minor.value, size.value


def _tensorrt(provider: Path) -> str:
    """Load what the provider was linked against, and ask its version (NvInferRuntime.h)."""
    needed = sorted({name.decode() for name in _NEEDED.findall(provider.read_bytes())})
    if not needed:
        raise NoTensorRt(f"{provider.name} does not say which TensorRT it needs")
    # libnvinfer comes before its plugins and its parser, which need it.
    loaded = [_load(name, f"TensorRT {name.rsplit('.', 1)[1]} is missing") for name in needed]
    parts = ("Major", "Minor", "Patch", "Build")
    return ".".join(str(getattr(loaded[0], f"getInferLib{part}Version")()) for part in parts)


def _driver() -> str:
    """The driver's version (NVML)."""
    nvml = _load("libnvidia-ml.so.1", "NVIDIA's management library is missing")
    version = ctypes.create_string_buffer(80)
    if (error := nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(version, len(version))) != 0:
        raise NoTensorRt(f"NVIDIA's driver does not tell its version (NVML error {error})")
    return version.value.decode("ascii", "replace")


def _load(name: str, missing: str) -> Any:
    """A library from where the loader looks, else from TensorRT's Python package."""
    package = importlib.util.find_spec("tensorrt_libs")
    places = list(package.submodule_search_locations or ()) if package is not None else []
    for candidate in (name, *(f"{place}/{name}" for place in places)):
        try:
            return ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
    raise NoTensorRt(
        f"{missing} ({name}): JetPack brings it along; elsewhere install NVIDIA's driver and TensorRT "
        "(docs/tensorrt.md)"
    )


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps(asdict(read_machine())) + "\n")
    except ModelsError as error:
        sys.exit(str(error))
