"""Requests for chat and text completions, read strictly.

An option is honoured or refused by name, never ignored. Options that this product does not have pass
only at the value that changes nothing (``store: false``); null always means absent. Reference: OpenAI's
API reference, "Create chat completion" and "Create completion"; ``top_k``, ``min_p``, ``repeat_penalty`` and
``ignore_eos`` are named as llama-server names them. Pure.
"""

import json
from typing import Annotated, Any, Self, TypeVar

from pydantic import BeforeValidator, Field, StrictBool, StrictStr, WithJsonSchema

from models.engines.base import REPEAT_PENALTIES, Sampling
from models.openai.errors import bad_request, unsupported
from models.openai.messages import MESSAGES, ChatMessage, read_messages
from models.openai.reading import METADATA, Frozen, Json, Neutral, read_body, read_metadata
from models.openai.tool_options import (
    CHOICE,
    FORMAT,
    TOOLS,
    ResponseFormat,
    ToolChoice,
    read_choice,
    read_format,
    read_tools,
    toolbox,
)
from models.tools import Tool, Toolbox

MAX_STOPS = 4
MAX_ANSWERS = 64
"""Answers to one request: choices, times prompts of a text completion."""
MAX_LOGPROBS = 20
"""Likeliest tokens that may be asked for at each place."""
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default length of a text completion."""

_CHAT_NEUTRAL: Neutral = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": (),
    "web_search_options": (),
}
_COMPLETION_NEUTRAL: Neutral = {"suffix": ("",)}


def _wire(**schema: Any) -> WithJsonSchema:
    """What a field looks like in the API's description, where it is read by a function."""
    return WithJsonSchema(schema)


def _read_stop(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise bad_request(f"'stop' must be a string or at most {MAX_STOPS} strings.", "stop", "invalid_value")
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise bad_request("'stop' must hold strings that are not empty.", "stop", "invalid_value")
    return tuple(stops)


def _read_bias(value: Any) -> Any:
    if not isinstance(value, dict):
        raise bad_request("'logit_bias' must be an object.", "logit_bias", "invalid_type")
    for key, bias in value.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise bad_request(
                f"'logit_bias': {key!r:.50} is no token id.", f"logit_bias.{key:.50}", "invalid_value"
            )
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise bad_request(
                f"'logit_bias.{key}' must be a number from -100 to 100.", f"logit_bias.{key}", "invalid_value"
            )
    return tuple((int(key), float(bias)) for key, bias in value.items())


def _read_prompt(value: Any) -> Any:
    """A text, a list of texts, a list of token ids, or a list of such lists; never an empty one."""
    alone = isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(_is_token(item) for item in value)
    )
    prompts = [value] if alone else value
    if not isinstance(prompts, list) or not prompts:
        raise bad_request("'prompt' must be text, token ids, or a list of such.", "prompt", "invalid_type")
    if len(prompts) > MAX_ANSWERS:
        raise bad_request(f"'prompt' has more than {MAX_ANSWERS} prompts.", "prompt", "invalid_value")
    for index, prompt in enumerate(prompts):
        ids = isinstance(prompt, list) and bool(prompt) and all(_is_token(item) for item in prompt)
        if not isinstance(prompt, str) and not ids:
            raise bad_request(
                f"'prompt[{index}]' must be text or token ids.", f"prompt[{index}]", "invalid_type"
            )
    return tuple(prompt if isinstance(prompt, str) else tuple(prompt) for prompt in prompts)


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


class Padding(Frozen):
    """``include_obfuscation`` pads what is streamed: OpenAI's default, which callers nearby do not need."""

    include_obfuscation: StrictBool = False


class StreamOptions(Padding):
    """``include_usage`` adds a last chunk with the token counts."""

    include_usage: StrictBool = False


Metadata = Annotated[dict[str, str], BeforeValidator(read_metadata), WithJsonSchema(METADATA)]
_TEXTS = {"type": "string", "minLength": 1}
Stop = Annotated[
    tuple[str, ...],
    BeforeValidator(_read_stop),
    _wire(anyOf=[_TEXTS, {"type": "array", "items": _TEXTS, "maxItems": MAX_STOPS}]),
]
Bias = Annotated[
    tuple[tuple[int, float], ...],
    BeforeValidator(_read_bias),
    _wire(
        type="object",
        propertyNames={"pattern": "^[0-9]{1,9}$"},
        additionalProperties={"type": "number", "minimum": -100, "maximum": 100},
    ),
]


class Request(Frozen):
    """What all requests for text have in common, and how their tokens are chosen."""

    model: StrictStr = Field(min_length=1, max_length=200)
    temperature: float = Field(default=1.0, ge=0, le=2, strict=True)
    top_p: float = Field(default=1.0, ge=0, le=1, strict=True)
    stream: StrictBool = False
    stream_options: Padding | None = None
    user: StrictStr | None = Field(default=None, max_length=512)

    @property
    def padded(self) -> bool:
        """Whether the events of a stream are padded."""
        return self.stream_options is not None and self.stream_options.include_obfuscation

    def _sampling(self, **options: Any) -> Sampling:
        # top_p 0 keeps the likeliest token alone, which is what temperature 0 means.
        greedy = self.top_p == 0
        return Sampling(
            temperature=0.0 if greedy else self.temperature, top_p=1.0 if greedy else self.top_p, **options
        )


class _Completion(Request):
    max_tokens: int | None = Field(default=None, ge=1, strict=True)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63, strict=True)
    stop: Stop = ()
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=MAX_ANSWERS, strict=True)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2, strict=True)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2, strict=True)
    logit_bias: Bias = ()
    top_k: int = Field(default=0, ge=0, le=1 << 20, strict=True)
    min_p: float = Field(default=0.0, ge=0, le=1, strict=True)
    repeat_penalty: float = Field(default=1.0, ge=REPEAT_PENALTIES[0], le=REPEAT_PENALTIES[1], strict=True)
    ignore_eos: StrictBool = False

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def _options(self, max_tokens: int | None, logprobs: int | None) -> Sampling:
        return self._sampling(
            max_tokens=max_tokens,
            logprobs=logprobs,
            seed=self.seed,
            stop=self.stop,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            top_k=self.top_k,
            min_p=self.min_p,
            repeat_penalty=self.repeat_penalty,
            ignore_eos=self.ignore_eos,
        )


class ChatRequest(_Completion):
    """A chat completion. ``prompt_cache_key`` is a hint; the engine reuses prefixes by itself.

    ``metadata`` is the caller's own: it is recorded with the call and changes nothing.
    """

    messages: Annotated[
        tuple[ChatMessage, ...],
        BeforeValidator(read_messages),
        WithJsonSchema(MESSAGES),
    ]
    max_completion_tokens: int | None = Field(default=None, ge=1, strict=True)
    logprobs: StrictBool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS, strict=True)
    tools: Annotated[tuple[Tool, ...], BeforeValidator(read_tools), WithJsonSchema(TOOLS)] = ()
    tool_choice: Annotated[ToolChoice | None, BeforeValidator(read_choice), WithJsonSchema(CHOICE)] = None
    parallel_tool_calls: StrictBool = True
    response_format: Annotated[
        ResponseFormat | None, BeforeValidator(read_format), WithJsonSchema(FORMAT)
    ] = None
    safety_identifier: StrictStr | None = Field(default=None, max_length=512)
    prompt_cache_key: StrictStr | None = Field(default=None, max_length=512)
    metadata: Metadata = Field(default_factory=dict)

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
        if request.top_logprobs is not None and not request.logprobs:
            raise bad_request("'top_logprobs' needs 'logprobs': true.", "top_logprobs", "invalid_value")
        toolbox(request.tools, request.tool_choice, request.parallel_tool_calls)
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
    def json_schema(self) -> Json | None:
        """The schema that the answer must meet, None for free text."""
        return self.response_format.json_schema if self.response_format else None

    @property
    def toolbox(self) -> Toolbox | None:
        """The functions that may be called, None without any."""
        return toolbox(self.tools, self.tool_choice, self.parallel_tool_calls)

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen, but for what holds the answer to a form."""
        return self._options(self.token_limit, (self.top_logprobs or 0) if self.logprobs else None)

    def upstream(self) -> bytes:
        """The same request for another server, always as a stream with token counts.

        Holds what was understood and nothing else; who asked stays here.
        """
        body: Json = {
            "model": self.model,
            "messages": [message.wire() for message in self.messages],
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.token_limit is not None:
            body["max_tokens"] = self.token_limit
        if self.stop:
            body["stop"] = list(self.stop)
        if self.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in self.logit_bias}
        if self.tools:
            body["tools"] = [tool.wire() for tool in self.tools]
        if self.tool_choice is not None:
            named = {"type": "function", "function": {"name": self.tool_choice.named}}
            body["tool_choice"] = named if self.tool_choice.named else self.tool_choice.mode
        if self.response_format is not None:
            body["response_format"] = self.response_format.wire
        body |= self.model_dump(include=_PLAIN, exclude_defaults=True)
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


_PLAIN = {
    *("seed", "n", "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs"),
    *("parallel_tool_calls", "top_k", "min_p", "repeat_penalty", "ignore_eos"),
}
"""Options of a chat that go upstream as they came, where they are not the default."""

_TOKENS = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1},
}


class CompletionRequest(_Completion):
    """A text completion: the prompt goes to the model as it is, without a chat template.

    It is the caller's own, control tokens included: who writes a whole prompt may write turns. Text of third
    persons belongs into the messages of a chat. ``best_of`` other than ``n`` is refused.
    """

    prompt: Annotated[
        tuple[str | tuple[int, ...], ...],
        BeforeValidator(_read_prompt),
        _wire(
            anyOf=[
                {"type": "string"},
                _TOKENS,
                {"type": "array", "minItems": 1, "maxItems": MAX_ANSWERS, "items": {"type": "string"}},
                {"type": "array", "minItems": 1, "maxItems": MAX_ANSWERS, "items": _TOKENS},
            ]
        ),
    ]
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS, strict=True)
    echo: StrictBool = False
    best_of: int | None = Field(default=None, ge=1, strict=True)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a body. Raises ``ApiError`` (400) that names the parameter."""
        request = _parse(cls, data, _COMPLETION_NEUTRAL)
        if request.best_of not in (None, request.n):
            raise unsupported("best_of", "'best_of' is only supported as the same number as 'n'.")
        if request.n * len(request.prompt) > MAX_ANSWERS:
            raise bad_request(
                f"{request.n} answers to {len(request.prompt)} prompts; {MAX_ANSWERS} in all are allowed.",
                "n",
                "invalid_value",
            )
        if request.echo and request.logprobs is not None:
            raise unsupported("echo", "'echo' is not supported together with 'logprobs'.")
        if request.echo and not all(isinstance(prompt, str) for prompt in request.prompt):
            raise unsupported("echo", "'echo' is not supported for prompts of token ids.")
        return request

    @property
    def token_limit(self) -> int:
        """The most tokens an answer may have."""
        return self.max_tokens or DEFAULT_COMPLETION_TOKENS

    @property
    def subject(self) -> str | None:
        """The person behind the request, as the caller names them."""
        return self.user

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return self._options(self.token_limit, self.logprobs)


_R = TypeVar("_R", bound=_Completion)


def _parse(cls: type[_R], data: bytes, neutral: Neutral) -> _R:
    request = read_body(cls, data, neutral)
    if request.stream_options is not None and not request.stream:
        raise bad_request("'stream_options' needs 'stream': true.", "stream_options", "invalid_value")
    return request
