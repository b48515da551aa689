"""Train, validation and test out of rows: 8:1:1, stratified, and no near-duplicates across. Pure.

Rows that belong together (near-duplicates) are dealt as one, so no leak can come about. Everything follows
from the rows and the seed. A split that the source brings along is taken as it is and checked.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from compile.data.duplicates import near_pairs
from compile.data.rows import PARTS, Row, Splits, listed
from compile.errors import BadData

LEAST_ROWS = 30
_SHARE = 0.1
_NAMES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""What a split column may say."""


def split(rows: Sequence[Row], groups: Sequence[int], seed: int, label_fields: Sequence[str] = ()) -> Splits:
    """8:1:1 within each label and language; rows of one group are never parted.

    ``label_fields`` are the fields of a structured answer that hold labels. Laws: a partition; rows of one
    group are in one split; every label is in train; the same rows and seed give the same splits. With
    groups of one, each small split has a tenth of the rows, give or take one per label and one more.
    Raises ``BadData`` when there are too few rows, or too few groups for three splits.
    """
    if len(rows) < LEAST_ROWS:
        raise BadData(
            f"{len(rows)} rows cannot be split 8:1:1 into parts that say anything; {LEAST_ROWS} are the least"
        )
    members: dict[int, list[Row]] = {}
    for row, group in zip(rows, groups, strict=True):
        members.setdefault(group, []).append(row)
    strata: dict[tuple[str, str], list[list[Row]]] = {}
    for group_rows in members.values():
        common = Counter((row.label, row.language) for row in group_rows)
        strata.setdefault(min(common, key=lambda kind: (-common[kind], kind)), []).append(group_rows)
    chance = random.Random(seed)  # noqa: S311 - a split, not a secret
    # What a split is owed carries over from stratum to stratum, so that rounding loses nothing; the
    # phases differ by half a row, so that the two small splits do not want the same row.
    phase = chance.random()
    owed = {"test": phase, "validation": (phase + 0.5) % 1}
    parts: dict[str, list[Row]] = {name: [] for name in PARTS}
    trained: set[tuple[str, str]] = set()
    for _, stratum in sorted(strata.items()):
        chance.shuffle(stratum)
        for group_rows in stratum:
            for name in owed:
                owed[name] += _SHARE * len(group_rows)
            labels = {one for row in group_rows for one in _labels(row, label_fields)}
            name = max(owed, key=lambda one: (owed[one], one))
            if not labels <= trained or owed[name] < len(group_rows):
                name = "train"
                trained |= labels
            else:
                owed[name] -= len(group_rows)
            parts[name] += group_rows
    splits = Splits(**{name: tuple(part) for name, part in parts.items()})
    largest = max(map(len, members.values()))
    _check_parts(
        splits,
        f"{len(rows)} rows fall into {len(members)} groups of rows that belong together, the largest of "
        f"{largest}, and a group is not parted",
    )
    return splits


def together(groups: Sequence[int], names: Sequence[str]) -> list[int]:
    """``groups`` joined wherever two rows have the same name; rows without a name are joined by nothing."""
    leads: dict[int, int] = {}

    def lead(group: int) -> int:
        while group in leads:
            group = leads[group]
        return group

    first: dict[str, int] = {}
    for group, name in zip(groups, names, strict=True):
        one, other = lead(group), lead(first.setdefault(name, group) if name else group)
        if one != other:
            leads[max(one, other)] = min(one, other)
    return [lead(group) for group in groups]


def given_split(rows: Sequence[Row], said: Sequence[str]) -> Splits:
    """The splits that the source names. Raises ``BadData`` for other names, and for one that is empty."""
    parts: dict[str, list[Row]] = {name: [] for name in PARTS}
    wrong: list[str] = []
    for row, word in zip(rows, said, strict=True):
        name = _NAMES.get(word.strip().lower())
        if name is None:
            wrong.append(f"row {row.number}: {word!r} is no split; one of {', '.join(PARTS)}")
        else:
            parts[name].append(row)
    if wrong:
        raise listed("row", wrong, " with a wrong split")
    splits = Splits(**{name: tuple(part) for name, part in parts.items()})
    _check_parts(splits, "no row of the source says so")
    return splits


def without_leaks(splits: Splits, threshold: float, drop: bool) -> tuple[Splits, int]:
    """``splits`` with no near-duplicates across them, and how many rows that cost.

    With ``drop`` the copy goes that serves training rather than testing. Raises ``BadData`` listing the
    pairs otherwise.
    """
    everyone = [(name, row) for name, part in splits.parts() for row in part]
    pairs = near_pairs([row.asked for _, row in everyone], threshold, [name for name, _ in everyone])
    if not pairs:
        return splits, 0
    if not drop:
        lines = [
            f"row {everyone[a][1].number} ({everyone[a][0]}) ~ row {everyone[b][1].number} "
            f"({everyone[b][0]}), similarity {similarity:.2f}"
            for a, b, similarity in pairs
        ]
        raise listed("near-duplicate", lines, " across the given splits")
    gone = {
        a for a, _, _ in pairs
    }  # of a pair the first stands in the earlier split: train, validation, test
    kept: dict[str, list[Row]] = {name: [] for name in PARTS}
    for at, (name, row) in enumerate(everyone):
        if at not in gone:
            kept[name].append(row)
    result = Splits(**{name: tuple(part) for name, part in kept.items()})
    _check_parts(result, "near-duplicates of rows in later splits were dropped")
    return result, len(gone)


def check_labels(splits: Splits, declared: Mapping[str, Sequence[str]]) -> None:
    """Raises ``BadData`` for labels that training never sees: ones to be tested on, and ones declared.

    ``declared`` has the labels by field; the field ``""`` is the row's own label.
    """
    fields = [name for name in declared if name]
    known = {one for row in splits.train for one in _labels(row, fields)}
    wrong = [
        f"{_called(*one)} stands in {name} ({sum(one in _labels(row, fields) for row in part)} rows) "
        "and never in train"
        for name, part in splits.parts()
        for one in sorted({one for row in part for one in _labels(row, fields)} - known)
    ]
    held = {one for row in (*splits.validation, *splits.test) for one in _labels(row, fields)}
    wrong += [
        f"{_called(name, label)} is declared and stands in no row"
        for name, labels in declared.items()
        for label in labels
        if (name, label) not in known | held
    ]
    if wrong:
        raise listed("label", wrong, " never seen in training")


def _labels(row: Row, fields: Sequence[str]) -> set[tuple[str, str]]:
    """The labels of a row by field, its own under ``""``."""
    return {("", row.label), *((name, row.fields[name]) for name in fields)}


def _called(name: str, label: str) -> str:
    return f"{name} {label!r}" if name else f"label {label!r}"


def _check_parts(splits: Splits, why: str) -> None:
    empty = [name for name, part in splits.parts() if not part]
    if empty:
        raise BadData(f"empty split: {', '.join(empty)} ({why})")
