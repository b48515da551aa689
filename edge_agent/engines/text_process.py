"""A text engine in a process of its own: streams of events, and adapters that a restarted child gets back.

Owns the requests in flight and the list of adapters; ``edge_agent.engines.supervised`` owns the process.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from edge_agent.engines import wire
from edge_agent.engines.files import EngineFiles, of_path
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.supervised import Gate, SupervisedEngine
from models.engines.base import Event, GenerateRequest, ModelFacts
from models.errors import EngineError


class EngineProcess(SupervisedEngine):
    """A running text engine. Make one with ``start``; satisfies ``edge_agent.catalog.TextEngine``."""

    _adapters: dict[str, Path]
    _streams: "dict[str, _Stream]"

    @classmethod
    async def start(
        cls,
        model: Path | EngineFiles,
        settings: EngineSettings,
        adapters: Mapping[str, Path] | None = None,
        gate: Gate | None = None,
    ) -> Self:
        """Load ``model`` in a new process and attach ``adapters`` (key to path).

        Raises ``UnsafeFile`` before native code has seen a bad file, else ``EngineError`` with the
        child's reason.
        """
        files = model if isinstance(model, EngineFiles) else of_path(model)
        engine = await cls._start(files, settings, gate)
        try:
            for key, path in (adapters or {}).items():
                await engine.attach(key, path)
        except BaseException:
            await engine.close()
            raise
        return engine

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._adapters = {}
        self._streams = {}

    @property
    def facts(self) -> ModelFacts:
        """What the loaded model is."""
        if not isinstance(self._loaded, ModelFacts):
            raise EngineError("the engine has not been loaded")
        return self._loaded

    async def attach(self, key: str, path: Path) -> None:
        """Load an adapter beside the running base. Raises ``UnsafeFile`` or ``EngineError``."""
        await asyncio.to_thread(self._check_adapter, path)
        await self._until_ready()
        await self._call("attach", key, str(path))
        self._adapters[key] = path

    async def detach(self, key: str) -> None:
        """Drop an adapter once its running requests have ended. Raises ``UnknownAdapter``."""
        await self._until_ready()
        await self._call("detach", key)
        self._adapters.pop(key, None)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        """Events of one request in order, the last one ``done``.

        Raises ``EngineError`` subclasses, before or between events. Leaving the iterator (``aclose``)
        cancels within one step.
        """
        await self._until_ready()
        number = str(next(self._numbers))
        stream = self._streams[number] = _Stream(request.id)
        self._send("submit", wire.request_to_wire(request, number))
        done = False
        try:
            while not done:
                event = await stream.events.get()
                done = event.done
                if event.error is not None:
                    raise event.error
                yield event
        finally:
            del self._streams[number]
            if not done:
                self._send("cancel", number)

    # For the supervisor

    def _hear(self, events: Sequence[dict[str, Any]]) -> None:
        for value in events:
            stream = self._streams.get(value["id"])
            if stream is not None:  # else it was cancelled, and this crossed the cancellation
                stream.put(wire.event_from_wire(value, stream.request_id))

    def _owes_events(self) -> bool:
        return any(not stream.ended for stream in self._streams.values())

    def _abandon_events(self, error: EngineError) -> None:
        for stream in self._streams.values():
            stream.put(Event(stream.request_id, error=error))

    def _restored(self) -> None:
        for key, path in self._adapters.items():
            self._send("attach", next(self._numbers), key, str(path))


@dataclass(slots=True)
class _Stream:
    """Events of one request on their way to who asked."""

    request_id: str
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    ended: bool = False

    def put(self, event: Event) -> None:
        self.ended = self.ended or event.done
        self.events.put_nowait(event)
