"""An encoder that follows a script: the real interface, no weights."""

import asyncio
from array import array

from edge_agent.engines.encoder_calls import EncoderAnswer, EncoderCall, Inspected
from models.engines.base import EncoderFacts
from models.engines.readings import Transcript
from models.errors import EngineError
from models.manifest import Task

LABELS = ("good", "bad")
REGION = (0.0, 0.0, 8.0, 8.0)


def row(*numbers: float) -> bytes:
    """Numbers as an engine gives them."""
    return array("f", numbers).tobytes()


class ScriptedEncoder:
    """Answers each input by its length; raises ``fail_with`` when told so; waits for ``gate``."""

    def __init__(
        self, task: Task, *, fail_with: EngineError | None = None, gate: asyncio.Event | None = None
    ) -> None:
        self.facts = EncoderFacts(task, "scripted", 1, 1, labels=LABELS if "classify" in task else ())
        self.fail_with = fail_with
        self.gate = gate
        self.calls: list[EncoderCall] = []
        self.cancelled = 0

    async def ask(self, call: EncoderCall) -> EncoderAnswer:
        """See ``edge_agent.catalog.EncoderEngine``."""
        self.calls.append(call)
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fail_with is not None:
            raise self.fail_with
        sizes = [float(len(item)) for item in call.texts or call.images]
        if self.facts.task == "inspect":
            picture = b"\x89PNG" if call.heat_maps else None
            return EncoderAnswer(inspections=tuple(Inspected(s, s > 4, 4.0, REGION, picture) for s in sizes))
        if self.facts.task == "transcribe":
            return EncoderAnswer(transcript=Transcript("en", 1.0, ()))
        if self.facts.task == "embed":
            return EncoderAnswer(tuple(row(size, 0.5) for size in sizes), tokens=3 * len(sizes))
        return EncoderAnswer(tuple(row(0.25, 0.75) for _ in sizes), tokens=2)
