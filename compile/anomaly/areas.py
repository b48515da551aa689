"""Areas under ROC curves, alone and paired, with DeLong's intervals. Pure.

DeLong, DeLong and Clarke-Pearson, Comparing the areas under two or more correlated receiver operating
characteristic curves, Biometrics 44 (1988).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compile.evaluate.judge import Measured
from compile.evaluate.statistics import never_seen_bound

_Z = 1.959964


@dataclass(frozen=True)
class Area:
    """An area, and what every defect and every good part adds to its variance."""

    value: float
    by_defect: npt.NDArray[np.float64]
    by_good: npt.NDArray[np.float64]


def area(good: Sequence[float], defects: Sequence[float]) -> Area:
    """The probability that a defect scores above a good part; a tie counts half."""
    from scipy.stats import rankdata

    low, high = np.asarray(good, np.float64), np.asarray(defects, np.float64)
    ranks = rankdata(np.concatenate([high, low]))
    by_defect = (ranks[: len(high)] - rankdata(high)) / len(low)
    by_good = 1 - (ranks[len(high) :] - rankdata(low)) / len(high)
    return Area(float(by_defect.mean()), by_defect, by_good)


def measured_area(
    good: Sequence[float],
    defects: Sequence[float],
    reference_good: Sequence[float],
    reference_defects: Sequence[float],
) -> Measured:
    """An area beside that of the reference on the same parts.

    A normal interval has no width where both rank all parts alike, or all perfectly; it then gets the exact
    bound for a change that was never seen in so many parts. Equal scores are one model: nothing can change.
    """
    ours, theirs = area(good, defects), area(reference_good, reference_defects)
    difference = ours.value - theirs.value
    unseen = never_seen_bound(min(len(good), len(defects)))
    width = _Z * _deviation(ours.by_defect - theirs.by_defect, ours.by_good - theirs.by_good) or unseen
    if list(good) == list(reference_good) and list(defects) == list(reference_defects):
        width = 0.0
    own = _Z * _deviation(ours.by_defect, ours.by_good) or unseen
    return Measured(
        reference=theirs.value,
        value=ours.value,
        ci95=(max(-1.0, difference - width), min(1.0, difference + width)),
        samples=len(good) + len(defects),
        interval=(max(0.0, ours.value - own), min(1.0, ours.value + own)),
    )


def _deviation(by_defect: npt.NDArray[np.float64], by_good: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(by_defect.var(ddof=1) / len(by_defect) + by_good.var(ddof=1) / len(by_good)))
