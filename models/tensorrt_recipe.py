"""How a device builds the TensorRT engine of a release: what ``tensorrt.json`` asks for, on one machine.

Owns which plan a machine follows, the identity of the engine that comes of it, and the options by which ONNX
Runtime's TensorRT provider builds exactly that. Refuses what the provider would build otherwise than the
recipe says. Pure.

Source of the options: onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html. The provider
makes a network strongly typed where neither FP16 nor INT8 is enabled
(onnxruntime/core/providers/tensorrt/tensorrt_execution_provider.cc).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.digest import Digest
from models.errors import EngineError, ModelsError, UnsafeFile
from models.tensorrt_key import EngineIdentity, Shape, ShapeRange

RECIPE_FILE = "tensorrt.json"
MODEL_FILE = "model.onnx"
MAX_RECIPE = 4 << 20
"""Bytes; what was widened of a large graph is some hundred KB."""

ANY_SIZE = (1, 2**31 - 1)
_STRONG = "STRONGLY_TYPED"
_ENABLED_BY = {"FP16": "trt_fp16_enable", "INT8": "trt_int8_enable"}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Plan(_Part):
    """How one line of TensorRT builds the engine: flags of the network, flags of the builder."""

    line: str
    tensorrt_major: int
    network_flags: tuple[str, ...]
    builder_flags: tuple[str, ...]


class _Graph(_Part):
    path: Literal["model.onnx"]
    sha256: Digest


class Recipe(_Part):
    """What a release of format ``tensorrt-recipe`` says of its engine. Made by ``read_recipe``."""

    schema_: Literal[1] = Field(alias="schema")
    onnx: _Graph
    weights: Mapping[str, Digest]
    plans: tuple[Plan, ...]
    profiles: tuple[Mapping[str, ShapeRange], ...] = Field(min_length=1, max_length=1)

    def plan_for(self, tensorrt: str) -> Plan:
        """What a machine with this TensorRT follows. Raises ``EngineError`` where the recipe has none."""
        for plan in self.plans:
            if plan.tensorrt_major == int(tensorrt.split(".")[0]):
                return plan
        known = ", ".join(sorted({plan.line for plan in self.plans}))
        raise EngineError(f"the recipe is for TensorRT {known}; here is TensorRT {tensorrt}")

    def sizes(self, axis: int) -> tuple[int, int]:
        """The smallest and the largest size of a dimension that every input takes: 0 rows, 1 tokens."""
        ranges = [(low[axis], high[axis]) for low, _, high in self.profiles[0].values() if axis < len(low)]
        return max((low for low, _ in ranges), default=1), min((high for _, high in ranges), default=1)


@dataclass(frozen=True)
class TensorRtMachine:
    """What engines are built with, and on: versions of ONNX Runtime, TensorRT and the driver, and the GPU.

    ``sm``: compute capability without its dot. ``memory_bytes``: the GPU's.
    """

    runtime: str
    tensorrt: str
    sm: int
    driver: str
    memory_bytes: int


def read_recipe(data: bytes) -> Recipe:
    """The recipe in the bytes of ``tensorrt.json``. Raises ``UnsafeFile``."""
    if len(data) > MAX_RECIPE:
        raise UnsafeFile(f"{RECIPE_FILE}: more than {MAX_RECIPE} bytes")
    try:
        recipe = Recipe.model_validate_json(data)
    except (ValidationError, ModelsError) as error:
        raise UnsafeFile(f"{RECIPE_FILE}: {str(error)[:300]}") from error
    for name, shapes in recipe.profiles[0].items():
        ordered = all(1 <= low <= best <= high for low, best, high in zip(*shapes, strict=False))
        if not ordered or len({len(shape) for shape in shapes}) != 1 or not name or {":", ","} & set(name):
            raise UnsafeFile(f"{RECIPE_FILE}: {name!r:.80} has no three shapes, smallest to largest")
    return recipe


def identity_of(
    recipe: Recipe, machine: TensorRtMachine, onnx: Digest, weights: Mapping[str, Digest]
) -> EngineIdentity:
    """What the recipe's engine depends on, on one machine. ``onnx``, ``weights``: of the files there are.

    Raises ``UnsafeFile`` when they are not those of the recipe, ``EngineError`` when it has no plan for the
    machine.
    """
    if onnx != recipe.onnx.sha256 or dict(weights) != dict(recipe.weights):
        raise UnsafeFile(f"{MODEL_FILE} is not the graph that {RECIPE_FILE} was made for")
    plan = recipe.plan_for(machine.tensorrt)
    return EngineIdentity(
        onnx=onnx,
        weights=dict(weights),
        runtime=machine.runtime,
        tensorrt=machine.tensorrt,
        sm=machine.sm,
        driver=machine.driver,
        flags=frozenset([*plan.network_flags, *plan.builder_flags]),
        profiles=recipe.profiles,
    )


def provider_options(identity: EngineIdentity, folder: Path) -> dict[str, str]:
    """Options of ONNX Runtime's TensorRT provider; it keeps in ``folder`` what it builds.

    Raises ``EngineError`` for flags that the provider has no option for.
    """
    enabled = identity.flags - {_STRONG}
    if unknown := sorted(enabled - _ENABLED_BY.keys()):
        raise EngineError(f"ONNX Runtime's TensorRT provider has no option for {', '.join(unknown)}")
    # 11.x knows no other networks than strongly typed ones, and says so without a flag.
    strong = _STRONG in identity.flags or int(identity.tensorrt.split(".")[0]) >= 11
    if strong == bool(enabled):
        raise EngineError(
            f"ONNX Runtime builds a network strongly typed, or with FP16 or INT8, and the recipe asks for "
            f"{', '.join(sorted(identity.flags)) or 'neither'}"
        )
    (profile,) = identity.profiles
    shapes = {
        f"trt_profile_{which}_shapes": ",".join(
            f"{name}:{_text(profile[name][at])}" for name in sorted(profile)
        )
        for at, which in enumerate(("min", "opt", "max"))
    }
    precision = {option: str(flag in enabled) for flag, option in _ENABLED_BY.items()}
    cache = {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
    }
    return {"device_id": "0", **precision, **shapes, **cache}


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))
