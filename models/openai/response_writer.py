"""Answers of ``/v1/responses``, whole and as named events. Pure: ids and times are passed in.

Reference: OpenAI's API reference, "The response object" and "Streaming events".
"""

from collections.abc import Mapping, Sequence
from typing import Any

from models.engines.base import TokenLogprob, Usage
from models.openai import sse
from models.openai.errors import ApiError
from models.openai.parts import Call, Choice, Piece, Reason
from models.openai.response_requests import ResponseRequest
from models.openai.writers import token_json
from models.tools import CallDelta, Tool

Json = dict[str, Any]


class ResponseWriter:
    """One response; see ``models.openai.writers.Writer``. ``created`` is in seconds since the epoch.

    ``noise`` pads the events with text; None: they are as long as they are.
    """

    def __init__(self, id: str, created: int, asked: ResponseRequest, noise: sse.Noise | None = None) -> None:
        self._id = id
        self._created = created
        self._asked = asked
        self._noise = noise
        self._events = 0
        self._items: list[Json] = []
        self._open: Choice | None = None
        """The item that is being written: text, or one call."""

    def whole(self, choices: Sequence[Choice], usage: Usage, receipt: Mapping[str, Any]) -> Json:
        """A ``response``."""
        [choice] = choices
        status = _status(choice.reason)
        if choice.text or not choice.calls:
            self._items.append(self._message(choice, status))
        self._items += [
            self._call(index, call, status) for index, call in enumerate(choice.calls, len(self._items))
        ]
        return self._response(status, usage, receipt)

    def opening(self, receipt: Mapping[str, Any]) -> bytes:
        """The response before it has any output."""
        empty = self._response("in_progress")
        return self._event("response.created", response=empty) + self._event(
            "response.in_progress", response=empty
        )

    def piece(self, piece: Piece) -> bytes:
        """Events of an item of the output; a new one closes the one before."""
        out = b""
        if piece.text or (piece.logprobs and not piece.calls):
            item, out = self._text_item()
            item.add(Piece(text=piece.text, logprobs=piece.logprobs))
            facts: Json = {"delta": piece.text, "logprobs": _logprobs(piece.logprobs)}
            out += self._event("response.output_text.delta", **self._place(item), **facts)
        for delta in piece.calls:
            item, begun = self._call_item(delta)
            item.calls[0].arguments += delta.arguments
            out += begun
            if delta.arguments:
                kind = "response.function_call_arguments.delta"
                out += self._event(kind, **self._place(item), delta=delta.arguments)
        return out

    def closing(self, reasons: Sequence[Reason], usage: Usage, receipt: Mapping[str, Any]) -> bytes:
        """The last item's end, then the whole response."""
        status = _status(reasons[0])
        out = b"" if self._items else self._begin(Choice())
        out += self._close(status)
        response = self._response(status, usage, receipt)
        return out + self._event(f"response.{status}", response=response)

    def failure(self, error: ApiError) -> bytes:
        """An ``error`` event; it also holds OpenAI's error object, by which the official client raises."""
        body = error.body()
        return self._event("error", **{**body["error"], "type": "error"}, **body)

    # Items

    def _text_item(self) -> tuple[Choice, bytes]:
        """The text that is being written, and the events that begin it."""
        if self._open is not None and not self._open.calls:
            return self._open, b""
        item = Choice()
        return item, self._begin(item)

    def _call_item(self, delta: CallDelta) -> tuple[Choice, bytes]:
        """The call that a piece belongs to, and the events that begin it."""
        if delta.name is None and self._open is not None and self._open.calls:
            return self._open, b""
        item = Choice(calls=[Call(delta.id or "", delta.name or "")])
        return item, self._begin(item)

    def _begin(self, item: Choice) -> bytes:
        out = self._close("completed")
        self._open = item
        self._items.append(self._written(item, "in_progress", len(self._items)))
        facts = {"output_index": len(self._items) - 1, "item": self._items[-1]}
        out += self._event("response.output_item.added", **facts)
        if not item.calls:
            out += self._event("response.content_part.added", **self._place(item), part=_part(item))
        return out

    def _close(self, status: str) -> bytes:
        """End the item that is open, if one is."""
        if self._open is None:
            return b""
        item, self._open = self._open, None
        place = self._place(item)
        if item.calls:
            [call] = item.calls
            facts: Json = {"name": call.name, "arguments": call.arguments}
            out = self._event("response.function_call_arguments.done", **place, **facts)
        else:
            facts = {"text": item.text, "logprobs": _logprobs(item.logprobs)}
            out = self._event("response.output_text.done", **place, **facts)
            out += self._event("response.content_part.done", **place, part=_part(item))
        index = len(self._items) - 1
        self._items[index] = self._written(item, status, index)
        return out + self._event("response.output_item.done", output_index=index, item=self._items[index])

    def _place(self, item: Choice) -> Json:
        """Where an event of the last item belongs."""
        index = len(self._items) - 1
        if item.calls:
            return {"item_id": self._item_id("fc", index), "output_index": index}
        return {"item_id": self._item_id("msg", index), "output_index": index, "content_index": 0}

    def _written(self, item: Choice, status: str, index: int) -> Json:
        if item.calls:
            return self._call(index, item.calls[0], status)
        return self._message(item, status, index)

    def _message(self, item: Choice, status: str, index: int = 0) -> Json:
        return {
            "id": self._item_id("msg", index),
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [] if status == "in_progress" else [_part(item)],
        }

    def _call(self, index: int, call: Call, status: str) -> Json:
        return {
            "id": self._item_id("fc", index),
            "type": "function_call",
            "status": status,
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
        }

    def _item_id(self, kind: str, index: int) -> str:
        return f"{kind}_{self._id.partition('_')[2]}_{index}"

    # The response

    def _response(
        self, status: str, usage: Usage | None = None, receipt: Mapping[str, Any] | None = None
    ) -> Json:
        asked = self._asked
        choice: Any = "auto"
        if asked.tool_choice is not None:
            named = {"type": "function", "name": asked.tool_choice.named}
            choice = named if asked.tool_choice.named else asked.tool_choice.mode
        response: Json = {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": asked.model,
            "output": [dict(item) for item in self._items],
            "parallel_tool_calls": asked.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": asked.temperature,
            "text": {"format": _format(asked)},
            "tool_choice": choice,
            "tools": [_tool(tool) for tool in asked.tools],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
            "user": asked.user,
            "metadata": asked.metadata,
        }
        return response if receipt is None else response | {"outpost": dict(receipt)}

    def _event(self, kind: str, **facts: Any) -> bytes:
        value = {"type": kind, "sequence_number": self._events, **facts}
        self._events += 1
        if self._noise is not None and kind.endswith(".delta"):
            return sse.padded_event(value, self._noise, kind)
        return sse.event(value, kind)


def _status(reason: Reason) -> str:
    return "incomplete" if reason == "length" else "completed"


def _part(item: Choice) -> Json:
    return {
        "type": "output_text",
        "text": item.text,
        "annotations": [],
        "logprobs": _logprobs(item.logprobs),
    }


def _logprobs(tokens: Sequence[TokenLogprob]) -> list[Json]:
    return [token_json(token) for token in tokens]


def _format(asked: ResponseRequest) -> Json:
    if asked.text is None:
        return {"type": "text"}
    wire = asked.text.wire
    return {"type": "json_schema", **wire["json_schema"]} if wire["type"] == "json_schema" else wire


def _tool(tool: Tool) -> Json:
    return {**tool.wire()["function"], "type": "function", "strict": True}


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
