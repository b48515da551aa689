"""A conversation's turns as they come over the wire, and as a chat template takes them. Pure.

Reference: OpenAI's API reference, "Create chat completion", ``messages``.
"""

import json
import re
from collections.abc import Callable, Collection
from typing import Any, Literal

from models import canonical
from models.errors import ModelsError
from models.openai.errors import bad_request, unsupported
from models.openai.media import CHAT_PARTS, KINDS, MAX_MEDIA, MediaPart, parts_of, read_media
from models.openai.reading import Frozen, Json, a_text, an_object, nothing_else

Role = Literal["system", "user", "assistant", "tool"]

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_TEXT_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_CONTENT: Json = {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": _TEXT_PART}]}
_SEEN: Json = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": {"anyOf": [_TEXT_PART, *CHAT_PARTS]}},
    ]
}
_CHAT_MEDIA = ("image_url", "input_audio")
_CALL = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "arguments": {"type": "string"}},
            "required": ["name", "arguments"],
        },
    },
    "required": ["id", "type", "function"],
}


_NAME = re.compile(r"[^\s<|\\/>]{1,64}")
"""Who speaks; OpenAI's letters, none of which opens a control token."""


def _turn(roles: list[str], needed: list[str], **properties: Json) -> Json:
    name = {"type": "string", "pattern": f"^{_NAME.pattern}$"}
    known = {"role": {"enum": roles}, "content": _CONTENT, "name": name, **properties}
    return {
        "type": "object",
        "properties": known,
        "required": ["role", *needed],
        "additionalProperties": False,
    }


MESSAGES: Json = {
    "type": "array",
    "minItems": 1,
    "items": {
        "anyOf": [
            _turn(["user"], ["content"], content=_SEEN),
            _turn(["system", "developer", "assistant"], ["content"]),
            _turn(["assistant"], ["tool_calls"], tool_calls={"type": "array", "minItems": 1, "items": _CALL}),
            _turn(["tool"], ["content", "tool_call_id"], tool_call_id={"type": "string"}),
        ]
    },
}
"""What ``read_messages`` takes, as JSON Schema."""


class ToolCall(Frozen):
    """A function that the assistant called; ``arguments`` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


class ChatMessage(Frozen):
    """One turn. ``developer`` is read as ``system``; text parts are joined, and ``media`` stand between them.

    ``tool_calls`` are of an assistant, ``tool_call_id`` of a tool's answer. ``name``: who speaks, or the
    tool; the chat template tells the model or does not.
    """

    role: Role
    content: str = ""
    media: tuple[MediaPart, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    def wire(self) -> Json:
        """The message for another server."""
        wire = self._turn(lambda part: part.wire)
        if self.tool_calls:
            wire["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.tool_calls
            ]
        return wire

    def turn(self) -> Json:
        """The message for a chat template: arguments are values, as templates expect them."""
        turn = self._turn(lambda part: {"type": part.media.kind})
        if self.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.loads(call.arguments)},
                }
                for call in self.tool_calls
            ]
        return turn

    def _turn(self, part_of: Callable[[MediaPart], Json]) -> Json:
        named = {"tool_call_id": self.tool_call_id, "name": self.name}
        content = parts_of(self.content, self.media, part_of) if self.media else self.content
        turn: Json = {"role": self.role, "content": content}
        return turn | {key: value for key, value in named.items() if value is not None}


def read_messages(value: Any) -> tuple[ChatMessage, ...]:
    """``messages``: at least one; a tool's answer follows a call that it names. Raises ``ApiError`` (400)."""
    if not isinstance(value, list) or not value:
        raise bad_request("'messages' must be a list with at least one message.", "messages", "invalid_type")
    messages = tuple(_read_message(item, f"messages[{index}]") for index, item in enumerate(value))
    check_conversation(messages, "messages")
    return messages


def check_conversation(messages: tuple[ChatMessage, ...], where: str) -> None:
    """Media are not too many; a tool's answer belongs to a call before it. Raises ``ApiError`` (400)."""
    if (count := sum(len(message.media) for message in messages)) > MAX_MEDIA:
        raise bad_request(f"{count} pictures and recordings; at most {MAX_MEDIA}.", where, "invalid_value")
    called: set[str] = set()
    for index, message in enumerate(messages):
        called.update(call.id for call in message.tool_calls)
        if message.role == "tool" and message.tool_call_id not in called:
            at = f"{where}[{index}].tool_call_id"
            raise bad_request(f"'{at}' names no tool call of a message before it.", at, "invalid_value")


def _read_message(value: Any, where: str) -> ChatMessage:
    if not isinstance(value, dict):
        raise bad_request(f"'{where}' must be an object with role and content.", where, "invalid_type")
    # Clients send back the messages they got, with their empty fields.
    given = {key: item for key, item in value.items() if item is not None and item != []}
    given.pop("annotations", None)
    role = given.pop("role", None)
    if not isinstance(role, str) or role not in _ROLES:
        known = ", ".join(_ROLES)
        raise bad_request(f"'{where}.role' must be one of {known}.", f"{where}.role", "invalid_value")
    facts: Json = {"role": _ROLES[role]}
    if role == "assistant" and "tool_calls" in given:
        facts["tool_calls"] = _read_calls(given.pop("tool_calls"), f"{where}.tool_calls")
    if role == "tool":
        facts["tool_call_id"] = a_text(given, "tool_call_id", where)
    if "name" in given:
        facts["name"] = _read_name(given, where)
    if "content" in given or value.get("content") == []:
        seen = _CHAT_MEDIA if role == "user" else ()
        content = read_content(given.pop("content", []), f"{where}.content", media=seen)
        facts["content"], facts["media"] = content
    elif not facts.get("tool_calls"):
        raise bad_request(f"'{where}.content' is missing.", f"{where}.content", "missing_required_parameter")
    nothing_else(given, where)
    return ChatMessage(**facts)


def _read_name(given: Json, where: str) -> str:
    name = a_text(given, "name", where)
    if not _NAME.fullmatch(name):
        message = f"'{where}.name' must be 1 to 64 characters without spaces, slashes, '<', '>' and '|'."
        raise bad_request(message, f"{where}.name", "invalid_value")
    return name


def read_content(
    value: Any, where: str, texts: Collection[str] = ("text",), media: Collection[str] = ()
) -> tuple[str, tuple[MediaPart, ...]]:
    """A text, or parts: those of ``texts`` all hold ``text``; those of ``media`` are read by ``read_media``.

    Raises ``ApiError`` (400).
    """
    if isinstance(value, str):
        return value, ()
    if not isinstance(value, list) or not value:
        raise bad_request(f"'{where}' must be a string or a list of parts.", where, "invalid_type")
    text, seen = "", list[MediaPart]()
    for index, part in enumerate(value):
        at = f"{where}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise bad_request(f"'{at}' must be a part with a type.", at, "invalid_type")
        if kind in media:
            seen.append(read_media(part, at, len(text)))
            continue
        if kind in KINDS:
            raise unsupported(at, f"'{at}' is {kind!r}: here only text is taken.")
        if kind not in texts:
            raise unsupported(at, f"'{at}': {kind!r:.50} is none of {', '.join((*texts, *media))}.")
        if not isinstance(part.get("text"), str):
            raise bad_request(f"'{at}.text' must be a string.", f"{at}.text", "invalid_type")
        text += part["text"]
    return text, tuple(seen)


def _read_calls(value: Any, where: str) -> tuple[ToolCall, ...]:
    if not isinstance(value, list):
        raise bad_request(f"'{where}' must be a list.", where, "invalid_type")
    calls = []
    for index, item in enumerate(value):
        at = f"{where}[{index}]"
        given = an_object(item, at)
        given.pop("index", None)
        if given.pop("type", "function") != "function":
            raise unsupported(f"{at}.type", f"'{at}.type' is only supported as \"function\".")
        function = an_object(given.pop("function", None), f"{at}.function")
        calls.append(
            ToolCall(
                id=a_text(given, "id", at),
                name=a_text(function, "name", f"{at}.function"),
                arguments=read_arguments(function, f"{at}.function"),
            )
        )
        function.pop("parsed_arguments", None)  # the official client's own, in what its parsing returns
        nothing_else(function, f"{at}.function")
        nothing_else(given, at)
    return tuple(calls)


def read_arguments(given: Json, where: str) -> str:
    """Take a call's arguments: the text of a JSON object. Raises ``ApiError`` (400)."""
    text = a_text(given, "arguments", where) or "{}"
    try:
        value = canonical.decode(text.encode())
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # an escape may hold half a character
    except (ModelsError, ValueError):
        value = None
    if not isinstance(value, dict):
        at = f"{where}.arguments"
        raise bad_request(f"'{at}' is not the text of a JSON object.", at, "invalid_value")
    return text
