"""Bodies read strictly: an option is honoured or refused by name, never ignored. Pure."""

import difflib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from models import canonical
from models.errors import ModelsError
from models.openai.errors import ApiError, bad_request, unsupported

Json = dict[str, Any]
Neutral = Mapping[str, tuple[Any, ...]]
"""Options that this product does not have, and the values of them that change nothing."""

MAX_NOTES, MAX_NOTE_NAME, MAX_NOTE = 16, 64, 512
"""Entries of ``metadata``, and characters of a name and of a value."""
METADATA: Json = {
    "type": "object",
    "maxProperties": MAX_NOTES,
    "propertyNames": {"maxLength": MAX_NOTE_NAME},
    "additionalProperties": {"type": "string", "maxLength": MAX_NOTE},
}
"""What ``read_metadata`` takes, as JSON Schema."""

_B = TypeVar("_B", bound=BaseModel)


class Frozen(BaseModel):
    """Base of requests: read once, without fields that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def read_body(cls: type[_B], data: bytes, neutral: Neutral) -> _B:
    """A JSON body as ``cls``, which forbids extra fields; null always means absent.

    Raises ``ApiError`` (400) that names the parameter.
    """
    body = _decode(data)
    given = {key: value for key, value in body.items() if value is not None}
    for key, allowed in neutral.items():
        if key not in given:
            continue
        value = given.pop(key)
        if not any(_same(value, harmless) for harmless in allowed):
            raise unsupported(key, _explain(key, allowed))
    for key in given:
        if key not in cls.model_fields:
            near = difflib.get_close_matches(key, cls.model_fields, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise bad_request(f"Unknown parameter: '{key:.100}'.{hint}", key, "unknown_parameter")
    return validated(cls, given)


def validated(cls: type[_B], given: Json) -> _B:
    """``given`` as ``cls``. Raises ``ApiError`` (400) that names the parameter."""
    try:
        return cls.model_validate(given)
    except ValidationError as error:
        raise _from_validation(error) from error


def read_metadata(value: Any) -> Json:
    """``metadata``: the caller's own notes, within OpenAI's limits. Raises ``ApiError`` (400)."""
    notes = an_object(value, "metadata")
    if len(notes) > MAX_NOTES:
        message = f"'metadata' has {len(notes)} entries; at most {MAX_NOTES}."
        raise bad_request(message, "metadata", "invalid_value")
    for key, note in notes.items():
        if not isinstance(note, str):
            raise bad_request(
                f"'metadata.{key:.100}' must be a string.", f"metadata.{key:.100}", "invalid_type"
            )
        if len(key) > MAX_NOTE_NAME or len(note) > MAX_NOTE:
            message = f"'metadata.{key:.100}' is too long: names have at most {MAX_NOTE_NAME} characters, "
            message += f"values {MAX_NOTE}."
            raise bad_request(message, f"metadata.{key:.100}", "invalid_value")
    return notes


def an_object(value: Any, where: str) -> Json:
    """``value`` as a JSON object, without its nulls. Raises ``ApiError`` (400)."""
    if not isinstance(value, dict):
        raise bad_request(f"'{where}' must be an object.", where, "invalid_type")
    return {key: item for key, item in value.items() if item is not None}


def a_text(given: Json, key: str, where: str, default: str | None = None) -> str:
    """Take a string out of an object. Raises ``ApiError`` (400), also if it is missing with no default."""
    value = given.pop(key, default)
    if value is None:
        raise bad_request(f"'{where}.{key}' is missing.", f"{where}.{key}", "missing_required_parameter")
    if not isinstance(value, str):
        raise bad_request(f"'{where}.{key}' must be a string.", f"{where}.{key}", "invalid_type")
    return value


def nothing_else(given: Json, where: str) -> None:
    """Refuse what is left in an object by name. Raises ``ApiError`` (400)."""
    for key in given:
        raise unsupported(f"{where}.{key}", f"'{where}.{key:.100}' is not supported.")


def _decode(data: bytes) -> Json:
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
