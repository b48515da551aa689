"""ONNX files, read with every count, length and path checked before a native library sees them.

Owns the decision whether an ONNX file and the weights beside it may be loaded, and what the file says of
itself. Refuses, with ``UnsafeFile``: anything malformed or not in the schema, tensors whose bytes are not
there, weights outside the model's folder, operators of unknown domains and operators that load or run other
files. Weights are never read: the file is mapped, and they are skipped.

Format: https://github.com/onnx/onnx/blob/main/onnx/onnx-ml.proto (IR version 14), protobuf's wire format
https://protobuf.dev/programming-guides/encoding/.
"""

import mmap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from models.errors import UnsafeFile

MAX_FILE = (1 << 31) - 1
"""Bytes; what protobuf reads of one message. Larger weights lie in files beside it."""
MAX_FIELDS = 2_000_000
"""Fields read of one file; a language model of 100 layers has some 100,000."""
MAX_DEPTH = 16
"""Graphs within graphs."""
MAX_NAME = 4096
MAX_DIMENSIONS = 64

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Whose operators the runtime brings along. Functions that a file defines may be of any other domain."""

_REFUSED_OPERATORS = frozenset(
    {("com.microsoft", name) for name in ("EPContext", "PythonOp", "PythonOpGrad", "ATen")}
)
"""They load binaries, or run code, that the file only names."""

Buffer = bytes | bytearray | memoryview | mmap.mmap

_TYPES: Mapping[int, tuple[str, int]] = {
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    8: ("string", 0),
    9: ("bool", 8),
    10: ("float16", 16),
    11: ("float64", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    14: ("complex64", 64),
    15: ("complex128", 128),
    16: ("bfloat16", 16),
    17: ("float8e4m3fn", 8),
    18: ("float8e4m3fnuz", 8),
    19: ("float8e5m2", 8),
    20: ("float8e5m2fnuz", 8),
    21: ("uint4", 4),
    22: ("int4", 4),
    23: ("float4e2m1", 4),
    24: ("float8e8m0", 8),
    25: ("uint2", 2),
    26: ("int2", 2),
}
"""Name of an element type and its bits; a string has no size."""

# What a field holds. "v": a varint; "b": a length and bytes; "4": four bytes; "d": numbers, never looked at.
# With "*" it may come more than once. Names are those of onnx-ml.proto.
Spec = Mapping[int, str]
MODEL: Spec = {
    1: "v",  # ir_version
    2: "b",  # producer_name
    3: "b",  # producer_version
    4: "b",  # domain
    5: "v",  # model_version
    6: "b",  # doc_string
    7: "b",  # graph
    8: "b*",  # opset_import
    14: "b*",  # metadata_props
    20: "b*",  # training_info
    25: "b*",  # functions
    26: "b*",  # configuration
}
GRAPH: Spec = {
    1: "b*",  # node
    2: "b",  # name
    5: "b*",  # initializer
    10: "b",  # doc_string
    11: "b*",  # input
    12: "b*",  # output
    13: "b*",  # value_info
    14: "b*",  # quantization_annotation
    15: "b*",  # sparse_initializer
    16: "b*",  # metadata_props
}
NODE: Spec = {
    1: "b*",  # input
    2: "b*",  # output
    3: "b",  # name
    4: "b",  # op_type
    5: "b*",  # attribute
    6: "b",  # doc_string
    7: "b",  # domain
    8: "b",  # overload
    9: "b*",  # metadata_props
    10: "b*",  # device_configurations
}
ATTRIBUTE: Spec = {
    1: "b",  # name
    2: "4",  # f
    3: "v",  # i
    4: "b",  # s
    5: "b",  # t
    6: "b",  # g
    7: "d*",  # floats
    8: "d*",  # ints
    9: "b*",  # strings
    10: "b*",  # tensors
    11: "b*",  # graphs
    13: "b",  # doc_string
    14: "b",  # tp
    15: "b*",  # type_protos
    20: "v",  # type
    21: "b",  # ref_attr_name
    22: "b",  # sparse_tensor
    23: "b*",  # sparse_tensors
}
TENSOR: Spec = {
    1: "v*",  # dims
    2: "v",  # data_type
    3: "b",  # segment
    4: "d*",  # float_data
    5: "d*",  # int32_data
    6: "b*",  # string_data
    7: "d*",  # int64_data
    8: "b",  # name
    9: "b",  # raw_data
    10: "d*",  # double_data
    11: "d*",  # uint64_data
    12: "b",  # doc_string
    13: "b*",  # external_data
    14: "v",  # data_location
    16: "b*",  # metadata_props
}
SPARSE_TENSOR: Spec = {1: "b", 2: "b", 3: "v*"}  # values, indices, dims
VALUE: Spec = {1: "b", 2: "b", 3: "b", 4: "b*"}  # name, type, doc_string, metadata_props
TYPE: Spec = {1: "b", 4: "b", 5: "b", 6: "b", 7: "b", 8: "b", 9: "b"}  # 1 is a tensor's
TENSOR_TYPE: Spec = {1: "v", 2: "b"}  # elem_type, shape
SHAPE: Spec = {1: "b*"}
DIMENSION: Spec = {1: "v", 2: "b", 3: "b"}  # value, parameter, denotation
FUNCTION: Spec = {
    1: "b",  # name
    4: "b*",  # input
    5: "b*",  # output
    6: "b*",  # attribute
    7: "b*",  # node
    8: "b",  # doc_string
    9: "b*",  # opset_import
    10: "b",  # domain
    11: "b*",  # attribute_proto
    12: "b*",  # value_info
    13: "b",  # overload
    14: "b*",  # metadata_props
}
OPSET: Spec = {1: "b", 2: "v"}  # domain, version
ENTRY: Spec = {1: "b", 2: "b"}  # key, value

_WIRE: Mapping[str, frozenset[int]] = {
    "v": frozenset({0}),
    "v*": frozenset({0, 2}),  # 2: many in one
    "b": frozenset({2}),
    "b*": frozenset({2}),
    "4": frozenset({5}),
    "d*": frozenset({0, 1, 2, 5}),
}
_INLINE_DATA = frozenset({4, 5, 6, 7, 10, 11})
_EXACT_DATA: Mapping[int, int] = {4: 4, 10: 8}
"""Fields of a tensor whose numbers have a fixed size, and that size in bytes."""


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output. A dimension is a number, a name, or None when open; ``type`` is an element's."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class External:
    """Bytes in a file beside the model: ``location`` relative to its folder; None: up to the file's end."""

    location: str
    offset: int
    length: int | None


@dataclass(frozen=True, slots=True)
class Initializer:
    """A weight. ``size`` in bytes; ``external`` where they are when not in the file itself."""

    name: str
    type: str
    shape: tuple[int, ...]
    size: int
    external: External | None = None

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """What an ONNX file says of itself, checked. ``operators`` count nodes, as ``MatMul`` or
    ``com.microsoft:MatMulNBits``; ``external`` is the set of all that lies in other files.
    ``optional_inputs`` have an initializer as their default.
    """

    ir_version: int
    producer: str
    opsets: Mapping[str, int]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    operators: Mapping[str, int]
    initializers: tuple[Initializer, ...]
    external: frozenset[tuple[str, External, int]] = frozenset()
    optional_inputs: tuple[Value, ...] = ()

    @property
    def parameters(self) -> int:
        """Numbers in all initializers."""
        return sum(tensor.elements for tensor in self.initializers)

    @property
    def weight_types(self) -> Mapping[str, int]:
        """Bytes of initializers by element type."""
        sizes: Counter[str] = Counter()
        for tensor in self.initializers:
            sizes[tensor.type] += tensor.size
        return MappingProxyType(dict(sizes.most_common()))

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files beside the model that hold weights."""
        return tuple(sorted({where.location for _, where, _ in self.external}))


def read_model(path: Path) -> OnnxModel:
    """Check a model and the files that its weights lie in. Raises ``UnsafeFile``, also when unreadable."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            model = parse_model(data)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise UnsafeFile(f"{path.name}: cannot be read: {error}") from error
    except UnsafeFile as error:
        raise UnsafeFile(f"{path.name}: {error}") from error
    for name, where, size in sorted(model.external, key=lambda item: item[0]):
        _check_external(path, name, where, size)
    return model


def parse_model(data: Buffer) -> OnnxModel:
    """Read and check the whole file ``data``, but not the files that it refers to. Raises ``UnsafeFile``."""
    if len(data) > MAX_FILE:
        raise UnsafeFile(f"{len(data)} bytes; an ONNX file has at most {MAX_FILE}")
    return _Parser(data).model()


def _check_external(path: Path, name: str, where: External, size: int) -> None:
    target = path.parent
    for part in PurePosixPath(where.location).parts:
        target /= part
        if target.is_symlink():
            raise UnsafeFile(f"{path.name}: tensor {name!r:.200} lies behind a link, {where.location!r:.200}")
    if not target.is_file():
        raise UnsafeFile(
            f"{path.name}: tensor {name!r:.200} lies in {where.location!r:.200}, which is not here"
        )
    there = target.stat().st_size
    if where.offset + size > there:
        raise UnsafeFile(
            f"{path.name}: tensor {name!r:.200} ends at byte {where.offset + size} "
            f"of {where.location!r:.200}, which has {there}"
        )


@dataclass(slots=True)
class _Found:
    """What gathers while a file is read."""

    operators: Counter[tuple[str, str]] = field(default_factory=Counter)
    functions: dict[tuple[str, str], Counter[tuple[str, str]]] = field(default_factory=dict)
    external: set[tuple[str, External, int]] = field(default_factory=set)


@dataclass(slots=True)
class _Graph:
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    initializers: list[Initializer] = field(default_factory=list)


Span = tuple[int, int]


class _Parser:
    """Reads messages within their bounds; every field counts against ``MAX_FIELDS``."""

    def __init__(self, data: Buffer) -> None:
        self._data = data  # no view of it: a mapping could not be closed under one
        self._left = MAX_FIELDS
        self._found = _Found()

    def model(self) -> OnnxModel:
        graph: _Graph | None = None
        ir_version, producer = 0, ""
        opsets: dict[str, int] = {}
        for number, value in self._fields((0, len(self._data)), MODEL, "the model"):
            match number, value:
                case 1, int():
                    ir_version = value
                case 2, (_, _):
                    producer = self._text(value, "producer")
                case 7, (_, _):
                    graph = self._graph(value, 1)
                case 8, (_, _):
                    self._opset(value, opsets)
                case 20, _:
                    raise UnsafeFile("it carries a training graph, which nothing here runs")
                case 25, (_, _):
                    self._function(value)
        if graph is None or not graph.outputs:
            raise UnsafeFile("not an ONNX model: it has no graph with outputs")
        if not ir_version or not opsets:
            raise UnsafeFile("not an ONNX model: it names no IR version or no operator set")
        self._check_operators()
        weights = {tensor.name for tensor in graph.initializers}
        return OnnxModel(
            ir_version=ir_version,
            producer=producer,
            opsets=MappingProxyType(opsets),
            inputs=tuple(value for value in graph.inputs if value.name not in weights),
            outputs=tuple(graph.outputs),
            operators=MappingProxyType(
                {
                    f"{domain}:{name}" if domain else name: count
                    for (domain, name), count in self._found.operators.most_common()
                }
            ),
            initializers=tuple(graph.initializers),
            external=frozenset(self._found.external),
            optional_inputs=tuple(value for value in graph.inputs if value.name in weights),
        )

    def _check_operators(self) -> None:
        _check_expansion(self._found)
        for domain, name in self._found.operators:
            if (domain, name) in self._found.functions:
                continue
            if domain not in DOMAINS:
                raise UnsafeFile(f"operator {name!r:.100} is of the unknown domain {domain!r:.100}")
            if (domain, name) in _REFUSED_OPERATORS:
                raise UnsafeFile(f"operator {name!r} runs what the file only names; it is refused")

    def _graph(self, span: Span, depth: int) -> _Graph:
        if depth > MAX_DEPTH:
            raise UnsafeFile(f"graphs are nested more than {MAX_DEPTH} deep")
        graph = _Graph()
        names: set[str] = set()
        for number, value in self._fields(span, GRAPH, "a graph"):
            match number, value:
                case 1, (_, _):
                    self._node(value, depth)
                case 5, (_, _):
                    tensor = self._tensor(value, "an initializer")
                    if not tensor.name or tensor.name in names:
                        raise UnsafeFile(f"initializer {tensor.name!r:.200} appears twice, or has no name")
                    names.add(tensor.name)
                    graph.initializers.append(tensor)
                case 11, (_, _):
                    graph.inputs.append(self._value(value))
                case 12, (_, _):
                    graph.outputs.append(self._value(value))
                case 15, (_, _):
                    self._sparse(value)
        return graph

    def _node(self, span: Span, depth: int) -> None:
        name, domain = "", ""
        for number, value in self._fields(span, NODE, "a node"):
            match number, value:
                case 4, (_, _):
                    name = self._text(value, "operator")
                case 5, (_, _):
                    self._attribute(value, depth)
                case 7, (_, _):
                    domain = self._text(value, "operator's domain")
        if not name:
            raise UnsafeFile("a node names no operator")
        self._found.operators["" if domain == "ai.onnx" else domain, name] += 1

    def _attribute(self, span: Span, depth: int) -> None:
        for number, value in self._fields(span, ATTRIBUTE, "an attribute"):
            match number, value:
                case ((5 | 10), (_, _)):
                    self._tensor(value, "a tensor of an attribute")
                case ((6 | 11), (_, _)):
                    self._graph(value, depth + 1)
                case ((22 | 23), (_, _)):
                    self._sparse(value)

    def _function(self, span: Span) -> None:
        name, domain = "", ""
        before = self._found.operators
        self._found.operators = Counter()  # what this function calls
        for number, value in self._fields(span, FUNCTION, "a function"):
            match number, value:
                case 1, (_, _):
                    name = self._text(value, "function")
                case 7, (_, _):
                    self._node(value, 1)
                case 10, (_, _):
                    domain = self._text(value, "function's domain")
                case 11, (_, _):
                    self._attribute(value, 1)
        self._found.functions[domain, name] = self._found.operators
        self._found.operators = before + self._found.operators

    def _sparse(self, span: Span) -> None:
        for number, value in self._fields(span, SPARSE_TENSOR, "a sparse tensor"):
            if number in (1, 2) and isinstance(value, tuple):
                self._tensor(value, "a sparse tensor")

    def _tensor(self, span: Span, what: str) -> Initializer:
        name, code, location = "", 0, 0
        shape: list[int] = []
        entries: dict[str, str] = {}
        raw: int | None = None
        inline: Counter[int] = Counter()
        for number, value in self._fields(span, TENSOR, what):
            match number, value:
                case 1, int():
                    shape.append(value)
                case 2, int():
                    code = value
                case 3, _:
                    raise UnsafeFile(f"{what} comes in segments, which are not read here")
                case 8, (_, _):
                    name = self._text(value, "tensor's name")
                case 9, (first, last):
                    raw = last - first
                case 13, (_, _):
                    self._entry(value, entries)
                case 14, int():
                    location = value
                case _, (first, last) if number in _INLINE_DATA:
                    inline[number] += last - first
        kind, bits = _TYPES.get(code, ("", 0))
        label = f"tensor {name!r:.200}"
        if not kind:
            raise UnsafeFile(f"{label} has the unknown element type {code}")
        if len(shape) > MAX_DIMENSIONS or any(size >= 1 << 62 for size in shape) or prod(shape) >= 1 << 62:
            raise UnsafeFile(f"{label} has an impossible shape")
        elements = prod(shape)
        size = -(-elements * bits // 8)
        if location == 1:
            if raw is not None or inline or not bits:
                raise UnsafeFile(f"{label} has its bytes both here and in another file, or is of strings")
            where = _external(label, entries, size)
            self._found.external.add((name, where, size))
            return Initializer(name, kind, tuple(shape), size, where)
        if location or entries:
            raise UnsafeFile(f"{label} does not say clearly where its bytes are")
        self._check_inline(label, elements, size, bits, raw, inline)
        return Initializer(name, kind, tuple(shape), size)

    @staticmethod
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
            if width is not None and length not in (
                elements * width,
                2 * elements * width,
            ):  # complex: two each
                raise UnsafeFile(f"{label} of {elements} elements has {length} bytes of numbers")
            if width is None and number != 6 and length * 8 < elements * min(bits, 8):
                raise UnsafeFile(f"{label} of {elements} elements has {length} bytes of numbers")

    def _value(self, span: Span) -> Value:
        name, kind = "", ""
        shape: tuple[int | str | None, ...] = ()
        for number, value in self._fields(span, VALUE, "an input or output"):
            match number, value:
                case 1, (_, _):
                    name = self._text(value, "name of an input or output")
                case 2, (_, _):
                    kind, shape = self._type(value)
        if not name:
            raise UnsafeFile("an input or output has no name")
        return Value(name, kind, shape)

    def _type(self, span: Span) -> tuple[str, tuple[int | str | None, ...]]:
        """Element type and shape of a tensor; of a sequence or a map only that it is none."""
        kind = "no tensor"
        shape: tuple[int | str | None, ...] = ()
        for number, value in self._fields(span, TYPE, "a type"):
            if number != 1 or not isinstance(value, tuple):
                continue
            for inner, entry in self._fields(value, TENSOR_TYPE, "a tensor's type"):
                if inner == 1 and isinstance(entry, int):
                    kind = _TYPES.get(entry, ("unknown", 0))[0]
                elif isinstance(entry, tuple):
                    shape = tuple(
                        self._dimension(dim)
                        for _, dim in self._fields(entry, SHAPE, "a shape")
                        if isinstance(dim, tuple)
                    )
        return kind, shape

    def _dimension(self, span: Span) -> int | str | None:
        found: int | str | None = None
        for number, value in self._fields(span, DIMENSION, "a dimension"):
            if number == 1 and isinstance(value, int):
                found = value if value < 1 << 62 else None  # -1 is what some write for an open one
            elif number == 2 and isinstance(value, tuple):
                found = self._text(value, "dimension") or None
        return found

    def _opset(self, span: Span, opsets: dict[str, int]) -> None:
        domain, version = "", 0
        for number, value in self._fields(span, OPSET, "an operator set"):
            if number == 1 and isinstance(value, tuple):
                domain = self._text(value, "operator set")
            elif isinstance(value, int):
                version = value
        if domain in opsets:
            raise UnsafeFile(f"the operator set {domain!r:.100} is named twice")
        opsets[domain] = version

    def _entry(self, span: Span, entries: dict[str, str]) -> None:
        parts = ["", ""]
        for number, value in self._fields(span, ENTRY, "an entry"):
            if isinstance(value, tuple):
                parts[number - 1] = self._text(value, "entry")
        if parts[0] in entries:
            raise UnsafeFile(f"{parts[0]!r:.100} is said twice of one tensor")
        entries[parts[0]] = parts[1]

    # Protobuf

    def _fields(self, span: Span, spec: Spec, what: str) -> Iterator[tuple[int, int | Span]]:
        """The fields of one message: a number for a varint, else where its bytes begin and end."""
        at, end = span
        seen: set[int] = set()
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise UnsafeFile(f"more than {MAX_FIELDS} fields")
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

    def _packed(self, number: int, at: int, end: int) -> Iterator[tuple[int, int]]:
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise UnsafeFile(f"more than {MAX_FIELDS} fields")
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

    def _text(self, span: Span, what: str) -> str:
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


def _check_expansion(found: _Found) -> None:
    """Functions are written out where they are called. Refuse those that would go on for ever, or nearly."""
    sizes: dict[tuple[str, str], int] = {}
    open_: set[tuple[str, str]] = set()
    for first in found.functions:
        stack = [first]
        while stack:
            name = stack[-1]
            inner = [call for call in found.functions[name] if call in found.functions]
            waiting = [call for call in inner if call not in sizes]
            if not waiting:
                calls = found.functions[name]
                sizes[name] = sum(count * (1 + sizes.get(call, 0)) for call, count in calls.items())
                if sizes[name] > MAX_FIELDS:
                    raise UnsafeFile(f"function {name[1]!r:.100} stands for more than {MAX_FIELDS} nodes")
                open_.discard(name)
                stack.pop()
            elif name in open_:
                raise UnsafeFile(f"function {name[1]!r:.100} calls itself")
            else:
                open_.add(name)
                stack += waiting


def _external(label: str, entries: Mapping[str, str], size: int) -> External:
    """Where a tensor's bytes are. Raises ``UnsafeFile`` for any place but a file in the model's folder."""
    unknown = set(entries) - {"location", "offset", "length", "checksum"}
    location = entries.get("location", "")
    path = PurePosixPath(location)
    if unknown:
        raise UnsafeFile(f"{label}: unknown words about its place: {', '.join(sorted(unknown))!r:.200}")
    if (
        not location
        or path.is_absolute()
        or ".." in path.parts
        # ``*/_ORT_MEM_ADDR_/*`` makes the runtime read its own memory at a number that the file chooses.
        or any(letter in "\\*?" or ord(letter) < 32 for letter in location)
        or path.name == ""
    ):
        raise UnsafeFile(f"{label} lies outside the model's folder: {location!r:.200}")
    offset, length = _count(label, entries.get("offset")) or 0, _count(label, entries.get("length"))
    if length is not None and length != size:
        raise UnsafeFile(f"{label} is of {size} bytes and has {length}")
    return External(location, offset, length)


def _count(label: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise UnsafeFile(f"{label}: {text!r:.40} is no number of bytes")
    return int(text)
