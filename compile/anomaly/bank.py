"""Memory banks: which good patches are kept, in which space they are compared. Pure given a seed.

Whitening makes every direction in which good patches vary count alike, so that a change along a direction in
which they hardly vary, which is what a defect often is, is not drowned by the texture's own variety: the
distance to a kept patch is a Mahalanobis distance. Greedy coreset selection is k-center (Gonzalez, 1985;
Sener and Savarese, ICLR 2018) in a random projection (Johnson and Lindenstrauss, 1984), as PatchCore has it.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from compile.errors import BadData
from compile.steps import Report

Array = npt.NDArray[np.float32]

RIDGE = 1e-3
"""Share of the mean variance that is added to each: directions that never vary must not count without end."""


@dataclass(frozen=True)
class Space:
    """``(features - mean) @ directions``: [width] and [width, kept]."""

    mean: Array
    directions: Array

    def into(self, features: Array) -> Array:
        """[..., width] to [..., kept]."""
        inside: Array = ((features - self.mean) @ self.directions).astype(np.float32)
        return inside


@dataclass(frozen=True)
class Bank:
    """What good parts look like: ``points`` [kept, directions], and of each its ``neighbours`` [kept, b].

    A point is its own first neighbour.
    A distance ``d`` counts as ``factor * d + offset``.
    """

    space: Space
    points: Array
    neighbours: npt.NDArray[np.int64]
    factor: float = 1.0
    offset: float = 0.0


def space_of(features: Array, whiten: bool, directions: int | None) -> Space:
    """The space in which ``features`` [n, width] are compared. Raises ``BadData`` for too few of them."""
    if len(features) < 2:
        raise BadData(f"{len(features)} features: nothing to tell how good parts vary")
    width = features.shape[1]
    mean = features.mean(axis=0, dtype=np.float64)
    if not whiten:
        return Space(mean.astype(np.float32), np.eye(width, dtype=np.float32))
    covariance = np.zeros((width, width))
    for start in range(0, len(features), 20_000):  # in float64, a part at a time
        centred = features[start : start + 20_000].astype(np.float64) - mean
        covariance += centred.T @ centred
    variances, axes = np.linalg.eigh(covariance / (len(features) - 1))
    variances = np.maximum(variances, 0)
    kept = slice(width - min(directions or width, width), None)
    ridge = RIDGE * variances.mean() + 1e-12
    scaled = axes[:, kept] / np.sqrt(variances[kept] + ridge)
    return Space(mean.astype(np.float32), scaled.astype(np.float32))


def coreset(points: Array, count: int, projection: int, seed: int, report: Report) -> npt.NDArray[np.int64]:
    """Indices of ``count`` points, each the farthest from those before it. The first is drawn."""
    chance = np.random.default_rng(seed)
    width = points.shape[1]
    if projection < width:
        random = chance.standard_normal((width, projection)).astype(np.float32)
        points = points @ (random / np.float32(np.sqrt(projection)))
    squares = np.einsum("ij,ij->i", points, points)
    chosen = np.empty(min(count, len(points)), dtype=np.int64)
    chosen[0] = chance.integers(len(points))
    nearest = np.full(len(points), np.inf, dtype=np.float32)
    for at in range(1, len(chosen)):
        last = chosen[at - 1]
        np.minimum(nearest, squares + squares[last] - 2 * (points @ points[last]), out=nearest)
        nearest[last] = -np.inf
        chosen[at] = nearest.argmax()
        if at % 50 == 0:
            report(at / len(chosen), f"{at} of {len(chosen)} patches chosen")
    return chosen


def with_neighbours(space: Space, points: Array, neighbours: int) -> Bank:
    """A bank of ``points`` that lie in ``space`` already."""
    squares = np.einsum("ij,ij->i", points, points)
    table = np.empty((len(points), min(neighbours, len(points))), dtype=np.int64)
    for at, point in enumerate(points):
        apart = squares + squares[at] - 2 * (points @ point)
        apart[at] = -np.inf
        table[at] = np.argsort(apart, kind="stable")[: table.shape[1]]
    return Bank(space, points, table)


def rounded(points: Array, small: bool) -> Array:
    """The points as INT8 with a scale per point stores them, where that is asked for."""
    return from_int8(*to_int8(points)) if small else points


def to_int8(points: Array) -> tuple[npt.NDArray[np.int8], Array]:
    """[kept, directions] in INT8 and a scale per point. Law: rounded points stay as they are."""
    scales = np.maximum(np.abs(points).max(axis=1), 1e-12).astype(np.float32) / np.float32(127)
    return np.clip(np.rint(points / scales[:, None]), -127, 127).astype(np.int8), scales


def from_int8(stored: npt.NDArray[np.int8], scales: Array) -> Array:
    """What the graph makes of ``to_int8``."""
    points: Array = stored.astype(np.float32) * scales[:, None]
    return points


def scaled(
    patches: Bank, whole: Bank | None, unseen: Array, unseen_whole: Array | None
) -> tuple[Bank, Bank | None]:
    """The banks with the scales that good pictures give which they have not seen.

    ``unseen`` [pictures, places, width], ``unseen_whole`` [pictures, width]. One in twenty of them gets more
    than 1 from either bank, and the median is the same: neither is heard above the other for its spread.
    """
    middle, high = _spread([score(patches, one)[0] for one in unseen])
    sized = replace(patches, factor=1 / high)
    if whole is None or unseen_whole is None:
        return sized, None
    low, far = _spread([score(whole, one[None])[0] for one in unseen_whole])
    factor = (high - middle) / high / (far - low)
    return sized, replace(whole, factor=factor, offset=1 - factor * far)


def _spread(scores: list[float]) -> tuple[float, float]:
    """Median and 95th percentile, apart from each other and above 0."""
    middle, high = np.percentile(scores, [50, 95])
    return float(middle), float(max(high, middle * (1 + 1e-6), 1e-6))


def score(bank: Bank, patches: Array) -> tuple[float, Array]:
    """A picture's score and the distance of each patch [n]: what the graph computes, for tests and scales.

    The score is the largest distance, weighted by how close the nearest kept patch lies to others
    (PatchCore's equation 7): 1 - exp(s) / sum of exp(distance) over that patch's neighbours.
    """
    inside = bank.space.into(patches)
    squares = (inside**2).sum(axis=1, keepdims=True) - 2 * inside @ bank.points.T
    apart = np.sqrt(np.maximum(squares + (bank.points**2).sum(axis=1), 0))
    distances: Array = apart.min(axis=1)
    worst = int(distances.argmax())
    highest = float(distances[worst])
    around = apart[worst][bank.neighbours[int(apart[worst].argmin())]].astype(np.float64)
    return highest * float(1 - 1 / np.exp(around - highest).sum()) if len(around) > 1 else highest, distances
