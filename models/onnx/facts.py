"""What an ONNX file says of itself, as values."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType


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
