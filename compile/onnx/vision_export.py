"""EfficientNet-lite from ``config.json`` and safetensors to ONNX, node by node.

Owns the architecture (Tan and Le, arXiv:1905.11946, in the lite variant of TensorFlow's TPU repository: no
squeeze-and-excitation, ReLU6 for swish, stem and head of fixed width), the map from the weights' names to
nodes, and the classifier graph. Optimum exports what transformers and timm know; transformers has no lite
variant (its EfficientNet always squeezes), and tracing a torch module of our own would leave a Pad node
before every strided convolution and batch norms to fold. Written directly, each convolution carries its batch
norm and its one-sided TensorFlow padding, which is what the quantizer and the engines fuse best; nothing here
needs torch. Refuses an unknown architecture, and weights that are missing, left over or of another shape.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compile.errors import UnsupportedBase
from models.errors import UnsafeFile
from models.safetensors import read_header

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

    Weights = Mapping[str, npt.NDArray[np.float32]]

CONFIG_FILE = "config.json"
OPSET = 17
"""Has everything used here, and is read by ONNX Runtime and by TensorRT from 8.6 on."""
IR_VERSION = 8
INPUT = "image"
LOGITS = "logits"

_EPSILON = 1e-3
_STEM, _HEAD = 32, 1280
_WIDTH_DEPTH = {
    "efficientnet-lite0": (1.0, 1.0),
    "efficientnet-lite1": (1.0, 1.1),
    "efficientnet-lite2": (1.1, 1.2),
    "efficientnet-lite3": (1.2, 1.4),
    "efficientnet-lite4": (1.4, 1.8),
}
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Repeats, kernel, stride, expansion and channels of the seven stages, before scaling."""


class VisionConfig(BaseModel):
    """``config.json`` beside the weights. ``mean`` and ``std`` are per channel, of pixels in [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    architecture: Literal[
        "efficientnet-lite0",
        "efficientnet-lite1",
        "efficientnet-lite2",
        "efficientnet-lite3",
        "efficientnet-lite4",
    ]
    image_size: int = Field(ge=32, le=4096)
    classes: int = Field(ge=1)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    license: str = ""


@dataclass(frozen=True)
class Block:
    """One inverted residual: channels in and out, kernel, stride, expansion; ``stage`` counts from 1."""

    stage: int
    inputs: int
    outputs: int
    kernel: int
    stride: int
    expansion: int


@dataclass
class Graph:
    """An ONNX graph while it is written. Every value has the name of the node that makes it."""

    nodes: list["onnx.NodeProto"] = field(default_factory=list)
    constants: list["onnx.TensorProto"] = field(default_factory=list)

    def add(self, operator: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Append a node with one output; returns the output's name."""
        from onnx import helper

        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: "npt.NDArray[Any]") -> str:
        """Append an initializer; returns its name."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def model(
        self,
        name: str,
        inputs: Sequence["onnx.ValueInfoProto"],
        outputs: Sequence["onnx.ValueInfoProto"],
        opsets: "Sequence[onnx.OperatorSetIdProto]" = (),
    ) -> "onnx.ModelProto":
        """The finished model, checked, shapes inferred, without what no output needs.

        The same graph always gives the same bytes.
        """
        import onnx
        from onnx import helper

        needed, nodes = {output.name for output in outputs}, []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                nodes.append(node)
        constants = [tensor for tensor in self.constants if tensor.name in needed]
        graph = helper.make_graph(nodes[::-1], name, list(inputs), list(outputs), constants)
        wanted = list(opsets) or [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=wanted, ir_version=IR_VERSION, producer_name="outpost")
        onnx.checker.check_model(model, full_check=True)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def read_config(folder: Path) -> VisionConfig:
    """The folder's ``config.json``. Raises ``UnsupportedBase`` for one that is missing or not of ours."""
    try:
        document = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        return VisionConfig.model_validate(document)
    except (OSError, ValueError) as error:
        reason = error.errors()[0] if isinstance(error, ValidationError) else None
        where = ".".join(str(part) for part in reason["loc"]) + ": " + reason["msg"] if reason else str(error)
        raise UnsupportedBase(f"{folder / CONFIG_FILE}: {where}") from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder. Raises ``UnsupportedBase`` when there are none."""
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        others = ", ".join(sorted(path.name for path in folder.glob("*"))[:5])
        raise UnsupportedBase(f"{folder}: no safetensors ({others}); no .pth, .pt or .bin is opened")
    return found


def read_weights(folder: Path) -> dict[str, "npt.NDArray[np.float32]"]:
    """All tensors of the folder by name, as float32. Raises ``UnsafeFile`` for a file that is not sound."""
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    weights: dict[str, npt.NDArray[np.float32]] = {}
    for path in weight_files(folder):
        read_header(path)
        try:
            weights |= {name: value.astype(np.float32) for name, value in load_file(path).items()}
        except (SafetensorError, OSError) as error:
            raise UnsafeFile(f"{path}: not sound safetensors: {error}") from error
    return weights


def blocks(architecture: str) -> list[Block]:
    """The inverted residual blocks in order."""
    width, depth = _WIDTH_DEPTH[architecture]
    result, before = [], _STEM
    for number, (repeats, kernel, stride, expansion, channels) in enumerate(_STAGES, 1):
        outputs = _rounded(channels * width)
        last = len(_STAGES)
        count = repeats if number in (1, last) else math.ceil(repeats * depth)
        for at in range(count):
            result.append(Block(number, before, outputs, kernel, stride if at == 0 else 1, expansion))
            before = outputs
    return result


def add_backbone(
    graph: Graph, weights: "Weights", config: VisionConfig, width: int, height: int, stages: Sequence[int]
) -> dict[int, str]:
    """Add stem and blocks up to the deepest of ``stages``; the value after each of them, by stage.

    The graph's ``image`` is [n, 3, height, width], normalised. Raises ``UnsupportedBase`` for weights that do
    not fit the architecture.
    """
    reader = _Reader(weights, config.architecture)
    size = (height, width)
    value = _convolution(graph, reader, INPUT, "stem", "_conv_stem", "_bn0", (_STEM, 3, 3, 3), 2, size)
    size, taps = _half(size), {}
    table = blocks(config.architecture)
    for index, block in enumerate(table):
        if block.stage > max(stages):
            break
        value = _block(graph, reader, value, block, index, size)
        size = _half(size) if block.stride == 2 else size
        last = index + 1 == len(table) or table[index + 1].stage != block.stage
        if last and block.stage in stages:
            taps[block.stage] = value
    return taps


def texture(architecture: str, stage: int) -> tuple[str, int]:
    """The value in the graph that shows a stage's textures, and how many channels it has.

    That is the next block's expanded activation. A block's own output is linear, and a linear filter's
    answer to a fine pattern averages out over a neighbourhood; past a ReLU it does not.
    """
    table = blocks(architecture)
    index = next(index for index, block in enumerate(table) if block.stage == stage + 1)
    return f"block{index}.expand.relu6", table[index].inputs * table[index].expansion


def classifier(
    weights: "Weights",
    config: VisionConfig,
    width: int,
    height: int,
    head: "tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None" = None,
) -> "onnx.ModelProto":
    """``image`` [n, 3, height, width] to ``logits`` [n, classes].

    ``head``: a weight [classes, 1280] and a bias [classes] in place of the stored classifier's.
    """
    graph = Graph()
    pooled = add_pooled(graph, weights, config, width, height)
    reader = _Reader(weights, config.architecture)
    if head is None:
        head = reader.take("_fc.weight", (config.classes, _HEAD)), reader.take("_fc.bias", (config.classes,))
    names = graph.constant("classifier.weight", head[0]), graph.constant("classifier.bias", head[1])
    graph.add("Gemm", LOGITS, [pooled, *names], transB=1)
    return graph.model(
        config.architecture, [image_input(width, height)], [float_output(LOGITS, ["n", len(head[1])])]
    )


def features(weights: "Weights", config: VisionConfig, width: int, height: int) -> "onnx.ModelProto":
    """``image`` to ``features`` [n, 1280]: what the classifier sees."""
    graph = Graph()
    pooled = add_pooled(graph, weights, config, width, height)
    graph.add("Identity", "features", [pooled])
    return graph.model(
        config.architecture, [image_input(width, height)], [float_output("features", ["n", _HEAD])]
    )


def add_pooled(graph: Graph, weights: "Weights", config: VisionConfig, width: int, height: int) -> str:
    """Add the whole backbone, its head convolution and the mean over all places."""
    table = blocks(config.architecture)
    last = add_backbone(graph, weights, config, width, height, [table[-1].stage])[table[-1].stage]
    reader, shape = _Reader(weights, config.architecture), (_HEAD, table[-1].outputs, 1, 1)
    value = _convolution(graph, reader, last, "head", "_conv_head", "_bn1", shape, 1, (height, width))
    value = graph.add("GlobalAveragePool", "pooled", [value])
    return graph.add("Flatten", "pooled_flat", [value])


def image_input(width: int, height: int) -> "onnx.ValueInfoProto":
    """The graph's input: a batch of normalised images."""
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", 3, height, width])


def float_output(name: str, shape: Sequence[int | str]) -> "onnx.ValueInfoProto":
    """An output of float32."""
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


class _Reader:
    """Weights by name, with their shapes checked as they are taken."""

    def __init__(self, weights: "Weights", architecture: str) -> None:
        self._weights = weights
        self._architecture = architecture

    def take(self, name: str, shape: tuple[int, ...]) -> "npt.NDArray[np.float32]":
        value = self._weights.get(name)
        if value is None or value.shape != shape:
            found = "missing" if value is None else f"has shape {list(value.shape)}"
            raise UnsupportedBase(f"{self._architecture}: the tensor {name} {found}; {list(shape)} is needed")
        return value

    def folded(
        self, convolution: str, norm: str, shape: tuple[int, ...]
    ) -> "tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]":
        """A convolution's weight and bias with the batch norm behind it folded in, computed in float64."""
        import numpy as np

        channels = (shape[0],)
        weight = self.take(f"{convolution}.weight", shape).astype(np.float64)
        scale, shift, mean, variance = (
            self.take(f"{norm}.{part}", channels).astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = scale / np.sqrt(variance + _EPSILON)
        bias = shift - mean * factor
        return (weight * factor[:, None, None, None]).astype(np.float32), bias.astype(np.float32)


def _block(graph: Graph, reader: _Reader, value: str, block: Block, index: int, size: tuple[int, int]) -> str:
    name, before = f"block{index}", value
    prefix, wide = f"_blocks.{index}", block.inputs * block.expansion
    if block.expansion != 1:
        shape = (wide, block.inputs, 1, 1)
        parts = f"{prefix}._expand_conv", f"{prefix}._bn0"
        value = _convolution(graph, reader, value, f"{name}.expand", *parts, shape, 1, size)
    shape = (wide, 1, block.kernel, block.kernel)
    parts = f"{prefix}._depthwise_conv", f"{prefix}._bn1"
    value = _convolution(graph, reader, value, f"{name}.depthwise", *parts, shape, block.stride, size, wide)
    shape = (block.outputs, wide, 1, 1)
    parts = f"{prefix}._project_conv", f"{prefix}._bn2"
    value = _convolution(graph, reader, value, f"{name}.project", *parts, shape, 1, size, active=False)
    if block.stride == 1 and block.inputs == block.outputs:
        value = graph.add("Add", f"{name}.sum", [before, value])
    return value


def _convolution(
    graph: Graph,
    reader: _Reader,
    value: str,
    name: str,
    convolution: str,
    norm: str,
    shape: tuple[int, int, int, int],
    stride: int,
    size: tuple[int, int],
    group: int = 1,
    active: bool = True,
) -> str:
    weight, bias = reader.folded(convolution, norm, shape)
    inputs = [value, graph.constant(f"{name}.weight", weight), graph.constant(f"{name}.bias", bias)]
    kernel = shape[2]
    begin, end = zip(*(_same(length, kernel, stride) for length in size), strict=True)
    value = graph.add(
        "Conv",
        name,
        inputs,
        kernel_shape=[kernel, kernel],
        strides=[stride, stride],
        pads=[*begin, *end],
        group=group,
    )
    return _relu6(graph, value) if active else value


def _relu6(graph: Graph, value: str) -> str:
    import numpy as np

    if not any(tensor.name == "relu6.low" for tensor in graph.constants):
        graph.constant("relu6.low", np.array(0, np.float32))
        graph.constant("relu6.high", np.array(6, np.float32))
    return graph.add("Clip", f"{value}.relu6", [value, "relu6.low", "relu6.high"])


def _same(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one side: the odd pixel comes after."""
    total = max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


def _half(size: tuple[int, int]) -> tuple[int, int]:
    return math.ceil(size[0] / 2), math.ceil(size[1] / 2)


def _rounded(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of eight that is not more than a tenth below."""
    whole = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return whole + divisor if whole < 0.9 * channels else whole
