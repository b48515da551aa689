"""Recordings of many calls and one model of speech. See ``edge_agent.engines.desks``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from edge_agent.engines import encoder_wire as wire
from edge_agent.engines.desks import Told
from edge_agent.engines.encoder_calls import EncoderAnswer
from models.engines.base import EncoderFacts, Load, ModelFacts
from models.engines.readings import Recording, Segment, Transcript
from models.engines.whisper import WhisperEngine
from models.errors import EngineError


@dataclass(slots=True)
class _Job:
    """A recording; ``rest`` None before it was begun."""

    recording: Recording
    begun: Transcript | None = None
    rest: Iterator[Segment] | None = None
    heard: list[Segment] = field(default_factory=list)


class SpeechDesk:
    """A step hears one segment of one recording, of all in turn: a short one does not wait for a long one."""

    def __init__(self, engine: WhisperEngine) -> None:
        self._engine = engine
        self._jobs: dict[int, _Job] = {}
        self.facts: ModelFacts | EncoderFacts = engine.facts

    @property
    def load(self) -> Load:
        """See ``Desk``; calls that wait for a place in a batch are being answered too."""
        return Load(running=len(self._jobs))

    def obey(self, verb: str, arguments: Sequence[Any], told: Told) -> None:
        """See ``Desk``."""
        if verb == "ask":
            number, value = arguments
            recording = wire.call_from_wire(value).recording
            if recording is None:
                told.refuse(number, EngineError("this model is made to transcribe, and was asked for else"))
            else:
                self._jobs[number] = _Job(recording)
        elif verb == "drop":
            self._jobs.pop(arguments[0], None)
        else:
            raise ValueError(f"unknown verb {verb!r}")

    def step(self, told: Told) -> bool:
        """See ``Desk``."""
        if not self._jobs:
            return False
        number, job = next(iter(self._jobs.items()))
        del self._jobs[number]
        try:
            if job.begun is None or job.rest is None:
                job.begun, job.rest = self._engine.transcribe(job.recording)
                segment = None
            else:
                segment = next(job.rest, None)
                if segment is None:
                    answer = EncoderAnswer(transcript=replace(job.begun, segments=tuple(job.heard)))
                    told.replies.append([number, None, wire.answer_to_wire(answer)])
                    return True
        except EngineError as error:
            told.refuse(number, error)
            return True
        if segment is not None:
            job.heard.append(segment)
        self._jobs[number] = job  # behind the others
        return True

    def close(self) -> None:
        """See ``Desk``."""
        self._engine.close()
