"""TensorRT as a recipe: an ONNX, and how to build an engine from it on the device that will run it.

Owns which TensorRT a JetPack has, which flags a graph needs there, the optimization profiles, the constants
that have to be widened, and the checks that everything up to the engine is right. The engine is built by the
device (``models.tensorrt_recipe``). Refuses graphs that TensorRT would read otherwise than ONNX Runtime
(operators of other runtimes, unsigned or shifted INT8, double precision, mixed types), profiles that do not
fit the inputs, and JetPacks that are not known.

Sources: https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html
(11.4.1 needs JetPack 7.2.2 on Jetson AGX Orin or Thor; JetPack 6 stays on 10.x) and
.../tensorrt-10x-to-11x.html (11.x is strongly typed only; FP16, INT8 and their like are gone);
https://github.com/onnx/onnx-tensorrt/issues/850 and https://github.com/microsoft/onnxruntime/issues/14229
(a bias in INT32 behind a DequantizeLinear is not read).
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compile.errors import BadRecipe, UnsupportedBase
from models.onnx import Value, read_model
from models.profiles import PROFILES
from models.store import digest_of
from models.tensorrt_key import ShapeRange
from models.tensorrt_recipe import MODEL_FILE, RECIPE_FILE, read_recipe

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

TO_BE_BUILT = "to-be-built-on-device"
UNTESTED = "untested"

Typing = Literal["strong", "weak"]
Profile = Mapping[str, ShapeRange]
Range = tuple[int, int, int]
"""The smallest, the best and the largest size of a dimension."""

_QDQ_COMPUTE = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_INT8, _INT32, _DOUBLE, _FP8, _INT4 = 3, 6, 11, 17, 22
_DEQUANTIZE = "DequantizeLinear"


@dataclass(frozen=True)
class Line:
    """A TensorRT line and where it is found. ``jetpack`` is the oldest JetPack with it, up to ``before``."""

    name: str
    major: int
    jetpack: tuple[int, int, int] | None
    before: tuple[int, int, int] | None
    devices: tuple[str, ...]
    weak: bool


_ORIN_AND_THOR = ("jetson-agx-orin", "jetson-thor")
LINES = (
    Line("10.x on JetPack 6", 10, (6, 0, 0), (7, 0, 0), ("jetson-orin-nano-8g", "jetson-agx-orin"), True),
    Line("10.x on JetPack 7", 10, (7, 0, 0), (7, 2, 2), ("jetson-orin-nano-8g", *_ORIN_AND_THOR), True),
    Line("11.x on JetPack 7", 11, (7, 2, 2), (8, 0, 0), _ORIN_AND_THOR, False),
    Line("10.x", 10, None, None, (), True),
    Line("11.x", 11, None, None, (), False),
)


def line_of(jetpack: str) -> Line:
    """The TensorRT line of a JetPack, ``6.2`` or ``7.2.2``. Raises ``BadRecipe`` for one not known."""
    if not re.fullmatch(r"\d+(\.\d+){1,2}", jetpack):
        raise BadRecipe(f"jetpack: {jetpack!r} is no version; 6.2 or 7.2.2 are")
    major, minor, patch = ([int(part) for part in jetpack.split(".")] + [0])[:3]
    version = (major, minor, patch)
    for line in LINES:
        if line.jetpack and line.before and line.jetpack <= version < line.before:
            return line
    raise BadRecipe(f"jetpack: {jetpack} is not known; known are 6.0 up to, but not, 8.0")


def devices_of(jetpacks: Sequence[str]) -> tuple[str, ...]:
    """The device profiles that have one of ``jetpacks``; of none, the GPUs that need no JetPack.

    Raises ``BadRecipe``.
    """
    if not jetpacks:
        return tuple(name for name, device in PROFILES.items() if device.kind == "gpu")
    return tuple(sorted({device for jetpack in jetpacks for device in line_of(jetpack).devices}))


@dataclass(frozen=True)
class QdqReport:
    """Which operators get their inputs from Q/DQ pairs, and which compute in float; counts of nodes."""

    quantized: Mapping[str, int]
    in_float: Mapping[str, int]


def qdq_report(model: "ModelProto") -> QdqReport:
    """See ``QdqReport``. Raises ``UnsupportedBase`` for Q/DQ that TensorRT does not take.

    TensorRT's INT8 is symmetric: signed, and with zero points of 0.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", _DEQUANTIZE):
            _check_zero_point(node, constants)
    quantized: Counter[str] = Counter()
    in_float: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type not in _QDQ_COMPUTE:
            continue
        fed = [_dequantizer(name, makers) for name in node.input[:2]]
        if all(fed):
            quantized[node.op_type] += 1
        else:
            in_float[node.op_type] += 1
    return QdqReport(dict(quantized), dict(in_float))


def check_graph(model: "ModelProto") -> Typing:
    """Whether TensorRT can take the graph, and how.

    ``strong``: every tensor has the type it is to be computed in, which is what 11.x wants: Q/DQ, or float16.
    ``weak``: float32 throughout, which a builder of 10.x may lower by flags and 11.x would compute as it is.

    Raises ``UnsupportedBase``.
    """
    import onnx

    foreign = sorted(
        {f"{node.domain}:{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    )
    if foreign:
        raise UnsupportedBase(f"TensorRT has no {', '.join(foreign[:5])}: export the model without them")
    dynamic = sorted(
        {node.op_type for node in model.graph.node}
        & {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul"}
    )
    if dynamic:
        raise UnsupportedBase(f"TensorRT has no {', '.join(dynamic)}: quantize statically, as Q/DQ")
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == _INT8}
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", _DEQUANTIZE) and stored & set(node.input):
            raise UnsupportedBase(
                f"{node.name}: INT8 that {node.op_type} reads; only a DequantizeLinear may, for TensorRT"
            )
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise UnsupportedBase(f"the graph's types do not agree: {str(error)[:500]}") from error
    types = Counter(tensor.data_type for tensor in inferred.graph.initializer)
    kinds = set(types) | {
        value.type.tensor_type.elem_type for value in (*inferred.graph.value_info, *inferred.graph.input)
    }
    if _DOUBLE in kinds:
        raise UnsupportedBase("the graph computes in double precision, which TensorRT does not have")
    lowered = any(kind in kinds for kind in (10, 16, _INT8, _FP8, _INT4))
    return "strong" if lowered else "weak"


def widen(model: "ModelProto") -> dict[str, str]:
    """Turn constants that TensorRT does not read into float32 of the same values; by name, what they were.

    Biases in INT32 behind a DequantizeLinear, and INT8 that something else than a DequantizeLinear reads
    (look-up tables and memory banks, which a Cast follows). Law: the graph computes what it did.
    """
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    widened: dict[str, str] = {}
    for node in [node for node in graph.node if node.op_type == _DEQUANTIZE]:
        stored = constants.get(node.input[0])
        if stored is not None and stored.data_type == _INT32 and len(stored.dims) < 2:
            zero = constants[node.input[2]] if len(node.input) > 2 and node.input[2] else None
            shift = 0 if zero is None else numpy_helper.to_array(zero)
            scale = numpy_helper.to_array(constants[node.input[1]])
            values = (numpy_helper.to_array(stored) - shift).astype(scale.dtype) * scale
            graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
            graph.node.remove(node)
            widened[stored.name] = "INT32"
    for name, tensor in constants.items():
        if tensor.data_type == _INT8 and readers.get(name, set()) & {"Gather", "Cast"} == readers.get(name):
            floats = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(floats, name))
            widened[name] = "INT8"
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    _forget_shapes(model)
    return widened


def profile_for(inputs: Sequence[Value], batch: Range, tokens: Range | None = None) -> Profile:
    """One profile: the first open dimension of every input is the batch, the second the tokens.

    Raises ``UnsupportedBase`` for an input with another open dimension.
    """
    sizes = {0: batch} if tokens is None else {0: batch, 1: tokens}

    def shapes(value: Value) -> ShapeRange:
        ranges = []
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int) and axis not in sizes:
                raise UnsupportedBase(f"{value.name}: no range is known for its open dimension {axis}")
            ranges.append((size, size, size) if isinstance(size, int) else sizes[axis])
        low, best, high = (tuple(one[which] for one in ranges) for which in range(3))
        return low, best, high

    return {value.name: shapes(value) for value in inputs}


def check_profiles(profiles: Sequence[Profile], inputs: Sequence[Value]) -> None:
    """Every profile gives every input three shapes that fit it and each other. Raises ``BadRecipe``."""
    if not profiles:
        raise BadRecipe("profiles: at least one is needed; an engine is built for ranges of shapes")
    known = {value.name: value for value in inputs}
    for number, profile in enumerate(profiles):
        at = f"profiles[{number}]"
        if missing := sorted(set(known) - set(profile)):
            raise BadRecipe(f"{at}: the input {missing[0]!r} is missing")
        if unknown := sorted(set(profile) - set(known)):
            raise BadRecipe(f"{at}: the model has no input {unknown[0]!r}; it has {', '.join(sorted(known))}")
        symbols: dict[tuple[str, int], int] = {}
        for name, shapes in profile.items():
            declared = known[name].shape
            if any(len(shape) != len(declared) for shape in shapes):
                raise BadRecipe(f"{at}.{name}: the input has {len(declared)} dimensions")
            for axis, size in enumerate(declared):
                low, best, high = (shape[axis] for shape in shapes)
                if not 1 <= low <= best <= high:
                    raise BadRecipe(
                        f"{at}.{name}: dimension {axis}: min <= opt <= max, not {low}, {best}, {high}"
                    )
                if isinstance(size, int) and not low == best == high == size:
                    raise BadRecipe(f"{at}.{name}: dimension {axis} is always {size}")
                for which, value in enumerate((low, best, high)):
                    if isinstance(size, str) and symbols.setdefault((size, which), value) != value:
                        raise BadRecipe(
                            f"{at}.{name}: dimension {axis} is {size!r}, which another input has at "
                            f"{symbols[size, which]}, not {value}"
                        )


@dataclass(frozen=True)
class BuildPlan:
    """How one line builds the engine: flags of the network, flags of the builder."""

    line: str
    tensorrt_major: int
    jetpack: str | None
    network_flags: tuple[str, ...]
    builder_flags: tuple[str, ...]


def build_plan(line: Line, typing: Typing, jetpack: str | None = None) -> BuildPlan:
    """Flags for a line. Raises ``BadRecipe`` where the line cannot take such a graph."""
    if line.weak:
        if typing == "strong":
            return BuildPlan(line.name, line.major, jetpack, ("STRONGLY_TYPED",), ())
        return BuildPlan(line.name, line.major, jetpack, (), ("FP16",))
    if typing == "weak":
        raise BadRecipe(
            f"{line.name} computes a graph in the types it has: this one would run in float32. Quantize it "
            "as Q/DQ, or convert it to float16"
        )
    return BuildPlan(line.name, line.major, jetpack, (), ())


def write_recipe(
    model: Path,
    jetpacks: Sequence[str],
    profiles: Sequence[Profile],
    target: Path,
    device: str | None = None,
    as_typed: bool = False,
) -> dict[str, Any]:
    """Write the files of a ``tensorrt-recipe`` release into ``target``; returns what ``tensorrt.json`` says.

    ``jetpacks``: those of the devices it is for; none means any GPU, and both lines of TensorRT that take the
    graph. ``as_typed``: a float32 graph is computed in float32, which is what was measured, instead of in
    what a builder likes. Raises ``UnsafeFile``, ``UnsupportedBase``, ``BadRecipe``.
    """
    import shutil

    import onnx

    from compile.onnx.files import write_model

    described = read_model(model)
    graph = onnx.load(model)
    widened = widen(graph)
    typing, report = check_graph(graph), qdq_report(graph)
    if as_typed:
        typing = "strong"
    check_profiles(profiles, described.inputs)
    plans = []
    for jetpack in jetpacks:
        line = line_of(jetpack)
        if device is not None and line.devices and device not in line.devices:
            raise BadRecipe(f"jetpack: {line.name} is not for {device}, only for {', '.join(line.devices)}")
        plans.append(build_plan(line, typing, jetpack))
    if not jetpacks:
        anywhere = [line for line in LINES if line.jetpack is None and (line.weak or typing == "strong")]
        plans = [build_plan(line, typing) for line in anywhere]
    target.mkdir(parents=True, exist_ok=True)
    if widened:
        write_model(graph, target / MODEL_FILE)
    else:
        for source, name in ((model, MODEL_FILE), *((model.parent / one, one) for one in described.files)):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / name)
    written = read_model(target / MODEL_FILE)
    recipe = {
        "schema": 1,
        "state": TO_BE_BUILT,
        "tested": UNTESTED,
        "onnx": {"path": MODEL_FILE, "sha256": digest_of(target / MODEL_FILE)},
        "weights": {name: digest_of(target / name) for name in written.files},
        "typing": typing,
        "widened": widened,
        "qdq": {"quantized": dict(report.quantized), "in_float": dict(report.in_float)},
        "plans": [
            vars(plan)
            | {"network_flags": list(plan.network_flags), "builder_flags": list(plan.builder_flags)}
            for plan in plans
        ],
        "profiles": [
            {name: [list(shape) for shape in shapes] for name, shapes in profile.items()}
            for profile in profiles
        ],
    }
    data = json.dumps(recipe, indent=1, sort_keys=True).encode()
    read_recipe(data)  # as the device will
    (target / RECIPE_FILE).write_bytes(data)
    return recipe


def _dequantizer(name: str, makers: "Mapping[str, NodeProto]") -> "NodeProto | None":
    """The DequantizeLinear that a value comes from, past what only moves it."""
    maker = makers.get(name)
    while maker is not None and maker.op_type in ("Transpose", "Reshape", "Identity"):
        maker = makers.get(maker.input[0])
    return maker if maker is not None and maker.op_type == _DEQUANTIZE else None


def _forget_shapes(model: "ModelProto") -> None:
    """Types that were inferred before no longer hold; those of inputs and outputs do."""
    names = {value.name for value in (*model.graph.input, *model.graph.output)}
    kept = [value for value in model.graph.value_info if value.name in names]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def _check_zero_point(node: "NodeProto", constants: Mapping[str, Any]) -> None:
    from onnx import numpy_helper

    if len(node.input) < 3 or not node.input[2]:
        if node.op_type == "QuantizeLinear":
            raise UnsupportedBase(f"{node.name}: without a zero point it quantizes to unsigned INT8")
        return
    zero = constants.get(node.input[2])
    if zero is None:
        raise UnsupportedBase(f"{node.name}: its zero point is computed; TensorRT wants a constant")
    stored = constants.get(node.input[0])
    if stored is not None and stored.data_type == _INT32:
        raise UnsupportedBase(f"{node.name}: a constant in INT32, which TensorRT does not dequantize")
    if zero.data_type not in (_INT8, _FP8, _INT4):
        raise UnsupportedBase(f"{node.name}: unsigned INT8; TensorRT's is signed")
    if zero.data_type == _INT8 and numpy_helper.to_array(zero).any():
        raise UnsupportedBase(f"{node.name}: INT8 with a zero point that is not 0; TensorRT's is symmetric")
