"""Text in pictures with RapidOCR: PaddleOCR's three networks on ONNX Runtime.

Owns which files they are and what is checked of them; finding, turning and reading lines is the library's
(https://github.com/RapidAI/RapidOCR). A folder holds ``detection.onnx``, ``direction.onnx`` (whether a line
stands on its head), ``recognition.onnx`` and ``characters.txt``, the characters that it tells apart, one a
line. Pictures are decoded as for every vision model. One thread owns an engine. The library, OpenCV and numpy
are imported when an engine is made.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.engines.base import EncoderFacts
from models.engines.foreign import converted
from models.engines.onnx_files import OCR_FILES, EncoderFiles
from models.engines.onnx_session import OnnxSettings
from models.engines.onnx_vision import decode
from models.engines.readings import Page, Point, TextLine
from models.errors import EngineError, UnsafeFile
from models.onnx import read_model

if TYPE_CHECKING:
    from PIL.Image import Image

DETECTION, DIRECTION, RECOGNITION, CHARACTERS = OCR_FILES

MAX_CHARACTERS = 1 << 20
"""Bytes of the list of characters; that of Chinese and English has 26,000."""
CONFIDENT = 0.5
"""Lines that are read with less are left out: most of them are no text."""

_EXTRA = (
    "reading text in pictures needs the extra edge-vision: pip install 'outpost[edge-vision]' (and of the "
    "system, for OpenCV, libgl1 and libglib2.0-0)"
)


class RapidOcr:
    """Reads pages. Raises ``UnsafeFile`` for files that are not sound, ``EngineError`` when it cannot run."""

    def __init__(self, files: EncoderFiles, settings: OnnxSettings = OnnxSettings()) -> None:
        if files.engine.task != "ocr":
            raise EngineError(f"{files.name} reads no text: its task is {files.engine.task}")
        parameters = check_ocr(files.model)
        try:
            from rapidocr_onnxruntime import RapidOCR
        except ImportError as error:
            raise EngineError(f"{_EXTRA}: {error}") from error
        self._settings = settings
        with converted(f"{files.name} cannot be loaded"):
            self._ocr: Any = RapidOCR(
                det_model_path=str(files.model / DETECTION),
                cls_model_path=str(files.model / DIRECTION),
                rec_model_path=str(files.model / RECOGNITION),
                rec_keys_path=str(files.model / CHARACTERS),
                intra_op_num_threads=settings.threads,
                inter_op_num_threads=1,
                text_score=CONFIDENT,
            )
        self.facts = EncoderFacts(
            task="ocr",
            name=files.name,
            parameters=parameters,
            file_bytes=sum((files.model / name).stat().st_size for name in OCR_FILES),
        )

    def read(self, images: Sequence[bytes]) -> list[Page]:
        """The text of encoded pictures, in order. Raises ``InvalidImage``, ``EngineError``."""
        return [self._page(decode(data, self._settings.max_pixels)) for data in images]

    def close(self) -> None:
        """Free the weights. Safe to call twice."""
        self._ocr = None

    def _page(self, picture: "Image") -> Page:
        import numpy as np

        if self._ocr is None:
            raise EngineError("the engine has been closed")
        blue_first = np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])
        with converted("a picture cannot be read"):
            found, _ = self._ocr(blue_first)
        lines = tuple(
            TextLine(text, float(confidence), _corners(box)) for box, text, confidence in found or ()
        )
        return Page(*picture.size, lines)


def check_ocr(folder: Path) -> int:
    """Look at every file without native code; returns the number of parameters. Raises ``UnsafeFile``."""
    for name in OCR_FILES:
        if not (folder / name).is_file():
            raise UnsafeFile(f"{folder.name}: {name} is missing; text is read with {', '.join(OCR_FILES)}")
    graphs = [read_model(folder / name) for name in (DETECTION, DIRECTION, RECOGNITION)]
    for name, graph in zip(OCR_FILES, graphs, strict=False):
        if graph.files:
            raise UnsafeFile(f"{name}: its weights lie in other files, which are not read here")
    if (folder / CHARACTERS).stat().st_size > MAX_CHARACTERS:
        raise UnsafeFile(f"{CHARACTERS}: more than {MAX_CHARACTERS} bytes")
    try:
        characters = (folder / CHARACTERS).read_text("utf-8").removesuffix("\n").count("\n") + 1
    except UnicodeDecodeError as error:
        raise UnsafeFile(f"{CHARACTERS}: is no UTF-8") from error
    classes = graphs[2].outputs[0].shape[-1] if graphs[2].outputs and graphs[2].outputs[0].shape else None
    if isinstance(classes, int) and classes != characters + 2:  # none at all, and the space
        raise UnsafeFile(f"{RECOGNITION} tells {classes - 2} characters; {CHARACTERS} names {characters}")
    return sum(graph.parameters for graph in graphs)


def _corners(box: Sequence[Sequence[float]]) -> tuple[Point, Point, Point, Point]:
    first, second, third, fourth = ((float(x), float(y)) for x, y in box)
    return first, second, third, fourth
