"""Intervals by bootstrap, paired differences, and how many samples would decide. Pure given a seed.

Percentile bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. Exact
bound for an event that was never seen: Clopper and Pearson, Biometrika 26 (1934).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def resample(
    samples: int, statistic: Callable[[npt.NDArray[np.int64]], float], rounds: int, seed: int, block: int = 1
) -> tuple[float, float]:
    """The 95 % interval of ``statistic(indices)`` over resampled indices.

    ``block`` neighbours are drawn together, for samples that depend on their neighbours (tokens of a text).
    """
    chance = np.random.default_rng(seed)
    starts = np.arange(0, samples, block)
    values = []
    for _ in range(rounds):
        chosen = chance.choice(starts, size=len(starts))
        indices = (chosen[:, None] + np.arange(block)[None]).ravel()
        values.append(statistic(indices[indices < samples]))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(
    values: Sequence[float] | Array, rounds: int, seed: int, block: int = 1
) -> tuple[float, float]:
    """The 95 % interval of a mean."""
    array = np.asarray(values, dtype=np.float64)
    return resample(len(array), lambda indices: float(array[indices].mean()), rounds, seed, block)


def paired_difference(
    values: Sequence[float], reference: Sequence[float], rounds: int, seed: int
) -> tuple[float, float]:
    """The 95 % interval of ``mean(values) - mean(reference)`` over the same inputs, outcomes in [0, 1].

    Where no pair fell (or rose) a bootstrap takes that for certain, so that end is moved by the exact
    bound for an event never seen in so many trials.
    """
    difference = np.asarray(values, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    low, high = mean_interval(difference, rounds, seed)
    unseen = never_seen_bound(len(difference))
    if not (difference < 0).any():
        low -= unseen
    if not (difference > 0).any():
        high += unseen
    return low, high


def never_seen_bound(samples: int) -> float:
    """The largest rate of an event that stays unseen in ``samples`` trials with probability 2.5 %."""
    return float(1 - 0.025 ** (1 / samples))


def samples_to_decide(samples: int, point: float, pessimistic: float, bound: float) -> int | None:
    """About how many samples would bring the pessimistic end to ``bound``; None when none would.

    The width of an interval shrinks with the square root of the number of samples.
    """
    margin, width = abs(bound - point), abs(pessimistic - point)
    if margin == 0 or width == 0:
        return None
    return math.ceil(samples * (width / margin) ** 2)


def macro_f1(labels: Sequence[str], answers: Sequence[str], classes: Sequence[str]) -> float:
    """Mean over the classes that occur of the harmonic mean of precision and recall."""
    scores = []
    for name in classes:
        hit = sum(a == name == b for a, b in zip(labels, answers, strict=True))
        asked, said = sum(a == name for a in labels), sum(b == name for b in answers)
        if asked:
            scores.append(2 * hit / (asked + said))
    return sum(scores) / len(scores) if scores else 0.0


def picked(values: Sequence[Any], indices: npt.NDArray[np.int64]) -> list[Any]:
    """The values at ``indices``."""
    return [values[index] for index in indices]
