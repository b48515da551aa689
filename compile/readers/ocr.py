"""PaddleOCR's networks as the engine wants them, and in INT8.

Owns the names of the files and where the characters come from. Refuses networks that lack them.
"""

import shutil
from pathlib import Path

from compile.errors import UnsupportedBase
from compile.onnx.files import open_model, weighted
from compile.onnx.quantize import DynamicSettings, prepare, quantize_dynamic
from compile.recipe.reading import OcrBase, OcrVariant
from models.engines.onnx_files import OCR_FILES
from models.engines.rapid_ocr import check_ocr
from models.manifest import Fallback

DETECTION, DIRECTION, RECOGNITION, CHARACTERS = OCR_FILES
NETWORKS = OCR_FILES[:3]
_METADATA = "character"
"""Where RapidOCR writes what the last network can say."""


def files_of_base(base: OcrBase, source: Path) -> dict[str, Path]:
    """Where the networks lie in ``source``, and the characters if they have a file, by name in a release."""
    files = {
        DETECTION: source / base.detection,
        DIRECTION: source / base.direction,
        RECOGNITION: source / base.recognition,
    }
    return files if base.characters is None else files | {CHARACTERS: source / base.characters}


def gather(base: OcrBase, source: Path, target: Path) -> None:
    """Write the base into ``target`` under the engine's names. Raises ``UnsafeFile``, ``UnsupportedBase``."""
    for name, path in files_of_base(base, source).items():
        shutil.copyfile(path, target / name)
    if base.characters is None:
        told = [one.value for one in open_model(target / RECOGNITION).metadata_props if one.key == _METADATA]
        if not told:
            raise UnsupportedBase(f"{base.recognition} does not name its characters: set base.characters")
        lines = told[0].splitlines()
        (target / CHARACTERS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    check_ocr(target)


def quantize(source: Path, target: Path, variant: OcrVariant, scratch: Path) -> tuple[Fallback, ...]:
    """Write what ``gather`` made in ``source`` into ``target`` in INT8; returns what stayed float.

    Raises ``ToolFailed``.
    """
    matrices = ("MatMul", "Gemm")
    settings = DynamicSettings(variant.reduce_range, matrices + ("Conv",) * variant.convolutions)
    found: list[Fallback] = []
    shutil.copyfile(source / CHARACTERS, target / CHARACTERS)
    for name in NETWORKS:
        part = name.removesuffix(".onnx")
        if part in variant.networks:
            prepare(source / name, scratch / name)
            left = quantize_dynamic(scratch / name, target / name, settings)
        else:
            shutil.copyfile(source / name, target / name)
            left = tuple(
                Fallback(tensor=one.tensor, asked="INT8", got="F32")
                for one in weighted(open_model(target / name))
            )
        found += [one.model_copy(update={"tensor": f"{part}/{one.tensor}"}) for one in left]
    return tuple(found)
