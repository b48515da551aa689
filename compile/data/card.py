"""The data card as a page: HTML that stands alone, without scripts. Pure.

A card holds counts, digests and row numbers; no text of the data, so it can travel with a release.
"""

import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

CARD_JSON = "card.json"
CARD_HTML = "card.html"
_MANY = 40
"""Labels or values of which bars are drawn; the rest is counted."""
_LISTED = 12
_TECHNIQUES = {
    "prompting": "prompting",
    "lora": "LoRA",
    "full": "full fine-tuning",
    "encoder-classifier": "an encoder classifier",
}
_MEASURES = {
    "asked_chars": "what is asked, characters",
    "answered_chars": "what is answered, characters",
    "asked_tokens": "what is asked, tokens",
    "answered_tokens": "what is answered, tokens",
}
_WIDTH, _HEIGHT, _BASE = 480, 120, 96


def page(card: Mapping[str, Any]) -> str:
    """``card.html``."""
    style = files("compile.report").joinpath("report.css").read_text(encoding="utf-8")
    style += files("compile.data").joinpath("card.css").read_text(encoding="utf-8")
    names = list(dict.fromkeys(card["source"]["files"]))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    title = f"Data card: {', '.join(names[:3])}{more}"
    sections = [
        _tiles(card),
        "<h2>Which technique the data support</h2>",
        _advice(card["advice"]),
        '<div class="columns"><section>',
        "<h2>Splits and labels</h2>" if card["labels"] else "<h2>Splits</h2>",
        _splits(card),
        "</section><section><h2>Languages</h2>",
        _bars(card["languages"], "language"),
        "</section></div>",
        _fields(card["fields"]),
        "<h2>Lengths</h2>",
        _lengths(_told(card)),
        "<h2>Cleaning and copies</h2>",
        _cleaning(card),
        "<h2>Personal data</h2>",
        _pii(card["pii"]),
        "<h2>Where it comes from</h2>",
        _origin(card),
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_t(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>'
        f"<body><main><h1>{_t(title)}</h1>{''.join(sections)}</main></body></html>\n"
    )


def _tiles(card: Mapping[str, Any]) -> str:
    rows = card["splits"]["rows"]
    copies = card["duplicates"]
    hits = sum(
        kind["hits"]
        for column in card["pii"]["columns"].values()
        if column["used"]
        for kind in column["kinds"].values()
    )
    gone = card["source"]["rows"] + sum(card["augmentation"]["made"].values()) - sum(rows.values())
    tiles = [
        ("rows read", f"{card['source']['rows']:,}"),
        ("train / validation / test", " / ".join(f"{count:,}" for count in rows.values())),
        ("not used", f"{gone:,}"),
        ("shape", card["source"]["shape"]),
        (
            "near-duplicates kept together"
            if not copies["near_duplicate_rows_dropped"]
            else "near-duplicates dropped",
            f"{copies['near_duplicate_rows_dropped'] or copies['rows_in_groups']:,}",
        ),
        (
            "personal data, hits",
            f"{hits:,}" + (" (masked)" if hits and card["pii"]["action"] == "mask" else ""),
        ),
    ]
    if card["labels"]:
        tiles.insert(
            4, ("labels", f"{len(card['labels'])}, majority {card['balance']['majority_share']:.1%}")
        )
    return (
        '<div class="cards">'
        + "".join(f"<div><span>{_t(name)}</span><b>{_t(value)}</b></div>" for name, value in tiles)
        + "</div>"
    )


def _advice(advice: Mapping[str, Any]) -> str:
    reasons = "".join(f"<li>{_t(_sentence(one))}</li>" for one in advice["reasons"])
    warnings = "".join(f'<li class="warn">{_t(_sentence(one))}</li>' for one in advice["warnings"])
    against = "".join(
        f"<tr><th>{_t(_TECHNIQUES[name])}</th><td>{_t(why)}</td></tr>"
        for name, why in advice["against"].items()
    )
    return (
        f'<p class="verdict">Begin with {_t(_TECHNIQUES[advice["technique"]])}.</p>'
        f'<ul class="plain">{reasons}{warnings}</ul>'
        f'<h3>And not</h3><table class="list">{against}</table>'
        '<p class="note">Rules of thumb; what passes is decided by the budgets, on the test split.</p>'
    )


def _splits(card: Mapping[str, Any]) -> str:
    parts = card["splits"]["rows"]
    labels = card["labels"]
    head = "".join(f'<th class="num">{_t(name)}</th>' for name in parts)
    all_rows = sum(parts.values())
    if not labels:
        body = "".join(
            f'<tr><th>{_t(name)}</th><td class="num">{count:,}</td>{_track(count, max(parts.values()))}</tr>'
            for name, count in parts.items()
        )
        return f'<table class="bars"><tr><th></th><th class="num">rows</th><th></th></tr>{body}</table>'
    most = max(sum(one.values()) for one in labels.values())
    rows = [
        f"<tr><th>{_t(label)}</th>"
        + "".join(f'<td class="num">{one[name]:,}</td>' for name in parts)
        + _track(sum(one.values()), most)
        + "</tr>"
        for label, one in list(labels.items())[:_MANY]
    ]
    if len(labels) > _MANY:
        rows.append(f"<tr><th>and {len(labels) - _MANY:,} more</th></tr>")
    rows.append(
        "<tr><th><b>all</b></th>"
        + "".join(f'<td class="num"><b>{count:,}</b></td>' for count in parts.values())
        + f'<td class="track"><small>{all_rows:,} rows</small></td></tr>'
    )
    balance = card["balance"]
    uneven = (
        "Every label has the same number of rows."
        if balance["ratio"] == 1
        else f"The largest label has {balance['ratio']:g} times the rows of the smallest; evenness "
        f"{balance['evenness']:.2f} of 1."
    )
    return (
        f'<table class="bars"><tr><th></th>{head}<th></th></tr>{"".join(rows)}</table>'
        f'<p class="note">{uneven}</p>'
    )


def _fields(fields: Mapping[str, Mapping[str, int]]) -> str:
    if not fields:
        return ""
    parts = "".join(
        f"<section><h3>{_t(name)}</h3>{_bars(values, 'value')}</section>" for name, values in fields.items()
    )
    return f'<h2>Other fields of the answer</h2><div class="columns">{parts}</div>'


def _bars(counts: Mapping[str, int], what: str) -> str:
    total, most = sum(counts.values()), max(counts.values())
    rows = "".join(
        f'<tr><th>{_t(name)}</th><td class="num">{count:,}</td><td class="num">{count / total:.1%}</td>'
        f"{_track(count, most)}</tr>"
        for name, count in list(counts.items())[:_MANY]
    )
    more = f'<p class="note">and {len(counts) - _MANY:,} more</p>' if len(counts) > _MANY else ""
    return (
        f'<table class="bars"><tr><th>{_t(what)}</th><th class="num">rows</th><th class="num">share</th>'
        f"<th></th></tr>{rows}</table>{more}"
    )


def _track(count: int, most: int) -> str:
    return f'<td class="track"><i style="width:{100 * count / max(1, most):.1f}%"></i></td>'


def _told(card: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The lengths that say something: those of labels do not."""
    labels_only = card["source"]["shape"] == "label"
    return {
        name: one
        for name, one in card["lengths"].items()
        if not (labels_only and name.startswith("answered"))
    }


def _lengths(lengths: Mapping[str, Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><th>{_t(_MEASURES[name])}</th>"
        + "".join(f'<td class="num">{one[key]:,}</td>' for key in ("least", "p5", "median", "p95", "most"))
        + f'<td class="num">{one["mean"]:,.1f}</td></tr>'
        for name, one in lengths.items()
    )
    head = "".join(
        f'<th class="num">{name}</th>' for name in ("least", "5 %", "median", "95 %", "most", "mean")
    )
    drawn = "".join(
        f"<section><figure>{_histogram(one)}<figcaption>{_t(_MEASURES[name])}; the last bar holds all that "
        "is longer</figcaption></figure></section>"
        for name, one in lengths.items()
        if len(one["counts"]) > 1
    )
    return f'<table><tr><th></th>{head}</tr>{rows}</table><div class="columns">{drawn}</div>'


def _histogram(one: Mapping[str, Any]) -> str:
    counts, bins = one["counts"], one["bins"]
    most, width = max(counts), _WIDTH / len(counts)
    bars = "".join(
        f'<rect x="{at * width + 1:.1f}" y="{_BASE - (_BASE - 6) * count / most:.1f}" '
        f'width="{width - 2:.1f}" height="{(_BASE - 6) * count / most:.1f}" rx="1.5">'
        f"<title>up to {bins[at] - 1:,}: {count:,} rows</title></rect>"
        for at, count in enumerate(counts)
    )
    every = max(1, -(-len(bins) // 6))
    ticks = "".join(
        f'<text x="{at * width:.1f}" y="{_BASE + 16}" text-anchor="{"start" if at == 0 else "middle"}">'
        f"{bins[at] - bins[0]:,}</text>"
        for at in range(0, len(bins), every)
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="histogram">'
        f'<g fill="#1a7f5a" fill-opacity=".8">{bars}</g>'
        f'<line x1="0" y1="{_BASE}" x2="{_WIDTH}" y2="{_BASE}" stroke="#c9d1d8"/>'
        f'<g fill="#5c6975" font-size="11">{ticks}</g></svg>'
    )


def _cleaning(card: Mapping[str, Any]) -> str:
    copies, bad = card["duplicates"], card["bad_rows"]
    together = "dropped but one" if copies["near_duplicate_rows_dropped"] else "kept in one split"
    lines = [
        ("bad rows, dropped", bad["count"], ", ".join(bad["rows"][:_LISTED]) + _more(bad["count"])),
        *((f"cleaned: {kind}", count, "rows changed") for kind, count in card["cleaned_rows"].items()),
        ("exact copies, dropped", copies["exact_copies_dropped"], ""),
        (
            "one text, different answers",
            copies["contradicting_texts_dropped"],
            f"texts; all their {copies['rows_of_contradicting_texts']:,} rows dropped"
            if copies["contradicting_texts_dropped"]
            else "",
        ),
        (
            "near-duplicates",
            copies["rows_in_groups"],
            f"in {copies['groups']:,} groups, {together}; the largest has {copies['largest_group']:,}, "
            f"{copies['groups_with_different_labels']:,} with different labels"
            if copies["groups"]
            else "",
        ),
        ("near-duplicates across given splits, dropped", copies["dropped_across_given_splits"], ""),
        ("left out by train_rows", card["splits"]["left_out_by_train_rows"], "rows to train on"),
        *(
            (f"made by {kind}", count, "rows to train on")
            for kind, count in card["augmentation"]["made"].items()
        ),
        (
            "made and thrown away",
            card["augmentation"]["too_close_to_held_out"],
            "too close to a row to validate or test on",
        ),
    ]
    rows = "".join(
        f'<tr><th>{_t(name)}</th><td class="num">{count:,}</td><td>{_t(note)}</td></tr>'
        for name, count, note in lines
        if count or name in ("bad rows, dropped", "exact copies, dropped", "near-duplicates")
    )
    return f'<table class="list">{rows}</table>'


def _pii(found: Mapping[str, Any]) -> str:
    if not found["columns"]:
        return (
            "<p>Nothing of a form that is looked for: e-mail, telephone, IBAN, payment card, Chinese "
            'identity number, IPv4 address.</p><p class="note">Names have no form: this does not say that '
            "nobody is named.</p>"
        )
    rows = "".join(
        f"<tr><th>{_t(column)}</th><td>{'yes' if one['used'] else 'no'}</td>"
        f"<td>{_t(kind.replace('_', ' '))}</td>"
        f'<td class="num">{hits["hits"]:,}</td><td class="num">{hits["rows"]:,}</td>'
        f"<td>{_t(', '.join(hits['in'][:_LISTED]))}{_more(hits['rows'])}</td></tr>"
        for column, one in found["columns"].items()
        for kind, hits in one["kinds"].items()
    )
    action = {
        "report": "Reported only: the splits hold them as they are.",
        "mask": "Masked: the splits hold the kind in brackets instead.",
        "refuse": "Found only in columns that do not enter the splits.",
    }[found["action"]]
    return (
        '<table><tr><th>column</th><th>used</th><th>kind</th><th class="num">hits</th>'
        f'<th class="num">rows</th><th>which rows</th></tr>{rows}</table><p>{action}</p>'
        '<p class="note">Found by form and check digit. Names have no form: what is not listed may still '
        "name somebody.</p>"
    )


def _origin(card: Mapping[str, Any]) -> str:
    lines = [
        ("source digest", card["source"]["digest"]),
        ("splits digest", card["splits"]["digest"]),
        ("seed", card["splits"]["seed"]),
        ("settings", json.dumps(card["settings"], ensure_ascii=False)),
    ]
    rows = "".join(f"<tr><th>{_t(name)}</th><td><code>{_t(value)}</code></td></tr>" for name, value in lines)
    return f'<table class="list">{rows}</table>'


def _more(count: int) -> str:
    return f" and {count - _LISTED:,} more" if count > _LISTED else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _t(value: Any) -> str:
    return html.escape(str(value))


def summary(card: Mapping[str, Any]) -> Sequence[str]:
    """The card in a few lines, for a terminal."""
    rows, advice, copies = card["splits"]["rows"], card["advice"], card["duplicates"]
    lines = [
        f"{card['source']['rows']:,} rows read, shape {card['source']['shape']}: "
        + ", ".join(f"{count:,} {name}" for name, count in rows.items()),
        f"dropped: {card['bad_rows']['count']:,} bad, {copies['exact_copies_dropped']:,} exact copies, "
        f"{copies['rows_of_contradicting_texts']:,} with contradicting answers, "
        f"{copies['near_duplicate_rows_dropped'] + copies['dropped_across_given_splits']:,} near-duplicates; "
        f"{copies['rows_in_groups'] if not copies['near_duplicate_rows_dropped'] else 0:,} near-duplicates "
        "kept together",
        *(
            [f"left out by train_rows: {card['splits']['left_out_by_train_rows']:,}"]
            if card["splits"]["left_out_by_train_rows"]
            else []
        ),
        "languages: " + ", ".join(f"{name} {count:,}" for name, count in list(card["languages"].items())[:6]),
    ]
    if card["labels"]:
        shown = [f"{label} {sum(parts.values()):,}" for label, parts in list(card["labels"].items())[:8]]
        more = f", and {len(card['labels']) - 8} more" if len(card["labels"]) > 8 else ""
        lines.append(f"labels: {', '.join(shown)}{more}")
    for column, one in card["pii"]["columns"].items():
        kinds = ", ".join(f"{kind} in {hits['rows']:,} rows" for kind, hits in one["kinds"].items())
        lines.append(f"personal data in {column!r} ({card['pii']['action']}): {kinds}")
    lines.append(f"begin with {_TECHNIQUES[advice['technique']]}: " + "; ".join(advice["reasons"]))
    lines += [f"mind: {warning}" for warning in advice["warnings"]]
    return lines
