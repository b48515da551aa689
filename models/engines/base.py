"""What an engine is asked and what it answers, whatever library runs underneath.

A text engine batches continuously: ``submit`` queues a request, each ``step`` advances every running
sequence and returns what happened. Encoders answer a batch in one call. One thread owns an engine; nothing
here is thread-safe.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from models.errors import EngineError, UnsupportedRequest
from models.manifest import Task

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Finish(StrEnum):
    """Why a sequence ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a loaded model is. ``bos`` and ``eos`` are the texts of those tokens, empty when it has none.

    ``control_tokens``: the texts that are read as control tokens where a prompt allows it. ``takes``: what
    prompts may hold besides text.

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
    takes: "tuple[MediaKind, ...]" = ()


REPEAT_PENALTIES = (0.01, 2.0)
"""The least and the most; logits that are divided by less leave the range of float32."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens; what an engine cannot honour it refuses. Temperature 0 is greedy.

    ``max_tokens`` ``None``: as many as the context has room for. ``top_k`` 0 and ``min_p`` 0: off.
    ``presence_penalty`` and ``frequency_penalty`` are subtracted from logits as OpenAI defines them, over the
    tokens of the answer; ``repeat_penalty`` divides, as llama.cpp defines it. ``logit_bias``: what is added
    to the logits of token ids. ``logprobs``: how many of the likeliest tokens to report at each place,
    besides the chosen one; ``None`` reports nothing.

    ``grammar`` is GBNF with root rule ``root``. With a ``trigger`` the text is free until the trigger has
    been written; from its first character on the grammar holds.
    """

    max_tokens: int | None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    trigger: str | None = None
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False


def refuse_options(sampling: Sampling, honoured: Collection[str]) -> None:
    """Refuse what an engine that honours only ``honoured`` would ignore. Raises ``UnsupportedRequest``."""
    for option in fields(Sampling):
        if option.name not in honoured and getattr(sampling, option.name) != option.default:
            message = f"this kind of model does not support {option.name}"
            raise UnsupportedRequest(message, option.name)


MediaKind = Literal["image", "audio"]


@dataclass(frozen=True, slots=True)
class Media:
    """A picture or a recording, as the bytes of its file, before the character ``at`` of a text."""

    kind: MediaKind
    data: bytes
    at: int


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt, for the base or one named adapter: text with special tokens written out, or token ids.

    ``literal``: spans of ``prompt`` where control tokens are only text (see ``models.prompts.Prompt``).
    ``media`` stand in ``prompt``, in order.
    """

    id: str
    prompt: str | tuple[int, ...]
    sampling: Sampling
    adapter: str | None = None
    literal: tuple[tuple[int, int], ...] = ()
    media: tuple[Media, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted by the engine. ``cached_tokens`` of the prompt were reused, not computed."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine is at: requests, and KV cells: all, those that hold tokens, those promised to what runs.

    Cells that hold tokens and are promised to nobody keep prefixes for requests to come.
    """

    running: int = 0
    waiting: int = 0
    cells: int = 0
    filled: int = 0
    promised: int = 0

    def __add__(self, other: "Load") -> "Load":
        return Load(
            self.running + other.running,
            self.waiting + other.waiting,
            self.cells + other.cells,
            self.filled + other.filled,
            self.promised + other.promised,
        )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's bytes and its natural log probability; ``top``: the likeliest at its place, in order.

    Of the model's own distribution, before temperature, penalties and filters.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """What one step did for one request: new text, and at the end a finish or an error.

    ``logprobs``, when they were asked for: of the tokens chosen in this step, of which ``text`` may still
    hold something back.
    """

    id: str
    text: str = ""
    finish: Finish | None = None
    error: EngineError | None = None
    usage: Usage = field(default=Usage())
    logprobs: tuple[TokenLogprob, ...] = ()

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

    @property
    def load(self) -> Load:
        """What there is to do."""


class TakeAdapters(Protocol):
    """Adapters come and go over the same loaded base weights."""

    def attach(self, name: str, path: Path) -> None:
        """Load an adapter under ``name``. Raises ``EngineError`` when the file does not fit the base."""

    def detach(self, name: str) -> None:
        """Drop an adapter once no running request uses it."""


@dataclass(frozen=True, slots=True)
class EncoderFacts:
    """What a loaded encoder or vision model is; what does not apply to its task is empty.

    ``width``: numbers in an embedding. ``max_tokens``: of one text, special tokens included. ``threshold``:
    the score from which a part is a defect.
    """

    task: Task
    name: str
    parameters: int
    file_bytes: int
    labels: tuple[str, ...] = ()
    width: int = 0
    max_tokens: int = 0
    threshold: float | None = None

    @property
    def sees(self) -> bool:
        """Whether it is asked with pictures."""
        return self.task in ("classify-image", "inspect", "ocr")


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in one picture. The higher ``score``, the less it looks like a good part.

    ``heat_map``: float32 [height, width] of the model's input, where it looks unlike a good part.
    ``region``: left, top, right, bottom of what the heat map covers, in pixels of the upright picture.
    """

    score: float
    is_defect: bool
    threshold: float
    heat_map: "npt.NDArray[np.float32]"
    region: tuple[float, float, float, float]


Reading = str | tuple[str, str]
"""A text, or a query and the text that it judges, which a reranker reads together."""


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Answers to texts, in their order: float32 [n, width or classes]. ``tokens`` that were read of each
    text, special tokens included; ``truncated``: how many texts were cut.
    """

    values: "npt.NDArray[np.float32]"
    tokens: tuple[int, ...]
    truncated: int = 0


class Embed(Protocol):
    """Texts to vectors."""

    def embed(self, texts: Sequence[str]) -> "npt.NDArray[np.float32]":
        """float32 [n, width], in order. Raises ``ContextLengthExceeded``, ``EngineError``."""


class Classify(Protocol):
    """Texts, or pictures as the bytes of PNG or JPEG files, to probabilities."""

    def classify(self, inputs: Sequence[str] | Sequence[bytes]) -> "npt.NDArray[np.float32]":
        """float32 [n, classes], rows sum to 1, classes in the order of the labels.

        Raises ``ContextLengthExceeded``, ``InvalidImage``, ``EngineError``.
        """


class Inspect(Protocol):
    """Pictures of parts to verdicts."""

    def inspect(self, images: Sequence[bytes]) -> list[Inspection]:
        """In order; ``images`` are bytes of PNG or JPEG files. Raises ``InvalidImage``, ``EngineError``."""
