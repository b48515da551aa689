"""One call to an encoder from question to answer: policy, admission, journal, engine, receipt.

The guarantees are those of ``edge_agent.calls.text``: the intent is committed before anything is answered,
the result before the answer leaves, also when the call failed. Refuses the hub: no encoder's input leaves
the device.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_agent.calls.questions import Question, decide, refusal
from edge_agent.calls.receipt import Receipt
from edge_agent.calls.shared import Shared
from edge_agent.catalog import EncoderEngine, Outcome, Served
from edge_agent.engines.encoder_calls import EncoderAnswer, EncoderCall
from edge_agent.policy import RunAt
from models.digest import Digest
from models.engines.base import Usage
from models.errors import EngineError
from models.manifest import Task
from sync.errors import SyncError

Labels = tuple[str, ...]
"""What a classifier tells apart, in the order of its numbers; of others none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderAsk(Question):
    """A call to a model for one of ``tasks``."""

    call: EncoderCall
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """The answer, complete and on record."""

    answer: EncoderAnswer
    labels: Labels
    receipt: Receipt


class EncoderService:
    """Answers calls from the encoders of a catalog."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def task_of(self, model: str) -> Task | None:
        """What a published model is made for; None for text, and for a model that is not published."""
        return next((one.task for one in self._shared.catalog.list() if one.model_id == model), None)

    async def answer(self, ask: EncoderAsk, kept: Callable[[EncoderAnswer, Labels], Any]) -> Encoded:
        """Ask and record. ``kept`` is what the journal keeps of an answer, as JSON.

        Raises ``UnknownModel``, ``WrongTask``, ``Overloaded``, ``EngineError``, and ``SyncError`` when the
        journal cannot record the call.
        """
        shared = self._shared
        decision = decide(ask, shared.catalog, shared.rules, hub=False)
        shared.admission.enter()
        began = shared.monotonic()
        receipt: Receipt | None = None
        try:
            entry = shared.entry(ask, decision)
            try:
                if decision.run_at is not RunAt.EDGE:
                    raise refusal(ask, decision, shared.catalog, hub=False)
                with shared.catalog.lease(ask.model) as served:
                    engine = served.encoder(*ask.tasks)
                    answer = await self._ask(served, engine, ask.call)
                    # The engine has worked while the intent was being written.
                    receipt = Receipt.local(ask.id, served, decision, await entry.intent())
                    labels = engine.facts.labels
                    body = json.dumps(kept(answer, labels), ensure_ascii=False).encode()
                number = await entry.result(_facts(ask, receipt, answer), body)
            except SyncError:
                raise  # the journal itself failed: there is nothing left to record it in
            except BaseException as error:
                await entry.result(_facts(ask, receipt, None, error), b"")
                raise
            shared.metrics.answered(ask.model, receipt.served_by, Usage(answer.tokens), None)
            return Encoded(answer, labels, receipt.closed(number))
        finally:
            shared.admission.leave(shared.monotonic() - began)

    async def _ask(self, served: Served, engine: EncoderEngine, call: EncoderCall) -> EncoderAnswer:
        shared = self._shared
        began = shared.monotonic()
        try:
            answer = await engine.ask(call)
        except EngineError as error:
            shared.failed(error, served, shared.monotonic() - began)
            raise
        shared.observe(Outcome(served, True, shared.monotonic() - began, call.size))
        return answer


def keep_files(fields: dict[str, Any], **files: tuple[bytes, ...]) -> bytes:
    """What the journal keeps of a call with files: its fields, and of each file its digest and size."""
    shown = {
        name: [{"sha256": Digest.of(data).hex, "bytes": len(data)} for data in several]
        for name, several in files.items()
    }
    return json.dumps(fields | shown, ensure_ascii=False).encode()


def _facts(
    ask: EncoderAsk,
    receipt: Receipt | None,
    answer: EncoderAnswer | None,
    error: BaseException | None = None,
) -> dict[str, Any]:
    """What the leaf of the result says; the fields are those of a text answer, and ``inputs``."""
    return {
        "finish": None if answer is None else "stop",
        "served_by": None if receipt is None else receipt.served_by,
        "release": None if receipt is None else receipt.release,
        "adapter": None,
        "prompt": None,
        "upstream": None,
        "provisional": False,
        "prompt_tokens": 0 if answer is None else answer.tokens,
        "completion_tokens": 0,
        "inputs": ask.call.size,
        "error": None if error is None else type(error).__name__,
    }
