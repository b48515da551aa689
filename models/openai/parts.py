"""What an answer is made of before it has an endpoint's form; a stream's chunks read back. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from models.engines.base import TokenLogprob, Usage
from models.errors import ModelsError
from models.tools import CallDelta

Reason = Literal["stop", "length", "tool_calls", "content_filter"]
"""Why a choice ended, in OpenAI's words."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Something new of one choice."""

    choice: int = 0
    text: str = ""
    calls: tuple[CallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(slots=True)
class Call:
    """A whole call; ``arguments`` is JSON, cut where the answer was cut."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Choice:
    """One whole answer."""

    text: str = ""
    calls: list[Call] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: Reason = "stop"

    def add(self, piece: Piece) -> None:
        """Take what is new."""
        self.text += piece.text
        self.logprobs += piece.logprobs
        for delta in piece.calls:
            if delta.index == len(self.calls):
                self.calls.append(Call(delta.id or "", delta.name or ""))
            self.calls[delta.index].arguments += delta.arguments


class InvalidChunk(ModelsError):
    """A chunk of a stream that is none of a chat completion."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one chunk of a chat's stream says; what it does not say is empty or None."""

    pieces: tuple[Piece, ...] = ()
    reasons: Mapping[int, Reason] = field(default_factory=dict)
    usage: Usage | None = None
    receipt: Mapping[str, Any] | None = None


def read_chunk(chunk: Any) -> Chunk:
    """A ``chat.completion.chunk``. Raises ``InvalidChunk``.

    Law: reading what ``ChatWriter`` writes gives the pieces that were written.
    """
    try:
        choices = chunk["choices"]
        pieces = [_piece(choice) for choice in choices]
        return Chunk(
            pieces=tuple(piece for piece in pieces if piece.text or piece.calls or piece.logprobs),
            reasons=dict(_reasons(choices)),
            usage=_usage(chunk["usage"]) if chunk.get("usage") else None,
            receipt=chunk.get("outpost") or None,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidChunk(f"no chat completion: {error!r:.200}") from error


def _reasons(choices: Sequence[Any]) -> Iterable[tuple[int, Reason]]:
    for choice in choices:
        reason = choice.get("finish_reason")
        if reason is None:
            continue
        if reason not in get_args(Reason):
            raise ValueError(f"finish_reason {reason!r:.50}")
        yield _index(choice), cast(Reason, reason)


def _piece(choice: Any) -> Piece:
    delta = choice["delta"]
    text = delta.get("content") or ""
    if not isinstance(text, str):
        raise TypeError("content is no text")
    logprobs = (choice.get("logprobs") or {}).get("content") or ()
    return Piece(
        _index(choice),
        text,
        tuple(_call(call) for call in delta.get("tool_calls") or ()),
        tuple(_logprob(token) for token in logprobs),
    )


def _index(of: Any) -> int:
    index = of.get("index", 0)
    if type(index) is not int or not 0 <= index < 1000:
        raise ValueError(f"index {index!r:.50}")
    return index


def _call(call: Any) -> CallDelta:
    function = call.get("function") or {}
    name, arguments, id = function.get("name"), function.get("arguments") or "", call.get("id")
    if not all(isinstance(text, str | None) for text in (name, arguments, id)):
        raise TypeError("a tool call is no text")
    return CallDelta(_index(call), name or None, arguments, id or None)


def _logprob(token: Any) -> TokenLogprob:
    top = tuple((_bytes(one), float(one["logprob"])) for one in token.get("top_logprobs") or ())
    return TokenLogprob(_bytes(token), float(token["logprob"]), top)


def _bytes(token: Any) -> bytes:
    given = token.get("bytes")
    return bytes(given) if given is not None else str(token["token"]).encode()


def _usage(counted: Any) -> Usage:
    details = counted.get("prompt_tokens_details") or {}
    return Usage(
        int(counted["prompt_tokens"]),
        int(counted["completion_tokens"]),
        int(details.get("cached_tokens") or 0),
    )
