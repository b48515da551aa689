"""CTranslate2 models (``model.bin``), read with every count and length checked against the bytes there.

Refuses, with ``UnsafeFile``: other versions of the format, names and counts beyond any model, weights whose
shape does not fit their bytes, names that come twice, aliases of what is not there, bytes that nothing names.
Weights are never read.

Format: https://github.com/OpenNMT/CTranslate2, ``python/ctranslate2/specs/model_spec.py`` (binary version 6).
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from models.errors import UnsafeFile

MODEL_FILE = "model.bin"
VERSION = 6
MAX_VARIABLES = 100_000
"""A model of 100 layers has some 3,000."""
MAX_NAME = 1024
MAX_DIMENSIONS = 8

_BYTES: Mapping[int, tuple[str, int]] = {
    0: ("float32", 4),
    1: ("int8", 1),
    2: ("int16", 2),
    3: ("int32", 4),
    4: ("float16", 2),
    5: ("bfloat16", 2),
}
"""Name and size of element types."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A named array. ``size`` in bytes, of which the first is at ``offset`` of the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a model says of itself, checked. ``specification``: what it is, such as ``WhisperSpec``."""

    specification: str
    revision: int
    variables: tuple[Variable, ...]
    aliases: Mapping[str, str]

    @property
    def parameters(self) -> int:
        """Numbers in all matrices and vectors, without scalars of configuration."""
        return sum(prod(variable.shape) for variable in self.variables if variable.shape)


def read_header(path: Path) -> Header:
    """Check a ``model.bin`` from start to end. Raises ``UnsafeFile``."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            return _Reader(path.name, stream, size).header()
    except OSError as error:
        raise UnsafeFile(f"{path.name}: cannot be read: {error.strerror}") from error


class _Reader:
    """Takes fields off a file; every one is there or the file is refused."""

    def __init__(self, name: str, stream: BinaryIO, size: int) -> None:
        self._name, self._stream, self._left = name, stream, size

    def header(self) -> Header:
        version = self._number("<I")
        if version != VERSION:
            raise self._bad(f"is of version {version} of CTranslate2's format; {VERSION} is read here")
        specification, revision = self._text(), self._number("<I")
        variables = tuple(self._variable() for _ in range(self._count("variables")))
        names = {variable.name for variable in variables}
        if len(names) != len(variables):
            raise self._bad("names a variable twice")
        aliases: dict[str, str] = {}
        for _ in range(self._count("aliases")):
            alias, target = self._text(), self._text()
            if alias in names or alias in aliases or target not in names:
                raise self._bad(f"gives {target!r:.100} the name {alias!r:.100}, which cannot be")
            aliases[alias] = target
        if self._left:
            raise self._bad(f"ends with {self._left} bytes that nothing names")
        return Header(specification, revision, variables, aliases)

    def _variable(self) -> Variable:
        name, rank = self._text(), self._number("<B")
        if rank > MAX_DIMENSIONS:
            raise self._bad(f"{name!r:.100} has {rank} dimensions")
        shape = struct.unpack(f"<{rank}I", self._take(4 * rank))
        kind, size = self._number("<B"), self._number("<I")
        if kind not in _BYTES:
            raise self._bad(f"{name!r:.100} is of an unknown type ({kind})")
        type_name, width = _BYTES[kind]
        if prod(shape) * width != size:
            raise self._bad(f"{name!r:.100}: {list(shape)} of {type_name} are not {size} bytes")
        offset = self._stream.tell()
        self._skip(size)
        return Variable(name, type_name, shape, size, offset)

    def _count(self, what: str) -> int:
        count = self._number("<I")
        if count > MAX_VARIABLES:
            raise self._bad(f"claims {count} {what}")
        return count

    def _text(self) -> str:
        length = self._number("<H")
        data = self._take(length) if 1 < length <= MAX_NAME else b""
        if not data.endswith(b"\0") or b"\0" in data[:-1]:
            raise self._bad("holds a name that is none")
        try:
            return data[:-1].decode()
        except UnicodeDecodeError as error:
            raise self._bad("holds a name that is no text") from error

    def _number(self, layout: str) -> int:
        number: int = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return number

    def _take(self, size: int) -> bytes:
        self._claim(size)
        data = self._stream.read(size)
        if len(data) != size:
            raise self._bad("is cut off")
        return data

    def _skip(self, size: int) -> None:
        self._claim(size)
        self._stream.seek(size, 1)

    def _claim(self, size: int) -> None:
        if size > self._left:
            raise self._bad("is cut off")
        self._left -= size

    def _bad(self, why: str) -> UnsafeFile:
        return UnsafeFile(f"{self._name}: {why}")
