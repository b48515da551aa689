"""Models that read text and hear speech, and what they are shown, from the packages that bring them."""

import importlib.util
import io
import runpy
import sys
from pathlib import Path
from unittest.mock import patch

from PIL import Image, ImageDraw, ImageFont

EXAMPLES = Path(__file__).parents[2] / "examples"


def packaged(module: str) -> Path:
    """The folder of an installed package."""
    spec = importlib.util.find_spec(module)
    assert spec and spec.submodule_search_locations, f"{module} is missing: see scripts/setup"
    return Path(spec.submodule_search_locations[0])


def write_ocr_release(folder: Path) -> Path:
    """PP-OCRv4, as ``examples/ocr`` releases it."""
    return _run("ocr", str(folder), folder=folder)


def write_speech_release(folder: Path) -> Path:
    """Whisper tiny.en, as ``examples/speech`` releases it."""
    return _run("speech", "package", str(speech("beckett")), str(folder), folder=folder)


def _run(example: str, *arguments: str, folder: Path) -> Path:
    script = EXAMPLES / example / "release.py"
    with patch.object(sys, "argv", [str(script), *arguments]):
        runpy.run_path(str(script), run_name="__main__")
    return folder


def speech(name: str) -> Path:
    """A WAV of English speech."""
    return packaged("moonshine_voice") / "assets" / f"{name}.wav"


def page(*lines: str, turned: int = 0) -> bytes:
    """A PNG of lines of text, turned by so many degrees against the clock."""
    font = ImageFont.truetype(packaged("cvttf_NotoSansCJK_Regular") / "NotoSansCJKtc-Regular.otf", 30)
    picture = Image.new("RGB", (760, 70 * len(lines) + 40), "white")
    pen = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        pen.text((30, 25 + 70 * row), line, "black", font)
    stream = io.BytesIO()
    picture.rotate(turned, expand=True).save(stream, "PNG")
    return stream.getvalue()
