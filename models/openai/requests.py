"""Requests for chat and text completions, read strictly.

An option is honoured or refused by name, never ignored. Options that this product does not have pass
only at the value that changes nothing (``n: 1``, ``tools: []``); null always means absent. Reference:
OpenAI's API reference, "Create chat completion" and "Create completion". Pure.
"""

import difflib
import json
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictStr, ValidationError

from models import canonical
from models.errors import ModelsError
from models.openai.errors import ApiError, bad_request, unsupported

MAX_STOPS = 4
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default length of a text completion."""

_SAMPLING_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
}
_CHAT_NEUTRAL: dict[str, tuple[Any, ...]] = _SAMPLING_NEUTRAL | {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (),
    "prediction": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_logprobs": (),
    "verbosity": (),
    "web_search_options": (),
}
_COMPLETION_NEUTRAL: dict[str, tuple[Any, ...]] = _SAMPLING_NEUTRAL | {
    "logprobs": (),
    "best_of": (1,),
    "echo": (False,),
    "suffix": (),
}
_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ChatMessage(_Frozen):
    """One turn. ``developer`` is read as ``system``; text parts are joined."""

    role: Literal["system", "user", "assistant"]
    content: str


class ResponseFormat(_Frozen):
    """What shape the answer must have. ``json_schema`` is the schema to enforce, None for free text."""

    wire: dict[str, Any]
    json_schema: dict[str, Any] | None


def _read_messages(value: Any) -> Any:
    if not isinstance(value, list) or not value:
        raise bad_request("'messages' must be a list with at least one message.", "messages", "invalid_type")
    return tuple(_read_message(item, f"messages[{index}]") for index, item in enumerate(value))


def _read_message(value: Any, where: str) -> ChatMessage:
    if not isinstance(value, dict):
        raise bad_request(f"'{where}' must be an object with role and content.", where, "invalid_type")
    # Clients send back the messages they got, with their empty fields.
    given = {key: item for key, item in value.items() if item is not None and item != []}
    role = given.pop("role", None)
    if role in ("tool", "function"):
        raise unsupported(f"{where}.role", f"'{where}.role': tool messages are not supported.")
    if not isinstance(role, str) or role not in _ROLES:
        known = ", ".join(_ROLES)
        raise bad_request(f"'{where}.role' must be one of {known}.", f"{where}.role", "invalid_value")
    if "content" not in given and value.get("content") != []:
        raise bad_request(f"'{where}.content' is missing.", f"{where}.content", "missing_required_parameter")
    content = _read_content(given.pop("content", []), f"{where}.content")
    for name in given:
        raise unsupported(f"{where}.{name}", f"'{where}.{name}' is not supported.")
    return ChatMessage(role=_ROLES[role], content=content)


def _read_content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise bad_request(f"'{where}' must be a string or a list of text parts.", where, "invalid_type")
    texts = []
    for index, part in enumerate(value):
        at = f"{where}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise unsupported(at, f"'{at}': only text parts are supported, not {kind!r:.50}.")
        if not isinstance(part.get("text"), str):
            raise bad_request(f"'{at}.text' must be a string.", f"{at}.text", "invalid_type")
        texts.append(part["text"])
    return "".join(texts)


def _read_stop(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise bad_request(f"'stop' must be a string or at most {MAX_STOPS} strings.", "stop", "invalid_value")
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise bad_request("'stop' must hold strings that are not empty.", "stop", "invalid_value")
    return tuple(stops)


def _read_format(value: Any) -> Any:
    where = "response_format"
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return ResponseFormat(wire=value, json_schema=None)
    if kind == "json_object":
        return ResponseFormat(wire=value, json_schema={"type": "object"})
    if kind != "json_schema":
        raise bad_request(
            f"'{where}.type' must be text, json_object or json_schema.", f"{where}.type", "invalid_value"
        )
    named = value.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        raise bad_request(
            f"'{where}.json_schema.schema' must be a JSON Schema object.",
            f"{where}.json_schema.schema",
            "missing_required_parameter",
        )
    return ResponseFormat(wire=value, json_schema=schema)


def _read_prompt(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        return value[0]
    if isinstance(value, list):
        raise unsupported("prompt", "'prompt' must be one string; batches and token ids are not supported.")
    return value


class StreamOptions(_Frozen):
    """``include_usage`` adds a last chunk with the token counts."""

    include_usage: StrictBool = False
    include_obfuscation: Literal[False] = False


class _Request(_Frozen):
    model: StrictStr = Field(min_length=1, max_length=200)
    max_tokens: int | None = Field(default=None, ge=1, strict=True)
    temperature: float = Field(default=1.0, ge=0, le=2, strict=True)
    top_p: float = Field(default=1.0, ge=0, le=1, strict=True)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63, strict=True)
    stop: Annotated[tuple[str, ...], BeforeValidator(_read_stop)] = ()
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    user: StrictStr | None = Field(default=None, max_length=512)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(_Request):
    """A chat completion. ``prompt_cache_key`` is a hint; the engine reuses prefixes by itself."""

    messages: Annotated[tuple[ChatMessage, ...], BeforeValidator(_read_messages)]
    max_completion_tokens: int | None = Field(default=None, ge=1, strict=True)
    response_format: Annotated[ResponseFormat | None, BeforeValidator(_read_format)] = None
    safety_identifier: StrictStr | None = Field(default=None, max_length=512)
    prompt_cache_key: StrictStr | None = Field(default=None, max_length=512)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a body. Raises ``ApiError`` (400) that names the parameter."""
        request = _parse(cls, data, _CHAT_NEUTRAL)
        given = (request.max_tokens, request.max_completion_tokens)
        if None not in given and given[0] != given[1]:
            raise bad_request(
                "'max_tokens' and 'max_completion_tokens' differ; send one of them.",
                "max_tokens",
                "invalid_value",
            )
        return request

    @property
    def token_limit(self) -> int | None:
        """The most tokens an answer may have, None when the caller set no limit."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def limit_name(self) -> str:
        """By which of its two names the caller gave the limit."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def subject(self) -> str | None:
        """The person behind the request, as the caller names them."""
        return self.safety_identifier or self.user

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """The schema that the answer must meet, None for free text."""
        return self.response_format.json_schema if self.response_format else None

    def upstream(self) -> bytes:
        """The same request for another server, always as a stream with token counts.

        Holds what was understood and nothing else; who asked stays here.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [message.model_dump() for message in self.messages],
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.token_limit is not None:
            body["max_tokens"] = self.token_limit
        if self.seed is not None:
            body["seed"] = self.seed
        if self.stop:
            body["stop"] = list(self.stop)
        if self.response_format is not None:
            body["response_format"] = self.response_format.wire
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


class CompletionRequest(_Request):
    """A text completion: the prompt goes to the model as it is, without a chat template.

    It is the caller's own, control tokens included: who writes a whole prompt may write turns. Text of third
    persons belongs into chat messages, where no control token is read.
    """

    prompt: Annotated[StrictStr, BeforeValidator(_read_prompt)]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a body. Raises ``ApiError`` (400) that names the parameter."""
        return _parse(cls, data, _COMPLETION_NEUTRAL)

    @property
    def token_limit(self) -> int:
        """The most tokens an answer may have."""
        return self.max_tokens or DEFAULT_COMPLETION_TOKENS

    @property
    def subject(self) -> str | None:
        """The person behind the request, as the caller names them."""
        return self.user


_R = TypeVar("_R", bound=_Request)
_B = TypeVar("_B", bound=BaseModel)


def _parse(cls: type[_R], data: bytes, neutral: dict[str, tuple[Any, ...]]) -> _R:
    request = read_body(cls, data, neutral)
    if request.stream_options is not None and not request.stream:
        raise bad_request("'stream_options' needs 'stream': true.", "stream_options", "invalid_value")
    return request


def read_body(cls: type[_B], data: bytes, neutral: dict[str, tuple[Any, ...]]) -> _B:
    """A JSON body as ``cls``, which forbids extra fields; ``neutral``: options that pass at these values.

    Raises ``ApiError`` (400) that names the parameter.
    """
    body = _decode(data)
    given = {key: value for key, value in body.items() if value is not None}
    for key, allowed in neutral.items():
        if key in given and not any(_same(given.pop(key), value) for value in allowed):
            raise unsupported(key, _explain(key, allowed))
    for key in given:
        if key not in cls.model_fields:
            near = difflib.get_close_matches(key, cls.model_fields, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise bad_request(f"Unknown parameter: '{key:.100}'.{hint}", key, "unknown_parameter")
    return validated(cls, given)


def validated(cls: type[_B], given: dict[str, Any]) -> _B:
    """``given`` as ``cls``. Raises ``ApiError`` (400) that names the parameter."""
    try:
        return cls.model_validate(given)
    except ValidationError as error:
        raise _from_validation(error) from error


def _decode(data: bytes) -> dict[str, Any]:
    try:
        body = canonical.decode(data)
        # A lone surrogate is JSON but no text; 1e999 is JSON but no number that anyone can pass on.
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError as error:
        raise bad_request("The body is nested too deeply.", code="invalid_json") from error
    except UnicodeEncodeError as error:
        message = "The body holds half of a surrogate pair, which is no text."
        raise bad_request(message, code="invalid_json") from error
    except ValueError as error:
        message = "The body holds a number that is too large."
        raise bad_request(message, code="invalid_json") from error
    except ModelsError as error:
        raise bad_request(f"The body is {error}.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise bad_request("The body must be a JSON object.", code="invalid_type")
    return body


def _same(given: Any, neutral: Any) -> bool:
    return bool(given == neutral) and isinstance(given, bool) == isinstance(neutral, bool)


def _explain(key: str, allowed: tuple[Any, ...]) -> str:
    if not allowed:
        return f"'{key}' is not supported."
    return f"'{key}' is only supported as {' or '.join(json.dumps(value) for value in allowed)}."


def _from_validation(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return bad_request(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    if first["type"] == "extra_forbidden":
        return bad_request(f"Unknown parameter: '{param:.100}'.", param, "unknown_parameter")
    code = "invalid_type" if first["type"].endswith("_type") else "invalid_value"
    return bad_request(f"Invalid '{param}': {first['msg'][0].lower()}{first['msg'][1:]}.", param, code)
