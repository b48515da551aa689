"""Whether the published models really answer, found out by asking each for a little."""

import asyncio
import base64
import struct
from contextlib import aclosing
from typing import cast
from weakref import WeakSet

from edge_agent.catalog import Catalog, Outcome, Served, run
from edge_agent.engines.encoder_calls import EncoderCall
from models.engines.base import GenerateRequest, Sampling
from models.engines.readings import Recording
from models.errors import EngineError
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


class Readiness:
    """Remembers who has answered; after a failure a model is asked again."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._answered: WeakSet[Served] = WeakSet()
        self._asking = asyncio.Lock()
        self._asked = 0
        catalog.observe(self._learn)

    async def check(self) -> dict[str, bool]:
        """By name, whether each published model answers."""
        async with self._asking:
            return {served.model_id: await self._answers(served) for served in self._catalog.list()}

    def _learn(self, outcome: Outcome) -> None:
        (self._answered.add if outcome.ok else self._answered.discard)(outcome.served)

    async def _answers(self, served: Served) -> bool:
        if served in self._answered:
            return True
        try:
            async with asyncio.timeout(_PATIENCE):
                await (self._ask_for_text(served) if served.task is None else self._ask_encoder(served))
        except (EngineError, TimeoutError):
            return False
        return served in self._answered

    async def _ask_for_text(self, served: Served) -> None:
        self._asked += 1
        request = GenerateRequest(f"ready-{self._asked}", "Hello", Sampling(max_tokens=1), served.adapter_key)
        async with aclosing(run(served.text_engine(), request)) as events:
            async for event in events:
                if event.finish is not None:
                    self._answered.add(served)

    async def _ask_encoder(self, served: Served) -> None:
        await served.encoder().ask(_LITTLE[cast(Task, served.task)])
        self._answered.add(served)
