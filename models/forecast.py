"""Whether a variant will fit a device, and how fast it will be there, before it is shipped.

Owns the two bounds (memory is weights, KV cache and a measured overhead; decoding reads every weight once per
token, so bandwidth bounds it, and prefill computes, so the processor does), what figures of devices do to
them, and the verdict whether a release fits a machine. Every forecast is a 95 % interval: without one it
would be a promise. Pure.

Roofline model: Williams, Waterman, Patterson, CACM 52(4), 2009. The correction is a median of logarithms of
observed over predicted; its spread is 1.4826 x the median absolute deviation (Hampel, JASA 69, 1974).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import exp, isclose, log, sqrt
from statistics import median
from types import MappingProxyType
from typing import Literal

from models.errors import ModelsError
from models.manifest import Kind, Manifest
from models.profiles import PROFILES, Machine, Profile, profile

_Z = 1.96

Quantity = Literal["decode", "prefill", "items", "memory"]


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

_SPREAD: Mapping[Quantity, float] = MappingProxyType(
    {"decode": 0.40, "prefill": 0.55, "items": 0.55, "memory": 0.12}
)
"""Standard deviation of log(observed / predicted) between devices, models and versions of one kind."""
_NOISE: Mapping[Quantity, float] = MappingProxyType(
    {"decode": 0.10, "prefill": 0.15, "items": 0.15, "memory": 0.03}
)
"""The same between two runs on one device."""
_SAME = 0.01
"""Formats count a model's parameters differently, by less than this share: with or without positions."""
_LIKE = 4
"""How many times larger or smaller another model may be that still says something: what is fixed weighs more
in a smaller one."""
_MAD = 1.4826
"""Standard deviations in a median absolute deviation, of what is normal."""


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

    @property
    def generates(self) -> bool:
        """Whether it writes text, token by token."""
        return self.kv_bytes > 0


@dataclass(frozen=True)
class Measured:
    """What one device measured of one variant, run as ``load`` says on ``cores``; None: not measured.

    ``decode`` and ``prefill`` in tokens/s, ``items`` in texts or pictures per second, ``memory`` in bytes.
    """

    device: str
    profile: str
    cores: int
    load: Workload
    decode: float | None = None
    prefill: float | None = None
    items: float | None = None
    memory: float | None = None

    def __post_init__(self) -> None:
        profile(self.profile)
        for observed in (self.decode, self.prefill, self.items, self.memory):
            if observed is not None and not 0 < observed < float("inf"):
                raise ModelsError(f"a figure is above 0 and finite: {self}")

    def ratios(self) -> dict[Quantity, float]:
        """log(observed / predicted) of what was measured. Nothing predicts ``items``; 1 stands for it."""
        device = PROFILES[self.profile]
        predicted: dict[Quantity, tuple[float | None, float]] = {
            "decode": (self.decode, decode_bound(device, self.load, self.cores)),
            "prefill": (self.prefill, prefill_bound(device, self.load, self.cores)),
            "items": (self.items, 1.0),
            "memory": (self.memory, memory_needed(self.load)),
        }
        return {name: log(seen / told) for name, (seen, told) in predicted.items() if seen is not None}


@dataclass(frozen=True)
class Correction:
    """The belief about log(observed / predicted): normal, with this mean and deviation.

    ``noise`` is what two runs differ by. ``devices`` have measured it; ``own``: this very model, not another
    of its format and precision.
    """

    mean: float
    deviation: float
    noise: float
    devices: int = 0
    own: bool = False

    @property
    def basis(self) -> str:
        """Where it comes from, for people."""
        if not self.devices:
            return "data sheet"
        count = f"{self.devices} device" + ("s" if self.devices > 1 else "")
        return f"measured on {count}" if self.own else f"other models measured on {count}"


class Corrections:
    """Beliefs by profile, format, precision and quantity, from what devices measured. Immutable.

    Each device says one thing, the median of its figures; the correction is the median over devices, so that
    of three or more one may say anything. Figures of the very model (known by its number of parameters) count
    alone where there are any; else those of other models of the same format, precision and like size, which
    say less.

    Laws: without figures nothing changes; where all devices agree on a model, its corrected forecast is what
    they measured; the order of figures does not matter.
    """

    def __init__(self, measured: Iterable[Measured] = ()) -> None:
        self._seen: dict[tuple[str, str, str, Quantity], list[tuple[int, str, float]]] = {}
        self._cores: dict[str, list[int]] = {}
        self.measured = tuple(measured)
        for one in self.measured:
            self._cores.setdefault(one.profile, []).append(one.cores)
            for quantity, ratio in one.ratios().items():
                key = (one.profile, one.load.format, one.load.precision.lower(), quantity)
                self._seen.setdefault(key, []).append((one.load.parameters, one.device, ratio))

    @property
    def cores(self) -> dict[str, int]:
        """By profile that was measured: the cores of the device in the middle."""
        return {name: sorted(cores)[len(cores) // 2] for name, cores in sorted(self._cores.items())}

    def of(self, profile: str, load: Workload, quantity: Quantity) -> Correction:
        """The belief for one variant; without figures, that the bounds are right within ``_SPREAD``."""
        seen = self._seen.get((profile, load.format, load.precision.lower(), quantity), [])
        own = [one for one in seen if isclose(one[0], load.parameters, rel_tol=_SAME)]
        like = [one for one in seen if 1 / _LIKE <= one[0] / load.parameters <= _LIKE]
        by_device: dict[str, list[float]] = {}
        for _, device, ratio in own or like:
            by_device.setdefault(device, []).append(ratio)
        prior, noise = _SPREAD[quantity], _NOISE[quantity]
        if not by_device:
            return Correction(0.0, prior, noise)
        ratios = [median(each) for each in by_device.values()]
        middle = median(ratios)
        apart = _MAD * median(abs(ratio - middle) for ratio in ratios)
        noise = max(noise if own else prior / 2, apart)
        deviation = 1 / sqrt(1 / prior**2 + len(ratios) / noise**2)
        return Correction(middle, deviation, noise, len(ratios), bool(own))


@dataclass(frozen=True)
class Fit:
    """Memory that is needed and there is. ``fits``: the pessimistic end fits."""

    needed: Interval
    available: float

    @property
    def fits(self) -> bool:
        """Whether even the high end leaves room."""
        return self.needed.high <= self.available


UNCORRECTED = Corrections()
CORE_BANDWIDTH = 13e9
"""Bytes/s that one core of a processor draws; measured here with one busy core."""
_SYSTEM_SHARE = {"cpu": 0.85, "jetson": 0.75, "gpu": 0.95}
"""What of the memory an engine may have: on a Jetson the system and the desktop live in the same."""


def fit(
    device: Profile, load: Workload, memory_bytes: int | None = None, corrections: Corrections = UNCORRECTED
) -> Fit:
    """Whether it fits. ``memory_bytes`` is needed where the profile does not say. Raises ``ModelsError``."""
    memory = memory_bytes if memory_bytes is not None else device.memory_bytes
    if memory <= 0:
        raise ModelsError(f"{device.name} does not say its memory; pass memory_bytes")
    needed = _spread(memory_needed(load), corrections.of(device.name, load, "memory"))
    return Fit(needed, memory * _SYSTEM_SHARE[device.kind])


def memory_needed(load: Workload) -> float:
    """Bytes, without any correction."""
    overhead = OVERHEADS[load.format]
    cache = load.kv_bytes * load.context_tokens * load.sequences
    return overhead.fixed + overhead.per_weight * load.weight_bytes + cache


def decode(
    device: Profile, load: Workload, cores: int = 1, bandwidth: float | None = None,
    corrections: Corrections = UNCORRECTED,
) -> Interval:  # fmt: skip
    """Tokens per second of one sequence. ``bandwidth``: measured, where it is known, in bytes/s."""
    belief = corrections.of(device.name, load, "decode")
    return _spread(decode_bound(device, load, cores, bandwidth), belief)


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
    device: Profile, load: Workload, cores: int = 1, corrections: Corrections = UNCORRECTED
) -> Interval:
    """Tokens of a prompt per second."""
    return _spread(prefill_bound(device, load, cores), corrections.of(device.name, load, "prefill"))


def prefill_bound(device: Profile, load: Workload, cores: int = 1) -> float:
    """Tokens per second, without any correction: two operations per parameter and token."""
    peak = device.operations.get(load.computes, device.operations["f32"])
    if device.kind == "cpu":
        peak *= max(cores, 1)
    return peak * OVERHEADS[load.format].compute / (2 * load.parameters)


def items(device: Profile, load: Workload, corrections: Corrections = UNCORRECTED) -> Interval | None:
    """Texts or pictures per second; None unless a device has measured this model.

    No data sheet says how much work one input is.
    """
    belief = corrections.of(device.name, load, "items")
    return _spread(1.0, belief) if belief.own else None


@dataclass(frozen=True)
class Forecast:
    """What a variant will be on a device. ``fits``: None where the profile does not say its memory.

    ``decode`` and ``prefill`` (tokens/s) are of what generates text, ``items`` (per second) of the rest.
    """

    profile: str
    cores: int
    memory: Interval
    fits: bool | None
    decode: Interval | None
    prefill: Interval | None
    items: Interval | None
    speed_basis: str
    memory_basis: str


def forecast(
    device: Profile, load: Workload, cores: int = 1, corrections: Corrections = UNCORRECTED
) -> Forecast:
    """All that can be said of a variant on a device."""
    memory = corrections.of(device.name, load, "memory")
    speed = corrections.of(device.name, load, "decode" if load.generates else "items")
    generates = load.generates
    return Forecast(
        profile=device.name,
        cores=cores,
        memory=_spread(memory_needed(load), memory),
        fits=fit(device, load, corrections=corrections).fits if device.memory_bytes else None,
        decode=decode(device, load, cores, corrections=corrections) if generates else None,
        prefill=prefill(device, load, cores, corrections=corrections) if generates else None,
        items=None if generates else items(device, load, corrections),
        speed_basis=speed.basis if generates or speed.own else "not measured",
        memory_basis=memory.basis,
    )


def fitting_profiles(load: Workload, corrections: Corrections = UNCORRECTED) -> tuple[str, ...]:
    """For a manifest: profiles that run this format and precision and have the memory for it.

    A processor's memory is its machine's, which compares for itself (``unfit``): processors are listed when
    they run it.
    """
    return tuple(
        name
        for name, device in sorted(PROFILES.items())
        if device.can_run(load.format, load.precision)
        and (not device.memory_bytes or fit(device, load, corrections=corrections).fits)
    )


def unfit(manifest: Manifest, machine: Machine) -> str | None:
    """Why a release does not fit a machine, with numbers; None when it may, or nobody can tell.

    Refused is what its maker did not make for such a device, and a model of which even the low end of the
    forecast exceeds the memory.
    """
    device = PROFILES.get(machine.profile or "")
    if device is None:
        return None
    name = f"{manifest.name} {manifest.version}"
    if manifest.profiles and not device.runs_what_is_for(manifest.profiles):
        return (
            f"{name} is made for {', '.join(manifest.profiles)}; this device is {device.name} with "
            f"{machine.memory_bytes / 1e9:.1f} GB of memory"
        )
    size = sum(file.size for file in manifest.files)
    if manifest.kind is not Kind.MODEL or manifest.format not in OVERHEADS or not size:
        return None
    load = Workload(manifest.format, manifest.precision, parameters=1, weight_bytes=size)
    verdict = fit(device, load, machine.memory_bytes)
    if verdict.needed.low <= verdict.available:
        return None
    return (
        f"{name} needs at least {verdict.needed.low / 1e9:.1f} GB of memory; this device ({device.name}) has "
        f"{machine.memory_bytes / 1e9:.1f} GB, of which a model may take {verdict.available / 1e9:.1f} GB"
    )


def _spread(bound: float, belief: Correction) -> Interval:
    """The bound, corrected; the next run differs by what is not known and by its own noise."""
    value = bound * exp(belief.mean)
    width = _Z * sqrt(belief.deviation**2 + belief.noise**2)
    return Interval(value, value * exp(-width), value * exp(width))
