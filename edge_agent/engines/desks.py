"""What an engine's process does with what it is told: a desk, and the one of models that generate text.

A desk takes verbs of ``edge_agent.engines.wire`` and works in steps, each short enough to be a sign of life.
Refuses the socket (``edge_agent.engines.child`` has it). Other desks: ``edge_agent.engines.encoder_desk``,
``edge_agent.engines.speech_desk``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edge_agent.engines import wire
from models.engines.base import EncoderFacts, Event, GenerateRequest, Load, ModelFacts
from models.errors import EngineError, ModelsError


@dataclass(slots=True)
class Told:
    """What is to be sent: events of texts, and replies ``[CALL, ERROR or None, VALUE]``."""

    events: list[Event] = field(default_factory=list)
    replies: list[list[Any]] = field(default_factory=list)

    def refuse(self, call: int, error: ModelsError) -> None:
        """A call failed."""
        self.replies.append([call, wire.error_to_wire(error), None])


class Desk(Protocol):
    """An engine behind verbs."""

    @property
    def facts(self) -> ModelFacts | EncoderFacts:
        """What was loaded."""

    @property
    def load(self) -> Load:
        """What there is to do."""

    def obey(self, verb: str, arguments: Sequence[Any], told: Told) -> None:
        """Do as told, or queue it. Raises ``ValueError`` for a verb that is none here."""

    def step(self, told: Told) -> bool:
        """Do a piece of the work; whether there was any."""

    def close(self) -> None:
        """Free everything."""


class TextEngine(Protocol):
    """``Generate`` and ``TakeAdapters`` in one."""

    facts: ModelFacts

    @property
    def load(self) -> Load:
        """See ``Generate``."""

    def submit(self, request: GenerateRequest) -> None:
        """See ``Generate``."""

    def cancel(self, request_id: str) -> None:
        """See ``Generate``."""

    def step(self) -> list[Event]:
        """See ``Generate``."""

    def attach(self, name: str, path: Path) -> None:
        """See ``TakeAdapters``."""

    def detach(self, name: str) -> None:
        """See ``TakeAdapters``."""

    def close(self) -> None:
        """Free everything."""


class TextDesk:
    """A model that generates text, and its adapters."""

    def __init__(self, engine: TextEngine) -> None:
        self._engine = engine
        self.facts: ModelFacts | EncoderFacts = engine.facts

    @property
    def load(self) -> Load:
        """See ``Desk``."""
        return self._engine.load

    def obey(self, verb: str, arguments: Sequence[Any], told: Told) -> None:
        """See ``Desk``."""
        if verb == "cancel":
            self._engine.cancel(arguments[0])
        elif verb == "submit":
            request = wire.request_from_wire(arguments[0])
            try:
                self._engine.submit(request)
            except EngineError as error:
                told.events.append(Event(request.id, error=error))
        else:
            call, name, *path = arguments
            try:
                if verb == "attach":
                    self._engine.attach(name, Path(path[0]))
                elif verb == "detach":
                    self._engine.detach(name)
                else:
                    raise ValueError(f"unknown verb {verb!r}")
            except ModelsError as error:
                told.refuse(call, error)
            else:
                told.replies.append([call, None, None])

    def step(self, told: Told) -> bool:
        """See ``Desk``."""
        happened = self._engine.step()
        told.events += [event for event in happened if event.text or event.logprobs or event.done]
        return bool(happened)

    def close(self) -> None:
        """See ``Desk``."""
        self._engine.close()
