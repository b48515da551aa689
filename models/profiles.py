"""Device profiles: what kinds of device there are, what they hold, how fast they are, and what they run.

Owns the table, and the names under which releases say where they fit. Figures are nominal, dense, from the
makers' data sheets, for one representative device of its kind; ``models.forecast`` turns them into promises
with intervals, and corrects them by what devices report. Refuses names that are not in the table. Pure: what
this machine is, is decided here from text that the caller has read.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from models.errors import ModelsError

GB = 1_000_000_000

Kind = Literal["cpu", "gpu", "jetson"]


@dataclass(frozen=True)
class Caution:
    """Something that is known not to help on a device, and who found it."""

    what: str
    why: str
    source: str


@dataclass(frozen=True)
class Profile:
    """A kind of device.

    ``memory_bytes`` 0: differs by machine, and the caller says it. ``shared_memory``: the GPU and
    the system take from the same. ``bandwidth`` in bytes/s. ``operations``: per second, a multiplication
    and an addition being two, by the type computed in; of one core on a ``cpu``. ``runs``: precisions by
    format.
    """

    name: str
    kind: Kind
    device: str
    memory_bytes: int
    shared_memory: bool
    bandwidth: float
    operations: Mapping[str, float]
    runs: Mapping[str, frozenset[str]]
    cautions: tuple[Caution, ...] = ()
    sm: int | None = None
    source: str = ""

    def can_run(self, format: str, precision: str) -> bool:
        """Whether a release of this format and precision runs here at all."""
        return precision.lower() in self.runs.get(format, frozenset())

    def runs_what_is_for(self, names: Iterable[str]) -> bool:
        """Whether something made for one of these profiles runs here: a newer processor runs what an older
        one does, and a module what is for its GPU."""
        return not {self.name, *_INCLUDED.get(self.name, ())}.isdisjoint(names)


@dataclass(frozen=True)
class Machine:
    """What one machine is: its profile, None when it has none, the cores it may use, and its memory."""

    profile: str | None
    cores: int
    memory_bytes: int


_INCLUDED = {
    "x86-64-avx512-vnni": ("x86-64-avx2",),
    "x86-64-amx": ("x86-64-avx512-vnni", "x86-64-avx2"),
    "arm64-i8mm": ("arm64-dotprod",),
    "jetson-orin-nano-8g": ("sm_87",),
    "jetson-agx-orin": ("sm_87",),
    "jetson-thor": ("sm_101", "sm_110"),
}
"""By profile: others for which is made what runs there too."""


_GGUF = frozenset(
    {
        "f32",
        "f16",
        "bf16",
        "q8_0",
        "q6_k",
        "q5_k_m",
        "q5_1",
        "q5_0",
        "q4_k_m",
        "q4_0",
        "q4_1",
        "iq4_nl",
        "iq4_xs",
        "mixed",
    }
)
_ONNX = frozenset({"f32", "fp32", "int8", "int8-dynamic", "int8-static", "int4", "mixed"})
_GENAI = frozenset({"fp32", "int8", "int4", "mixed"})
_CPU_RUNS = {"gguf": _GGUF, "onnx": _ONNX, "onnx-genai": _GENAI, "ctranslate2": frozenset({"f32", "int8"})}


def _gpu_runs(*types: str) -> dict[str, frozenset[str]]:
    """Through llama.cpp, ONNX Runtime and CTranslate2 as built for CUDA; TensorRT what its cores compute."""
    on_cuda = {format: runs for format, runs in _CPU_RUNS.items() if format != "onnx-genai"}
    return {**on_cuda, "tensorrt-recipe": frozenset({"f32", "fp32", "f16", "int8", "mixed", *types})}


_VIT = Caution(
    "INT8 vision transformers through TensorRT",
    "slower than FP16, or no faster: reformatting around attention eats the gain",
    "https://github.com/NVIDIA/TensorRT/issues/4273 (A100, V100, A10), "
    "https://github.com/NVIDIA/Model-Optimizer/issues/167 (T4: half the throughput)",
)
_NO_FP8 = Caution(
    "FP8 or FP4 engines",
    "Orin's tensor cores have neither",
    "https://nvidia.github.io/TensorRT-Edge-LLM/0.11.1/user_guide/getting_started/support-matrix.html",
)
_NO_ELEVEN = Caution(
    "TensorRT 11 on Orin Nano or on JetPack 6",
    "11.4.1 needs JetPack 7.2.2 on Jetson AGX Orin or Thor; others stay on 10.x",
    "https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html",
)
_SMALL_INT4 = Caution(
    "INT4 (MatMulNBits) of language models of some hundred million parameters",
    "SmolLM2-135M: mean KL 0.46 to 0.59, two of five top tokens flip; INT8 stays at 0.005",
    "measured here: docs/genai.md",
)
_ROWS = Caution(
    "K-quants of models whose rows do not divide by 256",
    "llama.cpp falls back matrix by matrix: 181 of SmolLM2's 211 at Q4_K_M",
    "measured here: the fallback ledger of a run",
)
_DYNAMIC = Caution(
    "INT8 for speed without VNNI",
    "10 to 20 % faster than float32 for encoders; four times smaller all the same",
    "measured here, on two cores",
)
_ACCURACY = Caution(
    "accuracy_level 4 (activations in INT8) taken on trust",
    "fast, and can flip the top token: it is measured like any other loss",
    "measured here",
)


def _cpu(name: str, device: str, bandwidth: float, operations: dict[str, float], *more: Caution) -> Profile:
    return Profile(
        name=name,
        kind="cpu",
        device=device,
        memory_bytes=0,
        shared_memory=True,
        bandwidth=bandwidth * GB,
        operations={kind: value * GB for kind, value in operations.items()},
        runs=_CPU_RUNS,
        cautions=(*more, _SMALL_INT4, _ROWS, _ACCURACY),
        source="instructions per cycle at 3 GHz; two channels of the memory that came with it",
    )


def _card(
    sm: int, device: str, memory: float, bandwidth: float, operations: dict[str, float], *types: str
) -> Profile:
    return Profile(
        name=f"sm_{sm}",
        kind="gpu",
        device=device,
        memory_bytes=int(memory * GB),
        shared_memory=False,
        bandwidth=bandwidth * GB,
        operations={kind: value * 1000 * GB for kind, value in operations.items()},
        runs=_gpu_runs(*types),
        cautions=(_VIT,) if sm < 89 else (),
        sm=sm,
        source="NVIDIA's data sheet of that card; dense",
    )


def _jetson(
    name: str,
    device: str,
    memory: float,
    bandwidth: float,
    operations: dict[str, float],
    sm: int,
    types: tuple[str, ...],
    *cautions: Caution,
) -> Profile:
    return Profile(
        name=name,
        kind="jetson",
        device=device,
        memory_bytes=int(memory * GB),
        shared_memory=True,
        bandwidth=bandwidth * GB,
        operations={kind: value * 1000 * GB for kind, value in operations.items()},
        runs=_gpu_runs(*types) | {"onnx-genai": _GENAI},  # exported for the CPU, which has the same memory
        cautions=(*cautions, _SMALL_INT4),
        sm=sm,
        source="NVIDIA's data sheet of the module; dense, GPU only",
    )


_ALL = (
    _jetson(
        "jetson-orin-nano-8g",
        "Jetson Orin Nano 8 GB at 25 W (Super)",
        8,
        102,
        {"f32": 2.1, "f16": 16.7, "int8": 33},
        87,
        ("int4",),
        _NO_ELEVEN,
        _NO_FP8,
        _VIT,
    ),
    _jetson(
        "jetson-agx-orin",
        "Jetson AGX Orin 64 GB",
        64,
        204.8,
        {"f32": 5.3, "f16": 42.5, "int8": 85},
        87,
        ("int4",),
        _NO_ELEVEN,
        _NO_FP8,
        _VIT,
    ),
    _jetson(
        "jetson-thor",
        "Jetson AGX Thor T5000",
        128,
        273,
        {"f32": 8, "f16": 259, "int8": 517, "fp8": 517, "fp4": 1035},
        110,
        ("bf16", "int4", "fp8", "fp4"),
    ),
    _card(75, "T4", 16, 320, {"f32": 8.1, "f16": 65, "int8": 130}),
    _card(80, "A100 40 GB", 40, 1555, {"f32": 19.5, "f16": 312, "bf16": 312, "int8": 624}, "bf16", "int4"),
    _card(86, "A10", 24, 600, {"f32": 31.2, "f16": 125, "bf16": 125, "int8": 250}, "bf16", "int4"),
    _jetson(
        "sm_87",
        "Orin's GPU, as in AGX Orin",
        64,
        204.8,
        {"f32": 5.3, "f16": 42.5, "int8": 85},
        87,
        ("int4",),
        _NO_FP8,
        _VIT,
    ),
    _card(
        89,
        "L4",
        24,
        300,
        {"f32": 30.3, "f16": 121, "bf16": 121, "int8": 242, "fp8": 242},
        "bf16",
        "int4",
        "fp8",
    ),
    _card(
        90,
        "H100 SXM",
        80,
        3350,
        {"f32": 67, "f16": 989, "bf16": 989, "int8": 1979, "fp8": 1979},
        "bf16",
        "int4",
        "fp8",
    ),
    _card(
        100,
        "B200",
        180,
        8000,
        {"f32": 75, "f16": 2250, "bf16": 2250, "int8": 4500, "fp8": 4500, "fp4": 9000},
        "bf16",
        "int4",
        "fp8",
        "fp4",
    ),
    _jetson(
        "sm_101",
        "Thor's GPU, as CUDA 12 names it",
        128,
        273,
        {"f32": 8, "f16": 259, "int8": 517, "fp8": 517, "fp4": 1035},
        101,
        ("bf16", "int4", "fp8", "fp4"),
    ),
    _jetson(
        "sm_110",
        "Thor's GPU, as CUDA 13 names it",
        128,
        273,
        {"f32": 8, "f16": 259, "int8": 517, "fp8": 517, "fp4": 1035},
        110,
        ("bf16", "int4", "fp8", "fp4"),
    ),
    _card(
        120,
        "GeForce RTX 5090",
        32,
        1792,
        {"f32": 104.8, "f16": 209.5, "bf16": 209.5, "int8": 838, "fp8": 419, "fp4": 1676},
        "bf16",
        "int4",
        "fp8",
        "fp4",
    ),
    _cpu("x86-64-avx2", "x86-64 with AVX2 and FMA", 40, {"f32": 96, "int8": 192}, _DYNAMIC),
    _cpu("x86-64-avx512-vnni", "x86-64 with AVX-512 and VNNI", 60, {"f32": 192, "int8": 768}),
    _cpu("x86-64-amx", "x86-64 with AMX", 80, {"f32": 192, "bf16": 3072, "int8": 6144}),
    _cpu("arm64-dotprod", "arm64 with dot products", 40, {"f32": 48, "f16": 96, "int8": 192}),
    _cpu("arm64-i8mm", "arm64 with INT8 matrix products", 60, {"f32": 48, "f16": 96, "int8": 384}),
)

PROFILES: Mapping[str, Profile] = {profile.name: profile for profile in _ALL}


def profile(name: str) -> Profile:
    """The profile of that name. Raises ``ModelsError``, which lists the names there are."""
    found = PROFILES.get(name)
    if found is None:
        raise ModelsError(f"no device profile {name!r}; there are {', '.join(sorted(PROFILES))}")
    return found


def cpu_profile(machine: str, flags: Iterable[str]) -> str | None:
    """The profile of a processor. ``machine`` as ``uname -m`` says it, ``flags`` as ``/proc/cpuinfo`` does.

    ``None`` for one that is older than every profile.
    """
    have = set(flags)
    if machine in ("x86_64", "amd64"):
        if {"amx_tile", "amx_int8"} <= have:
            return "x86-64-amx"
        if "avx512f" in have and "avx512_vnni" in have:
            return "x86-64-avx512-vnni"
        return "x86-64-avx2" if {"avx2", "fma"} <= have else None
    if machine in ("aarch64", "arm64"):
        if "i8mm" in have:
            return "arm64-i8mm"
        return "arm64-dotprod" if "asimddp" in have else None
    return None


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """The flags that all processors in the text of ``/proc/cpuinfo`` have."""
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    sets = [frozenset(line.split()) for line in lines]
    return frozenset.intersection(*sets) if sets else frozenset()


def gpu_profile(sm: int, board: str = "") -> str | None:
    """The profile of a GPU by its compute capability; ``board`` is the device tree's model of a Jetson."""
    if "Orin Nano" in board:
        return "jetson-orin-nano-8g"
    if "AGX Orin" in board:
        return "jetson-agx-orin"
    if "Thor" in board:
        return "jetson-thor"
    name = f"sm_{sm}"
    return name if name in PROFILES else None
