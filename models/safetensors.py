"""safetensors headers, read with every length and offset checked against the bytes that are there.

Refuses, with ``UnsafeFile``: a header longer than its file or than the format allows (by its length, before
it is read), names that come twice, tensors that overlap, leave gaps or leave the file, and shapes that do not
fit their bytes. Weights are never read.

Format: https://github.com/huggingface/safetensors#format.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from models import canonical
from models.errors import ModelsError, UnsafeFile, unreadable

MAX_HEADER = 100_000_000
"""Bytes; the limit that the format's own library keeps."""

_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor; ``offset`` from the start of the file, ``size`` in bytes."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says of itself, checked."""

    metadata: Mapping[str, str]
    tensors: tuple[Tensor, ...]

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(prod(tensor.shape) for tensor in self.tensors)


def read_header(path: Path) -> Header:
    """The header of a file. Raises ``UnsafeFile``, which names it, also when it cannot be read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = header_length(stream.read(8), size)
            return parse_header(stream.read(length), size)
    except OSError as error:
        raise unreadable(path, error) from error
    except UnsafeFile as error:
        raise UnsafeFile(f"{path.name}: {error}") from error


def header_length(head: bytes, file_size: int) -> int:
    """How many bytes of header follow the first eight, ``head``. Raises ``UnsafeFile``."""
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > min(file_size - 8, MAX_HEADER):
        raise UnsafeFile(f"a header of {length} bytes in a file of {file_size}")
    return length


def parse_header(data: bytes, file_size: int) -> Header:
    """Check a header against the size of its file. Raises ``UnsafeFile``."""
    try:
        header = canonical.decode(data)
    except ModelsError as error:
        raise UnsafeFile(f"its header is {error}") from error
    if not isinstance(header, dict):
        raise UnsafeFile("its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UnsafeFile("its metadata are not texts by name")
    start = 8 + len(data)
    tensors = sorted(
        (_tensor(name, entry, start) for name, entry in header.items()), key=lambda tensor: tensor.offset
    )
    at = start
    for tensor in tensors:
        if tensor.offset != at:
            raise UnsafeFile(f"tensor {tensor.name!r:.200} overlaps another, or leaves a gap before it")
        at += tensor.size
    if at != file_size:
        raise UnsafeFile(f"its tensors end at byte {at} of {file_size}")
    return Header(MappingProxyType(metadata), tuple(tensors))


def _tensor(name: str, entry: Any, start: int) -> Tensor:
    match entry:
        case {"dtype": str() as kind, "shape": list() as shape, "data_offsets": [first, last], **rest} if (
            not rest
        ):
            pass
        case _:
            raise UnsafeFile(f"tensor {name!r:.200} is not described as tensors are")
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in (*shape, first, last)):
        raise UnsafeFile(f"tensor {name!r:.200} has an impossible shape or place")
    bits = _BITS.get(kind)
    if bits is None:
        raise UnsafeFile(f"tensor {name!r:.200} has the unknown type {kind!r:.40}")
    if len(shape) > 64 or last < first or prod(shape) * bits != (last - first) * 8:
        raise UnsafeFile(f"tensor {name!r:.200} of {kind} {shape!r:.100} does not fit {last - first} bytes")
    return Tensor(name, kind, tuple(shape), start + first, last - first)
