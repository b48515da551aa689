"""PaddleOCR's networks as the engine wants them, and in INT8.

Owns the names of the files and where the characters come from. Refuses networks that lack them.
"""

import shutil
from pathlib import Path

from compile.errors import UnsupportedBase
from compile.onnx.files import open_model, weighted
from compile.onnx.quantize import DynamicSettings, prepare, quantize_dynamic
from compile.readers.ledger import Ledger
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


def quantize(source: Path, target: Path, variant: OcrVariant, scratch: Path) -> Ledger:
    """Write what ``gather`` made in ``source`` into ``target`` in INT8.

    Raises ``ToolFailed``.
    """
    shutil.copyfile(source / CHARACTERS, target / CHARACTERS)
    return Ledger.joined(_quantized(source / name, target / name, variant, scratch) for name in NETWORKS)


def _quantized(source: Path, target: Path, variant: OcrVariant, scratch: Path) -> Ledger:
    """One network: in INT8, or as it is where the variant does not ask for it."""
    prepared, part = scratch / source.name, source.name.removesuffix(".onnx")
    prepare(source, prepared)  # here weights are constants of the graph: only then they are seen
    held = weighted(open_model(prepared))
    if part in variant.networks:
        matrices = ("MatMul", "Gemm")
        settings = DynamicSettings(variant.reduce_range, matrices + ("Conv",) * variant.convolutions)
        left = [one.tensor for one in quantize_dynamic(prepared, target, settings)]
    else:
        shutil.copyfile(source, target)
        left = [one.tensor for one in held]
    return Ledger(
        len(held), tuple(Fallback(tensor=f"{part}/{name}", asked="INT8", got="F32") for name in left)
    )
