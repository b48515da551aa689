"""How far a text that was read is from the one that is there: word and character error rates. Pure.

An error rate is the edits (substitutions, deletions, insertions: Levenshtein 1966) of all samples over the
units of all their texts. Intervals resample whole samples, because errors come in clusters: Bisani and Ney,
ICASSP 2004. Where no sample got worse, a bootstrap takes that for certain; that end is moved by the exact
bound for an event never seen in so many units.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from compile.errors import BadData
from compile.evaluate import statistics
from compile.evaluate.judge import Measured
from compile.evaluate.text_metrics import Scored, measured, words


def characters(text: str) -> str:
    """What is compared of a page: full and half width are one, white space counts nothing, all else does."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def edits(said: Sequence[str], wanted: Sequence[str]) -> int:
    """The least number of insertions, deletions and substitutions from one to the other.

    Laws: symmetric; 0 exactly for equals; no less than the difference of lengths, no more than the longer.
    """
    numbers: dict[str, int] = {}
    left, right = (
        np.array([numbers.setdefault(one, len(numbers)) for one in each]) for each in (said, wanted)
    )
    steps = np.arange(len(right) + 1)
    row = steps.copy()
    for count, unit in enumerate(left, start=1):
        below = np.empty_like(row)
        below[0] = count
        below[1:] = np.minimum(row[1:] + 1, row[:-1] + (right != unit))
        # An insertion costs one step to the right; all of them at once.
        row = np.minimum.accumulate(below - steps) + steps
    return int(row[-1])


def error_rate(said: Sequence[str], wanted: Sequence[str], units: Callable[[str], Sequence[str]]) -> Scored:
    """Edits per unit of ``wanted``. Raises ``BadData`` where there is no unit at all."""
    pairs = [(units(one), units(other)) for one, other in zip(said, wanted, strict=True)]
    sums = np.array([(edits(one, other), len(other)) for one, other in pairs], dtype=np.float64)
    if not sums[:, 1].sum():
        raise BadData("a text without words has no error rate")
    each = sums[:, 0] / np.maximum(sums[:, 1], 1)
    return Scored(each, sums, lambda total: float(total[0] / max(total[1], 1)))


def word_errors(said: Sequence[str], wanted: Sequence[str]) -> Scored:
    """By words in lower case, without punctuation; by characters where a script has no spaces."""
    return error_rate(said, wanted, words)


def character_errors(said: Sequence[str], wanted: Sequence[str]) -> Scored:
    """By ``characters``."""
    return error_rate(said, wanted, characters)


def compared(ours: Scored, theirs: Scored, rounds: int, seed: int) -> Measured:
    """One error rate beside another on the same samples."""
    found = measured(ours, theirs, rounds, seed)
    unseen = statistics.never_seen_bound(int(ours.sums[:, 1].sum()))
    change = ours.sums[:, 0] - theirs.sums[:, 0]
    low, high = found.ci95 or (0.0, 0.0)
    low -= 0.0 if (change < 0).any() else unseen
    high += 0.0 if (change > 0).any() else unseen
    interval = found.interval if found.value else (0.0, unseen)
    return replace(found, ci95=(low, high), interval=interval)
