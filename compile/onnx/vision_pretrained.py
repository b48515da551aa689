"""Image classifiers of transformers to ONNX, through optimum.

Owns what their folders say (labels in order, the size of a picture, mean and deviation) and the comparison
of the whole way from a picture's file to logits: torch behind the model's own image processor against the
graph behind the decoder that serves. A graph that answers otherwise, or a recipe that scales pictures
otherwise than the model was trained on, is refused with the distance. Refuses weights that are not
safetensors and pictures that are not scaled to [0, 1] before mean and deviation. Downloads nothing.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compile.errors import UnsupportedBase
from compile.onnx.export import (
    ExportSettings,
    Parity,
    check_folder,
    check_parity,
    parity_of,
    run_optimum,
    write_exported,
)
from compile.onnx.files import MODEL, open_model, write_model
from compile.onnx.vision_export import CONFIG_FILE
from compile.steps import Report
from models.engines.onnx_vision import decode, read_picture
from models.manifest import ImageInput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from onnx import ModelProto

PROCESSOR_FILE = "preprocessor_config.json"
TASK = "image-classification"
_HEAD = "ForImageClassification"

Channels = tuple[float, float, float]
Document = TypeVar("Document", bound=BaseModel)


@dataclass(frozen=True)
class Pretrained:
    """A classifier that is trained already. ``kind`` is transformers' name of the architecture; ``mean`` and
    ``std`` are per channel, of pixels in [0, 1]; ``labels`` are in the order of its answers."""

    kind: str
    width: int
    height: int
    mean: Channels
    std: Channels
    labels: tuple[str, ...]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    model_type: str
    architectures: Annotated[tuple[str, ...], Field(min_length=1)]
    image_size: int | tuple[int, int]
    num_channels: int = 3
    id2label: dict[int, str]


class _Processor(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    do_normalize: bool = True
    rescale_factor: Annotated[float, Field(gt=0.003921, lt=0.003922)] = 1 / 255
    image_mean: Channels
    image_std: Channels


def is_pretrained(folder: Path) -> bool:
    """Whether the folder is one of transformers', as its ``config.json`` has it."""
    try:
        return "model_type" in json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # whoever reads it says why


def read_pretrained(folder: Path) -> Pretrained:
    """What the folder says. Raises ``UnsupportedBase``, or ``UnsafeFile`` for weights that are not sound."""
    check_folder(folder, (CONFIG_FILE, PROCESSOR_FILE))
    config, processor = _read(folder / CONFIG_FILE, _Config), _read(folder / PROCESSOR_FILE, _Processor)
    if not all(name.endswith(_HEAD) for name in config.architectures):
        raise UnsupportedBase(f"{folder}: {', '.join(config.architectures)} is no image classifier")
    if config.num_channels != len(processor.image_mean):
        raise UnsupportedBase(f"{folder}: pictures of {config.num_channels} channels; 3 are served")
    if sorted(config.id2label) != list(range(len(config.id2label))):
        raise UnsupportedBase(f"{folder / CONFIG_FILE}: id2label does not count from 0")
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return Pretrained(
        kind=config.model_type,
        width=width,
        height=height,
        mean=processor.image_mean if processor.do_normalize else (0.0, 0.0, 0.0),
        std=processor.image_std if processor.do_normalize else (1.0, 1.0, 1.0),
        labels=tuple(config.id2label[number] for number in range(len(config.id2label))),
    )


def export_classifier(
    source: Path,
    image: ImageInput,
    pictures: Sequence[Path],
    max_pixels: int,
    target: Path,
    scratch: Path,
    report: Report,
) -> Parity:
    """Leave ``model.onnx`` ([n, 3, height, width] to logits [n, classes]) and ``export.json`` in ``target``.

    Raises ``ToolFailed`` when optimum fails, ``Refused`` when the graph does not answer ``pictures`` as torch
    does.
    """
    settings, made = ExportSettings(), scratch / "optimum"
    report(0.05, "exporting with optimum")
    run_optimum(source, TASK, settings.opset, made)
    model = open_model(made / MODEL)
    _fix_size(model, image)
    write_model(model, target / MODEL)
    shutil.rmtree(made)
    report(0.7, f"comparing with torch on {len(pictures)} pictures")
    files = [path.read_bytes() for path in pictures]
    ours = _graph_logits(target / MODEL, image, files, max_pixels)
    parity = parity_of(ours, _torch_logits(source, files, max_pixels))
    check_parity(parity, settings, source.name)
    write_exported(target, parity, settings.opset)
    return parity


def _read(path: Path, kind: type[Document]) -> Document:
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        reason = error.errors()[0]
        where = ".".join(str(part) for part in reason["loc"])
        raise UnsupportedBase(f"{path}: {where}: {reason['msg']}") from error


def _fix_size(model: "ModelProto", image: ImageInput) -> None:
    """Optimum leaves channels and sides open, which the positions that the model has learned are not."""
    shape = model.graph.input[0].type.tensor_type.shape
    for size, value in zip(shape.dim[1:], (3, image.height, image.width), strict=True):
        size.dim_value = value


def _graph_logits(
    graph: Path, image: ImageInput, files: Sequence[bytes], max_pixels: int
) -> "npt.NDArray[np.float32]":
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    batch = np.stack([read_picture(data, image, max_pixels)[0] for data in files])
    answer: npt.NDArray[np.float32] = session.run(["logits"], {session.get_inputs()[0].name: batch})[0]
    return answer


def _torch_logits(source: Path, files: Sequence[bytes], max_pixels: int) -> "npt.NDArray[np.float32]":
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    kept: Any = AutoImageProcessor
    processor = kept.from_pretrained(source, local_files_only=True, use_fast=False)
    model = AutoModelForImageClassification.from_pretrained(
        source, local_files_only=True, use_safetensors=True
    ).eval()
    pixels = processor([decode(data, max_pixels) for data in files], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        logits: npt.NDArray[np.float32] = model(pixel_values=pixels).logits.numpy()
    return logits
