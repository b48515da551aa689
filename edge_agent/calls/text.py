"""One call from question to answer: policy, admission, journal, engine or hub, receipt.

Owns the order in which these happen and what is recorded when any of them fails. Refuses: HTTP (see
``edge_agent.rest.api``), choosing where a request may run (``edge_agent.policy``).
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from jsonschema import Draft202012Validator

from edge_agent.calls.choices import Answering, at_once, counted, kept, merged
from edge_agent.calls.questions import Question, decide, refusal
from edge_agent.calls.receipt import Receipt
from edge_agent.calls.shared import Shared
from edge_agent.catalog import Outcome, Served, run
from edge_agent.egress import Egress
from edge_agent.errors import HubBroke, HubLacksModel, HubUnreachable, PolicyViolation
from edge_agent.journal import Entry
from edge_agent.policy import Decision, RunAt
from models import canonical
from models.digest import Digest
from models.engines.base import Finish, GenerateRequest, Media, Sampling, Usage
from models.errors import (
    AnswerTooLong,
    ContextLengthExceeded,
    EngineError,
    InvalidDigest,
    ModelsError,
    UnsupportedRequest,
)
from models.openai.errors import bad_request
from models.openai.parts import Choice, Piece
from models.prompts import Prompt
from models.tools import Toolbox, hold
from sync.errors import SyncError

Written = Prompt | tuple[int, ...]
"""What a model reads: text, or token ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask(Question):
    """A call for text. Each of ``prompts`` writes one prompt for a model; each gets ``choices`` answers.

    In a chat, control tokens in the messages are only text; a text completion's prompt is the caller's own
    and is read as it is written. ``json_schema``: what the answer must meet, asked for by ``schema_name``;
    ``toolbox``: what it may call. Their grammar is added to ``sampling``. ``media`` stand at the places of
    the prompt, of which there is one then.
    """

    prompts: tuple[Callable[[Served], Written], ...]
    sampling: Sampling
    choices: int = 1
    json_schema: dict[str, Any] | None = None
    schema_name: str = "response_format"
    toolbox: Toolbox | None = None
    media: tuple[Media, ...] = ()

    @property
    def answers(self) -> int:
        """How many answers there will be."""
        return len(self.prompts) * self.choices


@dataclass(frozen=True, slots=True)
class Started:
    """The intent is committed, and somebody is at work on the answer; it may still be an error."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Finished:
    """All choices are complete and their result is committed."""

    choices: tuple[Choice, ...]
    usage: Usage
    receipt: Receipt


Part = Started | Piece | Finished


@dataclass(slots=True)
class _Answer:
    """What is known of an answer so far; the journal's result is written from it."""

    receipt: Receipt | None = None
    choices: list[Choice] = field(default_factory=list)
    complete: bool = False
    usage: Usage = field(default=Usage())
    upstream: dict[str, Any] | None = None

    def facts(self, error: BaseException | None = None) -> dict[str, Any]:
        """What the leaf of the result says: what answered, and how it ended."""
        receipt = self.receipt
        reasons = sorted({choice.reason for choice in self.choices}) if self.complete else []
        return {
            "finish": ",".join(reasons) or None,
            "served_by": None if receipt is None else receipt.served_by,
            "release": None if receipt is None else receipt.release,
            "adapter": None if receipt is None else receipt.adapter,
            "prompt": None if receipt is None else receipt.prompt,
            "upstream": None if self.upstream is None else _vouched(self.upstream),
            "provisional": receipt is not None and receipt.provisional,
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "error": None if error is None else type(error).__name__,
        }

    def body(self) -> bytes:
        """What the journal keeps."""
        return kept(self.choices or [Choice()])


class Service:
    """Answers calls from the models of a catalog, or from the hub where the policy says so."""

    def __init__(self, shared: Shared, egress: Egress | None) -> None:
        self._shared = shared
        self._egress = egress

    async def answer(self, ask: Ask) -> AsyncGenerator[Part, None]:
        """``Started``, then pieces, then ``Finished``. Closing it cancels the work.

        Raises ``UnknownModel``, ``PolicyViolation``, ``Overloaded``, ``HubError``, ``EngineError``,
        ``InvalidTemplate``, ``ApiError`` for a schema, and ``SyncError`` when the journal cannot record
        the call.
        """
        shared = self._shared
        decision = self._decide(ask)
        if ask.answers > shared.admission.capacity:
            raise bad_request(
                f"{ask.answers} answers; this device gives at most {shared.admission.capacity} at once.",
                "n",
                "invalid_value",
            )
        shared.admission.enter(ask.answers)
        began = shared.monotonic()
        first: float | None = None
        spoke: dict[int, float] = {}  # when each choice had text last
        try:
            async with aclosing(self._recorded(ask, decision)) as parts:
                async for part in parts:
                    if isinstance(part, Piece):
                        now = shared.monotonic()
                        if first is None:
                            first = now - began
                        if part.choice in spoke:
                            shared.metrics.text_after(ask.model, now - spoke[part.choice])
                        spoke[part.choice] = now
                    if isinstance(part, Finished):
                        shared.metrics.answered(ask.model, part.receipt.served_by, part.usage, first)
                    yield part
        finally:
            shared.admission.leave(shared.monotonic() - began, ask.answers)

    def _decide(self, ask: Ask) -> Decision:
        hub = self._egress is not None
        most = ask.answers * (ask.sampling.max_tokens or 0)
        return decide(ask, self._shared.catalog, self._shared.rules, hub=hub, max_tokens=most)

    async def _recorded(self, ask: Ask, decision: Decision) -> AsyncGenerator[Part, None]:
        """The parts of an answer with the intent before them and the result before the last."""
        entry = self._shared.entry(ask, decision)
        answer = _Answer()
        try:
            async with aclosing(self._placed(ask, decision, entry, answer)) as parts:
                async for part in parts:
                    yield part
            if not answer.complete or answer.receipt is None:
                raise EngineError("the engine ended an answer without saying why")
            number = await entry.result(answer.facts(), answer.body())
            receipt = answer.receipt.closed(number, answer.upstream)
            yield Finished(tuple(answer.choices), answer.usage, receipt)
        except SyncError:
            raise  # the journal itself failed: there is nothing left to record it in
        except BaseException as error:
            await entry.result(answer.facts(error), answer.body())
            raise

    async def _placed(
        self, ask: Ask, decision: Decision, entry: Entry, answer: _Answer
    ) -> AsyncGenerator[Started | Piece, None]:
        if decision.run_at is RunAt.REFUSE:
            raise refusal(ask, decision, self._shared.catalog, hub=self._egress is not None)
        if decision.run_at is RunAt.HUB:
            try:
                async with aclosing(self._from_hub(ask, decision, entry, answer)) as parts:
                    async for part in parts:
                        yield part
                return
            except (HubUnreachable, HubLacksModel):
                if not decision.local_fallback:
                    raise
        async with aclosing(self._from_engine(ask, decision, entry, answer)) as parts:
            async for part in parts:
                yield part

    async def _from_hub(
        self, ask: Ask, decision: Decision, entry: Entry, answer: _Answer
    ) -> AsyncGenerator[Started | Piece, None]:
        if self._egress is None or ask.outgoing is None:
            raise PolicyViolation("there is no way off this device")
        intent = await entry.intent()  # committed before anything leaves
        answer.choices = [Choice() for _ in range(ask.answers)]
        async with aclosing(self._egress.send(decision, ask.outgoing, ask.id)) as parts:
            async for part in parts:
                if answer.receipt is None:
                    answer.receipt = Receipt.hub(ask.id, ask.model, decision, intent)
                    yield Started(answer.receipt)
                for piece in part.pieces:
                    _add(answer.choices, piece)
                    yield piece
                if part.reasons:
                    if len(part.reasons) != ask.answers:
                        raise HubBroke(f"the hub gave {len(part.reasons)} answers instead of {ask.answers}")
                    for choice, reason in zip(answer.choices, part.reasons, strict=True):
                        choice.reason = reason
                    answer.complete, answer.usage = True, part.usage
                    answer.upstream = dict(part.receipt) if part.receipt else None

    async def _from_engine(
        self, ask: Ask, decision: Decision, entry: Entry, answer: _Answer
    ) -> AsyncGenerator[Started | Piece, None]:
        shared = self._shared
        with shared.catalog.lease(ask.model) as served:
            engine = served.text_engine()
            began = shared.monotonic()
            ids = None if ask.toolbox is None or not ask.toolbox.callable else f"call_{ask.id}"
            answering = [Answering(index, ids) for index in range(ask.answers)]
            answer.choices = [each.whole for each in answering]
            try:
                streams = [run(engine, request) for request in await self._requests(ask, served)]
                async with at_once(merged(streams)) as events:
                    # The engine reads the prompt while the intent is written and the answer's head is made.
                    receipt = Receipt.local(ask.id, served, decision, await entry.intent())
                    yield Started(receipt)
                    async for index, event in events:
                        for piece in answering[index].take(event):
                            answer.receipt = receipt  # not before: nobody has answered yet
                            yield piece
                    answer.receipt = receipt
                if any(each.finish in (None, Finish.CANCELLED) for each in answering):
                    raise EngineError("the engine gave the request up")
            except ContextLengthExceeded as error:
                raise type(error)(f"{error}: {_remedy(error, served)}") from error
            except EngineError as error:
                shared.failed(error, served, shared.monotonic() - began)
                raise
            answer.complete = True
            answer.usage = counted([each.usage for each in answering], ask.choices)
            shared.observe(
                Outcome(
                    served,
                    True,
                    shared.monotonic() - began,
                    answer.usage.completion_tokens,
                    violated_schema=any(_violates(served, ask, choice) for choice in answer.choices),
                )
            )

    async def _requests(self, ask: Ask, served: Served) -> list[GenerateRequest]:
        """One for each answer: the choices of a prompt differ in their seeds alone."""
        sampling = await self._held(ask)
        requests = []
        for at, write in enumerate(ask.prompts):
            prompt = write(served)
            text, literal, places = (
                (prompt.text, prompt.literal, prompt.places)
                if isinstance(prompt, Prompt)
                else (prompt, (), ())
            )
            media = tuple(replace(one, at=at) for one, at in zip(ask.media, places, strict=True))
            for choice in range(ask.choices):
                number = at * ask.choices + choice
                requests.append(
                    GenerateRequest(
                        ask.id if ask.answers == 1 else f"{ask.id}-{number}",
                        text,
                        sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + choice),
                        served.adapter_key,
                        literal,
                        media,
                    )
                )
        return requests

    async def _held(self, ask: Ask) -> Sampling:
        if ask.json_schema is None and (ask.toolbox is None or not ask.toolbox.callable):
            return ask.sampling
        try:
            # Converting a large schema takes a while, and other streams are running.
            held = await asyncio.to_thread(hold, ask.json_schema, ask.toolbox)
        except UnsupportedRequest as error:
            name = "tools" if str(error).startswith("tools[") else ask.schema_name
            raise bad_request(f"'{name}' cannot be enforced: {error}.", name, "unsupported_schema") from error
        return replace(ask.sampling, grammar=held.grammar, trigger=held.trigger)


def _remedy(error: ContextLengthExceeded, served: Served) -> str:
    """What helps a call that does not fit."""
    remedy = "ask for a shorter answer" if isinstance(error, AnswerTooLong) else "shorten the prompt"
    if served.made_for_tokens > served.context_tokens:
        remedy += f", or serve with --context N (the model was made for {served.made_for_tokens})"
    return remedy


def _vouched(upstream: dict[str, Any]) -> dict[str, str | None]:
    """What another's receipt says that answered there, as far as it is digests: leaves hold no free text.

    The hub's own names no release: the one nested in it does, of the upstream that answered.
    """
    while _digest(upstream.get("release")) is None and isinstance(upstream.get("upstream"), dict):
        upstream = upstream["upstream"]
    return {name: _digest(upstream.get(name)) for name in ("release", "adapter", "prompt")}


def _digest(value: object) -> str | None:
    try:
        return Digest(value) if isinstance(value, str) else None
    except InvalidDigest:
        return None


def _add(choices: list[Choice], piece: Piece) -> None:
    try:
        choices[piece.choice].add(piece)
    except IndexError as error:
        raise HubBroke("the hub answers what was not asked") from error


def _violates(served: Served, ask: Ask, choice: Choice) -> bool:
    """Whether a complete answer breaks the schema that its release promises.

    A caller who asks for another shape, or who writes the prompt alone, gets what was asked for.
    """
    if served.output_schema is None or ask.endpoint == "completions" or ask.json_schema is not None:
        return False
    if choice.calls:
        return False
    # An answer cut at its limit counts: an adapter that got worse often does not find its end, and callers
    # who ask for too little ask it of the release before too.
    try:
        value = canonical.decode(choice.text.encode())
    except ModelsError:
        return True
    return not Draft202012Validator(served.output_schema).is_valid(value)
