"""Vision models on ONNX Runtime: graphs whose answers can be worked out by hand, pictures of every sort."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_graphs import write_anomaly, write_image_classifier
from pictures import encoded, plain
from PIL import Image

from models.engines.onnx_files import EncoderFiles, files_of_folder
from models.engines.onnx_session import OnnxSettings
from models.engines.onnx_vision import OnnxVision, decode
from models.errors import EngineError, InvalidImage, UnsafeFile
from models.manifest import AnomalyFacts, Engine, ImageInput

LABELS = ("red", "green", "blue")
SQUARE = ImageInput(width=8, height=8)
CLASSIFY = Engine(task="classify-image", labels=LABELS, image=SQUARE)
INSPECT = Engine(
    task="inspect",
    image=SQUARE,
    anomaly=AnomalyFacts(threshold=0.5, false_reject_rate=0.01, calibrated_on=100),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vision")
    write_image_classifier(folder / "model.onnx")
    write_anomaly(folder / "anomaly.onnx")
    return folder


@pytest.fixture(scope="module")
def classifier(folder: Path) -> OnnxVision:
    return OnnxVision(
        EncoderFiles(folder / "model.onnx", CLASSIFY), OnnxSettings(batch=2, max_pixels=100_000)
    )


@pytest.fixture(scope="module")
def inspector(folder: Path) -> OnnxVision:
    return OnnxVision(EncoderFiles(folder / "anomaly.onnx", INSPECT))


def test_pictures_are_classified_whatever_their_size_and_format(classifier: OnnxVision):
    pictures = [
        plain("red"),
        plain("lime", (31, 17)),
        plain("blue", (9, 200), format="JPEG"),
        encoded(Image.new("P", (4, 4)).convert("P", palette=Image.Palette.ADAPTIVE)),
        encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 255)), "WEBP", lossless=True),
    ]
    found = classifier.classify(pictures)
    assert [LABELS[row.argmax()] for row in found[[0, 1, 2, 4]]] == ["red", "green", "blue", "red"]
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found[3], 1 / 3, rtol=1e-5)
    assert classifier.classify([]).shape == (0, 3)


def test_mean_and_std_are_those_of_the_release(folder: Path):
    image = ImageInput(width=8, height=8, mean=(1.0, 0.0, 0.0), std=(0.1, 1.0, 1.0))
    engine = OnnxVision(EncoderFiles(folder / "model.onnx", CLASSIFY.model_copy(update={"image": image})))
    logits = np.log(engine.classify([plain("black")])[0])
    np.testing.assert_allclose(logits[0] - logits[1], -100, rtol=1e-3)


def test_a_defect_is_found_where_it_is(inspector: OnnxVision):
    picture = Image.new("RGB", (16, 16), "white")
    picture.paste("black", (8, 0, 12, 4))
    good, bad = inspector.inspect([plain("white"), encoded(picture)])
    assert (good.score, good.is_defect) == (0.0, False)
    assert bad.score > 0.8 and (bad.is_defect, bad.threshold) == (True, 0.5)
    assert bad.heat_map.shape == (8, 8) and bad.heat_map.dtype == np.float32
    assert np.unravel_index(bad.heat_map.argmax(), (8, 8))[0] <= 1
    assert bad.heat_map[:, 4:6].max() > 0.6 and bad.heat_map[4:].max() < 0.1
    assert bad.region == (0, 0, 16, 16)


def test_a_part_at_the_threshold_is_a_defect(folder: Path):
    for threshold, verdict in ((0.0, True), (0.001, False)):
        facts = INSPECT.anomaly.model_copy(update={"threshold": threshold})
        needs = INSPECT.model_copy(update={"anomaly": facts})
        (found,) = OnnxVision(EncoderFiles(folder / "anomaly.onnx", needs)).inspect([plain("white")])
        assert (found.score, found.is_defect) == (0.0, verdict)


def test_the_middle_is_cut_out_where_proportions_are_kept(folder: Path):
    image = ImageInput(width=8, height=8, resize="shorter-side", resize_to=10)
    engine = OnnxVision(EncoderFiles(folder / "model.onnx", CLASSIFY.model_copy(update={"image": image})))
    picture = Image.new("RGB", (40, 20), "red")
    picture.paste("blue", (10, 0, 30, 20))
    assert engine.classify([encoded(picture)])[0].argmax() == 2
    with pytest.raises(InvalidImage, match="cut away"):
        engine.classify([plain("red", (2000, 3))])
    needs = INSPECT.model_copy(update={"image": image})
    (found,) = OnnxVision(EncoderFiles(folder / "anomaly.onnx", needs)).inspect([encoded(picture)])
    assert found.region == (12, 2, 28, 18)


def test_pictures_stand_upright():
    picture = Image.new("RGB", (20, 10), "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held sideways
    assert decode(encoded(picture, "JPEG", exif=exif), 1000).size == (10, 20)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(400, 400), (100_000, 100_000), (2_000_000_000, 2_000_000_000)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(classifier: OnnxVision, size: tuple[int, int]):
    with pytest.raises(InvalidImage, match="at most 100000 are decoded"):
        classifier.classify([bomb(*size)])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture",
        plain("red")[:50],
        plain("red", (64, 64), format="JPEG")[:300],
        encoded(Image.new("RGB", (8, 8)), "GIF"),
        encoded(Image.new("RGB", (8, 8)), "TIFF"),
        encoded(Image.new("I;16", (8, 8))),
        bomb(8, 8),
    ],
)
def test_what_cannot_be_decoded_is_refused(classifier: OnnxVision, data: bytes):
    with pytest.raises(InvalidImage):
        classifier.classify([data])
    assert classifier.classify([plain("red")])[0].argmax() == 0


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_damaged_picture_is_read_or_refused(changes: list[tuple[int, int]], jpeg: bool):
    data = bytearray(plain("red", (24, 24), format="JPEG" if jpeg else "PNG"))
    for where, value in changes:
        data[where % len(data)] = value
    try:
        assert decode(bytes(data), 100_000).mode == "RGB"
    except InvalidImage:
        pass


def test_a_graph_that_does_not_fit_its_release_is_named(folder: Path):
    wide = CLASSIFY.model_copy(update={"image": ImageInput(width=16, height=8)})
    with pytest.raises(EngineError, match=r"float32 \[n, 3, 8, 16\] is expected"):
        OnnxVision(EncoderFiles(folder / "model.onnx", wide))
    with pytest.raises(EngineError, match="no output 'score' and no 'heat_map'"):
        OnnxVision(EncoderFiles(folder / "model.onnx", INSPECT))
    with pytest.raises(EngineError, match="2 classes have labels"):
        OnnxVision(EncoderFiles(folder / "model.onnx", CLASSIFY.model_copy(update={"labels": ("a", "b")})))


def test_a_folder_as_optimum_writes_it_is_read(folder: Path):
    (folder / "anomaly.onnx").rename(folder.parent / "anomaly.onnx")
    (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(LABELS))}))
    with pytest.raises(UnsafeFile, match=r"preprocessor_config\.json is missing"):
        files_of_folder(folder)
    processor = {
        "size": {"shortest_edge": 10},
        "crop_size": {"height": 8, "width": 8},
        "do_center_crop": True,
        "resample": 3,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.2, 0.2],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    files = files_of_folder(folder)
    assert files.engine.image == ImageInput(
        width=8,
        height=8,
        resize="shorter-side",
        resize_to=10,
        interpolation="bicubic",
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.2, 0.2),
    )
    assert OnnxVision(files).facts.labels == LABELS
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | {"resample": 1}))
    with pytest.raises(UnsafeFile, match="resample 1"):
        files_of_folder(folder)
    (folder.parent / "anomaly.onnx").rename(folder / "anomaly.onnx")
