"""Inputs and outputs of a graph: their names, element types and shapes."""

from models.errors import UnsafeFile
from models.onnx.facts import Value
from models.onnx.schema import DIMENSION, ELEMENT_TYPES, SHAPE, TENSOR_TYPE, TYPE, VALUE
from models.onnx.wire import Reader, Span


def read_value(reader: Reader, span: Span) -> Value:
    """The input or output at ``span``. Raises ``UnsafeFile``."""
    name, kind = "", ""
    shape: tuple[int | str | None, ...] = ()
    for number, value in reader.fields(span, VALUE, "an input or output"):
        match number, value:
            case 1, (_, _):
                name = reader.text(value, "name of an input or output")
            case 2, (_, _):
                kind, shape = _type(reader, value)
    if not name:
        raise UnsafeFile("an input or output has no name")
    return Value(name, kind, shape)


def _type(reader: Reader, span: Span) -> tuple[str, tuple[int | str | None, ...]]:
    """Element type and shape of a tensor; of a sequence or a map only that it is none."""
    kind = "no tensor"
    shape: tuple[int | str | None, ...] = ()
    for number, value in reader.fields(span, TYPE, "a type"):
        if number != 1 or not isinstance(value, tuple):
            continue
        for inner, entry in reader.fields(value, TENSOR_TYPE, "a tensor's type"):
            if inner == 1 and isinstance(entry, int):
                kind = ELEMENT_TYPES.get(entry, ("unknown", 0))[0]
            elif isinstance(entry, tuple):
                shape = tuple(
                    _dimension(reader, dim)
                    for _, dim in reader.fields(entry, SHAPE, "a shape")
                    if isinstance(dim, tuple)
                )
    return kind, shape


def _dimension(reader: Reader, span: Span) -> int | str | None:
    found: int | str | None = None
    for number, value in reader.fields(span, DIMENSION, "a dimension"):
        if number == 1 and isinstance(value, int):
            found = value if value < 1 << 62 else None  # -1 is what some write for an open one
        elif number == 2 and isinstance(value, tuple):
            found = reader.text(value, "dimension") or None
    return found
