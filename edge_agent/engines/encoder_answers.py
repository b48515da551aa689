"""What each kind of encoder is asked, and its answers as ``EncoderAnswer``: one for each input."""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edge_agent.engines.encoder_calls import EncoderAnswer, HeatMaps, Inspected
from edge_agent.overlay import overlay_png
from models.engines.base import Inspection
from models.engines.llama_cpp import LlamaEncoder
from models.engines.onnx_text import OnnxText
from models.engines.onnx_vision import OnnxVision
from models.engines.rapid_ocr import RapidOcr
from models.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Input = str | tuple[str, str] | bytes
"""A text, a query and the text that it judges, or an encoded picture."""

OVERLAY_SIDE = 1600
"""Pixels of the longer side of a picture that a heat map is drawn over."""

Encoder = OnnxText | LlamaEncoder | OnnxVision | RapidOcr
"""What answers inputs in batches."""


def answers(engine: Encoder, inputs: Sequence[Input], pictured: Sequence[HeatMaps]) -> list[EncoderAnswer]:
    """In order. ``pictured``: which inspections show their heat map. Raises ``EngineError``."""
    match engine:
        case OnnxText() | LlamaEncoder():
            pairs = engine.facts.task == "rerank"
            if not all(isinstance(one, tuple) if pairs else isinstance(one, str) for one in inputs):
                raise _something_else(engine)
            read = engine.answer([one for one in inputs if not isinstance(one, bytes)])
            rows = map(_row, read.values)
            return [EncoderAnswer((row,), count) for row, count in zip(rows, read.tokens, strict=True)]
        case OnnxVision() | RapidOcr():
            images = [one for one in inputs if isinstance(one, bytes)]
            if len(images) != len(inputs):
                raise _something_else(engine)
            if isinstance(engine, RapidOcr):
                return [EncoderAnswer(pages=(page,)) for page in engine.read(images)]
            if engine.facts.task == "classify-image":
                return [EncoderAnswer((_row(row),)) for row in engine.classify(images)]
            found = zip(engine.inspect(images), images, pictured, strict=True)
            return [EncoderAnswer(inspections=(inspected(*one),)) for one in found]


def _something_else(engine: Encoder) -> EngineError:
    return EngineError(f"this model is made to {engine.facts.task}, and was asked something else")


def _row(numbers: "npt.NDArray[np.float32]") -> bytes:
    return numbers.astype("<f4").tobytes()


def inspected(found: Inspection, image: bytes, shown: HeatMaps) -> Inspected:
    """An inspection as it is told, with its heat map as a picture where it is wanted."""
    grey = _grey(found) if shown else None
    told = Inspected(found.score, found.is_defect, found.threshold, found.region, grey)
    return told if shown != "overlay" else replace(told, heat_map=overlay_png(image, told, OVERLAY_SIDE))


def _grey(found: Inspection) -> bytes:
    """A heat map as a PNG; see ``Inspected``. A threshold that is not above 0 leaves only black and white."""
    import numpy as np
    from PIL import Image

    scale = 128 / found.threshold if found.threshold > 0 else 255.0
    pixels = np.clip(np.rint(found.heat_map * scale), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
