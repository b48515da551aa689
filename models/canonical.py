"""Canonical JSON: one value, one byte string, so that a digest or a signature means something.

The form is RFC 8785 (JSON Canonicalization Scheme), written by the ``rfc8785`` library.
"""

import json
from typing import Any

import rfc8785

from models.errors import ModelsError


def encode(value: Any) -> bytes:
    """The canonical bytes of a JSON value. Raises ``ModelsError`` for what JSON cannot hold."""
    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise ModelsError(f"cannot be written as canonical JSON: {error}") from error


def decode(data: bytes) -> Any:
    """Parse JSON, refusing duplicate keys and NaN. Law: ``decode(encode(x)) == x``."""
    try:
        return json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ModelsError(f"not valid JSON: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key in object")
    return result


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
