"""Answers to chat and text completions, whole and in chunks. Pure: ids and times are passed in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from models.engines.base import TokenLogprob, Usage
from models.openai import sse
from models.openai.errors import ApiError
from models.openai.parts import Choice, Piece, Reason
from models.tools import CallDelta

Json = dict[str, Any]


class Writer(Protocol):
    """Puts an answer into one endpoint's form. ``receipt`` becomes the field ``outpost``."""

    def whole(self, choices: Sequence[Choice], usage: Usage, receipt: Mapping[str, Any]) -> Json:
        """The answer in one piece."""

    def opening(self, receipt: Mapping[str, Any]) -> bytes:
        """Events before the first text. ``receipt``: what is known of who answers."""

    def piece(self, piece: Piece) -> bytes:
        """Events with something new."""

    def closing(self, reasons: Sequence[Reason], usage: Usage, receipt: Mapping[str, Any]) -> bytes:
        """Events after the last text, reasons in the order of the choices; the last one has the receipt."""

    def failure(self, error: ApiError) -> bytes:
        """The event that ends a stream which failed."""


def usage_json(usage: Usage) -> Json:
    """OpenAI's ``usage`` object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def token_json(token: TokenLogprob) -> Json:
    """A token with its log probability, as chats and responses have it."""
    return _token(token.token, token.logprob) | {
        "top_logprobs": [_token(other, logprob) for other, logprob in token.top]
    }


def _token(token: bytes, logprob: float) -> Json:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}


def fingerprint(receipt: Mapping[str, Any]) -> str | None:
    """``system_fingerprint``: the beginnings of the digests of release and adapter; None for a bare file.

    Where it is the same, the same request with the same seed is answered by the same weights.
    """
    release, adapter = receipt.get("release"), receipt.get("adapter")
    if release is None:
        return None
    return "_".join(["fp", *(digest.removeprefix("sha256:")[:12] for digest in (release, adapter) if digest)])


@dataclass(slots=True)
class _Base:
    """``created`` is in seconds since the epoch; ``include_usage`` adds the chunk of token counts.

    ``noise`` pads the events with text; None: they are as long as they are.
    """

    id: str
    created: int
    model: str
    include_usage: bool = False
    choices: int = 1
    noise: sse.Noise | None = field(default=None, kw_only=True)
    _fingerprint: str | None = field(default=None, init=False)

    def failure(self, error: ApiError) -> bytes:
        """An event with the error object."""
        return sse.event(error.body())

    def _head(self, kind: str) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self._fingerprint,
        }

    def _said(self, chunk: Json) -> bytes:
        return sse.event(chunk) if self.noise is None else sse.padded_event(chunk, self.noise)

    def _chunk(self, kind: str, choice: Json) -> Json:
        chunk = self._head(kind) | {"choices": [choice]}
        return chunk | {"usage": None} if self.include_usage else chunk

    def _end(self, kind: str, chunks: list[Json], usage: Usage, receipt: Mapping[str, Any]) -> bytes:
        if self.include_usage:
            chunks = [*chunks, self._head(kind) | {"choices": [], "usage": usage_json(usage)}]
        *others, last = chunks
        return _events([*others, last | {"outpost": dict(receipt)}]) + sse.DONE


class ChatWriter(_Base):
    """``/v1/chat/completions``."""

    def whole(self, choices: Sequence[Choice], usage: Usage, receipt: Mapping[str, Any]) -> Json:
        """A ``chat.completion``."""
        self._fingerprint = fingerprint(receipt)
        return self._head("chat.completion") | {
            "choices": [_chat_choice(index, choice) for index, choice in enumerate(choices)],
            "usage": usage_json(usage),
            "outpost": dict(receipt),
        }

    def opening(self, receipt: Mapping[str, Any]) -> bytes:
        """A chunk with the role for each choice."""
        self._fingerprint = fingerprint(receipt)
        role = {"role": "assistant", "content": ""}
        return _events([self._delta(index, role) for index in range(self.choices)])

    def piece(self, piece: Piece) -> bytes:
        """A ``chat.completion.chunk``."""
        delta: Json = {"content": piece.text} if piece.text or not piece.calls else {}
        if piece.calls:
            delta["tool_calls"] = [_call_delta(call) for call in piece.calls]
        return self._said(self._delta(piece.choice, delta, piece.logprobs))

    def closing(self, reasons: Sequence[Reason], usage: Usage, receipt: Mapping[str, Any]) -> bytes:
        """The chunks with the reasons, then the token counts when they were asked for."""
        chunks = [self._delta(index, {}, reason=reason) for index, reason in enumerate(reasons)]
        return self._end("chat.completion.chunk", chunks, usage, receipt)

    def _delta(
        self,
        index: int,
        delta: Json,
        logprobs: Sequence[TokenLogprob] = (),
        reason: Reason | None = None,
    ) -> Json:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": _chat_logprobs(logprobs),
            "finish_reason": reason,
        }
        return self._chunk("chat.completion.chunk", choice)


def _chat_choice(index: int, choice: Choice) -> Json:
    message: Json = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.calls
        ]
    logprobs = _chat_logprobs(choice.logprobs)
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.reason}


def _chat_logprobs(tokens: Sequence[TokenLogprob]) -> Json | None:
    return {"content": [token_json(token) for token in tokens], "refusal": None} if tokens else None


def _call_delta(call: CallDelta) -> Json:
    if call.name is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {
        "index": call.index,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


@dataclass(slots=True)
class CompletionWriter(_Base):
    """``/v1/completions``. ``echo``: what each choice's text begins with, nothing when it is empty."""

    echo: tuple[str, ...] = ()
    _offsets: dict[int, int] = field(default_factory=dict)

    def whole(self, choices: Sequence[Choice], usage: Usage, receipt: Mapping[str, Any]) -> Json:
        """A ``text_completion``."""
        self._fingerprint = fingerprint(receipt)
        written = [
            self._choice(index, self._echoed(index) + choice.text, choice.logprobs, choice.reason)
            for index, choice in enumerate(choices)
        ]
        answer = self._chunk("text_completion", {}) | {"choices": written}
        return answer | {"usage": usage_json(usage), "outpost": dict(receipt)}

    def opening(self, receipt: Mapping[str, Any]) -> bytes:
        """What is echoed; else text follows at once."""
        self._fingerprint = fingerprint(receipt)
        return _events(
            [
                self._chunk("text_completion", self._choice(index, text))
                for index, text in enumerate(self.echo)
            ]
        )

    def piece(self, piece: Piece) -> bytes:
        """A ``text_completion`` with new text."""
        return self._said(
            self._chunk("text_completion", self._choice(piece.choice, piece.text, piece.logprobs))
        )

    def closing(self, reasons: Sequence[Reason], usage: Usage, receipt: Mapping[str, Any]) -> bytes:
        """The chunks with the reasons, then the token counts when they were asked for."""
        chunks = [
            self._chunk("text_completion", self._choice(index, "", reason=reason))
            for index, reason in enumerate(reasons)
        ]
        return self._end("text_completion", chunks, usage, receipt)

    def _echoed(self, index: int) -> str:
        return self.echo[index] if self.echo else ""

    def _choice(
        self,
        index: int,
        text: str,
        logprobs: Sequence[TokenLogprob] = (),
        reason: Reason | None = None,
    ) -> Json:
        listed = self._listed(index, logprobs) if logprobs else None
        return {"index": index, "text": text, "logprobs": listed, "finish_reason": reason}

    def _listed(self, index: int, logprobs: Sequence[TokenLogprob]) -> Json:
        """The older form: one list a column. ``text_offset`` counts characters from the answer's begin."""
        tokens = [_readable(token.token) for token in logprobs]
        offset = self._offsets.get(index, 0)
        offsets = []
        for token in logprobs:
            offsets.append(offset)
            offset += len(token.token.decode(errors="ignore"))
        self._offsets[index] = offset
        return {
            "tokens": tokens,
            "token_logprobs": [token.logprob for token in logprobs],
            "top_logprobs": [
                {_readable(other): logprob for other, logprob in token.top} for token in logprobs
            ]
            if any(token.top for token in logprobs)
            else None,
            "text_offset": offsets,
        }


def _readable(token: bytes) -> str:
    """A token's text; one that is a part of a character as OpenAI writes it."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _events(chunks: list[Json]) -> bytes:
    return b"".join(map(sse.event, chunks))


def model_json(model_id: str, created: int) -> Json:
    """One row of ``/v1/models``."""
    return {"id": model_id, "object": "model", "created": created, "owned_by": "outpost"}


def models_json(rows: list[Json]) -> Json:
    """The body of ``/v1/models``."""
    return {"object": "list", "data": rows}
