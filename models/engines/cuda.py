"""CUDA as ONNX Runtime and GenAI need it: whether there is a GPU, and where the libraries are."""

import ctypes


def load_cuda() -> None:
    """CUDA's libraries may lie in Python packages, where no loader looks."""
    import onnxruntime

    onnxruntime.preload_dlls()


def has_gpu() -> bool:
    """Whether NVIDIA's driver is there and sees a GPU (CUDA driver API, cuInit and cuDeviceGetCount)."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
