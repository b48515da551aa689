"""Which models are in memory: loaded when they are asked, put to rest when nobody asks, never more than fit.

Owns the budget and the choice of who makes room. What a model will need is forecast from its headers until it
has been loaded once; from then on it is what it took (its process's share of memory, measured) if that was
more. Refuses, with the numbers, rather than let the kernel choose whom to kill. One event loop owns a
residence.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from edge_agent.engines.files import EngineFiles
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.sizes import forecast_bytes, settled
from edge_agent.errors import NoRoom

_PATIENCE = 30.0
"""Seconds that a model waits for others to finish, before it is refused for want of room."""
_GLANCE = 0.1
"""Seconds between two looks whether they have."""


class Engine(Protocol):
    """An engine that can be put to rest and wakes when it is asked."""

    @property
    def files(self) -> EngineFiles:
        """What it loads."""

    @property
    def asked(self) -> EngineSettings:
        """With which sizes, as far as they were settled by whoever started it."""

    @property
    def settings(self) -> EngineSettings:
        """With which it was loaded last."""

    @property
    def pid(self) -> int | None:
        """The process that holds it; None while there is none."""

    @property
    def idle_since(self) -> float | None:
        """When it answered last, by the loop's clock; None while somebody waits for an answer."""

    async def rest(self) -> bool:
        """End the process, unless somebody waits for an answer; whether it rests now."""


K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Resident(Generic[K]):
    """A loaded model: who it is, its bytes of memory, and since when it is idle (None: it is not)."""

    key: K
    bytes: int
    idle_since: float | None


def make_room(residents: Iterable[Resident[K]], needed: int, budget: int) -> tuple[K, ...] | None:
    """Who is to rest so that ``needed`` more bytes fit into ``budget``; None when resting does not help now.

    Laws: only idle models rest, those that were asked longest ago first, and no more of them than it takes.
    """
    all_of_them = list(residents)
    free = budget - sum(one.bytes for one in all_of_them)
    leaving = []
    for one in sorted((one for one in all_of_them if one.idle_since is not None), key=_idle_since):
        if free >= needed:
            break
        leaving.append(one.key)
        free += one.bytes
    return tuple(leaving) if free >= needed else None


class Residence:
    """Keeps engines within ``budget`` bytes together; None: within what the machine has free.

    ``idle_seconds`` after its last answer a model is put to rest; None: never for that reason.
    ``free_memory`` says how many bytes the machine can still give.
    """

    def __init__(
        self, budget: int | None, idle_seconds: float | None, free_memory: Callable[[], int]
    ) -> None:
        self._budget, self._idle_seconds, self._free_memory = budget, idle_seconds, free_memory
        self._needs: dict[Engine, int] = {}
        self._loading: set[Engine] = set()
        self._deciding = asyncio.Lock()

    @asynccontextmanager
    async def admit(self, engine: Engine) -> AsyncIterator[EngineSettings]:
        """Room for an engine that loads within the block, with the settings that fit there now.

        Raises ``NoRoom``, ``UnsafeFile``.
        """
        held = sum(self._others(engine).values())
        free = self._budget_beside(held) - held
        settings = await asyncio.to_thread(settled, engine.files, engine.asked, free)
        needed = self._needs.get(engine, 0) if settings == engine.settings else 0
        if not needed:
            needed = await asyncio.to_thread(forecast_bytes, engine.files, settings)
        await self._reserve(engine, needed)
        try:
            yield settings
            self._needs[engine] = max(needed, memory_of(engine.pid))
        finally:
            self._loading.discard(engine)

    async def watch(self) -> None:
        """Put to rest whoever has been idle for too long; never ends."""
        if self._idle_seconds is None:
            return
        while True:
            await asyncio.sleep(min(self._idle_seconds / 4, 5.0))
            now = asyncio.get_running_loop().time()
            for engine in tuple(self._needs):
                since = engine.idle_since
                if engine.pid is not None and since is not None and now - since > self._idle_seconds:
                    await engine.rest()

    async def _reserve(self, engine: Engine, needed: int) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE
        while True:
            async with self._deciding:  # or two would count on the same room
                others = self._others(engine)
                residents = [
                    Resident(one, need, None if one in self._loading else one.idle_since)
                    for one, need in others.items()
                ]
                budget = self._budget_beside(sum(others.values()))
                leaving = make_room(residents, needed, budget)
                # One that was idle may have been asked since, and does not rest then.
                if leaving is not None and all([await one.rest() for one in leaving]):
                    self._needs[engine] = needed
                    self._loading.add(engine)
                    return
            if loop.time() > deadline or needed > budget:
                numbers = _numbers(engine.files.shown, needed, budget, others)
                raise NoRoom(f"{numbers}; {self._remedy(engine, needed, budget)}")
            await asyncio.sleep(_GLANCE)

    def _others(self, engine: Engine) -> dict[Engine, int]:
        """What each of the others takes that is in memory or about to be."""
        return {
            one: need
            for one, need in self._needs.items()
            if one is not engine and (one.pid is not None or one in self._loading)
        }

    def _budget_beside(self, held: int) -> int:
        """Bytes for all engines, of which ``held`` are taken."""
        return held + self._free_memory() if self._budget is None else self._budget

    def _remedy(self, engine: Engine, needed: int, budget: int) -> str:
        """What helps a model that was refused ``needed`` bytes."""
        if needed <= budget:
            return "the others are being asked: come back later, or give them more memory"
        adapters = _contexts(engine.files, engine.asked) - 1
        fewer = f", lower --adapter-contexts (now {adapters})" if adapters else ""
        fewer += ", serve with --kv unified" if engine.asked.kv == "apart" else ""
        if self._budget is None:
            return f"free memory on this machine or in its container{fewer}, or serve a smaller variant"
        return f"raise --memory to at least {math.ceil(needed / 1e6)}{fewer}"


def _contexts(files: EngineFiles, settings: EngineSettings) -> int:
    """How many caches it may make: of the base and of adapters."""
    return settings.contexts if files.format == "gguf" and files.encoder is None else 1


def memory_of(pid: int | None) -> int:
    """Bytes of memory that are a process's own share (PSS): pages of a file that is mapped count too.

    0 for one that has ended.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))


def _idle_since(resident: Resident[K]) -> float:
    return resident.idle_since or 0.0


def _numbers(name: str, needed: int, budget: int, others: Mapping[Engine, int]) -> str:
    taken = ", ".join(f"{one.files.shown} {need / 1e6:.0f} MB" for one, need in others.items()) or "nothing"
    return f"{name} needs about {needed / 1e6:.0f} MB of {budget / 1e6:.0f} MB; loaded now: {taken}"
