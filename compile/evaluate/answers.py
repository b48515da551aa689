"""Structured answers: compact JSON with named fields. How they are described, read and scored. Pure.

A field is a *label* (one of a fixed set) or *text* (free, or a span of the input). Nothing of an invalid
answer counts: not JSON, a key too many or missing, a label that does not exist.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models import canonical
from models.errors import ModelsError

MAX_TEXT = 120
"""Characters of a text field: a device enforces the schema, and an endless span is no answer."""


@dataclass(frozen=True)
class Field:
    """One field of an answer; without ``labels`` it holds text."""

    name: str
    labels: tuple[str, ...] = ()

    @property
    def metric(self) -> str:
        """The name of its score."""
        return f"{self.name}_accuracy" if self.labels else f"{self.name}_match"


@dataclass(frozen=True)
class Score:
    """What one answer got right, by field. ``said`` holds the values read, empty when invalid."""

    valid: bool
    said: Mapping[str, str]
    right: Mapping[str, bool]

    @property
    def exact(self) -> bool:
        """Every field right."""
        return self.valid and all(self.right.values())


def schema_of(fields: Sequence[Field]) -> dict[str, Any]:
    """The JSON Schema of an answer."""
    properties: dict[str, Any] = {
        field.name: {"type": "string", "enum": list(field.labels)}
        if field.labels
        else {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
        for field in fields
    }
    names = [field.name for field in fields]
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def write(values: Mapping[str, str], fields: Sequence[Field]) -> str:
    """An answer as it is to be written: compact JSON, fields in their order."""
    ordered = {field.name: values[field.name] for field in fields}
    return json.dumps(ordered, ensure_ascii=False, separators=(",", ":"))


def read(answer: str, fields: Sequence[Field]) -> dict[str, str] | None:
    """The fields of a valid answer, else None."""
    try:
        value = canonical.decode(answer.encode("utf-8", "replace"))
    except ModelsError:
        return None
    if not isinstance(value, dict) or set(value) != {field.name for field in fields}:
        return None
    for field in fields:
        said = value[field.name]
        if not isinstance(said, str) or not 0 < len(said) <= MAX_TEXT:
            return None
        if field.labels and said not in field.labels:
            return None
    return value


def score(expected: Mapping[str, str], answer: str, fields: Sequence[Field]) -> Score:
    """Compare an answer with what was expected."""
    said = read(answer, fields)
    if said is None:
        return Score(False, {}, {field.name: False for field in fields})
    right = {
        field.name: said[field.name] == expected[field.name]
        if field.labels
        else same_text(said[field.name], expected[field.name])
        for field in fields
    }
    return Score(True, said, right)


def same_text(said: str, wanted: str) -> bool:
    """Equal but for case and space, or one within the other and at least half as long."""
    a, b = (" ".join(value.lower().split()) for value in (said, wanted))
    short, long = sorted((a, b), key=len)
    return bool(short) and short in long and 2 * len(short) >= len(long)
