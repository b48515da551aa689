"""Server-sent events (WHATWG HTML, section 9.2) as OpenAI uses them: ``data:`` lines and ``[DONE]``."""

import json
from collections.abc import Callable, Mapping
from typing import Any

Noise = Callable[[int], str]
"""So many random ASCII characters."""

BLOCK = 64
"""Bytes of which the size of a padded event is a multiple: more than most tokens have."""

LAST = "[DONE]"
DONE = b"data: [DONE]\n\n"
"""Ends a stream that succeeded, and only such a stream."""

MEDIA_TYPE = "text/event-stream; charset=utf-8"


def event(value: Any, name: str | None = None) -> bytes:
    """One event. JSON escapes line breaks, so the value is one ``data:`` line."""
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {name}\n" if name else "").encode() + f"data: {data}\n\n".encode()


def padded_event(value: Mapping[str, Any], noise: Noise, name: str | None = None) -> bytes:
    """One event with OpenAI's field ``obfuscation``: sizes on the wire say little of the words inside."""
    bare = event({**value, "obfuscation": ""}, name)
    return event({**value, "obfuscation": noise(-len(bare) % BLOCK)}, name)


class Decoder:
    """Line by line: ``feed`` gives an event's data when its blank line has come, None before.

    Law: fed the lines of ``event(v)``, it gives JSON that loads to ``v``, and nothing else.
    """

    def __init__(self) -> None:
        self._data: list[str] = []

    def feed(self, line: str) -> str | None:
        """Take one line without its line end; comments and other fields are skipped."""
        if line:
            field, _, value = line.partition(":")
            if field == "data":
                self._data.append(value.removeprefix(" "))
            return None
        if not self._data:
            return None
        data, self._data = "\n".join(self._data), []
        return data
