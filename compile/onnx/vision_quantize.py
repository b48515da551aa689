"""Vision models to INT8: pictures as feeds for the quantizers, and a convolutional network's operators."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compile.onnx.quantize import (
    DynamicSettings,
    StaticSettings,
    calibrate,
    prepare,
    quantize_dynamic,
    quantize_static,
)
from compile.onnx.vision_export import INPUT
from compile.recipe.vision import ImageVariant
from compile.steps import Report
from models.engines.onnx_vision import read_picture
from models.manifest import Fallback, ImageInput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

OPERATORS = ("Conv", "Clip", "Add", "AveragePool", "GlobalAveragePool", "Gemm")
"""Between two convolutions nothing returns to float: a Clip disappears into the scales around it."""


def quantize_vision(
    source: Path,
    target: Path,
    variant: ImageVariant,
    pictures: Sequence[Path],
    image: ImageInput,
    max_pixels: int,
    scratch: Path,
    report: Report,
) -> tuple[Fallback, ...]:
    """Write ``target``; returns the ledger. ``pictures`` calibrate, where ranges are set ahead of time."""
    prepared = scratch / "prepared.onnx"
    prepare(source, prepared)
    if variant.type == "int8-dynamic":
        dynamic = DynamicSettings(variant.reduce_range, op_types=("Conv", "MatMul", "Gemm"))
        return quantize_dynamic(prepared, target, dynamic)
    ranges = scratch / "ranges.json"
    settings = StaticSettings(
        calibration=variant.calibration,
        reduce_range=variant.reduce_range,
        symmetric=variant.symmetric,
        op_types=OPERATORS,
        float_outputs=(),
    )
    feeds = _feeds(pictures, image, max_pixels)
    calibrate(prepared, ranges, feeds, settings, scratch, report, len(pictures))
    ledger = quantize_static(prepared, ranges, target, settings)
    shutil.copyfile(ranges, target.parent / "ranges.json")
    return ledger


def _feeds(
    pictures: Sequence[Path], image: ImageInput, max_pixels: int
) -> "Iterator[dict[str, npt.NDArray[np.float32]]]":
    for path in pictures:
        yield {INPUT: read_picture(path.read_bytes(), image, max_pixels)[0][None]}
