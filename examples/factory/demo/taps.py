"""Looking into recordings of what was received: plain bytes, and what base64 hides in them."""

from __future__ import annotations

import base64
import re
from pathlib import Path

_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{24,}={0,2}")
_DEPTH = 3
"""Signed envelopes hold base64 of JSON that holds base64 of sealed bodies."""


def layers(data: bytes, depth: int = _DEPTH) -> list[bytes]:
    """``data``, and whatever decodes out of the base64 in it, and in that."""
    found = [data]
    if depth:
        for run in _BASE64.findall(data):
            text = run.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
            for start in range(4):  # a run may begin with letters that are no base64
                part = text[start:]
                part = part[: len(part) - (len(part) % 4 == 1)]
                decoded = base64.b64decode(part + b"=" * (-len(part) % 4))
                found += layers(decoded, depth - 1) if b'"' in decoded else [decoded]
    return found


def holds(tap: Path, needle: bytes) -> bool:
    """Whether a recording holds ``needle``, in the clear or under base64."""
    return any(needle in layer for layer in layers(tap.read_bytes()))
