"""Protobuf's wire format, read field by field with every length checked before it is followed.

Owns bounds: a message ends where the one around it says, each field must be known, and all fields of a file
count against one limit. Refuses to know what a field means. Format:
https://protobuf.dev/programming-guides/encoding/
"""

import mmap
from collections.abc import Iterator, Mapping

from models.errors import UnsafeFile

MAX_FIELDS = 2_000_000
"""Fields read of one file; a language model of 100 layers has some 100,000."""
MAX_NAME = 4096

Buffer = bytes | bytearray | memoryview | mmap.mmap
Span = tuple[int, int]
"""Where the bytes of a message begin and end."""

Spec = Mapping[int, str]
"""The fields of a message. ``v``: a varint; ``b``: a length and bytes; ``4``: four bytes; ``d``: numbers that
are never looked at. With ``*`` it may come more than once."""

_WIRE: Mapping[str, frozenset[int]] = {
    "v": frozenset({0}),
    "v*": frozenset({0, 2}),  # 2: many in one
    "b": frozenset({2}),
    "b*": frozenset({2}),
    "4": frozenset({5}),
    "d*": frozenset({0, 1, 2, 5}),
}


class Reader:
    """Reads the messages of one file. Raises ``UnsafeFile``, also between two fields."""

    def __init__(self, data: Buffer) -> None:
        self._data = data  # no view of it: a mapping could not be closed under one
        self._left = MAX_FIELDS

    def fields(self, span: Span, spec: Spec, what: str) -> Iterator[tuple[int, int | Span]]:
        """The fields of one message: a number for a varint, else where its bytes begin and end."""
        at, end = span
        seen: set[int] = set()
        while at < end:
            self._count()
            tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            kind = spec.get(number)
            if kind is None or wire not in _WIRE[kind]:
                raise UnsafeFile(f"{what} has the unknown field {number} (wire type {wire})")
            if not kind.endswith("*"):
                if number in seen:
                    raise UnsafeFile(f"{what} has its field {number} twice")
                seen.add(number)
            if wire == 0:
                first = at
                value, at = self._varint(at, end)
                yield number, value if kind[0] == "v" else (first, at)
                continue
            size = 8 if wire == 1 else 4
            if wire == 2:
                size, at = self._varint(at, end)
            if size > end - at:
                raise UnsafeFile(f"{what} ends inside its field {number}, at byte {end}")
            first, at = at, at + size
            if kind == "v*":
                yield from self._packed(number, first, at)
            else:
                yield number, (first, at)

    def text(self, span: Span, what: str) -> str:
        """The bytes of a field as text."""
        first, last = span
        if last - first > MAX_NAME:
            raise UnsafeFile(f"a {what} of {last - first} bytes; at most {MAX_NAME} are read")
        try:
            text = bytes(self._data[first:last]).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UnsafeFile(f"a {what} is not UTF-8") from error
        if "\0" in text:
            raise UnsafeFile(f"a {what} contains a zero byte")
        return text

    def _packed(self, number: int, at: int, end: int) -> Iterator[tuple[int, int]]:
        while at < end:
            self._count()
            value, at = self._varint(at, end)
            yield number, value

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise UnsafeFile(f"a number is cut off at byte {end}")
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> 64:
                    break
                return value, at
        raise UnsafeFile(f"a number of more than 64 bits at byte {at}")

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise UnsafeFile(f"more than {MAX_FIELDS} fields")
