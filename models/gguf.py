"""GGUF headers, read with every count, length and offset checked against the bytes that are there.

Owns the decision whether a GGUF file may be shown to a native library, and what it says of itself.
Refuses, with ``UnsafeFile``: anything malformed, tensors that overlap or leave the file, unknown
tensor types, nested arrays, and split files (a native loader would open the siblings unverified).
Weights are never read.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from math import prod
from pathlib import Path
from types import MappingProxyType

from models.errors import EngineError, UnsafeFile, unreadable

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_NAME = 64
"""Bytes in a tensor's name: ggml's fixed buffer, its final zero included."""
MAX_KEY = 65_535
MAX_DIMENSIONS = 4

Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...]
Buffer = bytes | bytearray | memoryview | mmap.mmap


class TensorType(IntEnum):
    """ggml's tensor types that a file may hold."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39


_T = TensorType
_BLOCKS: Mapping[TensorType, tuple[int, int]] = {
    _T.F32: (1, 4),
    _T.F16: (1, 2),
    _T.Q4_0: (32, 18),
    _T.Q4_1: (32, 20),
    _T.Q5_0: (32, 22),
    _T.Q5_1: (32, 24),
    _T.Q8_0: (32, 34),
    _T.Q8_1: (32, 36),
    _T.Q2_K: (256, 84),
    _T.Q3_K: (256, 110),
    _T.Q4_K: (256, 144),
    _T.Q5_K: (256, 176),
    _T.Q6_K: (256, 210),
    _T.Q8_K: (256, 292),
    _T.IQ2_XXS: (256, 66),
    _T.IQ2_XS: (256, 74),
    _T.IQ3_XXS: (256, 98),
    _T.IQ1_S: (256, 50),
    _T.IQ4_NL: (32, 18),
    _T.IQ3_S: (256, 110),
    _T.IQ2_S: (256, 82),
    _T.IQ4_XS: (256, 136),
    _T.I8: (1, 1),
    _T.I16: (1, 2),
    _T.I32: (1, 4),
    _T.I64: (1, 8),
    _T.F64: (1, 8),
    _T.IQ1_M: (256, 56),
    _T.BF16: (1, 2),
    _T.TQ1_0: (256, 54),
    _T.TQ2_0: (256, 66),
    _T.MXFP4: (32, 17),
}
"""Elements in a block, and bytes in it (ggml-common.h)."""


def block_of(kind: TensorType) -> tuple[int, int]:
    """Elements in a block of this type, and bytes in it. Rows hold whole blocks."""
    return _BLOCKS[kind]


_SCALARS: Mapping[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_U32, _U64 = _SCALARS[4], _SCALARS[10]

_SMALLEST_PAIR = 8 + 1 + 4 + 1
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor. ``shape`` in ggml's order (fastest first); ``offset`` from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    size: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says of itself, checked."""

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    alignment: int

    def text(self, key: str) -> str | None:
        """The string under ``key``, if there is one."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str) -> int | None:
        """The integer under ``key``, if there is one."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def architecture(self) -> str:
        """The name of the model's architecture, such as ``llama``."""
        return self.text("general.architecture") or ""

    @property
    def kv_bytes_per_token(self) -> int:
        """What llama.cpp keeps of one token of one sequence: a key and a value per layer, in float16."""

        def number(key: str, otherwise: int) -> int:
            return self.integer(f"{self.architecture}.{key}") or otherwise

        heads = number("attention.head_count", 1)
        width = number("embedding_length", 1) // heads
        sizes = number("attention.key_length", width) + number("attention.value_length", width)
        return number("block_count", 1) * number("attention.head_count_kv", heads) * sizes * 2

    @property
    def vocabulary(self) -> int:
        """How many tokens there are; 0 in a file without a tokenizer."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        return len(tokens) if isinstance(tokens, tuple) else 0

    @property
    def is_adapter(self) -> bool:
        """Whether the file holds an adapter rather than a model."""
        return self.text("general.type") == "adapter"


def parse_header(data: Buffer) -> GgufHeader:
    """Read and check the header of the whole file ``data``. Raises ``UnsafeFile``."""
    reader = _Reader(data)
    if reader.take(4) != MAGIC:
        raise UnsafeFile("not a GGUF file: wrong magic")
    version = reader.number(_U32)
    if version not in (2, 3):
        raise UnsafeFile(f"GGUF version {version} is not read here (2 and 3 are, little-endian)")
    n_tensors = reader.count(_SMALLEST_TENSOR, "tensors")
    n_pairs = reader.count(_SMALLEST_PAIR, "metadata pairs")
    metadata: dict[str, Value] = {}
    for _ in range(n_pairs):
        key = reader.name(MAX_KEY, "metadata key")
        if key in metadata:
            raise UnsafeFile(f"metadata key {key!r:.80} appears twice")
        metadata[key] = reader.value(key)
    declared = [reader.tensor() for _ in range(n_tensors)]
    alignment = _alignment(metadata)
    tensors = _place(declared, -(-reader.at // alignment) * alignment, alignment, len(data))
    if metadata.get("split.count", 0) not in (0, 1):
        raise UnsafeFile("one part of a split GGUF: merge the parts into one file first")
    return GgufHeader(version, MappingProxyType(metadata), tensors, alignment)


def read_header(path: Path) -> GgufHeader:
    """Check a GGUF file without any native library. Raises ``UnsafeFile``, also when unreadable."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return parse_header(data)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise unreadable(path, error) from error
    except UnsafeFile as error:
        raise UnsafeFile(f"{path.name}: {error}") from error


def check_model(path: Path) -> GgufHeader:
    """The header of a file that may be loaded as a model. Raises ``UnsafeFile``."""
    header = read_header(path)
    if header.is_adapter:
        raise UnsafeFile(f"{path.name} is an adapter; a base model is needed here")
    if not header.architecture:
        raise UnsafeFile(f"{path.name} does not name its architecture")
    if header.architecture == "clip":
        raise UnsafeFile(f"{path.name} is a projector for pictures or sound; a base model is needed here")
    return header


def check_projector(path: Path) -> GgufHeader:
    """The header of a file that lets a model see or hear (``mmproj``). Raises ``UnsafeFile``."""
    header = read_header(path)
    if header.architecture != "clip":
        raise UnsafeFile(f"{path.name} is no projector (mmproj) for pictures or sound")
    return header


def check_adapter(path: Path, base: GgufHeader) -> GgufHeader:
    """The header of a LoRA file that fits ``base``. Raises ``UnsafeFile``, or ``EngineError`` for a misfit.

    llama.cpp ignores tensors that are no LoRA pair (norms, for one); an adapter that has any would give
    other answers than its training promised, so it is refused.
    """
    header = read_header(path)
    if not header.is_adapter or header.text("adapter.type") != "lora":
        raise UnsafeFile(f"{path.name} is no LoRA adapter")
    if header.architecture != base.architecture:
        raise EngineError(f"{path.name} is for {header.architecture!r}, the base is {base.architecture!r}")
    if "adapter.alora.invocation_tokens" in header.metadata:
        raise EngineError(f"{path.name} is an activated LoRA, which is not supported")
    known = {tensor.name for tensor in base.tensors}
    names = {tensor.name for tensor in header.tensors}
    if not names:
        raise EngineError(f"{path.name} holds no tensors")
    for name in names:
        stem, _, half = name.rpartition(".")
        if half not in ("lora_a", "lora_b") or not {f"{stem}.lora_a", f"{stem}.lora_b"} <= names:
            raise EngineError(f"{path.name}: {name!r} is not half of a LoRA pair and would be ignored")
        if stem not in known:
            raise EngineError(f"{path.name}: the base has no tensor {stem!r}")
    return header


def _alignment(metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or not 0 < value <= 1 << 20 or value & (value - 1):
        raise UnsafeFile(f"general.alignment is {value!r:.40}, not a power of two up to 1 MiB")
    return value


def _place(declared: list[Tensor], start: int, alignment: int, length: int) -> tuple[Tensor, ...]:
    """Turn offsets within the data section into offsets in the file; nothing overlaps or sticks out."""
    names: set[str] = set()
    placed: list[Tensor] = []
    for tensor in declared:
        if tensor.name in names:
            raise UnsafeFile(f"tensor {tensor.name!r} appears twice")
        names.add(tensor.name)
        if tensor.offset % alignment:
            raise UnsafeFile(f"tensor {tensor.name!r} is not aligned to {alignment} bytes")
        if start + tensor.offset + tensor.size > length:
            raise UnsafeFile(f"tensor {tensor.name!r} ends past the end of the file")
        placed.append(Tensor(tensor.name, tensor.shape, tensor.type, start + tensor.offset, tensor.size))
    ordered = sorted(placed, key=lambda tensor: tensor.offset)
    for before, after in pairwise(ordered):
        if before.offset + before.size > after.offset:
            raise UnsafeFile(f"tensors {before.name!r} and {after.name!r} overlap")
    return tuple(placed)


class _Reader:
    """A cursor that cannot leave its bytes."""

    def __init__(self, data: Buffer) -> None:
        self._data = data  # no view of it: a mapping could not be closed under one
        self.at = 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self.at:
            raise UnsafeFile(f"the file ends inside its header, at byte {len(self._data)}")
        self.at += size
        return bytes(self._data[self.at - size : self.at])

    def number(self, form: struct.Struct) -> int:
        value: int = form.unpack(self.take(form.size))[0]
        return value

    def count(self, smallest: int, what: str) -> int:
        """A number of items, of which each takes at least ``smallest`` bytes of what is left."""
        value = self.number(_U64)
        if value > (len(self._data) - self.at) // smallest:
            raise UnsafeFile(f"{value} {what} cannot fit the file")
        return value

    def name(self, longest: int, what: str) -> str:
        size = self.number(_U64)
        if not 0 < size <= longest:
            raise UnsafeFile(f"a {what} of {size} bytes; 1 to {longest} are allowed")
        raw = self.take(size)
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UnsafeFile(f"a {what} is not UTF-8") from error
        if "\0" in name:
            raise UnsafeFile(f"a {what} contains a zero byte")
        return name

    def string(self) -> str:
        # Vocabularies in the wild hold invalid UTF-8; only names must be exact.
        return self.take(self.number(_U64)).decode("utf-8", "replace")

    def value(self, key: str) -> Value:
        kind = self.number(_U32)
        if kind != _ARRAY:
            return self.scalar(kind, key)
        item = self.number(_U32)
        form = _SCALARS.get(item)
        if form is not None:
            count = self.count(form.size, f"items of {key!r:.80}")
            return struct.unpack(f"<{count}{form.format[1:]}", self.take(count * form.size))
        if item not in (_BOOL, _STRING):
            raise UnsafeFile(f"{key!r:.80} is an array of the unknown or nested type {item}")
        count = self.count(8 if item == _STRING else 1, f"items of {key!r:.80}")
        if item == _STRING:
            return self.strings(count)
        return tuple(self.scalar(item, key) for _ in range(count))

    def strings(self, count: int) -> tuple[str, ...]:
        """As ``string``, ``count`` times: a vocabulary has 100,000, so this loop makes no calls of ours."""
        data, last, size_at, at, found = self._data, len(self._data) - 8, _U64.unpack_from, self.at, []
        for _ in range(count):
            if at > last:
                raise UnsafeFile(f"the file ends inside its header, at byte {len(data)}")
            start = at + 8
            at = start + size_at(data, at)[0]
            found.append(str(data[start:at], "utf-8", "replace"))
        self.at = at
        self.take(0)  # the last of them did not end past the end, either
        return tuple(found)

    def scalar(self, kind: int, key: str) -> Scalar:
        if kind == _STRING:
            return self.string()
        if kind == _BOOL:
            raw = self.take(1)
            if raw not in (b"\0", b"\1"):
                raise UnsafeFile(f"{key!r:.80} is neither true nor false")
            return raw == b"\1"
        form = _SCALARS.get(kind)
        if form is None:
            raise UnsafeFile(f"{key!r:.80} has the unknown type {kind}")
        value: int | float = form.unpack(self.take(form.size))[0]
        return value

    def tensor(self) -> Tensor:
        """One tensor as declared, its offset still within the data section."""
        name = self.name(MAX_NAME - 1, "tensor name")
        n_dimensions = self.number(_U32)
        if not 0 < n_dimensions <= MAX_DIMENSIONS:
            raise UnsafeFile(f"tensor {name!r} has {n_dimensions} dimensions")
        shape = tuple(self.number(_U64) for _ in range(n_dimensions))
        raw_type = self.number(_U32)
        offset = self.number(_U64)
        try:
            kind = TensorType(raw_type)
        except ValueError as error:
            raise UnsafeFile(f"tensor {name!r} has the unknown type {raw_type}") from error
        per_block, block_bytes = _BLOCKS[kind]
        if 0 in shape or prod(shape) >= 1 << 62:
            raise UnsafeFile(f"tensor {name!r} has the impossible shape {shape}")
        if shape[0] % per_block:
            raise UnsafeFile(f"tensor {name!r}: rows of {shape[0]} do not divide into {kind.name} blocks")
        return Tensor(name, shape, kind, offset, prod(shape) // per_block * block_bytes)
