"""The data step: a source in, ``splits.json`` and the data card out.

Owns the order of the work: read, clean, scan for personal data, shape, remove copies, split, vary, describe.
Whatever is wrong is refused with ``BadData`` that lists the rows, unless the recipe says to drop it; what was
dropped stands in the card.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compile.data import pii, statistics
from compile.data.adviser import CHARS_PER_TOKEN, Facts, advise
from compile.data.augmentation import Augmented, augment, read_synonyms, read_templates
from compile.data.card import CARD_HTML, CARD_JSON, page
from compile.data.cleaning import clean, map_strings, strings, what_changes
from compile.data.duplicates import near_groups, plain
from compile.data.reading import Bad, Record, read_records, source_digest, source_files
from compile.data.rows import SHOWN, Row, Splits, listed, spread, write_splits
from compile.data.shapes import fields_of, find_shape, to_row, used_columns
from compile.data.splits import check_labels, given_split, split, together, without_leaks
from compile.errors import BadData
from compile.recipe.data import DataSource, Shape
from compile.steps import Report
from models.digest import Digest

_KEPT = 1000
"""Row numbers of one kind that the card lists; the count is always whole."""


@dataclass(frozen=True)
class _Row:
    """A row with what the source says of its split, and of the rows that it belongs to."""

    row: Row
    place: str
    split: str
    group: str


@dataclass(frozen=True)
class _Read:
    """What was read: clean records of one shape, ``bad`` ones out of ``count``, and what was ``cleaned``."""

    digest: Digest
    records: tuple[Record, ...]
    shape: Shape
    count: int
    bad: tuple[Bad, ...]
    cleaned: Mapping[str, int]


def prepare(
    source: DataSource,
    beside: Path,
    folder: Path,
    report: Report,
    count_tokens: statistics.Count | None = None,
    base_parameters: int | None = None,
) -> Splits:
    """Fill ``folder`` with ``splits.json``, ``card.json`` and ``card.html``; return the splits.

    ``beside`` is the recipe's folder. ``count_tokens`` adds lengths in tokens to the card and
    ``base_parameters`` what the adviser makes of the base's size. Raises ``BadRecipe`` for files that are
    not there and ``BadData`` for what is in them.
    """
    report(0.0, "reading")
    read = _read(source, beside)
    report(0.2, f"{read.count} rows of shape {read.shape}")
    records, personal = _personal(source, read)
    rows, bad = _shaped(source, read.shape, records)
    bad = [*read.bad, *bad]
    if bad and (source.bad_rows == "refuse" or 2 * len(bad) > read.count):
        raise _refused(bad)
    report(0.4, "looking for copies")
    rows, copies = _without_copies(rows, source, read.shape)
    rows, groups, near = _near(rows, source)
    report(0.7, "splitting")
    label_fields = [field.name for field in fields_of(source) if field.labels]
    splits, leaked = _split(rows, groups, source, label_fields)
    trained = len(splits.train)
    splits = replace(splits, train=spread(splits.train, source.train_rows))
    left_out = trained - len(splits.train)
    check_labels(splits, _declared(source, read.shape))
    varied = _augment(source, beside, splits)
    splits = varied.splits
    report(0.85, "writing the card")
    card = {
        "source": {
            "digest": read.digest,
            "files": [str(path.name) for path in source_files(source, beside).values()],
            "shape": read.shape,
            "rows": read.count,
        },
        "settings": source.model_dump(mode="json", exclude_defaults=True),
        "splits": {
            "digest": write_splits(folder, splits),
            "rows": splits.sizes,
            "seed": source.seed,
            "left_out_by_train_rows": left_out,
        },
        "bad_rows": {"count": len(bad), "rows": [str(one) for one in bad[:_KEPT]]},
        "cleaned_rows": dict(read.cleaned),
        "duplicates": {**copies, **near, "dropped_across_given_splits": leaked},
        "pii": {"action": source.pii, "columns": personal},
        "augmentation": {"made": dict(varied.made), "too_close_to_held_out": varied.too_close},
        **_describe(splits, read.shape, label_fields, count_tokens),
    }
    card["advice"] = advise(_facts(splits, read.shape, label_fields, card, base_parameters)).as_json()
    (folder / CARD_JSON).write_text(json.dumps(card, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (folder / CARD_HTML).write_text(page(card), encoding="utf-8")
    report(1.0, ", ".join(f"{count} {name}" for name, count in splits.sizes.items()))
    return splits


def _read(source: DataSource, beside: Path) -> _Read:
    """Read and clean. Raises ``BadData`` where no row is left."""
    digest = source_digest(source, beside)
    records, bad = read_records(source, beside)
    if not records:
        raise _refused(bad)
    count, shape = len(records) + len(bad), find_shape(source, records)
    records, cleaned, broken = _clean(records)
    return _Read(digest, tuple(records), shape, count, (*bad, *broken), cleaned)


def _personal(source: DataSource, read: _Read) -> tuple[Sequence[Record], dict[str, Any]]:
    """The records as they may be used, and what the card says of personal data, by column."""
    found, used = _scan(read.records), used_columns(source, read.shape)
    if source.pii == "refuse":
        _refuse_pii(found, used)
    records = read.records
    if source.pii == "mask":
        records = tuple(replace(one, values=map_strings(one.values, pii.mask)) for one in records)
    return records, {column: {"used": column in used, "kinds": kinds} for column, kinds in found.items()}


def _shaped(source: DataSource, shape: Shape, records: Sequence[Record]) -> tuple[list[_Row], list[Bad]]:
    """The records as rows, and those that are none."""
    rows: list[_Row] = []
    bad: list[Bad] = []
    for record in records:
        try:
            row = to_row(record, source, shape)
            said, group = _word(record, source.split), _word(record, source.group)
            rows.append(_Row(row, record.place, said, group))
        except ValueError as error:
            bad.append(Bad(record.number, str(error), record.file))
    return rows, bad


def _near(rows: list[_Row], source: DataSource) -> tuple[list[_Row], list[int], dict[str, int]]:
    """What is left of rows that say nearly the same, the group of each, and what the card says of them."""
    groups = near_groups([one.row.asked for one in rows], source.near_duplicate)
    near = _describe_groups(rows, groups)
    dropped = 0
    if source.near_duplicates == "drop":
        dropped = near["rows_in_groups"] - near["groups"]
        rows = [one for at, one in enumerate(rows) if groups[at] == at]
        groups = list(range(len(rows)))
    groups = together(groups, [one.group for one in rows])
    return rows, groups, near | {"near_duplicate_rows_dropped": dropped}


def _split(
    rows: Sequence[_Row], groups: Sequence[int], source: DataSource, label_fields: Sequence[str]
) -> tuple[Splits, int]:
    """As the source says, or by chance; and how many rows were in two of the source's splits."""
    plain_rows = [one.row for one in rows]
    if source.split is None:
        return split(plain_rows, groups, source.seed, label_fields), 0
    splits = given_split(plain_rows, [one.split for one in rows])
    return without_leaks(splits, source.near_duplicate, source.duplicates == "drop")


def _clean(records: Sequence[Record]) -> tuple[list[Record], Counter[str], list[Bad]]:
    kept: list[Record] = []
    changed: Counter[str] = Counter()
    bad: list[Bad] = []
    for record in records:
        try:
            values = map_strings(record.values, clean)
        except ValueError as error:
            bad.append(Bad(record.number, str(error), record.file))
            continue
        if values != record.values:
            changed.update({kind for text in strings(record.values) for kind in what_changes(text)})
        kept.append(replace(record, values=values))
    return kept, changed, bad


def _scan(records: Sequence[Record]) -> dict[str, dict[str, dict[str, Any]]]:
    """By column and kind: how many hits, in how many rows, and which; never what was hit."""
    hits: dict[tuple[str, str], int] = Counter()
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in records:
        for column, value in record.values.items():
            kinds = Counter(one.kind for text in strings(value) for one in pii.find(text))
            for kind, count in kinds.items():
                hits[column, kind] += count
                places[column, kind].append(record.place.removeprefix("row "))
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for (column, kind), count in sorted(hits.items()):
        where = places[column, kind]
        found.setdefault(column, {})[kind] = {"hits": count, "rows": len(where), "in": where[:_KEPT]}
    return found


def _refuse_pii(found: Mapping[str, Mapping[str, Mapping[str, Any]]], used: frozenset[str]) -> None:
    lines = [
        f"column {column!r}: {kind} in {one['rows']} rows: {', '.join(one['in'][:SHOWN])}"
        + (", ..." if one["rows"] > SHOWN else "")
        for column, kinds in found.items()
        if column in used
        for kind, one in kinds.items()
    ]
    if lines:
        raise BadData("personal data (pii: refuse; mask replaces it):\n" + "\n".join(lines))


def _without_copies(
    rows: Sequence[_Row], source: DataSource, shape: Shape
) -> tuple[list[_Row], dict[str, int]]:
    """Each question with each answer once. Where an answer is a label, two for one text contradict."""
    judged = shape in ("label", "fields")
    first: dict[tuple[str, ...], _Row] = {}
    answers: dict[str, dict[str, _Row]] = defaultdict(dict)
    kept: list[_Row] = []
    copies: list[str] = []
    for one in rows:
        asked = plain("\n".join(message["content"] for message in one.row.messages))
        key = (asked, one.row.answer, one.row.rejected)
        if key in first:
            copies.append(f"{one.place}: the same as {first[key].place}")
            continue
        first[key] = one
        answers[asked].setdefault(one.row.answer, one)
        kept.append(one)
    torn = [different for different in answers.values() if judged and len(different) > 1]
    lines = [
        " and ".join(one.place for one in different.values()) + ": the same text with different answers"
        for different in torn
    ]
    if source.duplicates == "refuse" and (copies or lines):
        wrong = [*lines, *copies]
        raise listed("duplicate", wrong, " (duplicates: drop removes them)")
    gone = {id(one) for different in torn for one in different.values()}
    kept = [one for one in kept if id(one) not in gone]
    return kept, {
        "exact_copies_dropped": len(copies),
        "contradicting_texts_dropped": len(torn),
        "rows_of_contradicting_texts": len(gone),
    }


def _describe_groups(rows: Sequence[_Row], groups: Sequence[int]) -> dict[str, int]:
    members: dict[int, list[Row]] = defaultdict(list)
    for one, group in zip(rows, groups, strict=True):
        members[group].append(one.row)
    several = [group for group in members.values() if len(group) > 1]
    return {
        "groups": len(several),
        "rows_in_groups": sum(map(len, several)),
        "largest_group": max(map(len, several), default=0),
        "groups_with_different_labels": sum(len({row.label for row in group}) > 1 for group in several),
    }


def _declared(source: DataSource, shape: Shape) -> dict[str, Sequence[str]]:
    """The labels that the recipe names, by field; the row's own under ``""``."""
    if shape == "fields":
        return {field.name: field.labels for field in fields_of(source) if field.labels}
    if shape == "label":
        return {"": tuple(source.files) if source.files is not None else source.labels or ()}
    return {}


def _augment(source: DataSource, beside: Path, splits: Splits) -> Augmented:
    if source.augment is None:
        return Augmented(splits, {}, 0)
    files = source_files(source, beside)
    texts: dict[str, tuple[str, str]] = {}
    for name in ("synonyms", "templates"):
        if (path := files.get(f"data.augment.{name}")) is not None:
            try:
                texts[name] = (path.read_text(encoding="utf-8-sig"), path.name)
            except (OSError, UnicodeDecodeError) as error:
                raise BadData(f"{path}: cannot be read as UTF-8: {error}") from error
    spans = [name for name, field in (source.answer or {}).items() if field.span]
    return augment(
        splits,
        read_synonyms(*texts["synonyms"]) if "synonyms" in texts else (),
        read_templates(*texts["templates"], list(source.answer or ())) if "templates" in texts else (),
        spans,
        source.augment.copies,
        source.near_duplicate,
        source.seed,
    )


def _describe(
    splits: Splits, shape: Shape, label_fields: Sequence[str], count_tokens: statistics.Count | None
) -> dict[str, Any]:
    labels = statistics.labels(splits)
    others = label_fields[1:]  # the first is the row's label
    return {
        "lengths": {name: one.as_json() for name, one in statistics.lengths(splits, count_tokens).items()},
        "languages": statistics.languages(splits),
        "labels": labels,
        "balance": statistics.balance({label: sum(parts.values()) for label, parts in labels.items()})
        if labels
        else {},
        "fields": statistics.field_values(splits, others) if shape == "fields" else {},
    }


def _facts(
    splits: Splits,
    shape: Shape,
    label_fields: Sequence[str],
    card: Mapping[str, Any],
    base_parameters: int | None,
) -> Facts:
    lengths = card["lengths"]
    counted = "asked_tokens" in lengths
    unit = "tokens" if counted else "chars"
    length = lengths[f"asked_{unit}"]["p95"] + lengths[f"answered_{unit}"]["p95"]
    if not counted:
        language = next(iter(card["languages"]))
        length = round(length / CHARS_PER_TOKEN.get(language, CHARS_PER_TOKEN[""]))
    fields = len(splits.test[0].fields)
    own = [row for row in splits.train if not row.augmented]
    return Facts(
        train_rows=len(own),
        test_rows=len(splits.test),
        labels=dict(Counter(row.label for row in own if row.label)),
        only_labels=shape == "label" or (shape == "fields" and len(label_fields) == fields),
        preferences=shape == "preference",
        tokens_p95=length,
        tokens_estimated=not counted,
        base_parameters=base_parameters,
    )


def _word(record: Record, column: str | None) -> str:
    value = record.values.get(column) if column is not None else None
    return str(value) if isinstance(value, str | int) else ""


def _refused(bad: Sequence[Bad]) -> BadData:
    ordered = sorted(bad, key=lambda one: (one.file, one.number))
    return listed("bad row", [str(one) for one in ordered])
