"""One call from question to answer: policy, admission, journal, engine or hub, receipt.

Owns the order in which these happen and what is recorded when any of them fails. Refuses: HTTP (see
``edge_agent.api``), choosing where a request may run (``edge_agent.policy``).
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from jsonschema import Draft202012Validator

from edge_agent.admission import Admission
from edge_agent.catalog import Catalog, Outcome, Served, run
from edge_agent.egress import Egress
from edge_agent.errors import HubLacksModel, HubUnreachable, PolicyViolation
from edge_agent.journal import Entry, Journal
from edge_agent.metrics import Metrics
from edge_agent.policy import Decision, RunAt
from edge_agent.questions import ANONYMOUS, Question, Rules, decide, intent_facts, refusal
from edge_agent.receipt import Receipt
from models import canonical
from models.digest import Digest
from models.engines.base import Finish, GenerateRequest, Sampling, Usage
from models.errors import (
    ContextLengthExceeded,
    EngineError,
    InvalidDigest,
    ModelsError,
    UnsupportedRequest,
)
from models.openai.errors import bad_request
from models.prompts import Prompt
from sync.errors import SyncError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask(Question):
    """A call for text. ``prompt_for`` writes the prompt for a model.

    In a chat, control tokens in the messages are only text; a text completion's prompt is the caller's own
    and is read as it is written. ``json_schema``: what the answer must meet; its grammar is added to
    ``sampling``.
    """

    prompt_for: Callable[[Served], Prompt]
    sampling: Sampling
    json_schema: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """The intent is committed and an answer has begun."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete and its result committed."""

    finish: Finish
    usage: Usage
    receipt: Receipt


Part = Started | str | Finished


@dataclass(slots=True)
class _Answer:
    """What is known of an answer so far; the journal's result is written from it."""

    receipt: Receipt | None = None
    texts: list[str] = field(default_factory=list)
    finish: Finish | None = None
    usage: Usage = field(default=Usage())
    upstream: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def facts(self, error: BaseException | None = None) -> dict[str, Any]:
        """What the leaf of the result says: what answered, and how it ended."""
        receipt = self.receipt
        return {
            "finish": None if self.finish is None else str(self.finish),
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


class Service:
    """Answers calls from the models of a catalog, or from the hub where the policy says so.

    ``schema_to_grammar`` turns a JSON Schema into GBNF or raises ``UnsupportedRequest``; ``monotonic``
    is a clock in seconds for durations.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        journal: Journal | None,
        egress: Egress | None,
        admission: Admission,
        rules: Rules,
        metrics: Metrics,
        schema_to_grammar: Callable[[dict[str, Any]], str],
        monotonic: Callable[[], float],
    ) -> None:
        self._catalog = catalog
        self._journal = journal
        self._egress = egress
        self._admission = admission
        self._rules = rules
        self._metrics = metrics
        self._schema_to_grammar = schema_to_grammar
        self._monotonic = monotonic

    async def answer(self, ask: Ask) -> AsyncGenerator[Part, None]:
        """``Started``, then text, then ``Finished``. Closing it cancels the work.

        Raises ``UnknownModel``, ``PolicyViolation``, ``Overloaded``, ``HubError``, ``EngineError``,
        ``InvalidTemplate``, ``ApiError`` for a schema, and ``SyncError`` when the journal cannot record
        the call.
        """
        decision = self._decide(ask)
        self._admission.enter()
        began = self._monotonic()
        first: float | None = None
        try:
            async with aclosing(self._recorded(ask, decision)) as parts:
                async for part in parts:
                    if first is None and isinstance(part, str):
                        first = self._monotonic() - began
                    if isinstance(part, Finished):
                        self._metrics.answered(ask.model, part.receipt.served_by, part.usage, first)
                    yield part
        finally:
            self._admission.leave(self._monotonic() - began)

    def _decide(self, ask: Ask) -> Decision:
        hub = self._egress is not None
        return decide(ask, self._catalog, self._rules, hub=hub, max_tokens=ask.sampling.max_tokens or 0)

    async def _recorded(self, ask: Ask, decision: Decision) -> AsyncGenerator[Part, None]:
        """The parts of an answer with the intent before them and the result before the last."""
        data_class = str(decision.data_class)
        entry = Entry(self._journal, ask.id, data_class, ask.subject or ANONYMOUS)
        entry.begin(intent_facts(ask, decision, self._catalog), ask.body)
        answer = _Answer()
        try:
            async with aclosing(self._placed(ask, decision, entry, answer)) as parts:
                async for part in parts:
                    yield part
            if answer.finish is None or answer.receipt is None:
                raise EngineError("the engine ended an answer without saying why")
            number = await entry.result(answer.facts(), answer.text.encode())
            yield Finished(answer.finish, answer.usage, answer.receipt.closed(number, answer.upstream))
        except SyncError:
            raise  # the journal itself failed: there is nothing left to record it in
        except BaseException as error:
            await entry.result(answer.facts(error), answer.text.encode())
            raise

    async def _placed(
        self, ask: Ask, decision: Decision, entry: Entry, answer: _Answer
    ) -> AsyncGenerator[Started | str, None]:
        if decision.run_at is RunAt.REFUSE:
            raise refusal(ask, decision, hub=self._egress is not None)
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
    ) -> AsyncGenerator[Started | str, None]:
        if self._egress is None or ask.outgoing is None:
            raise PolicyViolation("there is no way off this device")
        intent = await entry.intent()  # committed before anything leaves
        async with aclosing(self._egress.send(decision, ask.outgoing, ask.id)) as pieces:
            async for piece in pieces:
                if answer.receipt is None:
                    answer.receipt = Receipt.hub(ask.id, ask.model, decision, intent)
                    yield Started(answer.receipt)
                if piece.finish is not None:
                    answer.finish, answer.usage = piece.finish, piece.usage
                    answer.upstream = dict(piece.receipt) if piece.receipt else None
                if piece.text:
                    answer.texts.append(piece.text)
                    yield piece.text

    async def _from_engine(
        self, ask: Ask, decision: Decision, entry: Entry, answer: _Answer
    ) -> AsyncGenerator[Started | str, None]:
        with self._catalog.lease(ask.model) as served:
            engine = served.text_engine()
            began = self._monotonic()
            try:
                async with aclosing(run(engine, await self._request(ask, served))) as events:
                    async for event in events:
                        if answer.receipt is None:
                            # The engine has started on the prompt while the intent was being written.
                            answer.receipt = Receipt.local(ask.id, served, decision, await entry.intent())
                            yield Started(answer.receipt)
                        if event.text:
                            answer.texts.append(event.text)
                            yield event.text
                        if event.finish is not None:
                            answer.finish, answer.usage = event.finish, event.usage
                if answer.finish is Finish.CANCELLED:
                    raise EngineError("the engine gave the request up")
            except (ContextLengthExceeded, UnsupportedRequest):
                raise  # the caller's doing: says nothing about the model
            except EngineError:
                self._observe(Outcome(served, False, self._monotonic() - began, len(answer.texts)))
                raise
            self._observe(
                Outcome(
                    served,
                    True,
                    self._monotonic() - began,
                    answer.usage.completion_tokens,
                    violated_schema=_violates(served, ask, answer),
                )
            )

    async def _request(self, ask: Ask, served: Served) -> GenerateRequest:
        sampling = ask.sampling
        if ask.json_schema is not None:
            # Converting a large schema takes a while, and other streams are running.
            try:
                grammar = await asyncio.to_thread(self._schema_to_grammar, ask.json_schema)
            except UnsupportedRequest as error:
                message = f"'response_format' cannot be enforced: {error}."
                raise bad_request(message, "response_format", "unsupported_schema") from error
            sampling = replace(sampling, grammar=grammar)
        prompt = ask.prompt_for(served)
        return GenerateRequest(ask.id, prompt.text, sampling, served.adapter_key, prompt.literal)

    def _observe(self, outcome: Outcome) -> None:
        self._metrics.outcome(outcome)
        self._catalog.record(outcome)


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


def _violates(served: Served, ask: Ask, answer: _Answer) -> bool:
    """Whether a complete answer breaks the schema that its release promises.

    A caller who asks for another shape, or who writes the prompt alone, gets what was asked for.
    """
    if served.output_schema is None or ask.endpoint != "chat" or ask.json_schema is not None:
        return False
    # An answer cut at its limit counts: an adapter that got worse often does not find its end, and callers
    # who ask for too little ask it of the release before too.
    if answer.finish is Finish.CANCELLED:
        return False
    try:
        value = canonical.decode(answer.text.encode())
    except ModelsError:
        return True
    return not Draft202012Validator(served.output_schema).is_valid(value)
