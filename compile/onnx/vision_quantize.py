"""Vision models to INT8: pictures as feeds for the quantizers, and a convolutional network's operators.

Owns the parts of a network that stay in float together (``stem``, ``block0``, ..., ``head``), by name or by
measured sensitivity. Refuses a part that is not there.
"""

import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.errors import BadData, BadRecipe
from compile.onnx.files import nodes_of, open_model, size_of, weighted
from compile.onnx.quantize import (
    DynamicSettings,
    StaticSettings,
    calibrate,
    prepare,
    quantize_dynamic,
    quantize_static,
)
from compile.onnx.sensitivity import Group, find_mixture
from compile.onnx.vision_export import INPUT, LOGITS
from compile.recipe.vision import ImageVariant
from compile.steps import Report
from models.engines.onnx_session import OnnxSession, softmax
from models.engines.onnx_vision import read_picture
from models.manifest import ImageInput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

OPERATORS = ("Conv", "Clip", "Add", "AveragePool", "GlobalAveragePool", "Gemm")
"""Between two convolutions nothing returns to float: a Clip disappears into the scales around it."""


def quantize_vision(
    source: Path,
    target: Path,
    variant: ImageVariant,
    pictures: Sequence[Path],
    held_out: Sequence[Path],
    image: ImageInput,
    max_pixels: int,
    scratch: Path,
    report: Report,
) -> dict[str, Any]:
    """Write ``target``; returns what was found out on the way.

    ``pictures`` calibrate; ``held_out`` measure what parts cost, where the variant mixes precisions. Raises
    ``BadRecipe`` for a part in ``variant.keep`` that the network does not have.
    """
    prepared = scratch / "prepared.onnx"
    prepare(source, prepared)
    parts = parts_of(prepared)
    unknown = sorted(set(variant.keep) - {part.name for part in parts})
    if unknown:
        known = ", ".join(part.name for part in parts)
        raise BadRecipe(f"{variant.name}: keep: no part {', '.join(unknown)}; there are {known}")
    always = [node for part in parts if part.name in variant.keep for node in part.nodes]
    if variant.type == "int8-dynamic":
        dynamic = DynamicSettings(variant.reduce_range, op_types=("Conv", "MatMul", "Gemm"))
        quantize_dynamic(prepared, target, dynamic, always)
        return {}
    ranges = scratch / "ranges.json"
    settings = StaticSettings(
        calibration=variant.calibration,
        reduce_range=variant.reduce_range,
        symmetric=variant.symmetric,
        op_types=OPERATORS,
        float_outputs=(),
    )
    feeds = _feeds(pictures, image, max_pixels)
    calibrate(
        prepared, ranges, feeds, settings, scratch, lambda done, note: report(done * 0.3, note), len(pictures)
    )
    found: dict[str, Any] = {}
    if variant.mixed is not None:
        asked = [feed[INPUT] for feed in _feeds(held_out, image, max_pixels)]
        if not asked:
            raise BadData(f"{variant.name}: mixed: there are no held-out pictures to measure on")
        theirs = _answers(prepared, asked)
        tried = scratch / "tried.onnx"

        def measure(keep: Collection[str]) -> tuple[float, int]:
            quantize_static(prepared, ranges, tried, settings, [*always, *keep])
            return _divergence(theirs, _answers(tried, asked)), size_of(tried)

        mixture = find_mixture(
            [part for part in parts if part.name not in variant.keep],
            measure,
            variant.mixed.max_loss,
            int(variant.mixed.max_size_ratio * size_of(source)),
            lambda done, note: report(0.3 + 0.6 * done, note),
        )
        always += mixture.nodes
        found = {
            "kept in float": list(mixture.groups),
            "loss on held-out": mixture.loss,
            "loss without": mixture.trail[0].loss,
            "reached": mixture.reached,
        }
    quantize_static(prepared, ranges, target, settings, always)
    shutil.copyfile(ranges, target.parent / "ranges.json")
    return found


def parts_of(prepared: Path) -> list[Group]:
    """The nodes that are quantized, by the part of the network that their names begin with."""
    members: dict[str, list[str]] = {}
    for node in nodes_of(prepared):
        if node.op_type in OPERATORS:
            members.setdefault(node.name.split(".")[0], []).append(node.name)
    sizes: dict[str, int] = {}
    for one in weighted(open_model(prepared)):
        name = one.node.split(".")[0]
        sizes[name] = sizes.get(name, 0) + one.bytes * 3 // 4
    return [Group(name, tuple(nodes), sizes.get(name, 0)) for name, nodes in members.items()]


def _feeds(pictures: Sequence[Path], image: ImageInput, max_pixels: int) -> "Iterator[dict[str, Array]]":
    for path in pictures:
        yield {INPUT: read_picture(path.read_bytes(), image, max_pixels)[0][None]}


def _answers(model: Path, images: "Sequence[Array]") -> "Array":
    import numpy as np

    session = OnnxSession(model, 1)
    logits = np.concatenate([session.run({INPUT: one}, [LOGITS])[0] for one in images])
    session.close()
    return softmax(logits)


def _divergence(theirs: "Array", ours: "Array") -> float:
    """Mean KL divergence of probabilities [n, classes] from the reference's."""
    import numpy as np

    left, right = (np.maximum(one.astype(np.float64), 1e-12) for one in (theirs, ours))
    return float((left * np.log(left / right)).sum(axis=1).mean())
