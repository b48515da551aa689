"""Lite models in INT8: what stays in float on purpose, what is refused, what the ledger says."""

import runpy
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from compile.errors import BadData, BadRecipe
from compile.onnx import vision_export as export
from compile.onnx.files import ledger, write_model
from compile.onnx.vision_quantize import parts_of, quantize_vision
from compile.recipe.vision import ImageVariant
from models.manifest import ImageInput

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ImageInput(width=32, height=32)
pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lite0")
    runpy.run_path(str(ROOT / "examples" / "vision" / "convert_lite0.py"))["convert"](folder)
    weights, config = export.read_weights(folder), export.read_config(folder)
    chance = np.random.default_rng(0)
    head = chance.normal(size=(3, 1280)).astype(np.float32), np.zeros(3, np.float32)
    write_model(export.classifier(weights, config, 32, 32, head), folder / "model.onnx")
    for number in range(12):
        pixels = chance.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def quantize(model, folder, variant, calibrate=4):
    pictures = sorted(model.glob("*.png"))
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return quantize_vision(
        model / "model.onnx",
        folder / "model.onnx",
        ImageVariant(name="tried", **variant),
        pictures[:calibrate],
        pictures[calibrate:],
        IMAGE,
        10_000,
        scratch,
        lambda done, note: None,
    )


def test_every_weight_becomes_int8_and_no_activation_between_returns_to_float(model, tmp_path):
    quantize(model, tmp_path, {"type": "int8-static"})
    assert ledger(tmp_path / "model.onnx", "INT8") == ()
    assert not any(node.op_type == "Clip" for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert (tmp_path / "model.onnx").stat().st_size < 0.3 * (model / "model.onnx").stat().st_size


def test_parts_that_are_kept_stand_in_the_ledger(model, tmp_path):
    quantize(model, tmp_path, {"type": "int8-static", "keep": ["stem", "block3"]})
    kept = {one.tensor.split(".")[0] for one in ledger(tmp_path / "model.onnx", "INT8")}
    assert kept == {"stem", "block3"}


def test_a_part_that_is_not_there_is_refused_with_those_that_are(model, tmp_path):
    with pytest.raises(BadRecipe, match="no part stam; there are stem, block0"):
        quantize(model, tmp_path, {"type": "int8-static", "keep": ["stam"]})
    assert not (tmp_path / "model.onnx").exists()


def test_mixing_needs_held_out_pictures(model, tmp_path):
    mixed = {"type": "int8-static", "mixed": {"max_loss": 0.01}}
    with pytest.raises(BadData, match="no held-out pictures"):
        quantize(model, tmp_path, mixed, calibrate=12)
    found = quantize(model, tmp_path, {"type": "int8-static", "mixed": {"max_loss": 1000.0}})
    assert found["kept in float"] == [] and found["reached"]
    with pytest.raises(ValueError, match="goes with int8-static"):
        ImageVariant(name="one", type="int8-dynamic", mixed={"max_loss": 1})


def test_parts_cover_every_quantized_node_once(model):
    parts = parts_of(model / "model.onnx")
    nodes = [node for part in parts for node in part.nodes]
    assert (
        len(nodes)
        == len(set(nodes))
        == sum(
            node.op_type in ("Conv", "Clip", "Add", "GlobalAveragePool", "Gemm")
            for node in onnx.load(model / "model.onnx").graph.node
        )
    )
    assert [part.name for part in parts][:2] == ["stem", "block0"]
