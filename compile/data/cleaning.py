"""Cleaning of text: one form per character, no invisible characters, no stray white space. Pure.

Removed: control characters but tab and line feed, byte order marks, zero-width spaces, soft hyphens,
bidirectional overrides. Kept: joiners (Persian, Indic scripts and emoji need them), indentation, case.
Normal form: Unicode NFC (UAX #15). Refuses half a surrogate pair, which no encoding can hold.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MAX_DEPTH = 16
_LINE_ENDS = re.compile("\r\n?|\u2028|\u2029|\x85")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)
_SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_TRAILING = re.compile("(?<![ \t])[ \t]+(?=\n)")
_BLANK = re.compile("\n{3,}")
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """The cleaned text. Law: ``clean(clean(x)) == clean(x)``. Raises ``ValueError`` for half a character."""
    if _SURROGATE.search(text):
        raise ValueError("holds half a character (a lone surrogate)")
    text = _LINE_ENDS.sub("\n", text)
    text = _SPACES.sub(" ", _INVISIBLE.sub("", text))
    text = _BLANK.sub("\n\n", _TRAILING.sub("", text))
    return unicodedata.normalize("NFC", text).strip(" \t\n")


def what_changes(text: str) -> Iterator[str]:
    """What ``clean`` would change in ``text``, in words."""
    if _INVISIBLE.search(text):
        yield "control or invisible characters"
    if not unicodedata.is_normalized("NFC", text):
        yield "not in Unicode NFC"
    if (
        _LINE_ENDS.search(text)
        or _SPACES.search(text)
        or _TRAILING.search(text)
        or _BLANK.search(text)
        or text != text.strip(" \t\n")
    ):
        yield "white space"


def map_strings(value: Any, change: Callable[[str], str], depth: int = 0) -> Any:
    """A JSON value with every string in it changed; keys stay.

    Raises ``ValueError`` for a value in more than ``MAX_DEPTH`` others, and for a key that holds half a
    character: neither has a place in a row.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        if any(_SURROGATE.search(key) for key in value):
            raise ValueError("a key holds half a character (a lone surrogate)")
        return {key: map_strings(one, change, depth + 1) for key, one in value.items()}
    if isinstance(value, list):
        return [map_strings(one, change, depth + 1) for one in value]
    return value


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, and its whole numbers in digits."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from strings(one)
