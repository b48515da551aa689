"""Embeddings and probabilities of a variant beside those of the reference, and what they are worth. Pure.

Cosines and ranks are of vectors as the engine gives them. Retrieval is exact: every text is a query, every
other one the corpus. Intervals are paired (``compile.evaluate.statistics``). A ``..._ratio`` is a score as a
share of the reference's, so that a budget of 0.01 means one per cent of what the reference can do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from compile.evaluate import judge, statistics
from compile.evaluate.judge import Measured

Array = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
NEIGHBOURS = 10
_PAIRS = 4000
"""Pairs of texts whose similarities are ranked against the reference's."""


@dataclass(frozen=True)
class Retrieved:
    """Per query: the indices of its nearest texts, nearest first, [n, k], and the rank of each query's own
    answer (0 is first), where there are answers."""

    nearest: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.int64] | None = None


def cosines(ours: Array, theirs: Array) -> Floats:
    """Row by row, in [-1, 1]."""
    left, right = ours.astype(np.float64), theirs.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    result: Floats = (left * right).sum(axis=1) / np.maximum(norms, 1e-30)
    return np.clip(result, -1.0, 1.0)


def divergences(ours: Array, theirs: Array) -> Floats:
    """KL(theirs || ours) of probabilities, row by row, in nats; never below 0."""
    left = np.maximum(ours.astype(np.float64), 1e-12)
    right = np.maximum(theirs.astype(np.float64), 1e-12)
    result: Floats = np.maximum((right * np.log(right / left)).sum(axis=1), 0.0)
    return result


def retrieve(vectors: Array, neighbours: int = NEIGHBOURS) -> Retrieved:
    """The nearest other texts of every text, by cosine."""
    unit = _unit(vectors)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -2.0)
    return Retrieved(_best(scores, neighbours))


def retrieve_answers(questions: Array, answers: Array, texts: Sequence[str]) -> Retrieved:
    """The nearest answers of every question; ``texts`` are the answers, and equal texts are one answer."""
    scores = _unit(questions) @ _unit(answers).T
    order = np.argsort(-scores, axis=1, kind="stable")
    same = np.array([[texts[at] == text for at in row] for row, text in zip(order, texts, strict=True)])
    return Retrieved(order[:, :NEIGHBOURS], same.argmax(axis=1))


def fidelity(ours: Array, theirs: Array, rounds: int, seed: int) -> dict[str, Measured]:
    """How near the vectors are: mean and 1st percentile of the cosine, and whether similarities of random
    pairs of texts keep their order (Spearman)."""
    near = cosines(ours, theirs)
    count = len(near)

    def tail(at: npt.NDArray[Any]) -> float:
        return float(np.percentile(near[at], 1))

    mean, low_tail = (
        statistics.mean_interval(near, rounds, seed),
        statistics.resample(count, tail, rounds, seed),
    )
    left, right = _pairs(count, seed)
    one, other = cosines(ours[left], ours[right]), cosines(theirs[left], theirs[right])
    ranked = min(rounds, 200)  # each round ranks thousands of numbers
    order = statistics.resample(len(left), lambda at: spearman(one[at], other[at]), ranked, seed)
    return {
        "cosine_mean": _of_one(float(near.mean()), mean, count),
        "cosine_p1": _of_one(tail(np.arange(count)), low_tail, count),
        "similarity_spearman": _of_one(spearman(one, other), order, count),
    }


def agreement(ours: Retrieved, theirs: Retrieved, rounds: int, seed: int) -> dict[str, Measured]:
    """Whether the same texts are found: the first, and the share of the ten nearest."""
    top = [float(a[0] == b[0]) for a, b in zip(ours.nearest, theirs.nearest, strict=True)]
    shared = [
        len(set(a.tolist()) & set(b.tolist())) / len(b)
        for a, b in zip(ours.nearest, theirs.nearest, strict=True)
    ]
    alike = [1.0] * len(top)
    return {
        "top1_agreement": judge.paired(top, alike, rounds, seed),
        "top10_overlap": judge.paired(shared, alike, rounds, seed),
    }


def precision(found: Retrieved, labels: Sequence[str]) -> list[float]:
    """Per query the share of its nearest texts that have its label (precision at ten)."""
    names = np.array(labels)
    shares: list[float] = (names[found.nearest] == names[:, None]).mean(axis=1).tolist()
    return shares


def first_right(found: Retrieved, labels: Sequence[str]) -> list[float]:
    """Per query whether its nearest text has its label."""
    return [float(labels[row[0]] == label) for row, label in zip(found.nearest, labels, strict=True)]


def reciprocal_ranks(found: Retrieved) -> list[float]:
    """Per question 1 / (1 + the rank of its answer)."""
    if found.ranks is None:
        return []
    values: list[float] = (1.0 / (1.0 + found.ranks)).tolist()
    return values


def scored(
    name: str, ours: Sequence[float], theirs: Sequence[float], rounds: int, seed: int
) -> dict[str, Measured]:
    """A score in [0, 1] beside the reference's, absolute and as a share of it."""
    absolute = judge.paired(ours, theirs, rounds, seed)
    found = {name: absolute}
    reference, ci95 = absolute.reference, absolute.ci95
    if reference and ci95 is not None:
        found[f"{name}_ratio"] = Measured(
            1.0,
            absolute.value / reference,
            (ci95[0] / reference, ci95[1] / reference),
            absolute.samples,
        )
    return found


def classification(
    labels: Sequence[str], classes: Sequence[str], ours: Array, theirs: Array, rounds: int, seed: int
) -> dict[str, Measured]:
    """Accuracy, macro-F1, label flips and the divergence of probabilities; ``labels`` are the right ones."""
    said, others = chosen(ours, classes), chosen(theirs, classes)
    right = [float(a == b) for a, b in zip(said, labels, strict=True)]
    wanted = [float(a == b) for a, b in zip(others, labels, strict=True)]
    same = [float(a == b) for a, b in zip(said, others, strict=True)]
    apart = divergences(ours, theirs)
    count = len(apart)

    def tail(at: npt.NDArray[Any]) -> float:
        return float(np.percentile(apart[at], 99))

    mean, high = statistics.mean_interval(apart, rounds, seed), statistics.resample(count, tail, rounds, seed)
    return scored("accuracy", right, wanted, rounds, seed) | {
        "macro_f1": judge.macro_f1(labels, said, others, classes, rounds, seed),
        "label_agreement": judge.paired(same, [1.0] * count, rounds, seed),
        "kl_mean": Measured(0.0, float(apart.mean()), mean, count, mean),
        "kl_p99": Measured(0.0, tail(np.arange(count)), high, count, high),
    }


def chosen(probabilities: Array, classes: Sequence[str]) -> list[str]:
    """The likeliest class of each row."""
    return [classes[at] for at in probabilities.argmax(axis=1)]


def spearman(left: Floats, right: Floats) -> float:
    """Rank correlation, in [-1, 1]; ties get their mean rank."""
    from scipy.stats import rankdata

    one, other = rankdata(left), rankdata(right)
    if one.std() == 0 or other.std() == 0:
        return 1.0 if np.array_equal(one, other) else 0.0
    return float(np.corrcoef(one, other)[0, 1])


def _of_one(value: float, interval: tuple[float, float], count: int) -> Measured:
    """A likeness to the reference, which is like itself: 1."""
    return Measured(1.0, value, (interval[0] - 1, interval[1] - 1), count, interval)


def _unit(vectors: Array) -> Array:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Array = vectors / np.maximum(norms, 1e-12)
    return result


def _best(scores: Array, count: int) -> npt.NDArray[np.int64]:
    count = min(count, scores.shape[1] - 1)
    part = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(scores, part, axis=1), axis=1, kind="stable")
    best: npt.NDArray[np.int64] = np.take_along_axis(part, order, axis=1)
    return best


def _pairs(count: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    chance = np.random.default_rng(seed)
    left = chance.integers(0, count, _PAIRS)
    right = (left + chance.integers(1, max(count, 2), _PAIRS)) % count
    return left, right
