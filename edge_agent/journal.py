"""Every call leaves an intent and a result in a durable journal, or it is not answered.

Owns the order: an intent may be written while the prompt is being read, but it is committed before the
first byte and before anything leaves the device; a result is committed before the answer is complete,
also when the answer failed or nobody waited for it. Refuses: storing anything (``sync.trail`` does).
"""

import asyncio
from typing import Any, Literal, Protocol

RecordKind = Literal["intent", "result"]


class Journal(Protocol):
    """Durable records of calls."""

    async def append(
        self,
        kind: RecordKind,
        request_id: str,
        data_class: str,
        subject: str,
        facts: dict[str, Any],
        body: bytes,
    ) -> int:
        """Commit one record and return its number. ``facts`` hold no content; ``body`` is sealed.

        Raises ``SyncError`` when the record cannot be made durable.
        """


class Entry:
    """The two records of one call. Without a journal both are None."""

    def __init__(self, journal: Journal | None, request_id: str, data_class: str, subject: str) -> None:
        self._journal = journal
        self._head = (request_id, data_class, subject)
        self._intent: asyncio.Task[int] | None = None
        self._result: asyncio.Task[int] | None = None

    def begin(self, facts: dict[str, Any], body: bytes) -> None:
        """Start writing the intent."""
        if self._journal is not None:
            write = self._journal.append("intent", *self._head, facts, body)
            self._intent = asyncio.ensure_future(write)

    async def intent(self) -> int | None:
        """Wait until the intent is committed. Raises ``SyncError``."""
        return None if self._intent is None else await asyncio.shield(self._intent)

    async def result(self, facts: dict[str, Any], body: bytes) -> int | None:
        """Commit the result, once, and return its number; a call that fails after its result has none to add.

        Being cancelled ends the waiting, not the writing: who calls again waits for the same record.
        """
        if self._journal is None:
            return None
        if self._result is None:
            self._result = asyncio.create_task(self._write_result(self._journal, facts, body))
        return await asyncio.shield(self._result)

    async def _write_result(self, journal: Journal, facts: dict[str, Any], body: bytes) -> int:
        await self.intent()
        return await journal.append("result", *self._head, facts, body)
