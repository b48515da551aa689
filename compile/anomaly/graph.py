"""The whole anomaly model as one ONNX graph: backbone, memory banks, score and heat map.

Owns how distances and scores are computed on the device. The backbone comes as it is, in float or quantized;
what is added computes in float32. Outputs are what ``models.engines.onnx_vision`` reads: ``score`` [n] and
``heat_map`` [n, rows, columns]. About 1 is what one in twenty good parts is above that no bank has seen.
"""

from typing import TYPE_CHECKING

from compile.anomaly.bank import Bank, to_int8
from compile.anomaly.features import PATCHES, WHOLE, Grid
from compile.onnx.vision_export import Graph, float_output

if TYPE_CHECKING:
    import onnx

SCORE, HEAT_MAP = "score", "heat_map"


def assemble(
    features: "onnx.ModelProto", grid: Grid, patches: Bank, whole: Bank | None, small: bool = False
) -> "onnx.ModelProto":
    """``features`` (see ``feature_graph``) with what makes a verdict of them; ``small`` banks lie in INT8."""
    import numpy as np

    graph = Graph(list(features.graph.node), list(features.graph.initializer))
    own, distances = _nearest(graph, "patch", PATCHES, patches, small)
    score = _scaled(graph, "patch", own, patches)
    heat = _scaled(graph, "patch.map", distances, patches)
    if whole is not None:
        one = graph.constant("whole.one", np.array([1], np.int64))
        alone = graph.add("Unsqueeze", "whole.patch", [WHOLE, one])
        across, _ = _nearest(graph, "whole", alone, whole, small)
        across = _scaled(graph, "whole", across, whole)
        score = graph.add("Max", "either", [score, across])
        heat = graph.add("Max", "either.map", [heat, graph.add("Unsqueeze", "whole.map", [across, one])])
    graph.add("Identity", SCORE, [score])
    shape = graph.constant("heat_map.shape", np.array([-1, 1, grid.rows, grid.columns], np.int64))
    placed = graph.add("Reshape", "heat_map.inner", [heat, shape])
    # The outermost places are not looked at; they are shown as what is next to them.
    around = [0, 0, grid.border, grid.border]
    pads = graph.constant("heat_map.pads", np.array(around + around, np.int64))
    padded = graph.add("Pad", "heat_map.padded", [placed, pads], mode="edge")
    across = graph.constant("heat_map.axis", np.array([1], np.int64))
    graph.add("Squeeze", HEAT_MAP, [padded, across])
    size = [grid.rows + 2 * grid.border, grid.columns + 2 * grid.border]
    outputs = [float_output(SCORE, ["n"]), float_output(HEAT_MAP, ["n", *size])]
    return graph.model("anomaly", list(features.graph.input), outputs, list(features.opset_import))


def _scaled(graph: Graph, name: str, value: str, bank: Bank) -> str:
    import numpy as np

    factor = graph.constant(f"{name}.factor", np.array(bank.factor, np.float32))
    offset = graph.constant(f"{name}.offset", np.array(bank.offset, np.float32))
    return graph.add("Add", f"{name}.scaled", [graph.add("Mul", f"{name}.sized", [value, factor]), offset])


def _nearest(graph: Graph, name: str, value: str, bank: Bank, small: bool) -> tuple[str, str]:
    """Score [n] and distances [n, patches] of ``value`` [n, patches, width]; see ``bank.score``."""
    import numpy as np

    points = bank.points.astype(np.float32)
    mean = graph.constant(f"{name}.mean", bank.space.mean)
    directions = graph.constant(f"{name}.directions", bank.space.directions)
    if small:
        stored, scales = to_int8(points)
        rows = graph.constant(f"{name}.bank.int8", np.ascontiguousarray(stored.T))
        doubles = graph.constant(f"{name}.bank.scales", -2 * scales)
        # Not DequantizeLinear: onnxruntime would multiply in INT8, and distances are differences of squares.
        floats = graph.add("Cast", f"{name}.bank.float", [rows], to=1)
        doubled = graph.add("Mul", f"{name}.bank", [floats, doubles])
    else:
        doubled = graph.constant(f"{name}.bank", np.ascontiguousarray(-2 * points.T))
    lengths = graph.constant(f"{name}.bank.squares", (points**2).sum(axis=1))
    zero = graph.constant(f"{name}.zero", np.array(0, np.float32))
    last = graph.constant(f"{name}.last", np.array([-1], np.int64))
    centred = graph.add("Sub", f"{name}.centred", [value, mean])
    inside = graph.add("MatMul", f"{name}.inside", [centred, directions])
    squared = graph.add("Mul", f"{name}.squared", [inside, inside])
    squares = graph.add("ReduceSum", f"{name}.squares", [squared, last], keepdims=1)
    products = graph.add("MatMul", f"{name}.products", [inside, doubled])
    shifted = graph.add("Add", f"{name}.shifted", [products, lengths])
    apart = graph.add("Add", f"{name}.apart", [shifted, squares])
    least = graph.add("ReduceMin", f"{name}.least", [apart], axes=[2], keepdims=0)
    distances = graph.add("Sqrt", f"{name}.distances", [graph.add("Max", f"{name}.above", [least, zero])])
    highest = graph.add("ReduceMax", f"{name}.highest", [distances], axes=[1], keepdims=1)
    if bank.neighbours.shape[1] < 2:
        return graph.add("Squeeze", f"{name}.score", [highest, last]), distances
    table = graph.constant(f"{name}.neighbours", bank.neighbours.astype(np.int32))
    one = graph.constant(f"{name}.one", np.array(1, np.float32))
    worst = graph.add("ArgMax", f"{name}.worst", [distances], axis=1, keepdims=1)
    row = graph.add("GatherND", f"{name}.row", [apart, worst], batch_dims=1)
    nearest = graph.add("ArgMin", f"{name}.nearest", [row], axis=1, keepdims=0)
    around = graph.add("Gather", f"{name}.around", [table, nearest], axis=0)
    apart = graph.add("GatherElements", f"{name}.around.squares", [row, around], axis=1)
    apart = graph.add(
        "Sqrt", f"{name}.around.apart", [graph.add("Max", f"{name}.around.above", [apart, zero])]
    )
    farther = graph.add("Exp", f"{name}.farther", [graph.add("Sub", f"{name}.gap", [apart, highest])])
    total = graph.add("ReduceSum", f"{name}.total", [farther, last], keepdims=1)
    weight = graph.add("Sub", f"{name}.weight", [one, graph.add("Div", f"{name}.share", [one, total])])
    weighted = graph.add("Mul", f"{name}.weighted", [highest, weight])
    return graph.add("Squeeze", f"{name}.score", [weighted, last]), distances
