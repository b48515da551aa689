"""``/v1/responses``: the request, read strictly, as the chat that it asks for. Pure.

Nothing is stored: a conversation comes whole with each request. Reference: OpenAI's API reference, "Create a
model response".
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StrictBool, StrictStr, WithJsonSchema

from models.openai.errors import bad_request, unsupported
from models.openai.messages import ChatMessage, ToolCall, check_conversation, read_arguments, read_content
from models.openai.reading import Json, Neutral, a_text, an_object, nothing_else, read_body
from models.openai.requests import MAX_LOGPROBS, ChatRequest, Metadata, Request
from models.openai.tool_options import (
    FLAT_CHOICE,
    FLAT_TOOLS,
    TEXT_FORMAT,
    ResponseFormat,
    ToolChoice,
    read_choice,
    read_text_format,
    read_tools,
)
from models.tools import Tool

LOGPROBS = "message.output_text.logprobs"
_INCLUDED = (
    LOGPROBS,
    "reasoning.encrypted_content",
)  # no model here answers the latter, so it changes nothing
_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_PARTS = ("input_text", "output_text", "text")
_MEDIA = ("input_image", "input_audio")
_NEUTRAL: Neutral = {
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "max_tool_calls": (),
    "previous_response_id": (),
    "prompt": (),
    "prompt_cache_retention": (),
    "reasoning": ({},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "truncation": ("disabled",),
}


def _read_input(value: Any) -> Any:
    if isinstance(value, str):
        return (ChatMessage(role="user", content=value),)
    if not isinstance(value, list) or not value:
        raise bad_request("'input' must be a string or a list of items.", "input", "invalid_type")
    messages: list[ChatMessage] = []
    for index, item in enumerate(value):
        _read_item(an_object(item, f"input[{index}]"), f"input[{index}]", messages)
    check_conversation(tuple(messages), "input")
    return tuple(messages)


def _read_item(given: Json, where: str, messages: list[ChatMessage]) -> None:
    """Add an item to the conversation; the calls of an assistant belong to its turn."""
    kind = given.pop("type", "message")
    given.pop("id", None)
    given.pop("status", None)
    if kind == "function_call":
        given.pop("parsed_arguments", None)  # the official client's own, in what its parsing returns
        name = a_text(given, "name", where)
        arguments = read_arguments(given, where)
        call = ToolCall(id=a_text(given, "call_id", where), name=name, arguments=arguments)
        turn = ChatMessage(role="assistant")
        if messages and messages[-1].role == "assistant":
            turn = messages.pop()
        messages.append(turn.model_copy(update={"tool_calls": (*turn.tool_calls, call)}))
    elif kind == "function_call_output":
        output, _ = read_content(given.pop("output", None), f"{where}.output", _PARTS)
        messages.append(
            ChatMessage(role="tool", content=output, tool_call_id=a_text(given, "call_id", where))
        )
    elif kind == "message":
        role = given.pop("role", None)
        if not isinstance(role, str) or role not in _ROLES:
            known = ", ".join(_ROLES)
            raise bad_request(f"'{where}.role' must be one of {known}.", f"{where}.role", "invalid_value")
        seen = _MEDIA if role == "user" else ()
        content, media = read_content(given.pop("content", None), f"{where}.content", _PARTS, seen)
        messages.append(ChatMessage(role=_ROLES[role], content=content, media=media))
    else:
        raise unsupported(f"{where}.type", f"'{where}.type': items of type {kind!r:.50} are not supported.")
    nothing_else(given, where)


def _read_flat_tools(value: Any) -> Any:
    return read_tools(value, flat=True)


def _read_flat_choice(value: Any) -> Any:
    return read_choice(value, flat=True)


def _read_include(value: Any) -> Any:
    if not isinstance(value, list):
        raise bad_request("'include' must be a list.", "include", "invalid_type")
    for item in value:
        if item not in _INCLUDED:
            raise unsupported("include", f"'include': {item!r:.60} is not supported.")
    return tuple(value)


class ResponseRequest(Request):
    """A response. ``previous_response_id`` and ``store: true`` are refused: nothing is stored."""

    input: Annotated[
        tuple[ChatMessage, ...],
        BeforeValidator(_read_input),
        WithJsonSchema(
            {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "object"}}]}
        ),
    ]
    instructions: StrictStr | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, strict=True)
    text: Annotated[ResponseFormat | None, BeforeValidator(read_text_format), WithJsonSchema(TEXT_FORMAT)] = (
        None
    )
    tools: Annotated[tuple[Tool, ...], BeforeValidator(_read_flat_tools), WithJsonSchema(FLAT_TOOLS)] = ()
    tool_choice: Annotated[
        ToolChoice | None, BeforeValidator(_read_flat_choice), WithJsonSchema(FLAT_CHOICE)
    ] = None
    parallel_tool_calls: StrictBool = True
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS, strict=True)
    include: Annotated[
        tuple[str, ...],
        BeforeValidator(_read_include),
        WithJsonSchema({"type": "array", "items": {"enum": list(_INCLUDED)}}),
    ] = ()
    safety_identifier: StrictStr | None = Field(default=None, max_length=512)
    prompt_cache_key: StrictStr | None = Field(default=None, max_length=512)
    metadata: Metadata = Field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a body. Raises ``ApiError`` (400) that names the parameter."""
        request = read_body(cls, data, _NEUTRAL)
        if request.top_logprobs and LOGPROBS not in request.include:
            message = f"'top_logprobs' needs {LOGPROBS!r} in 'include'."
            raise bad_request(message, "top_logprobs", "invalid_value")
        _ = request.chat.toolbox
        return request

    @property
    def chat(self) -> ChatRequest:
        """The chat that this is, the instructions at its begin."""
        messages = self.input
        if self.instructions is not None:
            first, *others = messages
            system = ChatMessage(role="system", content=self.instructions)
            if first.role == "system":  # most templates take one system message
                joined = f"{self.instructions}\n\n{first.content}"
                messages = (system.model_copy(update={"content": joined}), *others)
            else:
                messages = (system, *messages)
        # What has been read is not to be read again.
        return ChatRequest.model_construct(
            model=self.model,
            messages=messages,
            temperature=self.temperature,
            top_p=self.top_p,
            stream=self.stream,
            user=self.user,
            safety_identifier=self.safety_identifier,
            max_completion_tokens=self.max_output_tokens,
            logprobs=LOGPROBS in self.include,
            top_logprobs=self.top_logprobs,
            tools=self.tools,
            tool_choice=self.tool_choice,
            parallel_tool_calls=self.parallel_tool_calls,
            response_format=self.text,
        )
