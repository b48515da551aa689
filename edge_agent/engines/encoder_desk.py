"""How texts and pictures of many calls become batches of one encoder. See ``edge_agent.engines.desks``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from edge_agent.engines import encoder_wire as wire
from edge_agent.engines.desks import Told
from edge_agent.engines.encoder_answers import Encoder, Input, answers
from edge_agent.engines.encoder_calls import EncoderAnswer, EncoderCall
from models.engines.base import EncoderFacts, Load, ModelFacts
from models.errors import EngineError

STEP_CHARACTERS = 32_768
"""Of the texts that are computed in one step, unless one text alone has more: a step is a sign of life."""

STEP_PICTURES = 8
"""Pictures of one step: the largest that are decoded take a second each on a slow core. Pages of
text are read one by one, for seconds each.
"""


@dataclass(slots=True)
class _Job:
    """A call of which some inputs are still to be computed."""

    call: EncoderCall
    inputs: Sequence[Input]
    taken: int = 0
    answers: list[EncoderAnswer] = field(default_factory=list)

    @classmethod
    def of(cls, call: EncoderCall) -> "_Job":
        if call.query is not None:
            return cls(call, [(call.query, text) for text in call.texts])
        return cls(call, call.texts or call.images)

    @property
    def left(self) -> int:
        return len(self.inputs) - self.taken

    def take(self, count: int, room: int, at_least: int) -> list[Input]:
        """The next ``count`` inputs, or fewer where texts have more than ``room`` characters together."""
        part: list[Input] = []
        for one in self.inputs[self.taken : self.taken + count]:
            room -= characters(one)
            if room < 0 and len(part) >= at_least:
                break
            part.append(one)
        self.taken += len(part)
        return part


class EncoderDesk:
    """An encoder or a vision model. A step computes at most ``batch`` inputs, of all calls that wait.

    Every call has its share of a step, so that a small one does not wait for a large one; where a step is too
    small for all, they take turns, so that a large one does not wait for ever. What comes while a step is
    computed is the next step: under load batches form by themselves. Nobody waits for one to fill: 2 or 5 ms
    of it changed nothing at 1, 4 and 16 clients.
    """

    def __init__(self, engine: Encoder, batch: int) -> None:
        self._engine = engine
        task = engine.facts.task
        self._batch = 1 if task == "ocr" else min(batch, STEP_PICTURES) if engine.facts.sees else batch
        self._jobs: dict[int, _Job] = {}  # in the order of their turns
        self.facts: ModelFacts | EncoderFacts = engine.facts

    @property
    def load(self) -> Load:
        """See ``Desk``; calls that wait for a place in a batch are being answered too."""
        return Load(running=len(self._jobs))

    def obey(self, verb: str, arguments: Sequence[Any], told: Told) -> None:
        """See ``Desk``."""
        if verb == "ask":
            self._jobs[arguments[0]] = _Job.of(wire.call_from_wire(arguments[1]))
        elif verb == "drop":
            self._jobs.pop(arguments[0], None)
        else:
            raise ValueError(f"unknown verb {verb!r}")

    def step(self, told: Told) -> bool:
        """See ``Desk``."""
        shares = share({number: job.left for number, job in self._jobs.items()}, self._batch)
        if not shares:
            return False
        parts: dict[int, list[Input]] = {}
        room = STEP_CHARACTERS
        for number, count in shares.items():
            part = self._jobs[number].take(count, room, at_least=0 if parts else 1)
            room -= sum(map(characters, part))
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
        for number in parts:
            job = self._jobs.pop(number, None)
            if job is None:
                continue  # it failed
            if job.left:
                self._jobs[number] = job  # behind the others
            else:
                told.replies.append([number, None, wire.answer_to_wire(EncoderAnswer.joined(job.answers))])
        return True

    def close(self) -> None:
        """See ``Desk``."""
        self._engine.close()

    def _fail(self, number: int, error: EngineError, told: Told) -> None:
        del self._jobs[number]
        told.refuse(number, error)

    def _compute(self, parts: dict[int, list[Input]]) -> None:
        """Answer all parts in one go; a job has all of its part's answers, or none after an error."""
        inputs = [one for part in parts.values() for one in part]
        pictured = [self._jobs[number].call.heat_maps for number, part in parts.items() for _ in part]
        found = iter(answers(self._engine, inputs, pictured))
        for number, part in parts.items():
            self._jobs[number].answers += [next(found) for _ in part]


def characters(one: Input) -> int:
    """How much text an input is."""
    if isinstance(one, bytes):
        return 0
    return len(one) if isinstance(one, str) else sum(map(len, one))


def share(waiting: Mapping[int, int], most: int) -> dict[int, int]:
    """How many inputs of each call the next step computes, given how many each still has; in their order.

    Laws: at most ``most`` together, and all of them when they fit. When more than ``most`` calls wait, the
    first of them get one each. Otherwise nobody gets none, and who does not get all gets as many as anybody,
    but for one.
    """
    first = dict(islice(waiting.items(), most))
    shares: dict[int, int] = {}
    left = most
    for number, wanted in sorted(first.items(), key=lambda item: item[1]):
        shares[number] = min(wanted, left // (len(first) - len(shares)))
        left -= shares[number]
    return {number: shares[number] for number in first}
