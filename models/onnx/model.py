"""A whole ONNX file: its graphs and functions, put together from their parts."""

import mmap
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from models.errors import UnsafeFile, unreadable
from models.onnx.external import check_there
from models.onnx.facts import External, Initializer, OnnxModel, Value
from models.onnx.operators import Operator, check_operators
from models.onnx.schema import ATTRIBUTE, FUNCTION, GRAPH, MODEL, NODE, OPSET, SPARSE_TENSOR
from models.onnx.tensors import read_tensor
from models.onnx.values import read_value
from models.onnx.wire import Buffer, Reader, Span

MAX_FILE = (1 << 31) - 1
"""Bytes; what protobuf reads of one message. Larger weights lie in files beside it."""
MAX_DEPTH = 16
"""Graphs within graphs."""


def read_model(path: Path) -> OnnxModel:
    """Check a model and the files that its weights lie in. Raises ``UnsafeFile``, also when unreadable."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            model = parse_model(data)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise unreadable(path, error) from error
    except UnsafeFile as error:
        raise UnsafeFile(f"{path.name}: {error}") from error
    for name, where, size in sorted(model.external, key=lambda item: item[0]):
        check_there(path, name, where, size)
    return model


def parse_model(data: Buffer) -> OnnxModel:
    """Read and check the whole file ``data``, but not the files that it refers to. Raises ``UnsafeFile``."""
    if len(data) > MAX_FILE:
        raise UnsafeFile(f"{len(data)} bytes; an ONNX file has at most {MAX_FILE}")
    return _Parser(data).model()


@dataclass(slots=True)
class _Found:
    """What gathers while a file is read."""

    operators: Counter[Operator] = field(default_factory=Counter)
    functions: dict[Operator, Counter[Operator]] = field(default_factory=dict)
    external: set[tuple[str, External, int]] = field(default_factory=set)


@dataclass(slots=True)
class _Graph:
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    initializers: list[Initializer] = field(default_factory=list)


class _Parser:
    """Walks the messages of one file and gathers what counts for all of it."""

    def __init__(self, data: Buffer) -> None:
        self._reader = Reader(data)
        self._size = len(data)
        self._found = _Found()

    def model(self) -> OnnxModel:
        graph: _Graph | None = None
        ir_version, producer = 0, ""
        opsets: dict[str, int] = {}
        for number, value in self._reader.fields((0, self._size), MODEL, "the model"):
            match number, value:
                case 1, int():
                    ir_version = value
                case 2, (_, _):
                    producer = self._reader.text(value, "producer")
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
        check_operators(self._found.operators, self._found.functions)
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

    def _graph(self, span: Span, depth: int) -> _Graph:
        if depth > MAX_DEPTH:
            raise UnsafeFile(f"graphs are nested more than {MAX_DEPTH} deep")
        graph = _Graph()
        names: set[str] = set()
        for number, value in self._reader.fields(span, GRAPH, "a graph"):
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
                    graph.inputs.append(read_value(self._reader, value))
                case 12, (_, _):
                    graph.outputs.append(read_value(self._reader, value))
                case 15, (_, _):
                    self._sparse(value)
        return graph

    def _node(self, span: Span, depth: int) -> None:
        name, domain = "", ""
        for number, value in self._reader.fields(span, NODE, "a node"):
            match number, value:
                case 4, (_, _):
                    name = self._reader.text(value, "operator")
                case 5, (_, _):
                    self._attribute(value, depth)
                case 7, (_, _):
                    domain = self._reader.text(value, "operator's domain")
        if not name:
            raise UnsafeFile("a node names no operator")
        self._found.operators["" if domain == "ai.onnx" else domain, name] += 1

    def _attribute(self, span: Span, depth: int) -> None:
        for number, value in self._reader.fields(span, ATTRIBUTE, "an attribute"):
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
        for number, value in self._reader.fields(span, FUNCTION, "a function"):
            match number, value:
                case 1, (_, _):
                    name = self._reader.text(value, "function")
                case 7, (_, _):
                    self._node(value, 1)
                case 10, (_, _):
                    domain = self._reader.text(value, "function's domain")
                case 11, (_, _):
                    self._attribute(value, 1)
        self._found.functions[domain, name] = self._found.operators
        self._found.operators = before + self._found.operators

    def _sparse(self, span: Span) -> None:
        for number, value in self._reader.fields(span, SPARSE_TENSOR, "a sparse tensor"):
            if number in (1, 2) and isinstance(value, tuple):
                self._tensor(value, "a sparse tensor")

    def _tensor(self, span: Span, what: str) -> Initializer:
        tensor = read_tensor(self._reader, span, what)
        if tensor.external is not None:
            self._found.external.add((tensor.name, tensor.external, tensor.size))
        return tensor

    def _opset(self, span: Span, opsets: dict[str, int]) -> None:
        domain, version = "", 0
        for number, value in self._reader.fields(span, OPSET, "an operator set"):
            if number == 1 and isinstance(value, tuple):
                domain = self._reader.text(value, "operator set")
            elif isinstance(value, int):
                version = value
        if domain in opsets:
            raise UnsafeFile(f"the operator set {domain!r:.100} is named twice")
        opsets[domain] = version
