"""Which models answer on this device, under which names, and how their answers turned out.

Publishing is a pointer change: a request that holds a lease finishes on what it started with, the
next one gets the new release. One event loop owns a catalog; nothing here is thread-safe. Refuses:
loading, staging or judging anything (``edge_agent.updates.activation``).
"""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

from edge_agent.engines.encoder_calls import EncoderAnswer, EncoderCall
from edge_agent.errors import UnknownModel, WrongTask
from models.digest import Digest
from models.engines.base import EncoderFacts, Event, GenerateRequest, MediaKind
from models.manifest import Task
from models.prompts import ChatTemplate

ROUTES: dict[Task | None, str] = {
    None: "/v1/chat/completions",
    "embed": "/v1/embeddings",
    "classify": "/v1/classify",
    "rerank": "/v1/rerank",
    "classify-image": "/v1/classify",
    "inspect": "/v1/inspect",
    "ocr": "/v1/ocr",
    "transcribe": "/v1/audio/transcriptions",
}
"""Where a model of each task is asked."""


_NAMED = 5
"""Models that an error names; of more it says where they are listed."""


class TextEngine(Protocol):
    """What answers a prompt: an engine process, or anything that behaves like one."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        """Events of one request in order, the last one ``done``. Closing the iterator cancels.

        Raises ``EngineError`` subclasses, before or between events.
        """


class EncoderEngine(Protocol):
    """What answers texts, pictures or recordings: an encoder's process, or what behaves like one."""

    @property
    def facts(self) -> EncoderFacts:
        """What was loaded."""

    async def ask(self, call: EncoderCall) -> EncoderAnswer:
        """Answers to all inputs, or an error. Raises ``EngineError`` subclasses."""


async def run(engine: TextEngine, request: GenerateRequest) -> AsyncGenerator[Event, None]:
    """The events of one request, with an error event raised; closing this generator cancels the request."""
    events = engine.generate(request)
    try:
        async for event in events:
            if event.error is not None:
                raise event.error
            yield event
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Served:
    """One model or model with adapter, ready to answer. Identity is the object itself.

    ``model_id`` is ``base`` or ``base:adapter``; ``adapter_key`` is the engine's name for the adapter.
    ``template`` is None for a model that can only complete text. A prompt and its answer may have
    ``context_tokens`` here, and ``made_for_tokens`` at most (0: not known). ``release`` and
    ``adapter_release`` are digests of manifests, None for a bare file. ``system_prompt`` opens a chat that
    has none. ``prompt_version`` names template and system prompt on receipts. ``task`` None: it generates
    text, and ``engine`` is a ``TextEngine``; else an ``EncoderEngine``. ``takes``: what a chat may hold
    besides text.
    """

    model_id: str
    engine: TextEngine | EncoderEngine
    adapter_key: str | None
    template: ChatTemplate | None
    context_tokens: int
    made_for_tokens: int = 0
    release: Digest | None = None
    adapter_release: Digest | None = None
    output_schema: dict[str, Any] | None = None
    system_prompt: str | None = None
    prompt_version: str | None = None
    created: int = 0
    task: Task | None = None
    takes: tuple[MediaKind, ...] = ()

    def text_engine(self) -> TextEngine:
        """The engine of a model that generates text. Raises ``WrongTask``."""
        if self.task is not None:
            raise WrongTask(f"{self.model_id!r} does not generate text; ask it at {ROUTES[self.task]}")
        return cast(TextEngine, self.engine)

    def encoder(self, *tasks: Task) -> EncoderEngine:
        """The engine of a model for one of ``tasks``, or for any but text. Raises ``WrongTask``."""
        if self.task is None or (tasks and self.task not in tasks):
            wanted = " or ".join(tasks) or "do that"
            raise WrongTask(f"{self.model_id!r} is not made to {wanted}; ask it at {ROUTES[self.task]}")
        return cast(EncoderEngine, self.engine)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one local answer turned out. ``ok`` is False when the model, not the caller, is to blame.

    ``completion_tokens``: of the answer; of an encoder, the inputs that it answered. ``violated_schema``: a
    complete answer that does not meet ``served.output_schema``.
    """

    served: Served
    ok: bool
    seconds: float
    completion_tokens: int
    violated_schema: bool = False


Observer = Callable[[Outcome], None]


class Catalog:
    """The published models by name."""

    def __init__(self) -> None:
        self._published: dict[str, Served] = {}
        self._in_flight: Counter[Served] = Counter()
        self._observers: list[Observer] = []

    def publish(self, served: Served) -> Served | None:
        """Answer ``served.model_id`` with ``served`` from now on; returns what it replaces."""
        previous = self._published.get(served.model_id)
        self._published[served.model_id] = served
        return previous

    def withdraw(self, model_id: str) -> Served | None:
        """Stop answering to a name; returns what answered. Requests in flight finish."""
        return self._published.pop(model_id, None)

    def resolve(self, model_id: str) -> Served:
        """What answers to a name now. Raises ``UnknownModel``."""
        try:
            return self._published[model_id]
        except KeyError:
            raise self.unknown(model_id) from None

    def unknown(self, model_id: str) -> UnknownModel:
        """What is to be said of a name that nothing answers to: what there is, when it is not too much."""
        names = [repr(name) for name in sorted(self._published)]
        there_is = "there is " + (", ".join(names) or "none yet")
        if len(names) > _NAMED:
            there_is = f"GET /v1/models lists the {len(names)} that are"
        return UnknownModel(f"no model {model_id!r:.200} is published on this device; {there_is}")

    def list(self) -> tuple[Served, ...]:
        """Everything published, in the order of names."""
        return tuple(self._published[name] for name in sorted(self._published))

    @contextmanager
    def lease(self, model_id: str) -> Iterator[Served]:
        """What answers to a name, counted as in flight until the block is left."""
        served = self.resolve(model_id)
        self._in_flight[served] += 1
        try:
            yield served
        finally:
            self._in_flight[served] -= 1
            if not self._in_flight[served]:
                del self._in_flight[served]

    def in_flight(self, served: Served) -> int:
        """Requests that run on ``served`` now."""
        return self._in_flight[served]

    def observe(self, observer: Observer) -> None:
        """Call ``observer`` with the ``Outcome`` of every local answer from now on."""
        self._observers.append(observer)

    def record(self, outcome: Outcome) -> None:
        """Tell the observers how an answer turned out."""
        for observer in self._observers:
            observer(outcome)
