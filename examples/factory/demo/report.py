"""``demo-report.html``: one self-contained page with the plots, the time line and every check."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from story import Story

GOOD, BAD, INK, SOFT = "#14795a", "#b3261e", "#1d2733", "#8794a3"

STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")


def write(path: Path, story: Story, compiled: dict[str, Any], figures: dict[str, str]) -> None:
    """Write the page. ``compiled`` is the compile stage's report; ``figures`` are facts for the top table."""
    verdict = "Every check held." if story.held else "Not everything held."
    rows = "".join(f"<tr><th>{_t(name)}</th><td>{_t(value)}</td></tr>" for name, value in figures.items())
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Outpost demo</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>
<h1>Outpost: from a base model to an audited answer</h1>
<p class="lead">{_t(verdict)} Measured on this machine; the reference is the dequantized Q4_1.</p>
<table>{rows}</table>
<h2>Quality against size and speed</h2><div class="plots">{_pareto(compiled)}</div>
<h2>What happened, step by step</h2>{_timeline(story)}
<h2>Checks</h2>{_checks(story)}</html>"""
    path.write_text(page, encoding="utf-8")


def _checks(story: Story) -> str:
    rows = []
    for step in story.steps:
        css = "ok" if step.verdict == "ok" else "bad"
        rows.append(
            f"<tr><th colspan=2>{step.number}. {_t(step.title)}</th>"
            f"<th class={css}>{_t(step.verdict)}, {step.ended - step.began:.1f} s</th></tr>"
        )
        rows += [
            f"<tr><td class={'ok' if c.holds else 'bad'}>{'✓' if c.holds else '✗'}</td>"
            f"<td>{_t(c.claim)}</td><td class=seen>{_t(c.seen)}</td></tr>"
            for c in step.checks
        ]
    return f"<table>{''.join(rows)}</table>"


def _pareto(compiled: dict[str, Any]) -> str:
    """Accuracy with its interval against bytes and against tokens per second."""
    variants = [v for v in compiled["variants"] if "class_accuracy" in v["quality"]]
    axes = {
        "megabytes of the base": lambda v: v["bytes"] / 1e6,
        "decode, tokens/s": lambda v: v["speed"].get("tokens_per_second", 0.0),
    }
    plots = []
    for label, value in axes.items():
        figure, ax = plt.subplots(figsize=(5.2, 3.6))
        for variant in variants:
            metric = variant["quality"]["class_accuracy"]
            low, high = metric.get("interval") or (metric["value"], metric["value"])
            colour = GOOD if variant["pass"] else BAD
            if variant["name"] == "reference":
                colour = SOFT
            x = value(variant)
            ax.errorbar(
                x,
                metric["value"],
                yerr=[[metric["value"] - low], [high - metric["value"]]],
                fmt="o",
                color=colour,
                capsize=3,
                markersize=7,
            )
            ax.annotate(
                variant["name"], (x, metric["value"]), textcoords="offset points", xytext=(8, 5), color=colour
            )
        ax.set_xlabel(label)
        ax.set_ylabel("class accuracy with adapter")
        ax.margins(x=0.25, y=0.2)
        plots.append(_svg(figure))
    return "".join(f"<div>{plot}</div>" for plot in plots)


def _timeline(story: Story) -> str:
    """Steps as bars; what happened inside them as numbered marks, listed below."""
    steps = [step for step in story.steps if step.number >= 3]
    if not steps:
        return ""
    start = steps[0].began
    figure, ax = plt.subplots(figsize=(10, 0.55 * len(steps) + 1.2))
    listed: list[str] = []
    for row, step in enumerate(steps):
        colour = GOOD if step.verdict == "ok" else BAD
        ax.barh(row, step.ended - step.began, left=step.began - start, height=0.5, color=colour, alpha=0.25)
        ax.text(
            step.began - start, row - 0.38, f"{step.number}. {step.title}", fontsize=9, color=INK, va="bottom"
        )
        for at, what in step.events:
            listed.append(f"<li value={len(listed) + 1}>{at - start:.1f} s: {_t(what)}</li>")
            ax.plot(at - start, row, "o", color=colour, markersize=4)
            ax.annotate(
                str(len(listed)),
                (at - start, row),
                textcoords="offset points",
                xytext=(0, -12),
                fontsize=7,
                ha="center",
            )
    ax.set_yticks([])
    ax.invert_yaxis()
    ax.set_xlabel("seconds since step 3 began")
    return f"{_svg(figure)}<ol>{''.join(listed)}</ol>"


def _svg(figure: Any) -> str:
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    figure.tight_layout()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _t(value: object) -> str:
    return html.escape(str(value))
