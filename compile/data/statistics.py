"""What a data set looks like in numbers: lengths, languages, labels and their balance. Pure."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compile.data.rows import Row, Splits

_BINS = 24

Count = Callable[[Sequence[str]], Sequence[int]]
"""How many tokens each text has."""


@dataclass(frozen=True)
class Spread:
    """Of one measure over rows: percentiles, mean, and a histogram of equal steps up to the 99th percentile.

    ``bins`` are the upper bounds; the last bin also holds what is longer.
    """

    least: int
    p5: int
    median: int
    p95: int
    most: int
    mean: float
    bins: tuple[int, ...]
    counts: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """As it stands in the card."""
        return {**vars(self), "bins": list(self.bins), "counts": list(self.counts)}


def spread(values: Sequence[int]) -> Spread:
    """The spread of at least one value; percentiles by nearest rank."""
    ordered = sorted(values)

    def rank(part: float) -> int:
        return ordered[max(0, math.ceil(part * len(ordered)) - 1)]

    width = max(1, math.ceil((rank(0.99) + 1) / _BINS))
    used = rank(0.99) // width + 1
    counts = [0] * used
    for value in ordered:
        counts[min(value // width, used - 1)] += 1
    bins = tuple((at + 1) * width for at in range(used))
    mean = round(sum(ordered) / len(ordered), 1)
    return Spread(ordered[0], rank(0.05), rank(0.5), rank(0.95), ordered[-1], mean, bins, tuple(counts))


def lengths(splits: Splits, count: Count | None) -> dict[str, Spread]:
    """Spreads of what is asked and what is answered: in characters and, given ``count``, in tokens."""
    rows = [row for _, part in splits.parts() for row in part]
    texts = {"asked": [_whole(row) for row in rows], "answered": [row.answer for row in rows]}
    found: dict[str, Spread] = {}
    for name, column in texts.items():
        found[f"{name}_chars"] = spread([len(text) for text in column])
        if count is not None:
            found[f"{name}_tokens"] = spread(count(column))
    return found


def languages(splits: Splits) -> dict[str, int]:
    """Rows by language, most frequent first."""
    return _ranked(Counter(row.language for _, part in splits.parts() for row in part))


def labels(splits: Splits) -> dict[str, dict[str, int]]:
    """By label, the rows of each split; most frequent first."""
    parts = {name: Counter(row.label for row in part if row.label) for name, part in splits.parts()}
    total: Counter[str] = sum(parts.values(), Counter())
    return {label: {name: part[label] for name, part in parts.items()} for label in _ranked(total)}


def field_values(splits: Splits, fields: Sequence[str]) -> dict[str, dict[str, int]]:
    """By field, the rows of each value; most frequent first."""
    rows = [row for _, part in splits.parts() for row in part]
    return {name: _ranked(Counter(row.fields[name] for row in rows)) for name in fields}


def balance(counts: Mapping[str, int]) -> dict[str, float]:
    """The share of the largest label, how many times it is the smallest, and the evenness (0 to 1).

    Evenness is Pielou's: the entropy of the labels over the largest that so many labels can have.
    """
    total = sum(counts.values())
    shares = [count / total for count in counts.values() if count]
    entropy = -sum(share * math.log(share) for share in shares)
    return {
        "majority_share": round(max(shares), 4),
        "ratio": round(max(shares) / min(shares), 2),
        "evenness": round(entropy / math.log(len(shares)), 4) if len(shares) > 1 else 0.0,
    }


def _whole(row: Row) -> str:
    return "\n".join(message["content"] for message in row.messages)


def _ranked(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
