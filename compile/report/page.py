"""``report.json`` and ``report.html``: what was measured, what was decided, and how to get it again.

The page stands alone: plots are SVG inside it, and it loads nothing.
"""

import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from compile.evaluate import judge
from compile.evaluate.judge import Measured, VariantResult
from compile.recipe.schema import Recipe
from compile.tickets import FIELDS, Ticket, read_answer, score
from models.store import write_durably

_GOOD, _BAD, _SOFT, _INK = "#1a7f5a", "#b3402e", "#7a8794", "#1d2733"
_SHOWN = (
    "class_accuracy",
    "class_macro_f1",
    "severity_accuracy",
    "component_match",
    "exact_match",
    "valid_json",
    "answer_agreement",
    "adapter_effect",
    "perplexity",
    "perplexity_ratio",
    "kl_mean",
    "kl_p99",
    "top_token_agreement",
    "fallback_tensors",
)


@dataclass(frozen=True)
class Findings:
    """Everything that a report says. ``alone`` are the answers of each base without the adapter."""

    recipe: Recipe
    command: str
    device: str
    sizes: Mapping[str, int]
    curve: Sequence[Mapping[str, Any]]
    tested: tuple[Ticket, ...]
    before: tuple[Ticket, ...]
    reference: VariantResult
    variants: tuple[VariantResult, ...]
    chosen: str | None
    nearest: Mapping[str, Any] | None
    alone: Mapping[str, tuple[str, ...]]
    base_perplexity: float
    baselines: Mapping[str, Mapping[str, Measured]]
    lineage: Mapping[str, Any] = field(repr=False)


def write_report(out: Path, findings: Findings, releases: Mapping[str, Path]) -> None:
    """Write both reports into ``out``."""
    data = json.dumps(as_json(findings, releases), indent=1, ensure_ascii=False, sort_keys=True)
    write_durably(out / "report.json", data.encode())
    write_durably(out / "report.html", _page(findings, releases).encode())


def as_json(findings: Findings, releases: Mapping[str, Path]) -> dict[str, Any]:
    """``report.json`` (SURFACE): variants, the chosen one, lineage; and what stands beside them."""
    return {
        "variants": [_variant_json(one) for one in (findings.reference, *findings.variants)],
        "chosen": findings.chosen,
        "lineage": dict(findings.lineage),
        "reference": findings.lineage["reference"],
        "device": findings.device,
        "rows": dict(findings.sizes)
        | {"tested": len(findings.tested), "tested_before": len(findings.before)},
        "baselines": {
            name: {metric: _baseline_json(one) for metric, one in metrics.items()}
            for name, metrics in findings.baselines.items()
        },
        "learning_curve": [dict(epoch) for epoch in findings.curve],
        "tickets": [
            {"text": row.text, "expected": row.answer, "answer": answer}
            for row, answer in zip(findings.tested, findings.reference.answers, strict=True)
        ],
        "nearest_recipe": dict(findings.nearest) if findings.nearest else None,
        "releases": {name: folder.name for name, folder in releases.items()},
        "command": findings.command,
    }


def _variant_json(one: VariantResult) -> dict[str, Any]:
    median, low, high = judge.spread(one.speeds)
    return {
        "name": one.name,
        "format": "gguf",
        "precision": one.precision,
        "bytes": one.bytes,
        "quality": {
            verdict.metric: {
                "reference": verdict.measured.reference,
                "value": verdict.measured.value,
                "ci95": verdict.measured.ci95,
                "interval": verdict.measured.interval,
                "budget": verdict.budget,
                "samples": verdict.measured.samples,
                "pass": verdict.passed,
            }
            for verdict in one.verdicts
        },
        "speed": {"tokens_per_second": median, "spread": [low, high]},
        "peak_ram_bytes": one.peak_ram_bytes,
        "fallback_ledger": [entry.model_dump() for entry in one.ledger],
        "pass": one.passed,
        "refusal": one.refusal,
        "is_reference": one.name == "reference",
    }


def _baseline_json(one: Measured) -> dict[str, Any]:
    return {"value": one.value, "interval": one.interval, "samples": one.samples}


def _page(findings: Findings, releases: Mapping[str, Path]) -> str:
    recipe = findings.recipe
    title = f"{recipe.release.name} {recipe.release.version} on {recipe.base.name}"
    style = files("compile.report").joinpath("report.css").read_text(encoding="utf-8")
    sections = [
        _summary(findings),
        "<h2>Quality against size and speed</h2>",
        f'<div class="plots">{_pareto(findings)}</div>',
        '<p class="note">Class accuracy with the adapter on the test split; bars are 95 % bootstrap '
        "intervals. The dashed line is TF-IDF with logistic regression, the dotted one the majority class. "
        "Green is within its budgets, red is refused, grey is the reference.</p>",
        "<h2>Before and after fine-tuning, beside the baselines</h2>",
        _before_after(findings),
        "<h2>Variants</h2>",
        _variants(findings),
        _refusals(findings),
        "<h2>Learning curve</h2>",
        _curve(findings),
        "<h2>Worst answers, side by side</h2>",
        _worst(findings),
        "<h2>Fallback ledger</h2>",
        _ledger(findings),
        "<h2>Lineage</h2>",
        _lineage(findings),
        "<h2>How to get this again</h2>",
        f"<pre>{_t(findings.command)}</pre>",
        _releases(releases),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_t(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>'
        f"<body><h1>{_t(title)}</h1>{''.join(sections)}</body></html>"
    )


def _summary(findings: Findings) -> str:
    reference = f"Reference: {findings.lineage['reference']}."
    if findings.chosen is None:
        return (
            f'<p class="verdict bad">Refused: no variant is within its budgets.</p><p>{_t(reference)}</p>'
            f"<p>Nearest recipe that would pass: <code>{_t(json.dumps(findings.nearest))}</code></p>"
        )
    chosen = next(one for one in findings.variants if one.name == findings.chosen)
    median, low, high = judge.spread(chosen.speeds)
    accuracy = _metric(chosen, "class_accuracy")
    cards = (
        ("chosen", f"{chosen.name} ({chosen.precision})"),
        ("size", f"{chosen.bytes / 1e6:.0f} MB, {chosen.bytes / findings.reference.bytes:.2f} of F32"),
        ("class accuracy", f"{accuracy.value:.1%} {_span(accuracy.interval, percent=True)}"),
        ("decode", f"{median:.0f} tokens/s ({low:.0f} to {high:.0f})"),
        ("peak RAM", f"{chosen.peak_ram_bytes / 1e6:.0f} MB"),
    )
    tiles = "".join(f"<div><span>{_t(name)}</span><b>{_t(value)}</b></div>" for name, value in cards)
    return (
        f'<p class="verdict ok">Within every budget at the pessimistic end of the 95 % interval.</p>'
        f'<div class="cards">{tiles}</div><p class="note">{_t(reference)} Measured on {_t(findings.device)}, '
        "through the engine that serves.</p>"
    )


def _before_after(findings: Findings) -> str:
    """Class, severity and format: the base alone, the adapter, and both baselines."""
    rounds, seed = findings.recipe.evaluate.bootstrap, findings.recipe.data.seed
    alone = [score(row, said) for row, said in zip(findings.before, findings.alone["reference"], strict=True)]
    rows: list[tuple[str, Measured, Measured, Measured | None, int]] = [
        (
            name,
            metrics["class_accuracy"],
            metrics["severity_accuracy"],
            None,
            metrics["class_accuracy"].samples,
        )
        for name, metrics in findings.baselines.items()
    ]
    rows.append(
        (
            "base alone, before fine-tuning",
            judge.label_accuracy([one.class_right for one in alone], rounds, seed),
            judge.label_accuracy([one.severity_right for one in alone], rounds, seed),
            judge.label_accuracy([one.valid for one in alone], rounds, seed),
            len(alone),
        )
    )
    for one in (findings.reference, *findings.variants):
        rows.append(
            (
                f"{one.name} + adapter",
                _metric(one, "class_accuracy"),
                _metric(one, "severity_accuracy"),
                _metric(one, "valid_json"),
                len(findings.tested),
            )
        )
    body = "".join(
        f"<tr><th>{_t(name)}</th>{_bar(a)}{_bar(b)}{_bar(c)}<td class=num>{count}</td></tr>"
        for name, a, b, c, count in rows
    )
    sizes = findings.sizes
    return (
        "<table><tr><th></th><th>class accuracy</th><th>severity accuracy</th><th>valid JSON</th>"
        f"<th>tickets</th></tr>{body}</table>"
        f'<p class="note">{sizes["train"]} tickets for training, {sizes["validation"]} for validation, '
        f"{sizes['test']} for testing, stratified by class and language, no near-duplicates across. "
        f"Before fine-tuning was measured on {len(findings.before)} of them. The base has a perplexity of "
        f"{findings.base_perplexity:.1f} on held-out news text.</p>"
    )


def _bar(one: Measured | None) -> str:
    if one is None:
        return "<td></td>"
    span = _span(one.interval, percent=True)
    return (
        f'<td class="bar"><i style="width:{100 * one.value:.1f}%"></i>'
        f"<b>{one.value:.1%}</b> <small>{span}</small></td>"
    )


def _variants(findings: Findings) -> str:
    everyone = (findings.reference, *findings.variants)
    head = "".join(
        f"<th>{_t(one.name)}<br><small>{_t(one.precision)}, {one.bytes / 1e6:.0f} MB</small></th>"
        for one in everyone
    )
    rows = [
        _row("verdict", ["reference", *("pass" if one.passed else "REFUSED" for one in findings.variants)])
    ]
    rows.append(_row("decode, tokens/s", [_speed(one) for one in everyone]))
    rows.append(_row("peak RAM", [f"{one.peak_ram_bytes / 1e6:.0f} MB" for one in everyone]))
    for metric in _SHOWN:
        cells = []
        for one in everyone:
            verdict = next((verdict for verdict in one.verdicts if verdict.metric == metric), None)
            if verdict is None:
                perplexity = metric == "perplexity"
                cells.append(f"<td>{findings.base_perplexity:.2f}</td>" if perplexity else "<td>·</td>")
                continue
            css = "" if verdict.budget is None else ("ok" if verdict.passed else "bad")
            difference = (
                "" if one.name == "reference" and metric != "adapter_effect" else _difference(verdict)
            )
            cells.append(f'<td class="{css}">{verdict.measured.value:.4g}{difference}</td>')
        rows.append(f"<tr><th>{_t(metric.replace('_', ' '))}</th>{''.join(cells)}</tr>")
    return (
        f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"
        '<p class="note">Below each value: the paired 95 % interval of its difference to the reference, and '
        "the bound where the recipe has one. The adapter's effect is class accuracy against the same base "
        "without it.</p>"
    )


def _difference(verdict: judge.Verdict) -> str:
    if verdict.measured.ci95 is None:
        interval = ""
    else:
        low, high = verdict.measured.ci95
        interval = f"{low:+.3g} to {high:+.3g}"
    bound = "" if verdict.budget is None else f" (bound {verdict.budget:+.3g})"
    return f"<br><small>{interval}{bound}</small>"


def _row(name: str, cells: Sequence[str]) -> str:
    return f"<tr><th>{_t(name)}</th>{''.join(f'<td>{_t(cell)}</td>' for cell in cells)}</tr>"


def _refusals(findings: Findings) -> str:
    lines = "".join(
        f"<li><b>{_t(one.name)}</b>: {_t(one.refusal)}</li>" for one in findings.variants if not one.passed
    )
    return f'<h3>Refused</h3><ul class="bad">{lines}</ul>' if lines else ""


def _worst(findings: Findings) -> str:
    """Answers that changed with precision first, then those that are wrong in most."""
    everyone = (findings.reference, *findings.variants)
    ranked = []
    for at, row in enumerate(findings.tested):
        answers = [one.answers[at] for one in everyone]
        wrong = sum(not score(row, answer).class_right for answer in answers)
        ranked.append((len(set(answers)) > 1, wrong, at))
    ranked.sort(key=lambda item: (-item[0], -item[1], item[2]))
    rows = []
    for changed, wrong, at in ranked[:12]:
        if not changed and not wrong:
            break
        row = findings.tested[at]
        cells = "".join(_answer(row, one.answers[at]) for one in everyone)
        wanted = "<br>".join(map(_t, (row.label, row.severity, row.component)))
        rows.append(f"<tr><td>{_t(row.text)}</td><td>{wanted}</td>{cells}</tr>")
    head = "".join(f"<th>{_t(one.name)}</th>" for one in everyone)
    return f"<table class=wide><tr><th>ticket</th><th>expected</th>{head}</tr>{''.join(rows)}</table>"


def _answer(row: Ticket, answer: str) -> str:
    got, read = score(row, answer), read_answer(answer)
    if read is None:
        return f'<td class="bad"><small>not a valid answer:</small> <code>{_t(answer)}</code></td>'
    rights = (got.class_right, got.severity_right, got.component_right)
    lines = "<br>".join(
        f"<span>{_t(read[name])}</span>" if right else f"<mark>{_t(read[name])}</mark>"
        for name, right in zip(FIELDS, rights, strict=True)
    )
    return f'<td class="{"ok" if got.class_right else "bad"}">{lines}</td>'


def _ledger(findings: Findings) -> str:
    parts = []
    for one in findings.variants:
        if not one.ledger:
            parts.append(f"<p><b>{_t(one.name)}</b>: every matrix has the precision that was asked for.</p>")
            continue
        items = "".join(
            f"<li><code>{_t(entry.tensor)}</code> asked {_t(entry.asked)}, got {_t(entry.got)}</li>"
            for entry in one.ledger[:20]
        )
        more = f"<li>and {len(one.ledger) - 20} more</li>" if len(one.ledger) > 20 else ""
        parts.append(f"<p><b>{_t(one.name)}</b>: {len(one.ledger)} fell back</p><ul>{items}{more}</ul>")
    return "".join(parts)


def _lineage(findings: Findings) -> str:
    rows = "".join(
        f"<tr><th>{_t(name.replace('_', ' '))}</th><td><code>{_t(_flat(value))}</code></td></tr>"
        for name, value in findings.lineage.items()
    )
    return f"<table>{rows}</table>"


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in sorted(value.items()))
    return str(value)


def _releases(releases: Mapping[str, Path]) -> str:
    if not releases:
        return "<p>Nothing was released.</p>"
    names = "".join(f"<li><code>{_t(folder.name)}</code></li>" for folder in releases.values())
    return f"<p>Releases in this folder:</p><ul>{names}</ul>"


def _pareto(findings: Findings) -> str:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "outpost"
    plots = []
    everyone = (findings.reference, *findings.variants)
    # A shape for each, because variants of one size lie on top of each other.
    markers = {one.name: "osD^vP*X"[number % 8] for number, one in enumerate(everyone)}
    for label, horizontal in (
        ("base, megabytes", lambda one: (one.bytes / 1e6, one.bytes / 1e6, one.bytes / 1e6)),
        ("decode with adapter, tokens/s", lambda one: judge.spread(one.speeds)),
    ):
        figure, axes = pyplot.subplots(figsize=(5.4, 3.7))
        for name, metrics in findings.baselines.items():
            line = "--" if "TF-IDF" in name else ":"
            axes.axhline(metrics["class_accuracy"].value, linestyle=line, color=_SOFT, linewidth=1)
        for one in everyone:
            colour = _SOFT if one.name == "reference" else (_GOOD if one.passed else _BAD)
            accuracy = _metric(one, "class_accuracy")
            low, high = accuracy.interval or (accuracy.value, accuracy.value)
            middle, left, right = horizontal(one)
            axes.errorbar(
                middle,
                accuracy.value,
                yerr=[[max(0.0, accuracy.value - low)], [max(0.0, high - accuracy.value)]],
                xerr=[[max(0.0, middle - left)], [max(0.0, right - middle)]],
                fmt=markers[one.name],
                color=colour,
                capsize=3,
                markersize=7,
                alpha=0.85,
                label=one.name,
            )
        axes.set_xlabel(label)
        axes.set_ylabel("class accuracy")
        axes.set_ylim(0, 1)
        axes.margins(x=0.15)
        axes.legend(loc="lower right", frameon=False, fontsize=9)
        plots.append(_svg(figure))
    return "".join(plots)


def _curve(findings: Findings) -> str:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.4, 2.9))
    numbers = [epoch["number"] for epoch in findings.curve]
    axes.plot(numbers, [epoch["validation_loss"] for epoch in findings.curve], "o-", color=_INK)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation loss per token", color=_INK)
    right = axes.twinx()
    right.plot(numbers, [epoch["validation_exact_first"] for epoch in findings.curve], "s--", color=_GOOD)
    right.set_ylabel("validation class accuracy", color=_GOOD)
    right.set_ylim(0, 1)
    axes.set_xticks(numbers)
    seconds = sum(epoch["seconds"] for epoch in findings.curve)
    return f'{_svg(figure)}<p class="note">{seconds:.0f} s of training in {len(numbers)} epochs.</p>'


def _svg(figure: Any) -> str:
    from matplotlib import pyplot

    figure.axes[0].spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    figure.tight_layout()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    return f'<div class="plot">{text[text.index("<svg") :]}</div>'


def _metric(one: VariantResult, name: str) -> Measured:
    return next(verdict.measured for verdict in one.verdicts if verdict.metric == name)


def _speed(one: VariantResult) -> str:
    median, low, high = judge.spread(one.speeds)
    return f"{median:.0f} ({low:.0f} to {high:.0f})"


def _span(interval: tuple[float, float] | None, percent: bool) -> str:
    if interval is None:
        return ""
    low, high = interval
    return f"({low:.0%} to {high:.0%})" if percent else f"({low:.3g} to {high:.3g})"


def _t(value: object) -> str:
    return html.escape(str(value))
