"""Adapters of an ONNX base: the slots that its graph leaves open, and files that must fit them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.engines.foreign import converted
from models.errors import EngineError, UnsafeFile, unreadable
from models.onnx import OnnxModel

MAX_ADAPTER = 2 << 30
"""Bytes of one file."""

_MAGIC = b"TORT"
_A, _B = ".lora_A.", ".lora_B."
"""In the names of the two matrices of a pair."""


@dataclass(frozen=True, slots=True)
class Slots:
    """The inputs through which a base takes adapters: ``shapes`` by name, the rank left open (``None``)."""

    max_rank: int
    shapes: Mapping[str, tuple[int | None, int | None]]

    @staticmethod
    def dimension(max_rank: int) -> str:
        """How the graph names the open dimension: the bound travels with the file."""
        return f"lora_rank_max_{max_rank}"

    def filled(self, slot: str, rank: int) -> tuple[int, int]:
        """The shape of a slot's tensor in an adapter of this rank."""
        rows, columns = self.shapes[slot]
        return rows or rank, columns or rank

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the projections that can be adapted."""
        return tuple(sorted({name.split(".lora_")[0].rpartition(".")[2] for name in self.shapes}))


def lora_slots(model: OnnxModel) -> Slots | None:
    """The slots of a graph; ``None`` when it takes no adapters. Raises ``UnsafeFile`` for an odd set."""
    shapes: dict[str, tuple[int | None, int | None]] = {}
    bounds: set[int] = set()
    for value in model.optional_inputs:
        if _A not in value.name and _B not in value.name:
            continue
        open_side = 1 if _A in value.name else 0
        rank = value.shape[open_side] if len(value.shape) == 2 else None
        other = value.shape[1 - open_side] if len(value.shape) == 2 else None
        known = re.fullmatch(r"lora_rank_max_(\d{1,5})", rank) if isinstance(rank, str) else None
        if known is None or not isinstance(other, int):
            raise UnsafeFile(f"the input {value.name!r:.200} is no slot of an adapter")
        bounds.add(int(known[1]))
        shapes[value.name] = (other, None) if open_side else (None, other)
    if not shapes:
        return None
    if len(bounds) != 1:
        raise UnsafeFile(f"slots for adapters of several ranks: {sorted(bounds)}")
    return Slots(bounds.pop(), shapes)


def check_adapter(path: Path, slots: Slots | None) -> None:
    """Names and shapes fit the slots of a base. Raises ``UnsafeFile``, or ``EngineError`` for a misfit."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise unreadable(path, error) from error
    if head[4:] != _MAGIC or size > MAX_ADAPTER:
        raise UnsafeFile(f"{path.name} is no ONNX adapter")
    if slots is None:
        raise EngineError(f"{path.name}: the base was exported without slots for adapters")
    shapes = _shapes(path)
    if not shapes:
        raise EngineError(f"{path.name} holds no tensors")
    ranks = set()
    for name, shape in shapes.items():
        wanted = slots.shapes.get(name)
        if wanted is None:
            raise EngineError(f"{path.name}: the base has no slot {name!r:.200}")
        if shape is None:
            raise EngineError(f"{path.name}: {name!r:.200} is no float32 matrix")
        if any(size not in (None, got) for size, got in zip(wanted, shape, strict=True)):
            raise EngineError(f"{path.name}: {name!r:.200} has the shape {shape}, the slot {wanted}")
        ranks.add(shape[wanted.index(None)])
        if (name.replace(_A, _B) if _A in name else name.replace(_B, _A)) not in shapes:
            raise EngineError(f"{path.name}: {name!r:.200} is not half of a LoRA pair")
    if missing := sorted(slots.shapes.keys() - shapes.keys()):
        # All slots share one open dimension, so ONNX Runtime plans memory as if they had one rank.
        raise EngineError(f"{path.name}: it leaves the base's slot {missing[0]!r:.200} empty")
    if len(ranks) != 1 or not 0 < min(ranks) <= slots.max_rank:
        raise EngineError(
            f"{path.name}: rank {sorted(ranks)}; the base takes one of at most {slots.max_rank}"
        )


def _shapes(path: Path) -> dict[str, tuple[int, int] | None]:
    """Of every tensor in a file; None for one that is no float32 matrix."""
    import onnxruntime as ort

    with converted(f"{path.name}: cannot be read as an ONNX adapter", UnsafeFile):
        # Its flatbuffer verifier checks every offset before anything is read.
        tensors = ort.AdapterFormat.read_adapter(str(path)).get_parameters()
    shapes: dict[str, tuple[int, int] | None] = {}
    for name, value in tensors.items():
        shape = tuple(value.shape())
        is_matrix = len(shape) == 2 and value.data_type() == "tensor(float)"
        shapes[name] = (shape[0], shape[1]) if is_matrix else None
    return shapes
