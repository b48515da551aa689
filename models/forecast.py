"""Whether a variant will fit a device, and how fast it will be there, before it is shipped.

Owns the two bounds (memory is weights, KV cache and a measured overhead; decoding reads every weight once per
token, so bandwidth bounds it, and prefill computes, so the processor does) and what reports from devices do
to them. Every figure is a 95 % interval: a forecast without one would be a promise. Pure.

Roofline model: Williams, Waterman, Patterson, CACM 52(4), 2009. The correction is the conjugate normal update
of the logarithm of observed over predicted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import exp, log, sqrt
from types import MappingProxyType
from typing import Literal

from models.errors import ModelsError
from models.profiles import PROFILES, Profile

_Z = 1.96

Quantity = Literal["decode", "prefill", "memory"]


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.value <= self.high:
            raise ModelsError(f"an interval is 0 <= low <= value <= high: {self}")


@dataclass(frozen=True)
class Overhead:
    """What an engine takes beside the KV cache: ``fixed`` bytes, and ``per_weight`` for each byte of weights.

    ``efficiency`` is the part of the bandwidth that decoding reaches, ``compute`` the part of the peak that
    prefill does (docs/profiles.md).
    """

    fixed: float
    per_weight: float
    efficiency: float
    compute: float


OVERHEADS: Mapping[str, Overhead] = MappingProxyType(
    {
        "gguf": Overhead(fixed=95e6, per_weight=1.05, efficiency=0.55, compute=0.35),
        "onnx-genai": Overhead(fixed=150e6, per_weight=1.36, efficiency=0.75, compute=0.2),
        "onnx": Overhead(fixed=120e6, per_weight=1.3, efficiency=0.5, compute=0.25),
        "tensorrt-recipe": Overhead(fixed=600e6, per_weight=1.2, efficiency=0.6, compute=0.4),
        "ctranslate2": Overhead(fixed=120e6, per_weight=1.1, efficiency=0.5, compute=0.3),
    }
)

_SPREAD: Mapping[Quantity, float] = {"decode": 0.40, "prefill": 0.55, "memory": 0.12}
"""Standard deviation of log(observed / predicted) between devices, models and versions of one kind."""
_NOISE: Mapping[Quantity, float] = {"decode": 0.10, "prefill": 0.15, "memory": 0.03}
"""The same between two runs on one device."""


@dataclass(frozen=True)
class Workload:
    """A variant, and what is asked of it. ``read_bytes`` of weights are read per token; 0: all.

    ``kv_bytes`` per token and sequence: 2 x layers x KV heads x head size x bytes of a number; encoders: 0.
    ``computes`` is the type that prefill is computed in.
    """

    format: str
    precision: str
    parameters: int
    weight_bytes: int
    kv_bytes: int = 0
    context_tokens: int = 0
    sequences: int = 1
    read_bytes: int = 0
    computes: str = "f32"

    def __post_init__(self) -> None:
        if self.format not in OVERHEADS:
            raise ModelsError(f"no forecast for the format {self.format!r}")
        if min(self.parameters, self.weight_bytes, self.sequences) < 1:
            raise ModelsError(f"a workload has parameters, weights and at least one sequence: {self}")


@dataclass(frozen=True)
class Report:
    """What a device measured: ``observed`` beside what had been ``predicted`` without any report."""

    profile: str
    format: str
    precision: str
    quantity: Quantity
    predicted: float
    observed: float

    def __post_init__(self) -> None:
        if not (self.predicted > 0 and self.observed > 0):
            raise ModelsError(f"a report has figures above 0: {self}")


@dataclass(frozen=True)
class Correction:
    """The belief about log(observed / predicted): normal, with this mean and deviation."""

    mean: float
    deviation: float
    reports: int


class Corrections:
    """Beliefs by profile, format, precision and quantity. Immutable: ``with_reports`` gives another."""

    def __init__(self, reports: Iterable[Report] = ()) -> None:
        self._reports = tuple(reports)
        self._ratios: dict[tuple[str, str, str, Quantity], list[float]] = {}
        for one in self._reports:
            key = (one.profile, one.format, one.precision.lower(), one.quantity)
            self._ratios.setdefault(key, []).append(log(one.observed / one.predicted))

    def with_reports(self, reports: Iterable[Report]) -> "Corrections":
        """These beliefs and more evidence. The order of reports does not matter."""
        return Corrections((*self._reports, *reports))

    def of(self, profile: str, format: str, precision: str, quantity: Quantity) -> Correction:
        """The belief for one combination; without reports, that the bounds are right within ``_SPREAD``."""
        ratios = self._ratios.get((profile, format, precision.lower(), quantity), [])
        prior, noise = _SPREAD[quantity], _NOISE[quantity]
        weight = 1 / prior**2 + len(ratios) / noise**2
        return Correction((sum(ratios) / noise**2) / weight, sqrt(1 / weight), len(ratios))


@dataclass(frozen=True)
class Fit:
    """Memory that is needed and there is. ``fits``: the pessimistic end fits."""

    needed: Interval
    available: float

    @property
    def fits(self) -> bool:
        """Whether even the high end leaves room."""
        return self.needed.high <= self.available


NO_REPORTS = Corrections()
CORE_BANDWIDTH = 13e9
"""Bytes/s that one core of a processor draws; measured here with one busy core."""
_SYSTEM_SHARE = {"cpu": 0.85, "jetson": 0.75, "gpu": 0.95}
"""What of the memory an engine may have: on a Jetson the system and the desktop live in the same."""


def fit(
    device: Profile, load: Workload, memory_bytes: int | None = None, corrections: Corrections = NO_REPORTS
) -> Fit:
    """Whether it fits. ``memory_bytes`` is needed where the profile does not say. Raises ``ModelsError``."""
    memory = memory_bytes if memory_bytes is not None else device.memory_bytes
    if memory <= 0:
        raise ModelsError(f"{device.name} does not say its memory; pass memory_bytes")
    belief = corrections.of(device.name, load.format, load.precision, "memory")
    needed = _spread(memory_needed(load), belief, _NOISE["memory"])
    return Fit(needed, memory * _SYSTEM_SHARE[device.kind])


def memory_needed(load: Workload) -> float:
    """Bytes, without any correction."""
    overhead = OVERHEADS[load.format]
    cache = load.kv_bytes * load.context_tokens * load.sequences
    return overhead.fixed + overhead.per_weight * load.weight_bytes + cache


def decode(
    device: Profile, load: Workload, cores: int = 1, bandwidth: float | None = None,
    corrections: Corrections = NO_REPORTS,
) -> Interval:  # fmt: skip
    """Tokens per second of one sequence. ``bandwidth``: measured, where it is known, in bytes/s."""
    belief = corrections.of(device.name, load.format, load.precision, "decode")
    return _spread(decode_bound(device, load, cores, bandwidth), belief, _NOISE["decode"])


def decode_bound(device: Profile, load: Workload, cores: int = 1, bandwidth: float | None = None) -> float:
    """Tokens per second, without any correction: what memory allows, or the processor if that is less.

    Half of the context is taken to be filled.
    """
    overhead = OVERHEADS[load.format]
    read = (load.read_bytes or load.weight_bytes) + load.kv_bytes * load.context_tokens / 2
    if bandwidth is None:
        bandwidth = device.bandwidth
        if device.kind == "cpu":
            bandwidth = min(bandwidth, max(cores, 1) * CORE_BANDWIDTH)
    by_memory = bandwidth * overhead.efficiency / read
    return min(by_memory, prefill_bound(device, load, cores))


def prefill(
    device: Profile, load: Workload, cores: int = 1, corrections: Corrections = NO_REPORTS
) -> Interval:
    """Tokens of a prompt per second."""
    belief = corrections.of(device.name, load.format, load.precision, "prefill")
    return _spread(prefill_bound(device, load, cores), belief, _NOISE["prefill"])


def prefill_bound(device: Profile, load: Workload, cores: int = 1) -> float:
    """Tokens per second, without any correction: two operations per parameter and token."""
    peak = device.operations.get(load.computes, device.operations["f32"])
    if device.kind == "cpu":
        peak *= max(cores, 1)
    return peak * OVERHEADS[load.format].compute / (2 * load.parameters)


def fitting_profiles(
    load: Workload, memory: Mapping[str, int] | None = None, corrections: Corrections = NO_REPORTS
) -> tuple[str, ...]:
    """For a manifest: profiles that run this format and precision and have the memory for it.

    Those that do not say their memory are left out unless ``memory`` does, by name.
    """
    found = []
    for name, device in sorted(PROFILES.items()):
        size = (memory or {}).get(name, device.memory_bytes)
        if size and device.can_run(load.format, load.precision) and fit(device, load, size, corrections).fits:
            found.append(name)
    return tuple(found)


def _spread(bound: float, belief: Correction, noise: float) -> Interval:
    """The bound, corrected; the next run differs by what is not known and by its own noise."""
    value = bound * exp(belief.mean)
    width = _Z * sqrt(belief.deviation**2 + noise**2)
    return Interval(value, value * exp(-width), value * exp(width))
