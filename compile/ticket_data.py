"""Data sets: JSON lines in, three splits without leaks out.

Pure decisions on rows. Owns the checks of single rows, the stratified split and the search for
near-duplicates across splits. Refuses bad rows by number with ``BadData``; it never drops one silently.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compile.errors import BadData
from compile.tickets import CLASSES, SEVERITIES, Ticket

_SHINGLE = 5
_SHOWN = 20


@dataclass(frozen=True)
class Splits:
    """Train, validation and test, 8:1:1, stratified by class and language."""

    train: tuple[Ticket, ...]
    validation: tuple[Ticket, ...]
    test: tuple[Ticket, ...]


def read_rows(data: bytes, text_key: str, language_key: str) -> tuple[Ticket, ...]:
    """Parse a data set. Raises ``BadData`` listing the numbers (from 1) of all bad rows."""
    rows: list[Ticket] = []
    bad: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            ticket = _row(line, text_key, language_key)
        except ValueError as error:
            bad.append(f"row {number}: {error}")
            continue
        first = seen.setdefault(_plain(ticket.text), number)
        if first != number:
            bad.append(f"row {number}: the same text as row {first}")
            continue
        rows.append(ticket)
    if bad:
        more = f"\n... and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise BadData(f"{len(bad)} bad rows:\n" + "\n".join(bad[:_SHOWN]) + more)
    if len(rows) < 30:
        raise BadData(
            f"{len(rows)} rows cannot be split 8:1:1 into parts that say anything; 30 are the least"
        )
    return tuple(rows)


def _row(line: bytes, text_key: str, language_key: str) -> Ticket:
    try:
        row: Any = json.loads(line)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"not JSON in UTF-8 ({error})") from error
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    for key in (text_key, "class", "severity", "component"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise ValueError(f"{key!r} is missing or empty")
    if row["class"] not in CLASSES:
        raise ValueError(f"unknown class {row['class']!r}")
    if row["severity"] not in SEVERITIES:
        raise ValueError(f"unknown severity {row['severity']!r}")
    if row["component"] not in row[text_key]:
        raise ValueError(f"component {row['component']!r} does not stand in the text")
    return Ticket(
        id=str(row.get("id", "")),
        text=row[text_key],
        label=row["class"],
        severity=row["severity"],
        component=row["component"],
        language=str(row.get(language_key, "")),
    )


def split(rows: Sequence[Ticket], seed: int) -> Splits:
    """8:1:1 within each class and language; what rounding leaves over is dealt out evenly."""
    groups: dict[tuple[str, str], list[Ticket]] = {}
    for row in rows:
        groups.setdefault((row.label, row.language), []).append(row)
    chance = random.Random(seed)  # noqa: S311 - a split, not a secret
    dealt: list[Ticket] = []
    for _, group in sorted(groups.items()):
        chance.shuffle(group)
        dealt.extend(group)
    # Every tenth row of the grouped order goes to each small split, so no group is missed by rounding.
    offset = chance.randrange(10)
    test = dealt[offset::10]
    validation = dealt[(offset + 5) % 10 :: 10]
    held = {id(row) for row in (*test, *validation)}
    train = [row for row in dealt if id(row) not in held]
    return Splits(tuple(train), tuple(validation), tuple(test))


def near_duplicates(splits: Splits, threshold: float) -> list[tuple[Ticket, Ticket, float]]:
    """Pairs in different splits whose character 5-grams have a Jaccard similarity from ``threshold`` on."""
    named = [(0, row) for row in splits.train] + [(1, row) for row in splits.validation]
    named += [(2, row) for row in splits.test]
    shingles = [_shingles(row.text) for _, row in named]
    index: dict[str, list[int]] = {}
    found: list[tuple[Ticket, Ticket, float]] = []
    for i, (part, row) in enumerate(named):
        shared: dict[int, int] = {}
        for shingle in shingles[i]:
            for j in index.get(shingle, ()):
                if named[j][0] != part:
                    shared[j] = shared.get(j, 0) + 1
            index.setdefault(shingle, []).append(i)
        for j, common in shared.items():
            similarity = common / (len(shingles[i]) + len(shingles[j]) - common)
            if similarity >= threshold:
                found.append((named[j][1], row, similarity))
    return found


def check_splits(splits: Splits, threshold: float) -> None:
    """Raises ``BadData`` when near-duplicates lie in different splits, listing the pairs."""
    pairs = near_duplicates(splits, threshold)
    if pairs:
        lines = [f"{a.id} ~ {b.id} ({s:.2f}): {a.text[:60]!r}" for a, b, s in pairs[:_SHOWN]]
        raise BadData(f"{len(pairs)} near-duplicates across the splits:\n" + "\n".join(lines))


def counts(splits: Splits) -> Mapping[str, int]:
    """How many rows each split has."""
    return {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)}


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _shingles(text: str) -> frozenset[str]:
    plain = _plain(text)
    return frozenset(plain[i : i + _SHINGLE] for i in range(max(1, len(plain) - _SHINGLE + 1)))
