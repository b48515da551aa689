"""The name under which a TensorRT engine is kept on a device: all that it depends on, and nothing else.

An engine is compiled for one graph, one TensorRT, one GPU architecture and one set of shapes; used for
another it fails at best. ONNX Runtime's own cache named engines by less than that and answered with another
model (onnxruntime#6455), so it is not used. Pure.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models import canonical
from models.digest import Digest
from models.errors import ModelsError

Shape = tuple[int, ...]
ShapeRange = tuple[Shape, Shape, Shape]
"""The smallest shape, the one to be fastest at, and the largest."""


@dataclass(frozen=True)
class EngineIdentity:
    """What an engine depends on.

    ``onnx`` is the digest of the graph, ``weights`` those of the files beside it by name. ``sm`` is the
    compute capability without its dot (87 for 8.7). ``flags`` in any order; ``profiles`` in theirs: engines
    number them. Raises ``ModelsError`` for what cannot be.
    """

    onnx: Digest
    weights: Mapping[str, Digest]
    tensorrt: str
    sm: int
    driver: str
    flags: frozenset[str]
    profiles: Sequence[Mapping[str, ShapeRange]]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d+\.\d+\.\d+(\.\d+)?", self.tensorrt):
            raise ModelsError(f"{self.tensorrt!r} is no version of TensorRT; MAJOR.MINOR.PATCH is needed")
        if not 50 <= self.sm <= 999:
            raise ModelsError(f"{self.sm} is no compute capability without its dot")
        if not self.driver:
            raise ModelsError("the driver's version is missing")


def engine_key(identity: EngineIdentity) -> Digest:
    """Law: two identities share a key only when they are equal."""
    return Digest.of(
        canonical.encode(
            {
                "schema": 1,
                "onnx": identity.onnx,
                "weights": dict(identity.weights),
                "tensorrt": identity.tensorrt,
                "sm": identity.sm,
                "driver": identity.driver,
                "flags": sorted(identity.flags),
                "profiles": [
                    {name: [list(shape) for shape in shapes] for name, shapes in profile.items()}
                    for profile in identity.profiles
                ],
            }
        )
    )


def engine_name(identity: EngineIdentity) -> str:
    """The file's name: readable in front, the whole key behind."""
    return f"trt{identity.tensorrt}-sm{identity.sm}-{engine_key(identity).hex}.engine"
