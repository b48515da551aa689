"""``report.html``: what was measured, what was decided, and how to get it again, for people.

The page stands alone: plots are SVG and pictures PNG inside it, and it loads nothing. It knows findings
only, whatever kind of model they are of.
"""

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from compile.devices import sentence
from compile.evaluate import judge
from compile.evaluate.judge import Measured, VariantResult, Verdict
from compile.findings import Answer, Case, Compared, Findings
from compile.forecast import CONTEXT
from compile.report.document import as_json
from compile.report.plots import learning_curve, measured, pareto
from compile.units import size
from models.store import write_durably

DATA_CARD = "data-card.html"
"""Beside the report, where there are rows of data."""

_RATES = {"accuracy", "match", "json", "agreement", "f1", "rate", "effect", "flips", "overlap"}
"""Metrics with one of these words in their names are shares, and are shown in per cent."""
_MOST_CASES, _MOST_CHARACTERS, _MOST_LEDGER = 12, 600, 20


def write_report(out: Path, findings: Findings, releases: Mapping[str, Path]) -> None:
    """Write both reports into ``out``."""
    data = json.dumps(
        as_json(findings, releases), indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False
    )
    write_durably(out / "report.json", data.encode())
    has_card = (out / DATA_CARD).is_file()
    write_durably(out / "report.html", page(findings, releases, has_card).encode())


def page(findings: Findings, releases: Mapping[str, Path], has_card: bool = False) -> str:
    """The whole page; with ``has_card`` it links to the data card beside it."""
    style = files("compile.report").joinpath("report.css").read_text(encoding="utf-8")
    sections = [
        _summary(findings),
        "<h2>Quality against size and speed</h2>",
        pareto(findings),
        '<p class="note">Bars are 95 % intervals of quality, and quartiles of speed. Green is within its '
        "budgets, red is refused, grey is the reference. The thin steps join what nothing beats in both; the "
        "other lines are what stands beside the variants.</p>",
        _beside(findings),
        "<h2>Variants</h2>",
        _variants(findings),
        _refusals(findings),
        _devices(findings),
    ]
    if findings.curve:
        seconds = sum(epoch.get("seconds", 0) for epoch in findings.curve)
        sections += [
            "<h2>Learning curve</h2>",
            learning_curve(findings),
            f'<p class="note">{seconds:.0f} s of training in {len(findings.curve)} epochs.</p>',
        ]
    if findings.pictures:
        sections += ["<h2>Pictures</h2>", _pictures(findings)]
    if findings.cases:
        sections += ["<h2>Worst answers, side by side</h2>", _worst(findings)]
    sections += [
        "<h2>Fallback ledger</h2>",
        _ledger(findings),
        "<h2>Lineage</h2>",
        _lineage(findings),
        f'<p><a href="{DATA_CARD}">The data card</a>: rows, lengths, labels, duplicates.</p>'
        if has_card
        else "",
        "<h2>How to get this again</h2>",
        f"<pre>{_t(findings.command)}</pre>",
        _releases(releases),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_t(findings.title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>'
        f"<body><h1>{_t(findings.title)}</h1>{''.join(sections)}</body></html>"
    )


def _summary(findings: Findings) -> str:
    reference = f"Reference: {findings.reference_note}."
    notes = "".join(f'<p class="note">{_t(note)}</p>' for note in findings.notes)
    if findings.chosen is None:
        return (
            f'<p class="verdict bad">Refused: nothing ships.</p><p>{_t(reference)}</p>'
            f"<p>Nearest recipe that would pass:</p><pre>{_t(findings.nearest_recipe)}</pre>{notes}"
        )
    chosen = next(one for one in findings.variants if one.name == findings.chosen)
    headline = measured(chosen, findings.headline)
    share = chosen.bytes / findings.reference.bytes
    cards = [
        ("chosen", f"{chosen.name} ({chosen.precision})"),
        ("size", f"{size(chosen.bytes)}, {share:.2f} of the reference"),
        ("speed", f"{_speed(chosen)} {chosen.speed_unit}"),
        ("peak RAM", size(chosen.peak_ram_bytes)),
    ]
    if headline is not None:
        value = (
            f"{_value(findings.headline, headline.value)} {_interval(findings.headline, headline.interval)}"
        )
        cards.insert(2, (_words(findings.headline), value))
    tiles = "".join(f"<div><span>{_t(name)}</span><b>{_t(value)}</b></div>" for name, value in cards)
    return (
        '<p class="verdict ok">Within every budget at the pessimistic end of the 95 % interval.</p>'
        f'<div class="cards">{tiles}</div><p class="note">{_t(reference)} Measured on {_t(findings.device)}, '
        f"through the engine that serves.</p>{notes}"
    )


def _beside(findings: Findings) -> str:
    """Baselines, teachers, the model before and after training: above the variants, in the same metrics."""
    metrics = list(dict.fromkeys(name for one in findings.beside for name in one.metrics))
    if not metrics:
        return ""
    rows = [*findings.beside]
    for one in (findings.reference, *findings.variants):
        found = {name: measured(one, name) for name in metrics}
        rows.append(Compared(one.name, {name: value for name, value in found.items() if value is not None}))
    head = "".join(f"<th>{_t(_words(name))}</th>" for name in metrics)
    body = "".join(
        f"<tr><th>{_t(one.name)}</th>"
        f"{''.join(_bar(name, one.metrics.get(name)) for name in metrics)}"
        f"<td class=num>{max((value.samples for value in one.metrics.values()), default='')}</td></tr>"
        f"{_below(one.note, len(metrics) + 1)}"
        for one in rows
    )
    counts = ", ".join(f"{count} {_words(name)}" for name, count in findings.rows.items())
    return (
        "<h2>In comparison</h2>"
        f"{_table(f'<tr><th></th>{head}<th>samples</th></tr>{body}')}"
        f'<p class="note">Rows: {_t(counts)}.</p>'
    )


def _below(note: str, columns: int) -> str:
    return f"<tr><td></td><td class=note colspan={columns}>{_t(note)}</td></tr>" if note else ""


def _bar(name: str, one: Measured | None) -> str:
    if one is None:
        return "<td></td>"
    width = f'<i style="width:{100 * min(1.0, max(0.0, one.value)):.1f}%"></i>' if _is_rate(name) else ""
    span = _interval(name, one.interval)
    return f'<td class="bar">{width}<b>{_value(name, one.value)}</b> <small>{span}</small></td>'


def _variants(findings: Findings) -> str:
    everyone = (findings.reference, *findings.variants)
    head = "".join(
        f"<th>{_t(one.name)}<br><small>{_t(one.precision)} {_t(one.format)}, {size(one.bytes)}</small></th>"
        for one in everyone
    )
    verdicts = ["reference", *("pass" if one.passed else "REFUSED" for one in findings.variants)]
    rows = [
        _row("verdict", verdicts),
        _row(f"speed, {findings.reference.speed_unit}", [_speed(one) for one in everyone]),
        _row("peak RAM", [size(one.peak_ram_bytes) for one in everyone]),
    ]
    for metric in dict.fromkeys(verdict.metric for one in everyone for verdict in one.verdicts):
        cells = "".join(_verdict_cell(one, metric, one is findings.reference) for one in everyone)
        rows.append(f"<tr><th>{_t(_words(metric))}</th>{cells}</tr>")
    return (
        f"{_table(f'<tr><th></th>{head}</tr>' + ''.join(rows))}"
        '<p class="note">Below each value: the paired 95 % interval of its difference to the reference, and '
        "the bound where the recipe has one.</p>"
        f"{_settings(everyone)}"
    )


def _settings(everyone: Sequence[VariantResult]) -> str:
    """Beside the table, which they would stretch: a mixture tells of all that it tried."""
    lines = "".join(
        f"<li><b>{_t(one.name)}</b>: {_t(_flat(one.settings))}</li>" for one in everyone if one.settings
    )
    return f"<h3>How they were made</h3><ul class=note>{lines}</ul>" if lines else ""


def _verdict_cell(one: VariantResult, metric: str, is_reference: bool) -> str:
    verdict = next((verdict for verdict in one.verdicts if verdict.metric == metric), None)
    if verdict is None:
        return "<td>·</td>"
    css = "" if verdict.budget is None else ("ok" if verdict.passed else "bad")
    against_itself = is_reference and verdict.measured.reference == verdict.measured.value
    difference = "" if against_itself else _difference(verdict)
    return f'<td class="{css}">{_value(metric, verdict.measured.value)}{difference}</td>'


def _difference(verdict: Verdict) -> str:
    low, high = verdict.measured.ci95 or (None, None)
    interval = "" if low is None else f"{low:+.3g} to {high:+.3g}"
    bound = "" if verdict.budget is None else f" (bound {verdict.budget:+.3g})"
    return f"<br><small>{interval}{bound}</small>" if interval or bound else ""


def _row(name: str, cells: Sequence[str]) -> str:
    return f"<tr><th>{_t(name)}</th>{''.join(f'<td>{_t(cell)}</td>' for cell in cells)}</tr>"


def _refusals(findings: Findings) -> str:
    lines = "".join(
        f"<li><b>{_t(one.name)}</b>: {_t(one.refusal)}</li>" for one in findings.variants if not one.passed
    )
    return f'<h3>Refused</h3><ul class="bad">{lines}</ul>' if lines else ""


def _devices(findings: Findings) -> str:
    rows = "".join(
        f"<tr><th>{_t(name)}</th><td>{_t(one.profile)}</td>"
        + "".join(f"<td>{_t(words)}</td>" for words in sentence(one))
        + "</tr>"
        for name, told in findings.devices.items()
        for one in told
    )
    if not rows:
        return ""
    head = "<tr><th></th><th>profile</th><th>memory</th><th>speed</th><th>by</th></tr>"
    return (
        f"<h2>On devices</h2>{_table(head + rows)}"
        f'<p class="note">A forecast for {CONTEXT} tokens of context, with its 95 % interval; '
        "figures of devices correct what data sheets say.</p>"
    )


def _worst(findings: Findings) -> str:
    """First what the reference gets right and a variant does not, then what changes, then what is wrong."""

    def rank(numbered: tuple[int, Case]) -> tuple[bool, bool, int, int]:
        at, case = numbered
        wrong = sum(answer.right is False for answer in case.answers.values())
        reference = case.answers.get(findings.reference.name)
        spoilt = wrong > 0 and reference is not None and reference.right is True
        return (not spoilt, len({answer.text for answer in case.answers.values()}) == 1, -wrong, at)

    names = [one.name for one in (findings.reference, *findings.variants)]
    rows = []
    for (_, same, wrong, _), case in sorted(
        ((rank(pair), pair[1]) for pair in enumerate(findings.cases)), key=lambda item: item[0]
    )[:_MOST_CASES]:
        if same and not wrong:
            break
        cells = "".join(_answer(case.answers.get(name)) for name in names)
        rows.append(f"<tr><td>{_cut(case.input)}</td><td>{_cut(case.expected)}</td>{cells}</tr>")
    if not rows:
        return "<p>Every variant answers every test input as the reference does, and right.</p>"
    head = "".join(f"<th>{_t(name)}</th>" for name in names)
    return (
        f"<p>{findings.flips.changed} of {findings.flips.compared} answers change with precision.</p>"
        f"{_table(f'<tr><th>input</th><th>expected</th>{head}</tr>' + ''.join(rows), 'wide')}"
    )


def _answer(answer: Answer | None) -> str:
    if answer is None:
        return "<td>·</td>"
    css = "" if answer.right is None else ("ok" if answer.right else "bad")
    return f'<td class="{css}">{_cut(answer.text)}</td>'


def _pictures(findings: Findings) -> str:
    figures = "".join(
        f'<figure><img alt="{_t(one.caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(one.png).decode()}"><figcaption>{_t(one.caption)}</figcaption></figure>'
        for one in findings.pictures
    )
    return f'<div class="pictures">{figures}</div>'


def _ledger(findings: Findings) -> str:
    parts = []
    for one in findings.variants:
        if not one.ledger:
            parts.append(f"<p><b>{_t(one.name)}</b>: every tensor has the precision that was asked for.</p>")
            continue
        items = "".join(
            f"<li><code>{_t(entry.tensor)}</code> asked {_t(entry.asked)}, got {_t(entry.got)}</li>"
            for entry in one.ledger[:_MOST_LEDGER]
        )
        left = len(one.ledger) - _MOST_LEDGER
        more = f"<li>and {left} more; report.json has them all</li>" if left > 0 else ""
        parts.append(f"<p><b>{_t(one.name)}</b>: {len(one.ledger)} fell back</p><ul>{items}{more}</ul>")
    return "".join(parts)


def _lineage(findings: Findings) -> str:
    rows = "".join(
        f"<tr><th>{_t(_words(name))}</th><td><code>{_t(_flat(value))}</code></td></tr>"
        for name, value in findings.lineage.items()
    )
    return _table(rows)


def _table(rows: str, css: str = "") -> str:
    """Wider than the page it scrolls by itself."""
    return f'<div class="scroll"><table class="{css}">{rows}</table></div>'


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_flat(one)}" for name, one in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_flat, value))
    return str(value)


def _releases(releases: Mapping[str, Path]) -> str:
    if not releases:
        return "<p>Nothing was released.</p>"
    names = "".join(f"<li><code>{_t(folder.name)}</code></li>" for folder in releases.values())
    return f"<p>Releases in this folder:</p><ul>{names}</ul>"


def _speed(one: VariantResult) -> str:
    ends = (f"{end:.0f}" if end >= 100 else f"{end:.3g}" for end in judge.spread(one.speeds))
    return "{} ({} to {})".format(*ends)


def _is_rate(metric: str) -> bool:
    words = metric.split("@")[0].split("_")
    return "ratio" not in words and not _RATES.isdisjoint(words)


def _value(metric: str, value: float) -> str:
    if math.isnan(value):
        return "not measured"
    return f"{value:.1%}" if _is_rate(metric) else f"{value:.4g}"


def _interval(metric: str, interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ""
    low, high = interval
    return f"({low:.1%} to {high:.1%})" if _is_rate(metric) else f"({low:.3g} to {high:.3g})"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _cut(text: str) -> str:
    short = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} …"
    return _t(short)


def _t(value: object) -> str:
    return html.escape(str(value))
