"""An engine's process, supervised from asyncio, whatever the engine is.

Owns the child process, the calls that wait for its replies, and bringing it back. Refuses files that the
parsers of ``models`` have not passed, before the child sees them. A crash costs those in flight a clean
``EngineCrashed``; the child is restarted with growing pauses. A child that owes an answer and falls silent
hangs in native code: it is killed, which makes it a crash like any other. One event loop owns an engine.
"""

import asyncio
import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from typing import Any, Literal, Protocol, Self

from edge_agent.engines import wire
from edge_agent.engines.files import CheckAdapter, EngineFiles
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.spawned import Spawned
from edge_agent.errors import EngineCrashed
from models.engines.base import EncoderFacts, Load, ModelFacts
from models.errors import EngineError, ModelsError

_log = logging.getLogger(__name__)

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 30.0
HEALTHY_AFTER = 60.0
"""Seconds: between crash and restart at first and at most; how long a child must live to be trusted again."""
PATIENCE = 15.0
"""Seconds that a request waits for a restart before it is refused."""
GLANCES = 4
"""How often a silent child is looked at before it is killed."""

State = Literal["loaded", "unloaded", "restarting"]


class Gate(Protocol):
    """Who decides whether there is memory for an engine (``edge_agent.engines.residence``)."""

    def admit(self, engine: "SupervisedEngine") -> AbstractAsyncContextManager[EngineSettings]:
        """The engine loads within the block, with these settings. Raises ``EngineError`` when it may not."""


class SupervisedEngine(ABC):
    """A running engine; the kinds of engine add what they are asked for. Made by ``_start``.

    It can be put to ``rest``: then it has no process until it is asked again.
    """

    def __init__(
        self,
        files: EngineFiles,
        settings: EngineSettings,
        check_adapter: CheckAdapter,
        gate: Gate | None = None,
    ) -> None:
        self.files, self._check_adapter, self._gate = files, check_adapter, gate
        self.asked = self.settings = settings
        self._leaving: Spawned | None = None
        self._waking: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._waiting = 0
        self._resting = False
        self._last_owed = 0.0
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._outbox: list[list[Any]] = []
        self._child: Spawned | None = None
        self._ready = asyncio.Event()
        self._closed = False
        self._supervisor: asyncio.Task[None] | None = None
        self._loaded: ModelFacts | EncoderFacts | None = None
        self._load_now = Load()
        self.loads = 0
        self.restarts = 0
        self.trouble: str | None = None
        """Why it could not be loaded again, when that was tried last."""

    @classmethod
    async def _start(cls, files: EngineFiles, settings: EngineSettings, gate: Gate | None = None) -> Self:
        """Load ``files`` in a new process, when ``gate`` lets it.

        Raises ``UnsafeFile`` before native code has seen a bad file, else ``EngineError`` with the child's
        reason.
        """
        engine = cls(files, settings, await asyncio.to_thread(files.check), gate)
        try:
            await engine._load()
        except BaseException:
            await engine.close()
            raise
        return engine

    @property
    def pid(self) -> int | None:
        """The child's process id, also of one that is being ended; ``None`` while there is no child."""
        child = self._child or self._leaving
        return child.process.pid if child else None

    @property
    def state(self) -> State:
        """Where it stands; one that is ``unloaded`` has been put to rest, and wakes when it is asked."""
        if self._resting:
            return "unloaded"
        return "restarting" if self._child is None else "loaded"

    @property
    def load(self) -> Load:
        """What the child said last that it has to do; nothing while there is no child."""
        return self._load_now if self._child else Load()

    @property
    def idle_since(self) -> float | None:
        """When it answered last, by the loop's clock; None while somebody waits for it or for an answer."""
        return None if self._owed or self._outbox or self._waiting else self._last_owed

    async def rest(self) -> bool:
        """End the child until it is needed again, unless somebody waits; whether its memory is free now."""
        if self._waking is not None or self._closed:
            return False
        if not self._resting:
            if self._child is None or self.idle_since is None:
                return False
            self._resting = True
            self._ready.clear()
            self._ending = asyncio.create_task(self._end_child(), name="engine going to rest")
        if self._ending is not None:
            await asyncio.shield(self._ending)
        return True

    async def close(self) -> None:
        """End the child. Requests in flight get an ``EngineError``. Safe to call twice."""
        self._closed = True
        self._ready.set()  # whoever waits for a restart learns that there will be none
        if self._waking is not None:
            self._waking.cancel()
            await asyncio.wait([self._waking])
        if self._ending is not None:
            await self._ending
        self._abandon(EngineError("the engine has been closed"))
        await self._end_child()

    async def _end_child(self) -> None:
        # Taken away before anything is awaited: whoever asks meanwhile may start another.
        supervisor, self._supervisor = self._supervisor, None
        child, self._child = self._child, None
        self._leaving = child
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.wait([supervisor])
        if child is not None:
            await child.end()
        self._leaving = None

    # What the kinds of engine add

    @abstractmethod
    def _hear(self, events: Sequence[dict[str, Any]]) -> None:
        """Deliver events. Raises ``KeyError``, ``TypeError`` or ``ValueError`` for what makes no sense."""

    @abstractmethod
    def _owes_events(self) -> bool:
        """Whether the child still has events to tell."""

    @abstractmethod
    def _abandon_events(self, error: EngineError) -> None:
        """Whoever waits for events gets ``error``."""

    @abstractmethod
    def _restored(self) -> None:
        """Tell a restarted child what the one before knew, by ``_send``: nobody listens to replies yet."""

    # What they use

    async def _until_ready(self) -> None:
        """Return with a child that is ready, and in the same turn of the loop."""
        if not self._ready.is_set():
            self._waiting += 1  # so that nobody puts to rest what is about to be asked
            try:
                while not self._ready.is_set():
                    await self._come_back()
            finally:
                self._waiting -= 1
        if self._closed:
            raise EngineError("the engine has been closed")

    async def _come_back(self) -> None:
        """Wait for a child that is to be loaded again, or restarted. Raises as ``_wake``."""
        if self._resting:
            if self._waking is None:
                self._waking = asyncio.create_task(self._wake(), name="engine waking")
            await asyncio.shield(self._waking)
            return
        try:
            async with asyncio.timeout(PATIENCE):
                await self._ready.wait()
        except TimeoutError as error:
            raise EngineCrashed("the engine has crashed and is not back yet") from error

    async def _wake(self) -> None:
        """Load again; all who wait for it share the outcome. Raises ``UnsafeFile``, ``EngineError``."""
        try:
            if self._ending is not None:
                await self._ending
            await self._load()
            self._restored()
            self._resting = False
        except asyncio.CancelledError:  # only ``close`` does that; those who wait are not cancelled
            raise EngineError("the engine has been closed") from None
        except ModelsError as error:
            self.trouble = str(error)
            raise
        except OSError as error:
            self.trouble = str(error)
            reason = error.strerror or error
            raise EngineError(f"{self.files.shown} cannot be loaded again: {reason}") from error
        finally:
            self._waking = None

    def _send(self, *command: Any) -> None:
        """Queue a command; all of one turn of the event loop leave in one frame."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(list(command))

    async def _call(self, verb: str, *arguments: Any, otherwise: str | None = None) -> Any:
        """The child's reply to ``verb CALL ARGUMENTS``. Who stops waiting has ``otherwise CALL`` sent."""
        number = next(self._numbers)
        self._calls[number] = asyncio.get_running_loop().create_future()
        self._send(verb, number, *arguments)
        try:
            return await self._calls[number]
        except asyncio.CancelledError:
            if otherwise is not None:
                self._send(otherwise, number)
            raise
        finally:
            del self._calls[number]

    # Inside

    def _flush(self) -> None:
        commands, self._outbox = self._outbox, []
        if self._child is not None and commands:
            self._child.writer.write(wire.frame({"do": commands}))

    async def _load(self) -> None:
        """A new child, when the gate lets it. Raises ``EngineError``."""
        admitted = nullcontext(self.asked) if self._gate is None else self._gate.admit(self)
        async with admitted as self.settings:
            await self._spawn()

    async def _spawn(self) -> None:
        """A new child, loaded and under supervision. Raises ``EngineError`` with the child's reason."""
        self.loads += 1
        child = await Spawned.spawn()
        try:
            self._loaded = await child.load(self.files, self.settings)
        except BaseException:
            await child.end()
            raise
        self._child, self._load_now, self.trouble = child, Load(), None
        self._last_owed = asyncio.get_running_loop().time()
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
                self.restarts += 1
                try:
                    await self._load()
                    self._restored()
                except (ModelsError, OSError) as error:
                    self.trouble = str(error)
                    _log.error("engine process cannot be restarted: %s", error)

    async def _watch(self, child: Spawned) -> None:
        """End when the child has owed an answer and said nothing for too long; it is killed then.

        Counts glances, not the clock: a loop that was held up itself also found no time to hear the child.
        """
        silent = 0
        while silent < GLANCES:
            owed, heard = self._owed, child.heard
            await asyncio.sleep(self.settings.silence_seconds / GLANCES)
            silent = silent + 1 if owed and self._owed and child.heard == heard else 0
        with suppress(ProcessLookupError):
            child.process.kill()

    @property
    def _owed(self) -> bool:
        """Whether the child still has to say something; what it said may be waiting for a slow reader."""
        return self._owes_events() or any(not call.done() for call in self._calls.values())

    async def _listen(self, child: Spawned) -> str | None:
        """Deliver what the child says until it ends; the reason, if it made no sense or hung."""
        watch = asyncio.create_task(self._watch(child), name="engine watchdog")
        try:
            while (message := await child.receive()) is not None:
                self._hear(message["events"])
                self._load_now = Load(*message["load"])
                for number, error, value in message["replies"]:
                    self._settle(number, wire.error_from_wire(error) if error else None, value)
                self._last_owed = asyncio.get_running_loop().time()
        except (KeyError, TypeError, ValueError) as error:
            return f"it sent what is no message: {error!r:.200}"
        finally:
            watch.cancel()
        if watch.done():
            return f"it owed an answer and said nothing for {self.settings.silence_seconds:g} s"
        return None

    def _settle(self, number: int, error: ModelsError | None, value: Any) -> None:
        call = self._calls.get(number)
        if call is None or call.done():
            if error is not None:  # an adapter that a restarted child would not take back
                _log.error("engine process refused what nobody waits for: %s", error)
        elif error is None:
            call.set_result(value)
        else:
            call.set_exception(error)

    def _abandon(self, error: EngineError) -> None:
        """Everything that waits for an answer gets ``error``."""
        self._abandon_events(error)
        for call in self._calls.values():
            if not call.done():
                call.set_exception(error)
