"""Mixed precision by measurement: which tensors to keep higher so that bounds hold at least size.

``sensitivity`` measures, for each group of tensors (a kind of matrix in a layer, say), the KL divergence to
the reference when only that group is quantized, through the engine that will serve. ``plan_mixed`` then keeps
groups higher in the order of harm per byte saved, and asks for measurements of whole mixtures until it has
the shortest list that holds: harms alone do not add up exactly, so no plan rests on their sum. Planning is
pure but for the measuring function that it is given. Refuses bounds that keeping everything cannot meet.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compile.errors import Refused
from compile.evaluate import statistics
from compile.evaluate.measure import TOKENS, measure
from compile.gguf.mixture import Override, designed, is_quantized, size_of
from compile.gguf.quantize import quantize
from compile.steps import Report
from models.gguf import GgufHeader, TensorType, check_model

GroupBy = Literal["layer-kind", "layer", "kind"]
_BLOCK = 32
"""Tokens that are drawn together: neighbours depend on each other."""


@dataclass(frozen=True)
class Heldout:
    """The text to measure on: its first ``tokens`` tokens, in windows."""

    path: Path
    tokens: int
    window: int = 256


@dataclass(frozen=True)
class Candidate:
    """A group that could be kept higher. ``harm``: the mean KL when it alone is low and all else is F32."""

    name: str
    tensors: tuple[str, ...]
    low_bytes: int
    high_bytes: int
    harm: float


@dataclass(frozen=True)
class Point:
    """A mixture as measured: its file's bytes, its mean KL, and the rate of flips (another top token).

    ``worst_kl`` and ``worst_flips`` are the upper ends of their 95 % intervals.
    """

    kept: tuple[str, ...]
    bytes: int
    kl: float
    worst_kl: float
    flips: float
    worst_flips: float

    def __str__(self) -> str:
        return (
            f"{self.bytes / 1e6:.1f} MB, KL {self.kl:.3g} (up to {self.worst_kl:.3g}), "
            f"{self.flips:.2%} flips (up to {self.worst_flips:.2%})"
        )


@dataclass(frozen=True)
class Limits:
    """What a mixture may lose at the upper ends of its intervals; None bounds nothing."""

    kl: float | None = None
    flips: float | None = None

    def hold(self, point: Point) -> bool:
        """Whether the mixture is within both."""
        within_kl = self.kl is None or point.worst_kl <= self.kl
        return within_kl and (self.flips is None or point.worst_flips <= self.flips)

    def __str__(self) -> str:
        named = [] if self.kl is None else [f"a KL of {self.kl:g}"]
        return " and ".join(named + ([] if self.flips is None else [f"{self.flips:.4g} flips"]))


@dataclass(frozen=True)
class Plan:
    """The overrides that hold the budget, and every mixture that was measured on the way, smallest first."""

    overrides: tuple[Override, ...]
    point: Point
    curve: tuple[Point, ...]


def plan_mixed(
    candidates: Sequence[Candidate],
    high: TensorType,
    limits: Limits,
    measured: Callable[[frozenset[str]], Point],
) -> Plan:
    """Keep the fewest groups at ``high``, those first that save most KL per byte, so that ``limits`` hold.

    ``measured(kept)`` measures a mixture. Asks for at most ``2 + log2(n + 1)`` mixtures. Law: the point of
    the plan is within the limits, and where more kept groups never measure worse, no shorter list of the
    same order is. Raises ``Refused``.
    """
    order = sorted(candidates, key=lambda one: (-one.harm / max(one.high_bytes - one.low_bytes, 1), one.name))
    seen: dict[int, Point] = {}

    def at(count: int) -> Point:
        if count not in seen:
            seen[count] = measured(frozenset(one.name for one in order[:count]))
        return seen[count]

    if not limits.hold(best := at(len(order))):
        raise Refused(
            f"with every group at {high.name}: {best}; the budget is {limits}: "
            f"no mixture with {high.name} holds it"
        )
    low, enough = 0, len(order)
    while low < enough:
        middle = (low + enough) // 2
        if limits.hold(at(middle)):
            enough = middle
        else:
            low = middle + 1
    kept = order[:enough]
    overrides = tuple(Override(name, high) for one in kept for name in one.tensors)
    return Plan(overrides, at(enough), tuple(sorted(seen.values(), key=lambda point: point.bytes)))


def groups_of(header: GgufHeader, by: GroupBy) -> dict[str, tuple[str, ...]]:
    """The quantized tensors of a model in groups; embeddings and output are groups of their own."""
    groups: dict[str, list[str]] = {}
    for tensor in header.tensors:
        if is_quantized(tensor):
            found = re.fullmatch(r"blk\.(\d+)\.(.+)\.weight", tensor.name)
            names = {
                "layer-kind": f"blk.{found[1]}.{found[2]}",
                "layer": f"blk.{found[1]}",
                "kind": found[2],
            } if found else {by: tensor.name.removesuffix(".weight")}  # fmt: skip
            groups.setdefault(names[by], []).append(tensor.name)
    return {name: tuple(tensors) for name, tensors in groups.items()}


def sensitivity(
    reference: Path,
    against: Path,
    kind: str,
    high: TensorType,
    text: Heldout,
    folder: Path,
    threads: int,
    by: GroupBy = "layer-kind",
    importance: Path | None = None,
    report: Report = lambda done, note: None,
) -> tuple[Candidate, ...]:
    """Measure every group that ``high`` would hold more exactly than a ``kind`` file does.

    ``against`` is the folder of the reference's own measurement on ``text`` (``measure_reference``);
    ``folder`` is for files on the way. Raises ``ToolFailed`` and what ``quantize`` raises.
    """
    header = check_model(reference)
    plain = {tensor.name: tensor for tensor in header.tensors}
    low = designed(header, kind, importance is not None)
    everything = tuple(Override(name, TensorType.F32) for name in low)
    result = []
    groups = groups_of(header, by)
    for number, (name, whole) in enumerate(groups.items()):
        sizes = {one: (size_of(plain[one], low[one]), size_of(plain[one], high)) for one in whole}
        tensors = tuple(one for one, (now, then) in sizes.items() if now < then)
        if not tensors:  # the design holds them as exactly already
            continue
        low_bytes, high_bytes = (sum(sizes[one][at] for one in tensors) for at in (0, 1))
        chosen = frozenset(tensors)
        overrides = [one for one in everything if one.tensor not in chosen]
        overrides += [Override(one, low[one]) for one in tensors]
        point = _measured(
            reference, against, kind, text, folder, threads, importance, overrides,
            _nth(report, number, len(groups), f"group {name}"), name,
        )  # fmt: skip
        result.append(Candidate(name, tensors, low_bytes, high_bytes, point.kl))
    return tuple(result)


def measure_reference(reference: Path, text: Heldout, folder: Path, threads: int, report: Report) -> None:
    """The log-probabilities of the reference on ``text``, which everything is held against."""
    folder.mkdir(exist_ok=True)
    measure(_job(reference, text, folder, None, threads), report)


def measure_mixture(
    reference: Path,
    against: Path,
    kind: str,
    high: TensorType,
    candidates: Sequence[Candidate],
    text: Heldout,
    folder: Path,
    threads: int,
    importance: Path | None = None,
    report: Report = lambda done, note: None,
) -> Callable[[frozenset[str]], Point]:
    """The measuring function of ``plan_mixed``: quantizes a mixture, measures it, deletes it."""
    most, calls = 2 + math.ceil(math.log2(len(candidates) + 1)), itertools.count()

    def one(kept: frozenset[str]) -> Point:
        number = next(calls)
        names = [name for group in candidates if group.name in kept for name in group.tensors]
        overrides = [Override(name, high) for name in names]
        return _measured(
            reference, against, kind, text, folder, threads, importance, overrides,
            _nth(report, number, most, f"mixture {number + 1}"), *sorted(kept),
        )  # fmt: skip

    return one


def _nth(report: Report, number: int, count: int, what: str) -> Report:
    """The progress of one of ``count`` in that of all."""
    return lambda done, note: report(min(1.0, (number + done) / count), f"{what}: {note}")


def _measured(
    reference: Path,
    against: Path,
    kind: str,
    text: Heldout,
    folder: Path,
    threads: int,
    importance: Path | None,
    overrides: Iterable[Override],
    report: Report,
    *kept: str,
) -> Point:
    import numpy as np

    model, results = folder / "mixture.gguf", folder / "mixture"
    results.mkdir(exist_ok=True)
    try:
        quantize(
            reference, model, kind, threads, importance, tuple(overrides),
            lambda done, note: report(done / 2, note),
        )  # fmt: skip
        measure(_job(model, text, results, against, threads), lambda done, note: report(0.5 + done / 2, note))
        ours, theirs = np.load(results / TOKENS), np.load(against / TOKENS)
        kl, flips = ours["kl"].astype(np.float64), (ours["top"] != theirs["top"]).astype(np.float64)
        worst_kl, worst_flips = (statistics.mean_interval(one, 1000, 0, _BLOCK)[1] for one in (kl, flips))
        return Point(kept, model.stat().st_size, float(kl.mean()), worst_kl, float(flips.mean()), worst_flips)
    finally:
        model.unlink(missing_ok=True)


def _job(model: Path, text: Heldout, folder: Path, against: Path | None, threads: int) -> dict[str, Any]:
    return {
        "model": str(model),
        "adapter": None,
        "folder": str(folder),
        "threads": threads,
        "text": {"path": str(text.path), "tokens": text.tokens, "window": text.window},
        "against": None if against is None else str(against),
    }
