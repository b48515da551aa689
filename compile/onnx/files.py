"""ONNX files as a build handles them: opened after a check, written whole, asked what they weigh.

Owns the names of a model's files, which nodes carry weights, and the fallback ledger: which of them did not
get the precision that was asked for. onnxruntime's quantizers log what they skip and carry on, so the ledger
is read from what they wrote. Refuses, through ``models.onnx``, weights outside the model's folder.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.errors import ToolFailed
from models.manifest import Fallback
from models.onnx import read_model

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

MODEL = "model.onnx"
INLINE_LIMIT = 1_500_000_000
"""Bytes of weights from which on they lie in a file of their own; protobuf ends at 2 GiB."""

MATRICES = ("MatMul", "Gemm", "Conv", "ConvTranspose")
TABLE = "Gather"
_PASSES_ON = ("Transpose", "Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze")
_BITS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


@dataclass(frozen=True)
class Weighted:
    """A node that multiplies by, or looks up in, a constant. ``bytes`` are those of the constant in float."""

    node: str
    op: str
    tensor: str
    shape: tuple[int, ...]
    bytes: int


def open_model(path: Path) -> "ModelProto":
    """The whole model in memory. Raises ``UnsafeFile`` for what may not be loaded."""
    import onnx

    read_model(path)
    return onnx.load(path)


def write_model(model: "ModelProto", target: Path, inline_limit: int = INLINE_LIMIT) -> None:
    """Write ``model``; weights of more than ``inline_limit`` bytes go to a file ``.data`` beside it."""
    import onnx
    from onnx.external_data_helper import convert_model_to_external_data

    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights > inline_limit:
        convert_model_to_external_data(model, location=external_name(target), size_threshold=1024)
    onnx.save_model(model, target)


def is_large(path: Path) -> bool:
    """Whether the model at ``path`` is too large for one file. Raises ``UnsafeFile``."""
    return size_of(path) > INLINE_LIMIT


def external_name(model: Path) -> str:
    """The file beside ``model`` that holds its weights, where they are too large for itself."""
    return f"{model.name}.data"


def files_of(path: Path) -> dict[str, Path]:
    """Every file of the model at ``path``, by its name in a release. Raises ``UnsafeFile``."""
    return {MODEL: path} | {name: path.parent / name for name in read_model(path).files}


def size_of(path: Path) -> int:
    """Bytes of a model with all its weights."""
    return sum(file.stat().st_size for file in files_of(path).values())


def weighted(model: "ModelProto") -> list[Weighted]:
    """The nodes of ``model`` whose weights a quantizer is asked to shrink, in graph order."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = _producers(graph)
    found = []
    for node in graph.node:
        tensor = _float_constant(node, producers, constants)
        if tensor is not None:
            shape = tuple(tensor.dims)
            found.append(Weighted(node.name, node.op_type, tensor.name, shape, _float_bytes(tensor)))
    return found


def between_activations(model: "ModelProto") -> list[str]:
    """The products of two activations, as attention has them, by name."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and not any(name in constants for name in node.input)
    ]


def ledger(path: Path, asked: str, activations: bool = False) -> tuple[Fallback, ...]:
    """What in the quantized model at ``path`` is not at the precision ``asked`` (``INT8``, ``INT4``).

    Weights of matrices, convolutions and look-up tables that are still float; with ``activations``, also
    products of activations that do not take quantized inputs. Those kept in float on purpose are listed too:
    the device gets what the file holds, whatever the reason.
    """
    import onnx

    read_model(path)
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = _producers(graph)
    found = []
    for node in graph.node:
        tensor = _float_constant(node, producers, constants)
        if tensor is not None:
            found.append(Fallback(tensor=tensor.name, asked=asked, got=_precision(tensor)))
        elif asked == "INT4" and _is_wide(node, constants):
            found.append(Fallback(tensor=_wide_name(node), asked=asked, got="INT8"))
        elif activations and node.op_type == "MatMul":
            float_inputs = [name for name in node.input if not _is_quantized(name, producers)]
            if float_inputs:
                found.append(Fallback(tensor=node.name, asked=asked, got="F32"))
    return tuple(found)


def kernels(path: Path, scratch: Path) -> dict[str, int]:
    """How often each operator runs once onnxruntime has fused the graph: what the file asks for is not always
    what is executed."""
    import onnx
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(scratch / "fused.onnx")
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (Fail, InvalidArgument, InvalidGraph) as error:
        raise ToolFailed(f"{path.name}: onnxruntime does not load it: {error}") from error
    fused = onnx.load(scratch / "fused.onnx", load_external_data=False)
    (scratch / "fused.onnx").unlink()
    counts: dict[str, int] = {}
    for node in fused.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))


def nodes_of(path: Path) -> Iterator["NodeProto"]:
    """The nodes of a checked model, without its weights."""
    import onnx

    read_model(path)
    yield from onnx.load(path, load_external_data=False).graph.node


def check_names(path: Path, wanted: Collection[str]) -> None:
    """Raises ``ToolFailed`` when a node that is to stay in float is not in the model: a renamed node would be
    quantized without a word."""
    missing = set(wanted) - {node.name for node in nodes_of(path)}
    if missing:
        raise ToolFailed(f"{path.name} has no nodes {sorted(missing)[:5]}")


def _producers(graph: "GraphProto") -> dict[str, "NodeProto"]:
    return {name: node for node in graph.node for name in node.output}


def _float_constant(node: "NodeProto", producers: dict[str, "NodeProto"], constants: dict[str, Any]) -> Any:
    """The float constant of two or more dimensions that ``node`` takes, or None."""
    if node.op_type in MATRICES:
        names = node.input[:2]
    elif node.op_type == TABLE:
        names = node.input[:1]
    else:
        return None
    for name in names:
        at = name
        while at in producers and producers[at].op_type in _PASSES_ON:
            at = producers[at].input[0]
        tensor = constants.get(at)
        if tensor is not None and len(tensor.dims) > 1 and _precision(tensor) in _BITS.values():
            return tensor
    return None


def _precision(tensor: Any) -> str:
    from onnx import TensorProto

    name = {
        TensorProto.FLOAT: "float32",
        TensorProto.FLOAT16: "float16",
        TensorProto.BFLOAT16: "bfloat16",
        TensorProto.DOUBLE: "float64",
    }.get(tensor.data_type, "")
    return _BITS.get(name, "INT")


def _float_bytes(tensor: Any) -> int:
    elements = 1
    for size in tensor.dims:
        elements *= size
    return elements * 4


def _is_quantized(name: str, producers: dict[str, "NodeProto"]) -> bool:
    at = name
    while at in producers and producers[at].op_type in _PASSES_ON:
        at = producers[at].input[0]
    return at in producers and producers[at].op_type == "DequantizeLinear"


def _is_wide(node: "NodeProto", constants: dict[str, Any]) -> bool:
    """Whether ``node`` works in 8 bits where 4 were asked for."""
    from onnx import TensorProto

    if node.op_type == "MatMulNBits":
        return any(attribute.name == "bits" and attribute.i == 8 for attribute in node.attribute)
    if node.op_type == TABLE:
        tensor = constants.get(node.input[0])
        return (
            tensor is not None
            and len(tensor.dims) > 1
            and tensor.data_type in (TensorProto.INT8, TensorProto.UINT8)
        )
    return False


def _wide_name(node: "NodeProto") -> str:
    return str(node.input[1] if node.op_type == "MatMulNBits" else node.input[0])
