"""A tensor of an ONNX file: its type, its shape, where its bytes are. Its numbers are never looked at."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from models.errors import UnsafeFile
from models.onnx.external import place_of
from models.onnx.facts import Initializer
from models.onnx.schema import ELEMENT_TYPES, ENTRY, TENSOR
from models.onnx.wire import Reader, Span

MAX_DIMENSIONS = 64

_INLINE_DATA = frozenset({4, 5, 6, 7, 10, 11})
"""Fields of a tensor that hold its numbers one by one."""
_EXACT_DATA: Mapping[int, int] = {4: 4, 10: 8}
"""Those whose numbers have a fixed size, and that size in bytes."""


@dataclass(slots=True)
class _Said:
    """What a message says of a tensor, before any of it is believed.

    ``place``: words about another file; ``raw`` and ``inline``: bytes here, as a whole and by field.
    """

    name: str = ""
    type: int = 0
    shape: list[int] = field(default_factory=list)
    location: int = 0
    place: dict[str, str] = field(default_factory=dict)
    raw: int | None = None
    inline: Counter[int] = field(default_factory=Counter)


def read_tensor(reader: Reader, span: Span, what: str) -> Initializer:
    """The tensor at ``span``, which errors call ``what``. Raises ``UnsafeFile``."""
    said = _read(reader, span, what)
    label = f"tensor {said.name!r:.200}"
    if said.type not in ELEMENT_TYPES:
        raise UnsafeFile(f"{label} has the unknown element type {said.type}")
    kind, bits = ELEMENT_TYPES[said.type]
    shape = tuple(said.shape)
    if len(shape) > MAX_DIMENSIONS or any(size >= 1 << 62 for size in shape) or prod(shape) >= 1 << 62:
        raise UnsafeFile(f"{label} has an impossible shape")
    size = -(-prod(shape) * bits // 8)
    if said.location == 1:
        if said.raw is not None or said.inline or not bits:
            raise UnsafeFile(f"{label} has its bytes both here and in another file, or is of strings")
        return Initializer(said.name, kind, shape, size, place_of(label, said.place, size))
    if said.location or said.place:
        raise UnsafeFile(f"{label} does not say clearly where its bytes are")
    _check_inline(label, prod(shape), size, bits, said.raw, said.inline)
    return Initializer(said.name, kind, shape, size)


def _read(reader: Reader, span: Span, what: str) -> _Said:
    said = _Said()
    for number, value in reader.fields(span, TENSOR, what):
        match number, value:
            case 1, int():
                said.shape.append(value)
            case 2, int():
                said.type = value
            case 3, _:
                raise UnsafeFile(f"{what} comes in segments, which are not read here")
            case 8, (_, _):
                said.name = reader.text(value, "tensor's name")
            case 9, (first, last):
                said.raw = last - first
            case 13, (_, _):
                key, word = _entry(reader, value)
                if key in said.place:
                    raise UnsafeFile(f"{key!r:.100} is said twice of one tensor")
                said.place[key] = word
            case 14, int():
                said.location = value
            case _, (first, last) if number in _INLINE_DATA:
                said.inline[number] += last - first
    return said


def _entry(reader: Reader, span: Span) -> tuple[str, str]:
    parts = ["", ""]
    for number, value in reader.fields(span, ENTRY, "an entry"):
        if isinstance(value, tuple):
            parts[number - 1] = reader.text(value, "entry")
    return parts[0], parts[1]


def _check_inline(
    label: str, elements: int, size: int, bits: int, raw: int | None, inline: Counter[int]
) -> None:
    if raw is not None:
        if inline or not bits or raw != size:
            raise UnsafeFile(f"{label} is of {size} bytes and has {raw}")
        return
    if len(inline) > 1 or (elements and not inline):
        raise UnsafeFile(f"{label} of {elements} elements holds none, or holds them twice")
    for number, length in inline.items():
        width = _EXACT_DATA.get(number)
        exact = None if width is None else (elements * width, 2 * elements * width)  # complex: two each
        if exact is not None and length not in exact:
            raise UnsafeFile(f"{label} of {elements} elements has {length} bytes of numbers")
        if width is None and number != 6 and length * 8 < elements * min(bits, 8):
            raise UnsafeFile(f"{label} of {elements} elements has {length} bytes of numbers")
