"""Prefixes that wait in plain memory, so that attention need not pass over their cells.

Every step computes over all cells up to the last one in use, those of others masked; so what no running
request needs costs each of them time while it lies in cells, and none when it lies here. Owns the order in
which prefixes are forgotten. It does not read their states.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from models.engines.prefixes import common_prefix


@dataclass(frozen=True, slots=True)
class Parked:
    """Tokens, and the state of their cells. Requests are known to share the first ``shared`` of them."""

    tokens: list[int]
    state: bytearray
    shared: int


class ParkedPrefixes:
    """Prefixes of several owners, in at most ``most_bytes`` of states; those used longest ago go first.

    Law: of one owner's prefixes none begins another.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most, self.bytes = most_bytes, 0
        self._held: OrderedDict[tuple[Hashable, tuple[int, ...]], Parked] = OrderedDict()

    def covers(self, owner: Hashable, tokens: list[int], shared: int) -> bool:
        """Whether a prefix that begins with ``tokens`` is there; if so, it has been used now."""
        for key, one in self._held.items():
            if key[0] == owner and common_prefix(one.tokens, tokens) == len(tokens):
                self._held[key] = Parked(one.tokens, one.state, max(one.shared, shared))
                self._held.move_to_end(key)
                return True
        return False

    def takes(self, size: int) -> bool:
        """Whether a state of so many bytes is not too large."""
        return size <= self._most

    def put(self, owner: Hashable, new: Parked) -> None:
        """Keep a prefix in place of those that begin it, unless it alone is too large."""
        if not self.takes(len(new.state)):
            return
        for key, one in list(self._held.items()):
            if key[0] == owner and common_prefix(new.tokens, one.tokens) == len(one.tokens):
                self._forget(key)
        self._held[owner, tuple(new.tokens)] = new
        self.bytes += len(new.state)
        while self.bytes > self._most:
            self._forget(next(iter(self._held)))

    def longest(self, owner: Hashable, tokens: list[int]) -> tuple[Parked | None, int]:
        """The prefix with most of the first ``tokens``, and how many."""
        found, most, place = None, 0, None
        for key, one in self._held.items():
            if key[0] == owner and (size := common_prefix(one.tokens, tokens)) > most:
                found, most, place = one, size, key
        if place is not None:
            self._held.move_to_end(place)
        return found, most

    def of(self, owner: Hashable) -> list[Parked]:
        """All prefixes of an owner, the latest used first."""
        return [one for key, one in reversed(self._held.items()) if key[0] == owner]

    def drop(self, owner: Hashable, tokens: list[int] | None = None) -> None:
        """Forget one prefix of an owner, or all."""
        for key in [key for key in self._held if key[0] == owner and tokens in (None, list(key[1]))]:
            self._forget(key)

    def _forget(self, key: tuple[Hashable, tuple[int, ...]]) -> None:
        self.bytes -= len(self._held.pop(key).state)
