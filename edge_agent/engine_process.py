"""An engine in a supervised process of its own, seen from asyncio.

Owns the child process, the requests in flight and the list of adapters that a restarted child gets
back. Refuses model files that ``models.gguf`` has not passed, before the child sees them. A crash costs
the requests in flight a clean ``EngineCrashed``; the child is restarted with growing pauses. A child that
owes an answer and falls silent hangs in native code: it is killed, which makes it a crash like any other.
One event loop owns an ``EngineProcess``.
"""

import asyncio
import itertools
import json
import logging
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from edge_agent import engine_wire as wire
from edge_agent.engine_wire import EngineSettings as EngineSettings
from edge_agent.errors import EngineCrashed
from models.engines.base import Event, GenerateRequest, ModelFacts
from models.engines.llama_cpp import check_adapter, check_model
from models.errors import EngineError, ModelsError
from models.gguf import GgufHeader

_log = logging.getLogger(__name__)

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 30.0
HEALTHY_AFTER = 60.0
"""Seconds: between crash and restart at first and at most; how long a child must live to be trusted again."""
PATIENCE = 15.0
"""Seconds that a request waits for a restart before it is refused."""
GRACE = 5.0
"""Seconds that a child gets to end by itself."""
SLOW_DISK = 20e6
"""Bytes a second that any disk reads; more time than that takes is no reason to kill a child that loads."""
GLANCES = 4
"""How often a silent child is looked at before it is killed."""


class EngineProcess:
    """A running engine. Make one with ``start``; satisfies ``edge_agent.catalog.TextEngine``."""

    def __init__(self, model: Path, settings: EngineSettings, header: GgufHeader) -> None:
        self._model, self._settings, self._header = model, settings, header
        self._adapters: dict[str, Path] = {}
        self._streams: dict[str, _Stream] = {}
        self._calls: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count(1)
        self._outbox: list[list[Any]] = []
        self._child: _Child | None = None
        self._ready = asyncio.Event()
        self._closed = False
        self._supervisor: asyncio.Task[None] | None = None
        self._facts: ModelFacts | None = None
        self.loads = 0
        self.restarts = 0

    @classmethod
    async def start(
        cls, model: Path, settings: EngineSettings, adapters: Mapping[str, Path] | None = None
    ) -> Self:
        """Load ``model`` in a new process and attach ``adapters`` (key to path).

        Raises ``UnsafeFile`` before native code has seen a bad file, else ``EngineError`` with the
        child's reason.
        """
        engine = cls(model, settings, await asyncio.to_thread(check_model, model))
        try:
            await engine._spawn()
            for key, path in (adapters or {}).items():
                await engine.attach(key, path)
        except BaseException:
            await engine.close()
            raise
        return engine

    @property
    def facts(self) -> ModelFacts:
        """What the loaded model is."""
        if self._facts is None:
            raise EngineError("the engine has not been loaded")
        return self._facts

    @property
    def pid(self) -> int | None:
        """The child's process id; ``None`` while there is no child."""
        return self._child.process.pid if self._child else None

    async def attach(self, key: str, path: Path) -> None:
        """Load an adapter beside the running base. Raises ``UnsafeFile`` or ``EngineError``."""
        await asyncio.to_thread(check_adapter, path, self._header)
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

    async def close(self) -> None:
        """End the child. Requests in flight get an ``EngineError``. Safe to call twice."""
        self._closed = True
        self._ready.set()  # whoever waits for a restart learns that there will be none
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
            self._supervisor = None
        child, self._child = self._child, None
        self._abandon(EngineError("the engine has been closed"))
        if child is not None:
            await child.end()

    # Inside

    async def _until_ready(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._ready.wait()
        except TimeoutError as error:
            raise EngineCrashed("the engine has crashed and is not back yet") from error
        if self._closed:
            raise EngineError("the engine has been closed")

    def _send(self, *command: Any) -> None:
        """Queue a command; all of one turn of the event loop leave in one frame."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(list(command))

    def _flush(self) -> None:
        commands, self._outbox = self._outbox, []
        if self._child is not None:
            self._child.writer.write(wire.frame({"do": commands}))

    async def _call(self, verb: str, *arguments: str) -> None:
        number = next(self._numbers)
        self._calls[number] = asyncio.get_running_loop().create_future()
        self._send(verb, number, *arguments)
        try:
            await self._calls[number]
        finally:
            del self._calls[number]

    async def _spawn(self) -> None:
        """A new child, loaded and under supervision. Raises ``EngineError`` with the child's reason."""
        self.loads += 1
        child = await _Child.spawn()
        try:
            self._facts = await child.load(self._model, self._settings)
        except BaseException:
            await child.end()
            raise
        self._child = child
        self._ready.set()
        if self._supervisor is None:
            self._supervisor = asyncio.create_task(self._supervise(), name="engine supervisor")

    async def _supervise(self) -> None:
        pause = FIRST_PAUSE
        loop = asyncio.get_running_loop()
        while self._child is not None:
            started = loop.time()
            reason = await self._listen(self._child)
            child, self._child = self._child, None
            self._ready.clear()
            self._outbox.clear()
            await child.end()
            reason = reason or child.reason
            self._abandon(EngineCrashed(f"the engine's process ended: {reason}"))
            _log.error("engine process %d ended: %s", child.process.pid, reason)
            if loop.time() - started > HEALTHY_AFTER:
                pause = FIRST_PAUSE
            while self._child is None:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                try:
                    await self._restart()
                except (ModelsError, OSError) as error:
                    _log.error("engine process cannot be restarted: %s", error)

    async def _restart(self) -> None:
        self.restarts += 1
        await self._spawn()
        for key, path in self._adapters.items():
            # Nobody is listening yet; replies are read by ``_listen``.
            self._send("attach", next(self._numbers), key, str(path))

    async def _watch(self, child: "_Child") -> None:
        """End when the child has owed an answer and said nothing for too long; it is killed then.

        Counts glances, not the clock: a loop that was held up itself also found no time to hear the child.
        """
        silent = 0
        while silent < GLANCES:
            owed, heard = self._owed, child.heard
            await asyncio.sleep(self._settings.silence_seconds / GLANCES)
            silent = silent + 1 if owed and self._owed and child.heard == heard else 0
        with suppress(ProcessLookupError):
            child.process.kill()

    @property
    def _owed(self) -> bool:
        """Whether the child still has to say something; what it said may be waiting for a slow reader."""
        return any(not stream.ended for stream in self._streams.values()) or any(
            not call.done() for call in self._calls.values()
        )

    async def _listen(self, child: "_Child") -> str | None:
        """Deliver what the child says until it ends; the reason, if it made no sense or hung."""
        watch = asyncio.create_task(self._watch(child), name="engine watchdog")
        try:
            while (message := await child.receive()) is not None:
                for value in message["events"]:
                    stream = self._streams.get(value["id"])
                    if stream is not None:  # else it was cancelled, and this crossed the cancellation
                        stream.put(wire.event_from_wire(value, stream.request_id))
                for number, error in message["replies"]:
                    self._settle(number, wire.error_from_wire(error) if error else None)
        except (KeyError, TypeError, ValueError) as error:
            return f"it sent what is no message: {error!r:.200}"
        finally:
            watch.cancel()
        if watch.done():
            return f"it owed an answer and said nothing for {self._settings.silence_seconds:g} s"
        return None

    def _settle(self, number: int, error: ModelsError | None) -> None:
        call = self._calls.get(number)
        if call is None or call.done():
            if error is not None:  # an adapter that a restarted child would not take back
                _log.error("engine process refused an adapter: %s", error)
        elif error is None:
            call.set_result(None)
        else:
            call.set_exception(error)

    def _abandon(self, error: EngineError) -> None:
        """Everything that waits for an answer gets ``error``."""
        for stream in self._streams.values():
            stream.put(Event(stream.request_id, error=error))
        for call in self._calls.values():
            if not call.done():
                call.set_exception(error)


@dataclass(slots=True)
class _Stream:
    """Events of one request on their way to who asked."""

    request_id: str
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    ended: bool = False

    def put(self, event: Event) -> None:
        self.ended = self.ended or event.done
        self.events.put_nowait(event)


class _Child:
    """One operating-system process and the socket to it."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.process, self._reader, self.writer = process, reader, writer
        self._last_words = asyncio.create_task(self._read_stderr())
        self.reason = "no reason given"
        self.heard = 0

    @classmethod
    async def spawn(cls) -> Self:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "edge_agent.engine_child", str(theirs.fileno()), str(os.getpid())),
                pass_fds=[theirs.fileno()],
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=PIPE,
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(process, reader, writer)

    async def load(self, model: Path, settings: EngineSettings) -> ModelFacts:
        """Have the model loaded. Raises ``EngineError``; kills a child that takes too long."""
        limit = settings.load_seconds + (await asyncio.to_thread(model.stat)).st_size / SLOW_DISK
        self.writer.write(wire.frame({"load": {"model": str(model), "settings": asdict(settings)}}))
        try:
            async with asyncio.timeout(limit):
                message = await self.receive()
        except TimeoutError as error:
            self.process.kill()
            raise EngineCrashed(f"the engine had not loaded {model.name} after {limit:.0f} s") from error
        if message is None:
            await self.end()
            raise EngineCrashed(f"the engine's process ended while loading {model.name}: {self.reason}")
        if "failed" in message:
            raise wire.error_from_wire(message["failed"])
        return wire.facts_from_wire(message["loaded"])

    async def receive(self) -> dict[str, Any] | None:
        """The next message; ``None`` when there will be none."""
        try:
            (size,) = wire.HEAD.unpack(await self._reader.readexactly(wire.HEAD.size))
            message: dict[str, Any] = json.loads(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        self.heard += 1
        return message

    async def end(self) -> None:
        """Close the socket, which ends the child; kill it if it does not. Leaves a ``reason``."""
        self.writer.close()
        try:
            async with asyncio.timeout(GRACE):
                code = await self.process.wait()
        except TimeoutError:
            self.process.kill()
            code = await self.process.wait()
        words = await self._last_words
        self.reason = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        if words:
            self.reason += f" ({words})"

    async def _read_stderr(self) -> str:
        """The last line that the child wrote, which says more than its exit status."""
        last = b""
        if self.process.stderr is not None:
            while part := await self.process.stderr.read(4096):
                last = (last + part)[-4096:]
        lines = last.decode("utf-8", "replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
