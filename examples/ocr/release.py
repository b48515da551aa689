"""PP-OCRv4 from the package rapidocr-onnxruntime as a release, for ``outpost-edge serve`` to read text with.

    python examples/ocr/release.py out/ocr

Chinese and English. The networks are PaddleOCR's (Apache-2.0) and are not changed: quality is not measured
here. The probe is a page that the script draws.
"""

import argparse
import importlib.util
import io
import tempfile
from pathlib import Path

import onnx
from PIL import Image, ImageDraw, ImageFont

from compile.package import package_release
from models.engines.onnx_encoder import open_encoder, probe_answer
from models.engines.onnx_files import OCR_FILES, EncoderFiles
from models.manifest import Engine, Kind, Manifest, Probe
from models.store import describe_file

PACKAGED = ("ch_PP-OCRv4_det_infer", "ch_ppocr_mobile_v2.0_cls_infer", "ch_PP-OCRv4_rec_infer")
"""The package's names for what ``OCR_FILES`` names, in that order."""
SHOWN = ("Work order 4711", "Pump 3 leaks oil at the seal", "Due 2026-03-14")


def main() -> None:
    """Write the release."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", default="ocr")
    parser.add_argument("--version", default="1.0.0")
    asked = parser.parse_args()
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    if spec is None or spec.origin is None:
        parser.error("rapidocr-onnxruntime is missing: pip install 'outpost[edge-vision]'")
    packaged = [Path(spec.origin).parent / "models" / f"{name}.onnx" for name in PACKAGED]
    with tempfile.TemporaryDirectory() as scratch:
        files = gathered(packaged, Path(scratch))
        manifest = Manifest(
            kind=Kind.MODEL,
            name=asked.name,
            version=asked.version,
            format="onnx",
            precision="fp32",
            files=(),
            engine=Engine(task="ocr"),
            lineage={"source": "PP-OCRv4 from rapidocr-onnxruntime 1.4.4 on PyPI"},
            license="Apache-2.0",
        )
        probe = Probe(image="probes/page.png", expected="", tolerance=0.95)
        engine = open_encoder(EncoderFiles(Path(scratch), manifest.engine, None, asked.name))
        told = probe.model_copy(update={"expected": probe_answer(engine, probe, Path(scratch))})
        engine.close()
        described = tuple(describe_file(path, name) for name, path in files.items())
        whole = manifest.model_copy(update={"files": described, "probes": (told,)})
        print(f"{asked.folder}: {package_release(asked.folder, whole, files).digest}")
        print(f"the probe reads {told.expected}")


def gathered(packaged: list[Path], scratch: Path) -> dict[str, Path]:
    """The release's files by their paths in it, brought together in ``scratch``."""
    files = {name: scratch / name for name in (*OCR_FILES, "probes/page.png")}
    (scratch / "probes").mkdir()
    for source, path in zip(packaged, files.values(), strict=False):
        path.symlink_to(source)
    known = onnx.load(packaged[-1], load_external_data=False).metadata_props
    (characters,) = (one.value for one in known if one.key == "character")
    files[OCR_FILES[-1]].write_text("\n".join(characters.splitlines()) + "\n", "utf-8")
    files["probes/page.png"].write_bytes(page(SHOWN))
    return files


def page(lines: tuple[str, ...]) -> bytes:
    """A PNG with these lines."""
    picture = Image.new("RGB", (640, 60 * len(lines) + 40), "white")
    pen = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        pen.text((30, 30 + 60 * row), line, "black", ImageFont.load_default(32))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


if __name__ == "__main__":
    main()
