"""Plots of the report, as SVG text that stands inside the page."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compile.evaluate.judge import Measured, VariantResult, spread
from compile.findings import Findings
from compile.recipe.sections import LOWER_IS_BETTER

GOOD, BAD, SOFT, INK = "#1a7f5a", "#b3402e", "#7a8794", "#1d2733"
_MARKERS = "osD^vP*X"
_LINES = ("--", ":", "-.")


def pareto(findings: Findings) -> str:
    """The headline metric against size and against speed, intervals drawn; and what nothing beats in both."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "outpost"
    figure, (sizes, speeds) = pyplot.subplots(1, 2, sharey=True, figsize=(11, 3.9), layout="constrained")
    everyone = (findings.reference, *findings.variants)
    drawn = [
        (one, metric)
        for one in everyone
        if (metric := measured(one, findings.headline)) is not None and math.isfinite(metric.value)
    ]
    _draw(sizes, findings, [_Point(one, metric, (one.bytes / 1e6,) * 3, 1) for one, metric in drawn])
    _draw(speeds, findings, [_Point(one, metric, spread(one.speeds), -1) for one, metric in drawn])
    sizes.set_xlabel("megabytes")
    speeds.set_xlabel(findings.reference.speed_unit)
    sizes.set_ylabel(findings.headline.replace("_", " "))
    figure.legend(*sizes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    return _svg(figure)


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which of ``points`` (cost, loss) none beats in both, in order of cost.

    Law: every point has one of these that costs and loses no more.
    """
    best, kept = math.inf, []
    for at in sorted(range(len(points)), key=points.__getitem__):
        if points[at][1] < best:
            best = points[at][1]
            kept.append(at)
    return kept


def learning_curve(findings: Findings) -> str:
    """Validation loss by epoch, and the metric that was watched, where there was one."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.4, 2.9), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    numbers = list(range(1, len(findings.curve) + 1))
    axes.plot(numbers, [epoch["validation_loss"] for epoch in findings.curve], "o-", color=INK)
    if all(epoch.get("train_loss") is not None for epoch in findings.curve):
        axes.plot(
            numbers, [epoch["train_loss"] for epoch in findings.curve], "o:", color=SOFT, label="training"
        )
        axes.legend(frameon=False, fontsize=9)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation loss", color=INK)
    watched = [epoch["metric"] for epoch in findings.curve if epoch.get("metric") is not None]
    if len(watched) == len(numbers):
        right = axes.twinx()
        right.spines["top"].set_visible(False)
        right.plot(numbers, watched, "s--", color=GOOD)
        right.set_ylabel(str(findings.curve[0].get("metric_name", "validation metric")), color=GOOD)
        right.set_ylim(0, 1)
    axes.set_xticks(numbers)
    return _svg(figure)


@dataclass(frozen=True)
class _Point:
    """A variant in a plot. ``across``: middle, low, high sideways; ``sign``: -1 where much of it is good."""

    one: VariantResult
    metric: Measured
    across: tuple[float, float, float]
    sign: int

    @property
    def ends(self) -> tuple[float, float]:
        return self.metric.interval or (self.metric.value, self.metric.value)


def _draw(axes: Any, findings: Findings, points: Sequence[_Point]) -> None:
    lower = findings.headline in LOWER_IS_BETTER
    at = frontier([(one.sign * one.across[0], one.metric.value * (1 if lower else -1)) for one in points])
    steps = sorted((points[each].across[0], points[each].metric.value) for each in at)
    # The best that there is at most so large, or at least so fast.
    style = "steps-post" if points and points[0].sign > 0 else "steps-pre"
    axes.plot(*zip(*steps, strict=True), drawstyle=style, color=INK, linewidth=0.7, alpha=0.5)
    for number, point in enumerate(points):
        colour = SOFT if point.one is findings.reference else (GOOD if point.one.passed else BAD)
        value, (low, high) = point.metric.value, point.ends
        middle, left, right = point.across
        axes.errorbar(
            middle,
            value,
            yerr=[[max(0.0, value - low)], [max(0.0, high - value)]],
            xerr=[[max(0.0, middle - left)], [max(0.0, right - middle)]],
            fmt="none",
            ecolor=colour,
            capsize=3,
            alpha=0.85,
        )
        # A shape for each, because variants of one size lie on top of each other.
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(middle, value, marker, color=colour, markersize=7, alpha=0.85, label=point.one.name)
    beside = [one for one in findings.beside if findings.headline in one.metrics][: len(_LINES)]
    values = [one.metrics[findings.headline].value for one in beside]
    for line, one, value in zip(_LINES, beside, values, strict=False):
        axes.axhline(value, linestyle=line, color=SOFT, linewidth=1, label=one.name)
    _upwards(axes, [*(end for point in points for end in point.ends), *values], findings.headline)
    _sideways(axes, [end for point in points for end in point.across])
    axes.spines[["top", "right"]].set_visible(False)


def _upwards(axes: Any, ends: Sequence[float], headline: str) -> None:
    """All of what is drawn with a margin; never a tenth of a per cent blown up to the whole height.

    Divergences span orders of magnitude, and the reference has none: a logarithm down to the smallest.
    """
    if not ends:
        return
    low, high = min(ends), max(ends)
    positive = [end for end in ends if end > 0]
    if headline.startswith("kl_") and positive and high > 20 * min(positive):
        axes.set_yscale("symlog", linthresh=min(positive))
        axes.set_ylim(-0.3 * min(positive), 1.7 * high)
        return
    room = max(0.08 * (high - low), 0.02 * max(abs(low), abs(high)), 1e-6)
    axes.set_ylim(low - room, high + room)


def _sideways(axes: Any, ends: Sequence[float]) -> None:
    """A logarithm where the largest is more than four times the smallest: variants lie close at one end."""
    from matplotlib import ticker

    axes.margins(x=0.12)
    if ends and 0 < 4 * min(ends) < max(ends):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.xaxis.set_minor_locator(ticker.NullLocator())


def measured(one: VariantResult, name: str) -> Measured | None:
    """A metric of a variant, if it has it."""
    return next((verdict.measured for verdict in one.verdicts if verdict.metric == name), None)


def _svg(figure: Any) -> str:
    from matplotlib import pyplot

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    return f'<div class="plot">{text[text.index("<svg") :]}</div>'
