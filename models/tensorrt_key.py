"""The names under which TensorRT engines are kept on a device: all that they depend on, and nothing else.

An engine is compiled for one graph, one TensorRT, one GPU architecture and one set of shapes; used for
another it fails at best. ONNX Runtime names engines by less than that and has answered with another model's
(onnxruntime#6455), so that each key gets a folder of its own. Pure.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models import canonical
from models.digest import Digest
from models.errors import ModelsError

Shape = tuple[int, ...]
ShapeRange = tuple[Shape, Shape, Shape]
"""The smallest shape, the one to be fastest at, and the largest."""


@dataclass(frozen=True)
class EngineIdentity:
    """What an engine depends on.

    ``onnx`` is the digest of the graph, ``weights`` those of the files beside it by name. ``runtime`` is the
    ONNX Runtime that cuts the graph up for TensorRT. ``sm`` is the compute capability without its dot (87
    for 8.7). ``flags`` in any order; ``profiles`` in theirs: engines number them. Raises ``ModelsError`` for
    what cannot be.
    """

    onnx: Digest
    weights: Mapping[str, Digest]
    runtime: str
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
        if not self.driver or not self.runtime:
            raise ModelsError("the version of the driver or of ONNX Runtime is missing")

    def to_json(self) -> dict[str, Any]:
        """As canonical JSON takes it. Law: two identities have the same JSON only when they are equal."""
        return {
            "schema": 2,
            "onnx": self.onnx,
            "weights": dict(self.weights),
            "runtime": self.runtime,
            "tensorrt": self.tensorrt,
            "sm": self.sm,
            "driver": self.driver,
            "flags": sorted(self.flags),
            "profiles": [
                {name: [list(shape) for shape in shapes] for name, shapes in profile.items()}
                for profile in self.profiles
            ],
        }


def engine_key(identity: EngineIdentity) -> Digest:
    """Law: two identities share a key only when they are equal."""
    return Digest.of(canonical.encode(identity.to_json()))


def engine_name(identity: EngineIdentity) -> str:
    """The folder of its engine: readable in front, the whole key behind."""
    return f"trt{identity.tensorrt}-sm{identity.sm}-{engine_key(identity).hex}"


def timing_name(identity: EngineIdentity) -> str:
    """The folder of what TensorRT has timed: that holds for every model on this GPU, driver and TensorRT."""
    machine = {"tensorrt": identity.tensorrt, "sm": identity.sm, "driver": identity.driver}
    return f"timing-{Digest.of(canonical.encode(machine)).hex}"
