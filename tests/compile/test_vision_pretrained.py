"""A vision transformer's folder through the command line: exported, in INT8, attention as measured."""

import json
import subprocess
import sys

import pytest
import yaml
from small_base import ROOT, compile_

from compile.errors import Refused
from compile.onnx.vision_pretrained import export_classifier, read_pretrained
from models.engines.onnx_files import files_of_release
from models.engines.onnx_vision import OnnxVision
from models.manifest import ImageInput
from models.store import verify_release

pytestmark = [pytest.mark.model, pytest.mark.slow]
LAYERS = 2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny ViT with random weights, and the digits held out."""
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"epochs": 0, "layers": LAYERS, "hidden": 32, "intermediate": 64, "heads": 2}
    script = ROOT / "examples" / "vision" / "make_vit.py"
    command = [sys.executable, script, "--out", folder]
    command += [part for name, size in sizes.items() for part in (f"--{name}", str(size))]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder


def recipe_of(made, folder, **changes):
    """The example's recipe, reduced to seconds."""
    path = ROOT / "examples" / "vision" / "vit-digits.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document["base"]["file"] = str(made / "model")
    document["data"] |= {"file": str(made / "heldout"), "each": 15}
    document["variants"] = [{"name": "int8", "type": "int8-static", "calibration_images": 8}]
    document["budgets"] = {"size_ratio": {"max_rise": 1.0}}
    document["evaluate"] = {"speed_repeats": 5, "bootstrap": 200}
    for section, values in changes.items():
        document[section] = document.get(section, {}) | values
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return folder / "recipe.yaml"


def test_attention_stays_in_float_exactly_where_that_loses_less(made, tmp_path):
    out = tmp_path / "out"
    recipe = recipe_of(made, tmp_path)
    done = compile_("run", recipe, "--cache", tmp_path / "cache", "--out", out, "--threads", 1)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    variant = next(one for one in report["variants"] if one["name"] == "int8")
    losses = variant["settings"]["attention measured"]
    better = min(losses, key=losses.get)
    assert variant["settings"]["attention"] == better and set(losses) == {"int8", "float"}
    assert any(f"attention's products in {better}" in note for note in report["notes"])
    manifest = verify_release(out / "vit-digits-1.0.0")
    assert len(manifest.fallback_ledger) == (2 * LAYERS if better == "float" else 0)
    assert compile_("verify", out / "vit-digits-1.0.0").returncode == 0
    engine = OnnxVision(files_of_release(out / "vit-digits-1.0.0", manifest))
    picture = next((made / "heldout" / "3").glob("*.png"))
    assert engine.classify([picture.read_bytes()]).shape == (1, 10)
    engine.close()


def test_pictures_scaled_otherwise_than_the_model_was_trained_on_are_refused(made, tmp_path):
    base = read_pretrained(made / "model")
    assert (base.width, base.height, base.labels) == (48, 48, tuple("0123456789"))
    pictures = sorted((made / "heldout").glob("*/*.png"))[::100]
    image = ImageInput(width=48, height=48, mean=base.mean, std=base.std, interpolation="bilinear")
    with pytest.raises(Refused, match="does not answer as torch does"):
        export_classifier(
            made / "model", image, pictures, 10_000, tmp_path, tmp_path, lambda done, note: None
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"labels": list("1023456789")}}, "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, in this order"),
        ({"image": {"width": 64}}, "sees 48 x 48 pixels"),
        ({"head": {"strengths": [1.0]}}, "is a classifier and keeps its own"),
    ],
)
def test_a_recipe_that_says_otherwise_than_the_classifier_is_wrong(made, tmp_path, changes, said):
    done = compile_("plan", recipe_of(made, tmp_path, **changes))
    assert done.returncode == 2 and said in done.stderr
