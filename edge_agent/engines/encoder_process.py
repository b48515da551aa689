"""A model that embeds, judges, sees or hears, in a process of its own: a call in, its answer out.

Owns what a call may be; ``edge_agent.engines.supervised`` owns the process,
``edge_agent.engines.encoder_desk`` the batches.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from edge_agent.engines import encoder_wire as wire
from edge_agent.engines.encoder_calls import EncoderAnswer, EncoderCall
from edge_agent.engines.files import EngineFiles
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.supervised import Gate, SupervisedEngine
from models.engines.base import EncoderFacts
from models.errors import EngineError

SPEECH_SILENCE = 600.0
"""Seconds that a model of speech may say nothing: half a minute of noise is tried at six temperatures, of up
to 448 tokens each, before its segment is given up.
"""

BUILD_SECONDS = 3600.0
"""Seconds that loading a TensorRT recipe may take: its engine is built then, minutes on a small device."""


class EncoderProcess(SupervisedEngine):
    """A running encoder. Make one with ``start``; satisfies ``edge_agent.catalog.EncoderEngine``."""

    @classmethod
    async def start(cls, files: EngineFiles, settings: EngineSettings, gate: Gate | None = None) -> Self:
        """Load ``files`` in a new process. Raises ``UnsafeFile``, ``EngineError``."""
        if files.format == "ctranslate2":
            patience = max(settings.silence_seconds, SPEECH_SILENCE)
            settings = replace(settings, silence_seconds=patience)
        if files.format == "tensorrt-recipe":
            settings = replace(settings, load_seconds=max(settings.load_seconds, BUILD_SECONDS))
        return await cls._start(files, settings, gate)

    @property
    def facts(self) -> EncoderFacts:
        """What the loaded model is."""
        if not isinstance(self._loaded, EncoderFacts):
            raise EngineError("the engine has not been loaded")
        return self._loaded

    async def ask(self, call: EncoderCall) -> EncoderAnswer:
        """Answers to all inputs of ``call``, or an error. Being cancelled drops what is not computed yet.

        Raises ``ContextLengthExceeded``, ``InvalidImage``, ``InvalidAudio``, ``EngineError``.
        """
        if not call.size:
            return EncoderAnswer()
        await self._until_ready()
        return wire.answer_from_wire(await self._call("ask", wire.call_to_wire(call), otherwise="drop"))

    # For the supervisor: an encoder has no streams and no state

    def _hear(self, events: Sequence[dict[str, Any]]) -> None:
        if events:
            raise ValueError("an encoder tells no events")

    def _owes_events(self) -> bool:
        return False

    def _abandon_events(self, error: EngineError) -> None:
        pass

    def _restored(self) -> None:
        pass
