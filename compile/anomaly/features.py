"""From a backbone to the patch features of a picture, as an ONNX graph.

Owns where patches lie and what describes them. As in PatchCore (Roth et al., Towards Total Recall in
Industrial Anomaly Detection, CVPR 2022) a patch is described by features of several depths, each averaged
over a neighbourhood and brought onto one grid. Unlike there the features of an EfficientNet-lite are taken
past an activation (``texture``), and the picture as a whole is one more patch, with a bank of its own: a
defect of the whole weave changes no single patch beyond what good ones show.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compile.onnx.vision_export import (
    Graph,
    VisionConfig,
    add_backbone,
    float_output,
    image_input,
    texture,
)
from compile.recipe.vision import STRIDES, Memory

if TYPE_CHECKING:
    import onnx

    from compile.onnx.vision_export import Weights

PATCHES, WHOLE = "patches", "whole"
"""Outputs: [n, rows * columns, width], and [n, whole_width] where the whole is looked at."""


@dataclass(frozen=True)
class Grid:
    """Where patches lie and how many numbers describe one; ``whole_width`` 0: the whole is not looked at.

    ``border`` places on each side are not among the rows and columns.
    """

    rows: int
    columns: int
    width: int
    whole_width: int
    border: int = 0


def feature_graph(
    weights: "Weights", config: VisionConfig, width: int, height: int, memory: Memory
) -> "tuple[onnx.ModelProto, Grid]":
    """``image`` [n, 3, height, width] to ``patches`` and ``whole``."""
    import numpy as np

    graph = Graph()
    deepest = max((*memory.stages, *memory.whole))
    add_backbone(graph, weights, config, width, height, [deepest + 1])
    rows, columns = math.ceil(height / memory.grid), math.ceil(width / memory.grid)
    levels = [
        _level(graph, config, stage, memory, (height, width), (rows, columns)) for stage in memory.stages
    ]
    channels = sum(texture(config.architecture, stage)[1] for stage in memory.stages)
    joined = graph.add("Concat", "levels", levels, axis=1) if len(levels) > 1 else levels[0]
    if memory.border:
        joined, rows, columns = _inner(graph, joined, memory.border, rows, columns)
    last = graph.add("Transpose", "levels.last", [joined], perm=[0, 2, 3, 1])
    shape = graph.constant("patches.shape", np.array([0, rows * columns, channels], np.int64))
    graph.add("Reshape", PATCHES, [last, shape])
    outputs = [float_output(PATCHES, ["n", rows * columns, channels])]
    across = 0
    if memory.whole:
        across = sum(texture(config.architecture, stage)[1] for stage in memory.whole)
        _add_whole(graph, config, memory.whole)
        outputs.append(float_output(WHOLE, ["n", across]))
    model = graph.model(f"{config.architecture} patches", [image_input(width, height)], outputs)
    return model, Grid(rows, columns, channels, across, memory.border)


def _level(
    graph: Graph,
    config: VisionConfig,
    stage: int,
    memory: Memory,
    size: tuple[int, int],
    grid: tuple[int, int],
) -> str:
    """One depth on the grid: averages over the neighbourhood, brought to the grid's places."""
    import numpy as np

    name, scale = texture(config.architecture, stage)[0], STRIDES[stage - 1]
    kernel, step = max(1, memory.neighbourhood // scale), max(1, memory.grid // scale)
    places = tuple(math.ceil(length / scale) for length in size)
    if kernel > 1 or step > 1:
        pads = [_around(length, kernel, step) for length in places]
        name = graph.add(
            "AveragePool",
            f"level{stage}",
            [name],
            kernel_shape=[kernel, kernel],
            strides=[step, step],
            pads=[before for before, _ in pads] + [after for _, after in pads],
            count_include_pad=0,
        )
        places = tuple(math.ceil(length / step) for length in places)
    if places != grid:
        scales = np.array([1, 1, grid[0] / places[0], grid[1] / places[1]], np.float32)
        factor = graph.constant(f"level{stage}.scales", scales)
        name = graph.add("Resize", f"level{stage}.spread", [name, "", factor], mode="linear")
    return name


def _inner(graph: Graph, name: str, border: int, rows: int, columns: int) -> tuple[str, int, int]:
    """Without the outermost places, which see the padding around the picture."""
    import numpy as np

    starts = graph.constant("border.starts", np.array([border, border], np.int64))
    ends = graph.constant("border.ends", np.array([rows - border, columns - border], np.int64))
    axes = graph.constant("border.axes", np.array([2, 3], np.int64))
    inner = graph.add("Slice", "levels.inner", [name, starts, ends, axes])
    return inner, rows - 2 * border, columns - 2 * border


def _add_whole(graph: Graph, config: VisionConfig, stages: Sequence[int]) -> None:
    means = [
        graph.add(
            "ReduceMean", f"whole{stage}", [texture(config.architecture, stage)[0]], axes=[2, 3], keepdims=0
        )
        for stage in stages
    ]
    graph.add("Concat", WHOLE, means, axis=1)


def _around(length: int, kernel: int, step: int) -> tuple[int, int]:
    total = max((math.ceil(length / step) - 1) * step + kernel - length, 0)
    return total // 2, total - total // 2
