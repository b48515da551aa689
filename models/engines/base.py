"""What an engine is asked and what it answers, whatever library runs underneath.

A text engine batches continuously: ``submit`` queues a request, each ``step`` advances every running
sequence and returns what happened. One thread owns an engine; nothing here is thread-safe.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from models.errors import EngineError


class Finish(StrEnum):
    """Why a sequence ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a loaded model is. ``bos`` and ``eos`` are the texts of those tokens, empty when it has none.

    ``control_tokens``: the texts that are read as control tokens where a prompt allows it.

    ``context_length`` is what the model was made for; ``context_tokens`` what one sequence gets here.
    """

    architecture: str
    name: str
    parameters: int
    context_length: int
    context_tokens: int
    vocabulary: int
    bos: str
    eos: str
    chat_template: str | None
    file_bytes: int
    control_tokens: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. Temperature 0 is greedy. ``grammar`` is GBNF with root rule ``root``.

    ``max_tokens`` ``None``: as many as the context has room for.
    """

    max_tokens: int | None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    grammar: str | None = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt, as text with special tokens written out, for the base or one named adapter.

    ``literal``: spans of ``prompt`` where control tokens are only text (see ``models.prompts.Prompt``).
    """

    id: str
    prompt: str
    sampling: Sampling
    adapter: str | None = None
    literal: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted by the engine. ``cached_tokens`` of the prompt were reused, not computed."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """What one step did for one request: new text, and at the end a finish or an error."""

    id: str
    text: str = ""
    finish: Finish | None = None
    error: EngineError | None = None
    usage: Usage = field(default=Usage())

    @property
    def done(self) -> bool:
        """Whether nothing follows for this request."""
        return self.finish is not None or self.error is not None


class Generate(Protocol):
    """Text generation with continuous batching."""

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request. Raises ``ContextLengthExceeded``, ``UnknownAdapter``, ``UnsupportedRequest``."""

    def cancel(self, request_id: str) -> None:
        """Stop a request within one step; unknown ids are ignored."""

    def step(self) -> list[Event]:
        """Advance every running sequence; an empty list means there is nothing to do."""


class TakeAdapters(Protocol):
    """Adapters come and go over the same loaded base weights."""

    def attach(self, name: str, path: Path) -> None:
        """Load an adapter under ``name``. Raises ``EngineError`` when the file does not fit the base."""

    def detach(self, name: str) -> None:
        """Drop an adapter once no running request uses it."""
