"""From measurements to a verdict: metrics with intervals, budgets, the choice of a variant. Pure.

Every budget bounds ``value - reference`` and holds at the pessimistic end of its 95 % interval. What the
data cannot decide is refused, with the number of samples that would decide it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from compile.evaluate import statistics
from compile.recipe.sections import Budget
from models.manifest import Fallback, Quality

if TYPE_CHECKING:
    import numpy.typing as npt

_ANY_GAIN = 1e-9
_BLOCK = 32
"""Tokens of a text that are drawn together: neighbours depend on each other."""


@dataclass(frozen=True)
class Measured:
    """A metric. ``ci95`` is the paired interval of ``value - reference``, ``interval`` that of ``value``."""

    reference: float | None
    value: float
    ci95: tuple[float, float] | None
    samples: int
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Verdict:
    """A metric held against its budget. ``decides`` is the number of samples that would settle it.

    ``key`` is what the budget sets, empty without one. ``demanded``: not the recipe asks for it but the
    product, so no recipe can loosen it.
    """

    metric: str
    measured: Measured
    budget: float | None = None
    passed: bool = True
    reason: str = ""
    decides: int | None = None
    key: str = ""
    demanded: bool = False

    @property
    def quality(self) -> Quality:
        """As a manifest says it."""
        return Quality(
            metric=self.metric,
            reference=self.measured.reference,
            value=self.measured.value,
            ci95=self.measured.ci95,
            budget=self.budget,
            passed=self.passed,
            samples=self.measured.samples,
        )


@dataclass(frozen=True)
class VariantResult:
    """All that is known of one variant.

    ``speeds`` are repeats in ``speed_unit``. ``settings`` is how it was made where the precision does not
    say it (tensors kept higher, calibration); ``answers`` one per test input, where there are answers.
    """

    name: str
    precision: str
    bytes: int
    verdicts: tuple[Verdict, ...]
    speeds: tuple[float, ...]
    peak_ram_bytes: int
    ledger: tuple[Fallback, ...] = ()
    answers: tuple[str, ...] = field(default=(), repr=False)
    format: str = "gguf"
    speed_unit: str = "tokens/s"
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Within every budget."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def refusal(self) -> str:
        """The budgets that were not met, with their numbers; empty when all were."""
        return "; ".join(verdict.reason for verdict in self.verdicts if not verdict.passed)


def share(right: Sequence[float], rounds: int, seed: int) -> Measured:
    """A share on its own (an accuracy, a rate, a mean of shares), with its interval."""
    values = [float(one) for one in right]
    value = sum(values) / len(values)
    return Measured(None, value, None, len(values), statistics.mean_interval(values, rounds, seed))


def paired(values: Sequence[float], others: Sequence[float], rounds: int, seed: int) -> Measured:
    """The mean of ``values`` in [0, 1] beside that of ``others`` on the same inputs."""
    return Measured(
        reference=sum(others) / len(others),
        value=sum(values) / len(values),
        ci95=statistics.paired_difference(values, others, rounds, seed),
        samples=len(values),
        interval=statistics.mean_interval(values, rounds, seed),
    )


def macro_f1(
    labels: Sequence[str],
    said: Sequence[str],
    others: Sequence[str],
    classes: Sequence[str],
    rounds: int,
    seed: int,
) -> Measured:
    """Macro-F1 of ``said`` beside that of ``others``, paired."""

    def f1(answers: Sequence[str], at: Any) -> float:
        return statistics.macro_f1(statistics.picked(labels, at), statistics.picked(answers, at), classes)

    rounds = min(rounds, 500)  # each round counts twice the classes in plain Python
    count = len(labels)
    everything = range(count)
    low, high = statistics.resample(count, lambda at: f1(said, at) - f1(others, at), rounds, seed)
    unseen = statistics.never_seen_bound(count)
    if list(said) == list(others):
        low, high = -unseen, unseen
    return Measured(
        f1(others, everything),
        f1(said, everything),
        (low, high),
        count,
        statistics.resample(count, lambda at: f1(said, at), rounds, seed),
    )


def perplexity(losses: "npt.NDArray[Any]", rounds: int, seed: int) -> Measured:
    """Of a text, from the losses of its tokens (nats), on its own."""
    import numpy as np

    each = losses.astype(np.float64)

    def over(at: Any) -> float:
        return float(np.exp(each[at].mean()))

    span = statistics.resample(len(each), over, rounds, seed, _BLOCK)
    return Measured(None, over(slice(None)), None, len(each), span)


def fidelity_metrics(
    ours: Mapping[str, "npt.NDArray[Any]"], theirs: Mapping[str, "npt.NDArray[Any]"], rounds: int, seed: int
) -> dict[str, Measured]:
    """Perplexity, KL divergence and top-token agreement on held-out text, beside the reference's."""
    import numpy as np

    fall = ours["loss"].astype(np.float64) - theirs["loss"].astype(np.float64)
    same = (ours["top"] == theirs["top"]).astype(np.float64)
    divergence = ours["kl"].astype(np.float64)
    count = len(fall)

    def over(statistic: Any) -> tuple[float, float]:
        return statistics.resample(count, statistic, rounds, seed, _BLOCK)

    def ratio(at: "npt.NDArray[Any]") -> float:
        return float(np.exp(fall[at].mean()))

    def tail(at: "npt.NDArray[Any]") -> float:
        return float(np.percentile(divergence[at], 99))

    everything = np.arange(count)
    ratio_low, ratio_high = over(ratio)
    kl = over(lambda at: float(divergence[at].mean()))
    agreement = over(lambda at: float(same[at].mean()))
    base = float(np.exp(theirs["loss"].astype(np.float64).mean()))
    p99 = over(tail)
    return {
        "perplexity": replace(
            perplexity(ours["loss"], rounds, seed),
            reference=base,
            ci95=(base * (ratio_low - 1), base * (ratio_high - 1)),
        ),
        "perplexity_ratio": Measured(1.0, ratio(everything), (ratio_low - 1, ratio_high - 1), count),
        "kl_mean": Measured(0.0, float(divergence.mean()), kl, count, kl),
        "kl_p99": Measured(0.0, tail(everything), p99, count, p99),
        "top_token_agreement": Measured(
            1.0, float(same.mean()), (agreement[0] - 1, agreement[1] - 1), count, agreement
        ),
    }


def spread(speeds: Sequence[float]) -> tuple[float, float, float]:
    """Median and quartiles of tokens per second."""
    import numpy as np

    if not speeds:  # the model says nothing at all, so nothing could be timed
        return 0.0, 0.0, 0.0
    low, median, high = np.percentile(speeds, [25, 50, 75])
    return round(float(median), 1), round(float(low), 1), round(float(high), 1)


def hold(metrics: Mapping[str, Measured], budgets: Mapping[Any, Budget]) -> tuple[Verdict, ...]:
    """Every metric against its budget, if it has one. A budget on what was not measured is not kept."""
    held = [
        _verdict(metric, measured, budgets[metric]) if metric in budgets else Verdict(metric, measured)
        for metric, measured in metrics.items()
    ]
    return (*held, *(_unmeasured(metric) for metric in budgets if metric not in metrics))


def demand(metric: str, measured: Measured) -> Verdict:
    """A gain that must be there beyond doubt, whatever the recipe says."""
    return replace(_verdict(metric, measured, Budget(min_gain=_ANY_GAIN)), demanded=True)


def broken(metric: str, reason: str) -> Verdict:
    """What must be so and is not, whatever the recipe says; there is no number to it."""
    return replace(_unmeasured(metric), reason=reason, demanded=True)


def choose(variants: Sequence[VariantResult]) -> VariantResult | None:
    """The smallest variant that is within every budget."""
    return min((one for one in variants if one.passed), key=lambda one: one.bytes, default=None)


def nearest_recipe(variants: Sequence[VariantResult]) -> dict[str, Any] | None:
    """The recipe changes under which the variant that is nearest to passing would pass; None: no recipe does.

    Nearest: the one with the fewest budgets to loosen, and of those the one that misses by the least share.
    What the product demands, and what was not measured, no budget can loosen.
    """

    def missed(one: VariantResult) -> list[Verdict]:
        return [verdict for verdict in one.verdicts if not verdict.passed]

    def distance(one: VariantResult) -> tuple[int, float, int]:
        return len(missed(one)), sum(_miss(verdict) for verdict in missed(one)), one.bytes

    hopeful = [one for one in variants if all(_can_loosen(verdict) for verdict in missed(one))]
    if not hopeful:
        return None
    nearest = min(hopeful, key=distance)
    changed = {}
    for verdict in nearest.verdicts:
        if not verdict.passed:
            end = _worst(verdict)
            need = -end if verdict.key == "max_loss" else end
            changed[verdict.metric] = {verdict.key: _just_beyond(need, verdict.key != "min_gain")}
    return {"variant": nearest.name, "budgets": changed}


def _can_loosen(verdict: Verdict) -> bool:
    """Whether a budget could be written that it meets; no ``min_gain`` is met by what may have lost."""
    return bool(verdict.key) and not verdict.demanded and (verdict.key != "min_gain" or _worst(verdict) > 0)


def _just_beyond(need: float, above: bool) -> float:
    """The positive ``need`` in three digits, moved on by one of the last, so that it is not refused again.

    Law: at most 2 % away.
    """
    digits = 2 - math.floor(math.log10(need))
    unit = 10.0**-digits
    return round(need + (unit if above else -unit), digits)


def _worst(verdict: Verdict) -> float:
    """The end of the interval that its bound is held against; without an interval the difference itself."""
    point = verdict.measured.value - (verdict.measured.reference or 0.0)
    low, high = verdict.measured.ci95 or (point, point)
    return high if verdict.key == "max_rise" else low


def _miss(verdict: Verdict) -> float:
    """By how much a verdict is over its bound, in bounds."""
    bound = verdict.budget or 0.0
    return abs(_worst(verdict) - bound) / max(abs(bound), 1e-12)


def _verdict(metric: str, measured: Measured, budget: Budget) -> Verdict:
    name, bound, rising = budget.bound
    if measured.reference is None:
        return replace(_unmeasured(metric), measured=measured)
    point = measured.value - measured.reference
    low, high = measured.ci95 if measured.ci95 is not None else (point, point)
    worst = high if rising else low
    passed = worst <= bound if rising else worst >= bound
    if passed:
        return Verdict(metric, measured, bound, key=name)
    word = f"{metric} {measured.value:.4g}, reference {measured.reference:.4g}"
    span = f"difference {point:+.4g}, 95 % interval {low:+.4g} to {high:+.4g}; {name} allows {bound:+.4g}"
    undecided = point <= bound if rising else point >= bound
    decides = statistics.samples_to_decide(measured.samples, point, worst, bound) if undecided else None
    tail = f"; undecidable with {measured.samples} samples" if undecided else ""
    tail += f", about {decides} would decide" if decides else ""
    return Verdict(metric, measured, bound, False, f"{word}: {span}{tail}", decides, name)


def _unmeasured(metric: str) -> Verdict:
    nothing = Measured(None, math.nan, None, 0)
    return Verdict(
        metric, nothing, passed=False, reason=f"{metric}: the recipe bounds it, nothing measured it"
    )
