"""Whether each published model can take a request: by its engine's word, and once by asking it for a little.

A model that has been unloaded by design is ready: the next call loads it. Refuses waking it to find out.
"""

import asyncio
import base64
import struct
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, runtime_checkable
from weakref import WeakKeyDictionary

from edge_agent.catalog import Catalog, Outcome, Served, run
from edge_agent.engines.encoder_calls import EncoderCall
from edge_agent.engines.supervised import State
from models.engines.base import GenerateRequest, Sampling
from models.engines.readings import Recording
from models.errors import EngineError, ModelsError
from models.manifest import Task

_PATIENCE = 10.0
"""Seconds for one token, text or picture; a model that takes longer is not ready."""

_DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCB2kUIOwAAAABJRU5ErkJggg=="
)
"""A PNG of one grey pixel."""


_SILENCE = b"".join(
    (
        b"RIFF" + struct.pack("<I", 3236) + b"WAVEfmt ",
        struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16),
        b"data" + struct.pack("<I", 3200) + bytes(3200),
    )
)
"""A WAV of a tenth of a second."""

_LITTLE: dict[Task, EncoderCall] = {
    "embed": EncoderCall(("Hello",)),
    "classify": EncoderCall(("Hello",)),
    "rerank": EncoderCall(("Hello",), query="Hello"),
    "classify-image": EncoderCall(images=(_DOT,)),
    "inspect": EncoderCall(images=(_DOT,)),
    "ocr": EncoderCall(images=(_DOT,)),
    "transcribe": EncoderCall(recording=Recording(_SILENCE)),
}


@runtime_checkable
class Supervised(Protocol):
    """An engine in a process of its own."""

    @property
    def state(self) -> State:
        """Whether the process is there, and why not."""

    @property
    def trouble(self) -> str | None:
        """Why it could not be loaded again, when that was tried last."""

    @property
    def loads(self) -> int:
        """How often it was loaded."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Of one model. ``reason``: why it cannot take a request; None when it can."""

    state: State | Literal["failing"]
    reason: str | None = None

    @property
    def ready(self) -> bool:
        """Whether it can take a request."""
        return self.reason is None

    def to_json(self) -> dict[str, Any]:
        """For ``/readyz``."""
        told = {"ready": self.ready, "state": self.state}
        return told if self.reason is None else told | {"reason": self.reason}


class Readiness:
    """Remembers who has answered since it was loaded; after a failure a model is asked again."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._answered: WeakKeyDictionary[Served, int] = WeakKeyDictionary()
        self._asking = asyncio.Lock()
        self._asked = 0
        catalog.observe(self._learn)

    async def check(self) -> dict[str, Condition]:
        """By name, how each published model is."""
        async with self._asking:
            models = self._catalog.list()
            conditions = await asyncio.gather(*map(self._condition, models))
        return {served.model_id: found for served, found in zip(models, conditions, strict=True)}

    def _learn(self, outcome: Outcome) -> None:
        self._answered.pop(outcome.served, None)
        if outcome.ok:
            self._answered[outcome.served] = _loads(outcome.served)

    async def _condition(self, served: Served) -> Condition:
        engine = served.engine
        state: State = engine.state if isinstance(engine, Supervised) else "loaded"
        trouble = engine.trouble if isinstance(engine, Supervised) else None
        if state == "restarting":
            return Condition(state, trouble or "its process has ended and is being started again")
        if state == "unloaded" and trouble is None:
            return Condition(state)
        if state == "loaded" and self._answered.get(served) == _loads(served):
            return Condition(state)
        try:
            async with asyncio.timeout(_PATIENCE):
                await (self._ask_for_text(served) if served.task is None else self._ask_encoder(served))
        except TimeoutError:
            return Condition("failing", f"it has not answered within {_PATIENCE:g} s")
        except (ModelsError, OSError) as error:  # one that rests may find its files damaged when it wakes
            return Condition("failing", str(error).partition("\n")[0])  # a native library's can be a page
        self._answered[served] = _loads(served)
        return Condition("loaded")

    async def _ask_for_text(self, served: Served) -> None:
        self._asked += 1
        request = GenerateRequest(f"ready-{self._asked}", "Hello", Sampling(max_tokens=1), served.adapter_key)
        async with aclosing(run(served.text_engine(), request)) as events:
            async for event in events:
                if event.finish is not None:
                    return
        raise EngineError("it ended an answer without saying why")

    async def _ask_encoder(self, served: Served) -> None:
        await served.encoder().ask(_LITTLE[cast(Task, served.task)])


def _loads(served: Served) -> int:
    return served.engine.loads if isinstance(served.engine, Supervised) else 0
