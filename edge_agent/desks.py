"""What an engine's process does with what it is told: one desk for text, one for encoders.

A desk takes verbs of ``edge_agent.engine_wire`` and works in steps, each short enough to be a sign of life.
Owns: how the texts and pictures of many calls become batches. Refuses the socket
(``edge_agent.engine_child`` has it).
"""

import io
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edge_agent import engine_wire as wire
from edge_agent.encoder_calls import EncoderAnswer, EncoderCall, Inspected
from models.engines.base import EncoderFacts, Event, GenerateRequest, Inspection, ModelFacts
from models.engines.onnx_text import OnnxText
from models.engines.onnx_vision import OnnxVision
from models.errors import EngineError, ModelsError

STEP_CHARACTERS = 32_768
"""Of the texts that are computed in one step, unless one text alone has more: a step is a sign of life."""


STEP_PICTURES = 8
"""Pictures of one step: the largest that are decoded take a second each on a slow core."""


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

    def obey(self, verb: str, arguments: Sequence[Any], told: Told) -> None:
        """Do as told, or queue it. Raises ``ValueError`` for a verb that is none here."""

    def step(self, told: Told) -> bool:
        """Do a piece of the work; whether there was any."""

    def close(self) -> None:
        """Free everything."""


class TextEngine(Protocol):
    """``Generate`` and ``TakeAdapters`` in one."""

    facts: ModelFacts

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


@dataclass(slots=True)
class _Job:
    """A call of which some inputs are still to be computed."""

    call: EncoderCall
    taken: int = 0
    rows: list[bytes] = field(default_factory=list)
    inspections: list[Inspected] = field(default_factory=list)
    tokens: int = 0

    @property
    def left(self) -> int:
        return self.call.size - self.taken

    def take(self, count: int, room: int, at_least: int) -> "list[str] | list[bytes]":
        """The next ``count`` inputs, or fewer where texts have more than ``room`` characters together."""
        if self.call.images:
            first, self.taken = self.taken, self.taken + count
            return list(self.call.images[first : self.taken])
        texts: list[str] = []
        for text in self.call.texts[self.taken : self.taken + count]:
            room -= len(text)
            if room < 0 and len(texts) >= at_least:
                break
            texts.append(text)
        self.taken += len(texts)
        return texts


class EncoderDesk:
    """An encoder or a vision model. A step computes at most ``batch`` inputs, of all calls that wait.

    Every call has its share of a step, so that a small one does not wait for a large one.
    """

    def __init__(self, engine: OnnxText | OnnxVision, batch: int) -> None:
        self._engine = engine
        self._batch = batch if isinstance(engine, OnnxText) else min(batch, STEP_PICTURES)
        self._jobs: dict[int, _Job] = {}
        self.facts: ModelFacts | EncoderFacts = engine.facts

    def obey(self, verb: str, arguments: Sequence[Any], told: Told) -> None:
        """See ``Desk``."""
        if verb == "ask":
            self._jobs[arguments[0]] = _Job(wire.call_from_wire(arguments[1]))
        elif verb == "drop":
            self._jobs.pop(arguments[0], None)
        else:
            raise ValueError(f"unknown verb {verb!r}")

    def step(self, told: Told) -> bool:
        """See ``Desk``."""
        shares = share({number: job.left for number, job in self._jobs.items()}, self._batch)
        if not shares:
            return False
        parts: dict[int, list[str] | list[bytes]] = {}
        room = STEP_CHARACTERS
        for number, count in shares.items():
            part = self._jobs[number].take(count, room, at_least=0 if parts else 1)
            room -= sum(len(item) for item in part if isinstance(item, str))
            if part:
                parts[number] = part
        try:
            self._compute(parts)
        except EngineError as error:
            if len(parts) == 1:
                self._fail(next(iter(parts)), error, told)
            else:  # one of them is to blame, and the others are not to suffer for it
                for number, inputs in parts.items():
                    try:
                        self._compute({number: inputs})
                    except EngineError as alone:
                        self._fail(number, alone, told)
        for number in [number for number in parts if number in self._jobs and not self._jobs[number].left]:
            job = self._jobs.pop(number)
            answer = EncoderAnswer(tuple(job.rows), job.tokens, tuple(job.inspections))
            told.replies.append([number, None, wire.answer_to_wire(answer)])
        return True

    def close(self) -> None:
        """See ``Desk``."""
        self._engine.close()

    def _fail(self, number: int, error: EngineError, told: Told) -> None:
        del self._jobs[number]
        told.refuse(number, error)

    def _compute(self, parts: "dict[int, list[str] | list[bytes]]") -> None:
        """Answer all parts in one go; a job has all of its part's answers, or none after an error."""
        texts = [item for part in parts.values() for item in part if isinstance(item, str)]
        images = [item for part in parts.values() for item in part if isinstance(item, bytes)]
        if isinstance(self._engine, OnnxText) != (not images):
            raise EngineError(
                f"this model is made to {self._engine.facts.task}, and was asked something else"
            )
        rows: deque[bytes] = deque()
        tokens: deque[int] = deque()
        found: deque[Inspection] = deque()
        if isinstance(self._engine, OnnxText):
            read = self._engine.answer(texts)
            rows.extend(row.astype("<f4").tobytes() for row in read.values)
            tokens.extend(read.tokens)
        elif self._engine.facts.task == "inspect":
            found.extend(self._engine.inspect(images))
        else:
            rows.extend(row.astype("<f4").tobytes() for row in self._engine.classify(images))
        for number, part in parts.items():
            job = self._jobs[number]
            for _ in part:
                if rows:
                    job.rows.append(rows.popleft())
                if tokens:
                    job.tokens += tokens.popleft()
                if found:
                    job.inspections.append(_inspected(found.popleft(), job.call.heat_maps))


def share(waiting: dict[int, int], most: int) -> dict[int, int]:
    """How many inputs of each call the next step computes, given how many each still has.

    Laws: at most ``most`` together, and all of them when they fit; nobody who waits gets none unless more
    than ``most`` of them wait; what one does not need goes to the others, first come first.
    """
    shares: dict[int, int] = {}
    left = most
    for number, wanted in sorted(waiting.items(), key=lambda item: item[1])[:most]:
        others = min(len(waiting), most) - len(shares)
        count = min(wanted, max(1, left // max(1, others)))
        if count and left:
            shares[number] = min(count, left)
            left -= shares[number]
    for number in waiting:
        if left and number in shares:
            more = min(left, waiting[number] - shares[number])
            shares[number] += more
            left -= more
    return shares


def _inspected(found: Inspection, with_picture: bool) -> Inspected:
    picture = _grey(found) if with_picture else None
    return Inspected(found.score, found.is_defect, found.threshold, found.region, picture)


def _grey(found: Inspection) -> bytes:
    """A heat map as a PNG; see ``Inspected``. A threshold that is not above 0 leaves only black and white."""
    import numpy as np
    from PIL import Image

    scale = 128 / found.threshold if found.threshold > 0 else 255.0
    pixels = np.clip(np.rint(found.heat_map * scale), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
