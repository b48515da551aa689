"""A journal in memory that keeps the order of what was committed, and can be full."""

import asyncio
from dataclasses import dataclass
from typing import Any

from sync.errors import StoreFull


@dataclass(frozen=True, slots=True)
class Record:
    """One committed record."""

    kind: str
    request_id: str
    data_class: str
    subject: str
    facts: dict[str, Any]
    body: bytes


class MemoryJournal:
    """Implements ``edge_agent.journal.Journal``. ``full`` names the kinds that find no room.

    ``delay`` is how long a commit takes, in seconds.
    """

    def __init__(self, *, full: frozenset[str] = frozenset(), delay: float = 0.0) -> None:
        self.records: list[Record] = []
        self._full = full
        self._delay = delay
        self._grown = asyncio.Condition()

    async def append(
        self, kind: str, request_id: str, data_class: str, subject: str, facts: dict[str, Any], body: bytes
    ) -> int:
        """See ``edge_agent.journal.Journal``."""
        await asyncio.sleep(self._delay)
        if kind in self._full:
            raise StoreFull("no room for the record")
        self.records.append(Record(kind, request_id, data_class, subject, facts, body))
        number = len(self.records)
        async with self._grown:
            self._grown.notify_all()
        return number

    async def until(self, kind: str, count: int) -> None:
        """Wait until there are ``count`` records of a kind."""
        async with self._grown:
            await self._grown.wait_for(lambda: self.kinds.count(kind) >= count)

    @property
    def kinds(self) -> list[str]:
        """The kinds in order."""
        return [record.kind for record in self.records]
