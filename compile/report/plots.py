"""Plots of the report, as SVG text that stands inside the page."""

import io
from collections.abc import Callable, Sequence
from typing import Any

from compile.evaluate.judge import Measured, VariantResult, spread
from compile.findings import Findings

GOOD, BAD, SOFT, INK = "#1a7f5a", "#b3402e", "#7a8794", "#1d2733"
_MARKERS = "osD^vP*X"
_LINES = ("--", ":", "-.")


def pareto(findings: Findings) -> str:
    """The headline metric against size and against speed, intervals drawn."""
    unit = findings.reference.speed_unit
    return _against(
        findings, "megabytes", lambda one: (one.bytes / 1e6, one.bytes / 1e6, one.bytes / 1e6)
    ) + _against(findings, unit, lambda one: spread(one.speeds))


def learning_curve(findings: Findings) -> str:
    """Validation loss by epoch, and the metric that was watched, where there was one."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.4, 2.9))
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
        right.plot(numbers, watched, "s--", color=GOOD)
        right.set_ylabel(str(findings.curve[0].get("metric_name", "validation metric")), color=GOOD)
        right.set_ylim(0, 1)
    axes.set_xticks(numbers)
    return _svg(figure)


def _against(
    findings: Findings, label: str, horizontal: Callable[[VariantResult], tuple[float, float, float]]
) -> str:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "outpost"
    figure, axes = pyplot.subplots(figsize=(5.4, 3.7))
    everyone = (findings.reference, *findings.variants)
    ends: list[float] = []
    for number, one in enumerate(everyone):
        metric = measured(one, findings.headline)
        if metric is None:
            continue
        colour = SOFT if one is findings.reference else (GOOD if one.passed else BAD)
        low, high = metric.interval or (metric.value, metric.value)
        ends += [low, high]
        middle, left, right = horizontal(one)
        axes.errorbar(
            middle,
            metric.value,
            yerr=[[max(0.0, metric.value - low)], [max(0.0, high - metric.value)]],
            xerr=[[max(0.0, middle - left)], [max(0.0, right - middle)]],
            # A shape for each, because variants of one size lie on top of each other.
            fmt=_MARKERS[number % len(_MARKERS)],
            color=colour,
            capsize=3,
            markersize=7,
            alpha=0.85,
            label=one.name,
        )
    drawn = [one for one in findings.beside if findings.headline in one.metrics][: len(_LINES)]
    for line, beside in zip(_LINES, drawn, strict=False):
        value = beside.metrics[findings.headline].value
        ends.append(value)
        axes.axhline(value, linestyle=line, color=SOFT, linewidth=1, label=beside.name)
    axes.set_xlabel(label)
    axes.set_ylabel(findings.headline.replace("_", " "))
    _limits(axes, ends)
    axes.margins(x=0.15)
    axes.legend(loc="best", frameon=False, fontsize=8)
    return _svg(figure)


def _limits(axes: Any, ends: Sequence[float]) -> None:
    """All of what is drawn with a margin; never a tenth of a per cent blown up to the whole height."""
    if ends:
        low, high = min(ends), max(ends)
        room = max(0.08 * (high - low), 0.02 * max(abs(low), abs(high)), 1e-6)
        axes.set_ylim(low - room, high + room)


def measured(one: VariantResult, name: str) -> Measured | None:
    """A metric of a variant, if it has it."""
    return next((verdict.measured for verdict in one.verdicts if verdict.metric == name), None)


def _svg(figure: Any) -> str:
    from matplotlib import pyplot

    figure.axes[0].spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    figure.tight_layout()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    return f'<div class="plot">{text[text.index("<svg") :]}</div>'
