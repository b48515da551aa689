"""From the scores of good parts to a threshold with a promise. Pure.

Split conformal prediction (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005): with
``n`` exchangeable scores, the next good part lies above the k-th smallest with probability at most
``(n + 1 - k) / (n + 1)``. Given one calibration, the true rate follows Beta(n + 1 - k, k) (Vovk, Conditional
validity of inductive conformal predictors, ACML 2012), which gives the exact interval. Observed rates have
Clopper and Pearson's interval (Biometrika 26, 1934).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compile.errors import Refused


@dataclass(frozen=True)
class Threshold:
    """Parts at or above ``value`` are defects.

    ``expected`` is the share of good parts that are rejected, over calibrations, at most what was asked for;
    ``interval`` holds the rate of this very threshold with 95 %.
    """

    value: float
    asked: float
    expected: float
    interval: tuple[float, float]
    parts: int


def parts_needed(false_reject_rate: float) -> int:
    """The fewest good parts that can promise such a rate."""
    # The tolerance keeps 1 / 0.05 - 1 at 19 in binary floating point.
    return max(1, math.ceil(1 / false_reject_rate - 1 - 1e-9))


def calibrate(scores: Sequence[float], false_reject_rate: float) -> Threshold:
    """The lowest threshold that rejects the next good part with at most ``false_reject_rate``.

    Raises ``Refused`` when there are too few scores, with the number that would do, and for scores that are
    not finite.
    """
    from scipy.stats import beta

    count, needed = len(scores), parts_needed(false_reject_rate)
    if count < needed:
        raise Refused(
            f"{count} good parts cannot promise a false-reject rate of {false_reject_rate:g}: "
            f"at least {needed} are needed for calibration"
        )
    ordered = np.sort(np.asarray(scores, dtype=np.float32))
    if not np.isfinite(ordered).all():
        raise Refused("a good part has a score that is not a finite number")
    rank = min(count, math.ceil((count + 1) * (1 - false_reject_rate) - 1e-9))
    above = count + 1 - rank
    low, high = beta.ppf([0.025, 0.975], above, rank)
    return Threshold(
        # The first number above the score, because a part at the threshold is a defect.
        value=float(np.nextafter(ordered[rank - 1], np.float32(np.inf), dtype=np.float32)),
        asked=false_reject_rate,
        expected=above / (count + 1),
        interval=(float(low), float(high)),
        parts=count,
    )


def rate_interval(hits: int, trials: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a rate."""
    from scipy.stats import beta

    low = 0.0 if hits == 0 else float(beta.ppf(0.025, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(beta.ppf(0.975, hits + 1, trials - hits))
    return low, high
