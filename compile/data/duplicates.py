"""Near-duplicates: pairs of texts whose character 5-grams have a Jaccard similarity from a threshold on.

Exact at every size: a set-similarity join with prefix and length filters finds the candidates (Chaudhuri,
Ganti, Kaushik, ICDE 2006; Bayardo, Ma, Srikant, WWW 2007), and each candidate is verified. Two sets that
are similar enough must share one of their rarest shingles, so most pairs are never looked at, and none is
missed. MinHash (Broder 1997) goes before where groups are wanted: it joins most of a large group in a few
looks, and pairs within a group need none. Case and white space do not count.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

SHINGLE = 5
"""Characters."""
_CHUNK = 4_000_000
"""Entries of the inverted index that are looked at together: bounds the memory to some 200 MB."""
_VERIFIED = 40_000
"""Pairs that are verified together."""
_SLACK = 1e-9
_BANDS, _HASHES = 8, 2
"""MinHash: texts that agree in the hashes of one band are looked at. Missing some costs time, no pair."""

Ints = npt.NDArray[np.int64]


def plain(text: str) -> str:
    """What is compared: small letters, single spaces."""
    return " ".join(text.lower().split())


def near_groups(texts: Sequence[str], threshold: float) -> list[int]:
    """The group of each text, named by its first member: near-duplicates, and theirs, are in one group.

    Law: two texts in different groups have a similarity below ``threshold``.
    """
    first: dict[str, int] = {}
    of = [first.setdefault(plain(text), at) for at, text in enumerate(texts)]
    distinct = np.array(sorted(first.values()), dtype=np.int64)
    if len(distinct) < 2:
        return of
    sets = _Sets([texts[at] for at in distinct])
    groups = _Groups(len(distinct))
    for pairs in (sets.likely(), sets.candidates(threshold, groups)):
        for left, right in pairs:
            left, right = groups.apart(left, right)
            similar = sets.similarity(left, right) >= threshold
            groups.join(left[similar], right[similar])
    leader = {int(at): int(distinct[group]) for at, group in zip(distinct, groups.names, strict=True)}
    return [leader[at] for at in of]


def near_pairs(
    texts: Sequence[str], threshold: float, parts: Sequence[Any] | None = None
) -> list[tuple[int, int, float]]:
    """Every pair from ``threshold`` on as (index, later index, similarity), most similar first.

    With ``parts``, only pairs whose texts are in different parts.
    """
    if len(texts) < 2:
        return []
    sets = _Sets(texts)
    names = {part: at for at, part in enumerate(dict.fromkeys(parts or ()))}
    part = np.array([names[one] for one in parts], dtype=np.int64) if parts is not None else None
    apart = _Groups(len(texts), part) if part is not None else None
    found: list[tuple[int, int, float]] = []
    for left, right in sets.candidates(threshold, apart):
        similarity = sets.similarity(left, right)
        for at in np.flatnonzero(similarity >= threshold):
            low, high = sorted((int(left[at]), int(right[at])))
            found.append((low, high, float(similarity[at])))
    return sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))


class _Groups:
    """Which texts belong together. Each is alone at first, or ``names`` says; joining names a group anew."""

    def __init__(self, size: int, names: Ints | None = None) -> None:
        self.names: Ints = np.arange(size, dtype=np.int64) if names is None else names

    def apart(self, left: Ints, right: Ints) -> tuple[Ints, Ints]:
        """The pairs whose members are not in one group yet."""
        open_ = self.names[left] != self.names[right]
        return left[open_], right[open_]

    def join(self, left: Ints, right: Ints) -> None:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        if not len(left):
            return
        size = len(self.names)
        edges_from = np.concatenate([np.arange(size), left])
        edges_to = np.concatenate([self.names, right])
        graph = coo_array((np.ones(len(edges_from), np.int8), (edges_from, edges_to)), shape=(size, size))
        _, component = connected_components(graph, directed=False)
        _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
        self.names = first[inverse].astype(np.int64)


class _Sets:
    """The shingle sets of texts as a sparse matrix; sets in order of size, shingles from rare to common."""

    def __init__(self, texts: Sequence[str]) -> None:
        from scipy.sparse import csr_array

        rows, ids = _shingles(texts)
        count = np.bincount(rows, minlength=len(texts))
        self._order: Ints = np.argsort(count, kind="stable").astype(np.int64)
        place = np.empty(len(texts), dtype=np.int64)
        place[self._order] = np.arange(len(texts))
        frequency = np.bincount(ids)
        rank = np.empty(len(frequency), dtype=np.int64)
        rank[np.argsort(frequency, kind="stable")] = np.arange(len(frequency))
        keys = np.sort((place[rows] << 32) | rank[ids])
        self._ranks: Ints = keys & 0xFFFFFFFF
        self._sizes: Ints = count[self._order].astype(np.int64)
        self._starts: Ints = np.concatenate([[0], np.cumsum(self._sizes)]).astype(np.int64)
        ones = np.ones(len(keys), dtype=np.int32)
        self._matrix = csr_array((ones, self._ranks, self._starts), shape=(len(texts), len(frequency)))
        self._place = place

    def likely(self) -> Iterator[tuple[Ints, Ints]]:
        """For each band of MinHash values, every text with the first one that has the same."""
        chance = np.random.default_rng(1)
        for _ in range(_BANDS):
            band = np.zeros(len(self._sizes), dtype=np.uint64)
            for _ in range(_HASHES):
                factor, shift = (np.uint64(one) for one in chance.integers(1, 1 << 63, size=2))
                hashed = (self._ranks.astype(np.uint64) + np.uint64(1)) * (factor | np.uint64(1)) + shift
                hashed ^= hashed >> np.uint64(31)
                band = band * np.uint64(0x9E3779B97F4A7C15) + np.minimum.reduceat(hashed, self._starts[:-1])
            _, first, inverse = np.unique(band, return_index=True, return_inverse=True)
            left, right = np.arange(len(band)), first[inverse]
            yield self._order[left[left != right]], self._order[right[left != right]]

    def candidates(self, threshold: float, groups: _Groups | None) -> Iterator[tuple[Ints, Ints]]:
        """Chunks of pairs that hold every pair of a similarity from ``threshold`` on; each pair once.

        With ``groups``, only pairs whose texts are in different ones when this begins.
        """
        sizes = self._sizes
        # x finds y (not larger) through its first |x| - ceil(t|x|) + 1 shingles; y is filed under fewer.
        asked = sizes - np.ceil(threshold * sizes - _SLACK).astype(np.int64) + 1
        filed = sizes - np.ceil(2 * threshold / (1 + threshold) * sizes - _SLACK).astype(np.int64) + 1
        smallest = np.searchsorted(sizes, np.ceil(threshold * sizes - _SLACK))
        rows, shingles = self._prefix(asked)
        others, keys = self._prefix(filed)
        index = np.sort((keys << 32) | others)
        begin = np.searchsorted(index, (shingles << 32) | smallest[rows])
        end = np.maximum(np.searchsorted(index, (shingles << 32) | rows), begin)
        posted = index & 0xFFFFFFFF
        if groups is not None:
            rows, begin, end, more = self._around(groups, rows, shingles, begin, end, others, keys)
            posted = np.concatenate([posted, more])
        counts = end - begin
        total = np.cumsum(counts)
        at = 0
        while at < len(counts):
            done = total[at - 1] if at else 0
            until = max(int(np.searchsorted(total, done + _CHUNK, side="right")), at + 1)
            # All of one row's shingles belong to one chunk, so that a pair is met in one chunk only.
            while until < len(rows) and rows[until] == rows[until - 1]:
                until += 1
            part = counts[at:until]
            if part.sum():
                offsets = np.arange(part.sum()) - np.repeat(np.cumsum(part) - part, part)
                other = posted[np.repeat(begin[at:until], part) + offsets]
                row = np.repeat(rows[at:until], part)
                wanted = (other < row) & (other >= smallest[row])
                pairs = _distinct((row[wanted] << 32) | other[wanted])
                left, right = self._order[pairs >> 32], self._order[pairs & 0xFFFFFFFF]
                yield (left, right) if groups is None else groups.apart(left, right)
            at = until

    def _around(
        self,
        groups: _Groups,
        rows: Ints,
        shingles: Ints,
        begin: Ints,
        end: Ints,
        others: Ints,
        keys: Ints,
    ) -> tuple[Ints, Ints, Ints, Ints]:
        """The same look-ups, passing by a row's own group where that leaves fewer to look at.

        Returns rows, begin and end of the look-ups in order of their rows, and the second index (by shingle
        and group), which stands behind the first.
        """
        own = groups.names[self._order]
        filed = (keys << 32) | own[others]
        order = np.argsort(filed, kind="stable")
        filed = filed[order]
        shingle = shingles << 32
        bounds = [
            np.searchsorted(filed, key)
            for key in (shingle, shingle | own[rows], (shingle | own[rows]) + 1, shingle + (1 << 32))
        ]
        fewer = bounds[1] - bounds[0] + bounds[3] - bounds[2] < end - begin
        behind = len(filed)
        rows = np.concatenate([rows[~fewer], rows[fewer], rows[fewer]])
        begin = np.concatenate([begin[~fewer], bounds[0][fewer] + behind, bounds[2][fewer] + behind])
        end = np.concatenate([end[~fewer], bounds[1][fewer] + behind, bounds[3][fewer] + behind])
        by_row = np.argsort(rows, kind="stable")
        return rows[by_row], begin[by_row], end[by_row], others[order]

    def similarity(self, left: Ints, right: Ints) -> npt.NDArray[np.float64]:
        """Jaccard similarity of pairs of texts."""
        result = np.empty(len(left), dtype=np.float64)
        for at in range(0, len(left), _VERIFIED):
            a, b = (self._place[side[at : at + _VERIFIED]] for side in (left, right))
            common = self._matrix[a].multiply(self._matrix[b]).sum(axis=1)
            result[at : at + _VERIFIED] = common / (self._sizes[a] + self._sizes[b] - common)
        return result

    def _prefix(self, lengths: Ints) -> tuple[Ints, Ints]:
        """Row and rank of the first ``lengths`` shingles of every row."""
        rows = np.repeat(np.arange(len(lengths)), lengths)
        offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return rows, self._ranks[self._starts[rows] + offsets]


def _shingles(texts: Sequence[str]) -> tuple[Ints, Ints]:
    """Row and shingle number of every distinct shingle of every text. Numbers stand for exact 5-grams."""
    # A text shorter than a shingle is one shingle, filled up with a character that no clean text has.
    padded = [plain(text).ljust(SHINGLE, "\0") for text in texts]
    lengths = np.array([len(text) for text in padded], dtype=np.int64)
    data = "".join(padded).encode("utf-32-le", "surrogatepass")
    characters = _numbers(np.frombuffer(data, dtype=np.uint32).astype(np.int64))
    pairs = _numbers((characters[:-1] << 32) | characters[1:])
    fours = _numbers((pairs[:-2] << 32) | pairs[2:])
    fives = _numbers((fours[:-1] << 32) | characters[SHINGLE - 1 :])
    rows = np.repeat(np.arange(len(texts)), lengths)
    ends = np.repeat(np.cumsum(lengths), lengths)
    inside = np.flatnonzero(np.arange(len(characters)) + SHINGLE <= ends)
    keys = _distinct((rows[inside] << 32) | fives[inside])
    return keys >> 32, _numbers(keys & 0xFFFFFFFF)


def _distinct(values: Ints) -> Ints:
    """The distinct values in order; sorting is several times as fast here as numpy's hashing."""
    ordered = np.sort(values)
    first = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def _numbers(values: Ints) -> Ints:
    """Small numbers that stand for the distinct values."""
    _, numbers = np.unique(values, return_inverse=True)
    return numbers.astype(np.int64)
