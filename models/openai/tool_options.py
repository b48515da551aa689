"""``tools``, ``tool_choice`` and ``response_format``, read strictly, of chats and of responses. Pure.

Reference: OpenAI's API reference, "Create chat completion" and "Create a model response".
"""

import re
from typing import Any, Literal

from models.openai.errors import bad_request, unsupported
from models.openai.reading import Frozen, Json, a_text, an_object, nothing_else
from models.tools import Tool, Toolbox

MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


_FUNCTION: Json = {
    "name": {"type": "string", "pattern": f"^{_NAME.pattern}$"},
    "description": {"type": "string"},
    "parameters": {"type": "object", "description": "JSON Schema of an object"},
    "strict": {"type": "boolean"},
}


def _closed(properties: Json, *required: str) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _nested(properties: Json) -> Json:
    function = _closed(properties, "name")
    return _closed({"type": {"const": "function"}, "function": function}, "type", "function")


def _flat(properties: Json) -> Json:
    return _closed({"type": {"const": "function"}, **properties}, "type", "name")


def _choice(named: Json) -> Json:
    return {"anyOf": [{"enum": ["none", "auto", "required"]}, named]}


_TEXT = {"type": "string"}
_NAMED = {"name": _FUNCTION["name"]}
TOOLS: Json = {"type": "array", "maxItems": MAX_TOOLS, "items": _nested(_FUNCTION)}
FLAT_TOOLS: Json = {"type": "array", "maxItems": MAX_TOOLS, "items": _flat(_FUNCTION)}
CHOICE, FLAT_CHOICE = _choice(_nested(_NAMED)), _choice(_flat(_NAMED))
_PLAIN = _closed({"type": {"enum": ["text", "json_object"]}}, "type")
_SCHEMA: Json = {
    "name": _TEXT,
    "description": _TEXT,
    "schema": {"type": "object"},
    "strict": {"type": "boolean"},
}
_TYPED = {"type": {"const": "json_schema"}}
FORMAT: Json = {
    "anyOf": [_PLAIN, _closed(_TYPED | {"json_schema": _closed(_SCHEMA, "schema")}, "type", "json_schema")]
}
TEXT_FORMAT: Json = _closed({"format": {"anyOf": [_PLAIN, _closed(_TYPED | _SCHEMA, "type", "schema")]}})
"""What the functions below take, as JSON Schema."""


class ResponseFormat(Frozen):
    """What shape the answer must have. ``json_schema`` is the schema to enforce, None for free text."""

    wire: Json
    json_schema: Json | None


class ToolChoice(Frozen):
    """Whether tools are called; ``named``: the one that must be, and ``mode`` is ``required`` then."""

    mode: Literal["none", "auto", "required"]
    named: str | None = None


def read_tools(value: Any, *, flat: bool = False) -> tuple[Tool, ...]:
    """Functions; ``flat``: without the object ``function``, as ``/v1/responses`` has them.

    Raises ``ApiError`` (400).
    """
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise bad_request(f"'tools' must be a list of at most {MAX_TOOLS} tools.", "tools", "invalid_type")
    tools = tuple(_read_tool(item, f"tools[{index}]", flat) for index, item in enumerate(value))
    if len({tool.name for tool in tools}) != len(tools):
        raise bad_request("'tools' has two functions of one name.", "tools", "invalid_value")
    return tools


def _read_tool(value: Any, where: str, flat: bool) -> Tool:
    given = an_object(value, where)
    kind = given.pop("type", None)
    if kind != "function":
        raise unsupported(
            f"{where}.type", f"'{where}.type': only \"function\" is supported, not {kind!r:.50}."
        )
    function = given if flat else an_object(given.pop("function", None), f"{where}.function")
    at = where if flat else f"{where}.function"
    name = a_text(function, "name", at)
    if not _NAME.fullmatch(name):
        raise bad_request(
            f"'{at}.name' must be 1 to 64 letters, digits, '_', '-' or '.'.", f"{at}.name", "invalid_value"
        )
    description = a_text(function, "description", at, "")
    # Arguments always meet the schema here, strict or not.
    if not isinstance(function.pop("strict", False), bool):
        raise bad_request(f"'{at}.strict' must be true or false.", f"{at}.strict", "invalid_type")
    parameters = an_object(function.pop("parameters", {"properties": {}}), f"{at}.parameters")
    nothing_else(function, at)
    nothing_else(given, where)
    if parameters.setdefault("type", "object") != "object":
        raise bad_request(
            f"'{at}.parameters' must describe an object.", f"{at}.parameters", "unsupported_schema"
        )
    return Tool(name, description, parameters)


def read_choice(value: Any, *, flat: bool = False) -> ToolChoice:
    """``tool_choice``. Raises ``ApiError`` (400)."""
    if isinstance(value, str):
        if value not in ("none", "auto", "required"):
            raise bad_request(
                "'tool_choice' must be none, auto, required or name a function.",
                "tool_choice",
                "invalid_value",
            )
        return ToolChoice(mode=value)
    given = an_object(value, "tool_choice")
    if given.pop("type", None) != "function":
        message = "'tool_choice.type' is only supported as \"function\"."
        raise unsupported("tool_choice.type", message)
    function, at = given, "tool_choice"
    if not flat:
        function, at = an_object(given.pop("function", None), "tool_choice.function"), "tool_choice.function"
    named = a_text(function, "name", at)
    nothing_else(function, at)
    nothing_else(given, "tool_choice")
    return ToolChoice(mode="required", named=named)


def toolbox(tools: tuple[Tool, ...], choice: ToolChoice | None, parallel: bool) -> Toolbox | None:
    """The three options together; None without tools. Raises ``ApiError`` (400)."""
    if not tools:
        if choice is not None and choice.mode == "required":
            raise bad_request("'tool_choice' needs 'tools'.", "tool_choice", "invalid_value")
        return None
    choice = choice or ToolChoice(mode="auto")
    if choice.named is not None and choice.named not in [tool.name for tool in tools]:
        raise bad_request(
            f"'tool_choice' names {choice.named!r:.100}, which is none of 'tools'.",
            "tool_choice",
            "invalid_value",
        )
    return Toolbox(tools, choice.mode, choice.named, parallel)


def read_format(value: Any) -> ResponseFormat:
    """``response_format`` of a chat. Raises ``ApiError`` (400)."""
    where = "response_format"
    if isinstance(value, dict) and value.get("type") == "json_schema":
        named = value.get("json_schema")
        schema = named.get("schema") if isinstance(named, dict) else None
        return ResponseFormat(wire=value, json_schema=_schema(schema, f"{where}.json_schema.schema"))
    return _plain_format(value, where)


def read_text_format(value: Any) -> ResponseFormat:
    """``text`` of ``/v1/responses``: its ``format``, with the schema beside its type. Raises ``ApiError``."""
    given = an_object(value, "text")
    form = given.pop("format", {"type": "text"})
    nothing_else(given, "text")
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        return _plain_format(form, "text.format")
    schema = _schema(form.get("schema"), "text.format.schema")
    named = {key: item for key, item in form.items() if key != "type" and item is not None}
    return ResponseFormat(wire={"type": "json_schema", "json_schema": named}, json_schema=schema)


def _plain_format(value: Any, where: str) -> ResponseFormat:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("text", "json_object"):
        raise bad_request(
            f"'{where}.type' must be text, json_object or json_schema.", f"{where}.type", "invalid_value"
        )
    nothing_else({key: item for key, item in value.items() if key != "type"}, where)
    return ResponseFormat(wire=value, json_schema=None if kind == "text" else {"type": "object"})


def _schema(schema: Any, where: str) -> Json:
    if not isinstance(schema, dict):
        raise bad_request(f"'{where}' must be a JSON Schema object.", where, "missing_required_parameter")
    return schema
