"""What passes between an agent and its engine's process: frames over a socket pair, JSON and the bytes in it.

Pure: values to bytes and back. Both ends are the same release, so an unknown message is a defect and
raises ``KeyError`` or ``ValueError``; nothing here is negotiated.

Down, after ``{"load": ...}``: ``{"do": [[verb, ...], ...]}``. Verbs of a text engine: ``submit REQUEST``,
``cancel ID``, ``attach CALL NAME PATH``, ``detach CALL NAME``; of an encoder: ``ask CALL INPUTS``,
``drop CALL``. Up, after ``{"loaded": FACTS}`` or ``{"failed": ERROR}``: ``{"events": [...], "replies":
[[CALL, ERROR or null, VALUE], ...], "load": [NUMBER, ...]}`` (``models.engines.base.Load``). One frame per
step and direction, also where a step had nothing to tell: silence means that a step does not end.
"""

import base64
import json
import struct
from collections.abc import Mapping
from typing import Any

from models.engines.base import (
    EncoderFacts,
    Event,
    Finish,
    GenerateRequest,
    Load,
    Media,
    ModelFacts,
    Sampling,
    TokenLogprob,
    Usage,
)
from models.errors import (
    AnswerTooLong,
    ContextLengthExceeded,
    EngineError,
    InvalidAudio,
    InvalidImage,
    ModelsError,
    NoTensorRt,
    UnknownAdapter,
    UnsafeFile,
    UnsupportedRequest,
)

HEAD = struct.Struct(">II")
"""Before each frame: how many bytes of JSON it has, and how many bytes follow that the JSON points at."""

_BYTES = "bytes"
"""The only key of what stands in JSON for bytes: where they start and end."""
_MARK = f'{{"{_BYTES}":'.encode()

_ERRORS: Mapping[str, type[ModelsError]] = {
    kind.__name__: kind
    for kind in (
        EngineError,
        AnswerTooLong,
        ContextLengthExceeded,
        InvalidAudio,
        InvalidImage,
        NoTensorRt,
        UnsupportedRequest,
        UnknownAdapter,
        UnsafeFile,
    )
}


def frame(message: Mapping[str, Any]) -> bytes:
    """One message, its sizes before it. Its ``bytes`` lie behind the JSON as they are: pictures are large."""
    parts: list[bytes] = []
    size = 0

    def put_behind(value: Any) -> dict[str, Any]:
        nonlocal size
        if not isinstance(value, bytes):
            raise TypeError(f"{type(value).__name__} cannot be sent")
        parts.append(value)
        start, size = size, size + len(value)
        return {_BYTES: [start, size]}

    body = json.dumps(message, separators=(",", ":"), default=put_behind).encode()
    return b"".join((HEAD.pack(len(body), size), body, *parts))


def unframe(head: bytes, rest: bytes) -> dict[str, Any]:
    """The inverse of ``frame``, given its head and what follows."""
    length, _ = HEAD.unpack(head)
    behind = rest[length:]

    def fetch(value: dict[str, Any]) -> Any:
        if value.keys() != {_BYTES}:
            return value
        start, end = value[_BYTES]
        return behind[start:end]

    body = rest[:length]
    message: dict[str, Any] = json.loads(body, object_hook=fetch if _MARK in body else None)
    return message


def request_to_wire(request: GenerateRequest, wire_id: str) -> dict[str, Any]:
    """A request under the number that the two processes know it by."""
    return {
        **_fields(request),
        "id": wire_id,
        "sampling": _fields(request.sampling),
        "media": [_fields(one) for one in request.media],
    }


def request_from_wire(value: Mapping[str, Any]) -> GenerateRequest:
    """The inverse of ``request_to_wire``."""
    sampling = dict(value["sampling"])
    sampling["stop"] = tuple(sampling["stop"])
    sampling["logit_bias"] = tuple((token, bias) for token, bias in sampling["logit_bias"])
    prompt = value["prompt"] if isinstance(value["prompt"], str) else tuple(value["prompt"])
    literal = tuple((first, last) for first, last in value["literal"])
    media = tuple(Media(**one) for one in value["media"])
    return GenerateRequest(value["id"], prompt, Sampling(**sampling), value["adapter"], literal, media)


def event_to_wire(event: Event) -> dict[str, Any]:
    """An event; its error by name."""
    return {
        "id": event.id,
        "text": event.text,
        "finish": event.finish,
        "error": error_to_wire(event.error) if event.error else None,
        "usage": _fields(event.usage),
        "logprobs": [_logprob_to_wire(one) for one in event.logprobs],
    }


def event_from_wire(value: Mapping[str, Any], request_id: str) -> Event:
    """The inverse of ``event_to_wire``, under the caller's id."""
    error = error_from_wire(value["error"]) if value["error"] else None
    if error is not None and not isinstance(error, EngineError):
        error = EngineError(str(error))
    return Event(
        id=request_id,
        text=value["text"],
        finish=Finish(value["finish"]) if value["finish"] else None,
        error=error,
        usage=Usage(**value["usage"]),
        logprobs=tuple(_logprob_from_wire(*one) for one in value["logprobs"]),
    )


def load_to_wire(load: Load) -> list[int]:
    """What there is to do; the inverse is ``Load(*value)``."""
    return list(_fields(load).values())


def _logprob_to_wire(one: TokenLogprob) -> list[Any]:
    return [_text(one.token), one.logprob, [[_text(token), logprob] for token, logprob in one.top]]


def _logprob_from_wire(token: str, logprob: float, top: list[list[Any]]) -> TokenLogprob:
    likeliest = tuple((base64.b64decode(other), value) for other, value in top)
    return TokenLogprob(base64.b64decode(token), logprob, likeliest)


def error_to_wire(error: ModelsError) -> dict[str, str]:
    """An error by the name of its class."""
    value = {"kind": type(error).__name__, "message": str(error)}
    if isinstance(error, UnsupportedRequest) and error.option is not None:
        value["option"] = error.option
    return value


def error_from_wire(value: Mapping[str, str]) -> ModelsError:
    """The inverse of ``error_to_wire``; a kind without a name here is an ``EngineError``."""
    if "option" in value:
        return UnsupportedRequest(value["message"], value["option"])
    return _ERRORS.get(value["kind"], EngineError)(value["message"])


def facts_from_wire(value: Mapping[str, Any]) -> ModelFacts | EncoderFacts:
    """The inverse of ``dataclasses.asdict``."""
    if "task" in value:
        return EncoderFacts(**{**value, "labels": tuple(value["labels"])})
    listed = {name: tuple(value[name]) for name in ("control_tokens", "takes")}
    return ModelFacts(**{**value, **listed})


def _fields(value: Any) -> dict[str, Any]:
    """A dataclass as it stands; ``dataclasses.asdict`` copies all below it, at every token."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
