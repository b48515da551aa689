"""Answers to chat and text completions, whole and in chunks. Pure: ids and times are passed in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from models.engines.base import Finish, Usage

Json = dict[str, Any]


class Writer(Protocol):
    """Puts an answer into one endpoint's form. ``receipt`` becomes the field ``outpost``."""

    def whole(self, text: str, finish: Finish, usage: Usage, receipt: Mapping[str, Any]) -> Json:
        """The answer in one piece."""

    def opening(self) -> list[Json]:
        """Chunks before the first text."""

    def delta(self, text: str) -> Json:
        """A chunk with new text."""

    def closing(self, finish: Finish, usage: Usage, receipt: Mapping[str, Any]) -> list[Json]:
        """Chunks after the last text; the very last one carries the receipt."""


def usage_json(usage: Usage) -> Json:
    """OpenAI's ``usage`` object."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


@dataclass(frozen=True, slots=True)
class _Base:
    """``created`` is in seconds since the epoch; ``include_usage`` adds the chunk of token counts."""

    id: str
    created: int
    model: str
    include_usage: bool = False

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _last(self, chunk: Json, head: Json, usage: Usage, receipt: Mapping[str, Any]) -> list[Json]:
        if not self.include_usage:
            return [chunk | {"outpost": dict(receipt)}]
        return [chunk, head | {"choices": [], "usage": usage_json(usage), "outpost": dict(receipt)}]


class ChatWriter(_Base):
    """``/v1/chat/completions``."""

    def whole(self, text: str, finish: Finish, usage: Usage, receipt: Mapping[str, Any]) -> Json:
        """A ``chat.completion``."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": str(finish)}
        return self._head("chat.completion") | {
            "choices": [choice],
            "usage": usage_json(usage),
            "system_fingerprint": None,
            "outpost": dict(receipt),
        }

    def opening(self) -> list[Json]:
        """One chunk with the role."""
        return [self._chunk({"role": "assistant", "content": ""}, None)]

    def delta(self, text: str) -> Json:
        """A ``chat.completion.chunk``."""
        return self._chunk({"content": text}, None)

    def closing(self, finish: Finish, usage: Usage, receipt: Mapping[str, Any]) -> list[Json]:
        """The chunk with the reason, then the token counts when they were asked for."""
        return self._last(self._chunk({}, finish), self._head("chat.completion.chunk"), usage, receipt)

    def _chunk(self, delta: Json, finish: Finish | None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish and str(finish)}
        chunk = self._head("chat.completion.chunk") | {"choices": [choice]}
        return chunk | {"usage": None} if self.include_usage else chunk


class CompletionWriter(_Base):
    """``/v1/completions``."""

    def whole(self, text: str, finish: Finish, usage: Usage, receipt: Mapping[str, Any]) -> Json:
        """A ``text_completion``."""
        return self._chunk(text, finish) | {"usage": usage_json(usage), "outpost": dict(receipt)}

    def opening(self) -> list[Json]:
        """Nothing: text follows at once."""
        return []

    def delta(self, text: str) -> Json:
        """A ``text_completion`` with new text."""
        return self._chunk(text, None)

    def closing(self, finish: Finish, usage: Usage, receipt: Mapping[str, Any]) -> list[Json]:
        """The chunk with the reason, then the token counts when they were asked for."""
        return self._last(self._chunk("", finish), self._head("text_completion"), usage, receipt)

    def _chunk(self, text: str, finish: Finish | None) -> Json:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish and str(finish)}
        chunk = self._head("text_completion") | {"choices": [choice]}
        return chunk | {"usage": None} if self.include_usage else chunk


def model_json(model_id: str, created: int) -> Json:
    """One row of ``/v1/models``."""
    return {"id": model_id, "object": "model", "created": created, "owned_by": "outpost"}


def models_json(rows: list[Json]) -> Json:
    """The body of ``/v1/models``."""
    return {"object": "list", "data": rows}
