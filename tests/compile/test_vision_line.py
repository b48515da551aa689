"""Vision recipes through the command line, from folders of images to releases that answer their probes."""

import base64
import io
import json
import runpy
import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from edge_command import serving, sign
from onnxruntime import InferenceSession
from PIL import Image
from small_base import ROOT, compile_

from models.engines.onnx_files import files_of_release
from models.engines.onnx_vision import OnnxVision
from models.store import read_release, verify_release

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    script = runpy.run_path(str(ROOT / "examples" / "vision" / "convert_lite0.py"))
    return script["convert"](tmp_path_factory.mktemp("lite0"))


@pytest.fixture(scope="module")
def cloth(tmp_path_factory):
    """The first pictures of each kind: fewer to decode."""
    import conformal_clip_data

    source = Path(conformal_clip_data.__file__).parent / "data" / "textile_images" / "simulated"
    folder = tmp_path_factory.mktemp("cloth")
    for label, count in (("nominal", 120), ("local", 25), ("global", 25)):
        (folder / label).mkdir()
        for path in sorted((source / label).glob("*.jpg"))[:count]:
            shutil.copy(path, folder / label / path.name)
    return folder


def recipe_of(example, folder, weights, pictures, **changes):
    """An example's recipe with its files at their places here, and sections changed."""
    document = yaml.safe_load((ROOT / "examples" / example).read_text(encoding="utf-8"))
    document["base"]["file"] = str(weights)
    document["data"]["file"] = str(pictures)
    document["data"].pop("package", None)
    for section, values in changes.items():
        document[section] = document.get(section, {}) | values if isinstance(values, dict) else values
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def inspection(tmp_path_factory, weights, cloth):
    folder = tmp_path_factory.mktemp("inspection")
    recipe = recipe_of(
        "textile/inspect-ci.yaml",
        folder,
        weights,
        cloth,
        data={"test": 25, "test_defects": 25},
        tensorrt={"variant": "fp32", "jetpacks": ["6.2"]},
    )
    done = compile_("run", recipe, "--cache", folder / "cache", "--out", folder / "out", "--threads", 1)
    assert done.returncode == 0, done.stderr
    return recipe, folder, json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))


def test_an_inspection_finds_local_defects_that_pooled_features_miss(inspection):
    _, folder, report = inspection
    by_name = {one["name"]: one for one in report["variants"]}
    quality = by_name["int8"]["quality"]
    fallen = quality["fallback_tensors"]
    assert (
        fallen["value"] == len(by_name["int8"]["fallback_ledger"]) > 0 and fallen["samples"] > fallen["value"]
    )
    assert by_name["fp32"]["quality"]["fallback_tensors"]["value"] == 0
    assert report["chosen"] == "int8"
    assert quality["auroc_local"]["value"] > 0.9 and quality["auroc_global"]["value"] > 0.9
    assert by_name["int8"]["bytes"] < 0.7 * by_name["fp32"]["bytes"]
    assert by_name["fp32"]["quality"]["auroc"]["ci95"] == [0.0, 0.0]
    assert "pooled features" in (folder / "out" / "report.html").read_text(encoding="utf-8")


def test_its_release_answers_its_probes_and_shows_where(inspection, cloth):
    _, folder, _ = inspection
    release = folder / "out" / "textile-inspection-1.0.0"
    manifest = verify_release(release)
    assert manifest.engine.task == "inspect" and len(manifest.probes) == 3
    assert {"x86-64-avx2", "arm64-dotprod", "jetson-orin-nano-8g"} <= set(manifest.profiles)
    assert {one.metric for one in manifest.quality} >= {"auroc_local", "false_reject_rate"}
    assert [one.tensor for one in manifest.fallback_ledger]
    assert compile_("verify", release).returncode == 0
    engine = OnnxVision(files_of_release(release, manifest))
    path = sorted((cloth / "local").glob("*.jpg"))[0]
    found = engine.inspect([path.read_bytes()])[0]
    engine.close()
    # Where that picture's defect lies, by eye: a checkered spot at 166, 207 of 250 x 250.
    row, column = np.unravel_index(found.heat_map.argmax(), found.heat_map.shape)
    assert found.is_defect and abs(row - 206) < 16 and abs(column - 165) < 16


def test_its_release_is_signed_and_served_and_its_heat_map_is_a_picture(inspection, cloth, tmp_path):
    _, folder, _ = inspection
    release = folder / "out" / "textile-inspection-1.0.0"
    sign(release, tmp_path / "offline")
    with serving(f"cloth={release}") as (url, _):

        def ask(kind, heat_map):
            picture = sorted((cloth / kind).glob("*.jpg"))[0]
            files = {"image": (picture.name, picture.read_bytes(), "image/jpeg")}
            form = {"model": "cloth", "heat_map": heat_map}
            (found,) = httpx.post(f"{url}/v1/inspect", data=form, files=files, timeout=60).json()["data"]
            return found, np.asarray(Image.open(io.BytesIO(base64.b64decode(found["heat_map"]))), dtype=float)

        good, cold = ask("nominal", "true")
        bad, hot = ask("local", "true")
        _, over = ask("local", "overlay")
    assert (good["verdict"], bad["verdict"]) == ("good", "defect")
    # Grey: 128 is the threshold. The picture's own size is 250 x 250, of which 1 to 249 was looked at.
    assert cold.max() < 128 < hot.max() and hot.shape == (248, 248) and bad["region"] == [1, 1, 249, 249]
    row, column = np.unravel_index(hot.argmax(), hot.shape)
    assert abs(row + 1 - 207) < 16 and abs(column + 1 - 166) < 16 and np.median(hot) < 128
    redder = over[..., 0] - over[..., 2]  # the cloth is grey
    assert over.shape == (250, 250, 3) and redder[191:223, 150:182].max() > 60 > redder[:125, :125].max()


def test_beside_it_lies_the_recipe_of_an_engine_that_nobody_has_built(inspection):
    _, folder, report = inspection
    release = folder / "out" / "textile-inspection-trt-1.0.0"
    manifest = verify_release(release)
    onnx, _ = read_release(folder / "out" / "textile-inspection-1.0.0")
    assert (manifest.format, manifest.precision, manifest.speed) == ("tensorrt-recipe", "FP32", ())
    assert manifest.lineage["onnx_release"] == onnx.digest
    assert manifest.lineage["tensorrt"]["tested"] == "untested"
    assert manifest.profiles == ("jetson-agx-orin", "jetson-orin-nano-8g")
    assert "auroc_local@onnx" in {one.metric for one in manifest.quality}
    recipe = json.loads((release / "tensorrt.json").read_text(encoding="utf-8"))
    assert recipe["plans"][0]["network_flags"] == ["STRONGLY_TYPED"] and not recipe["widened"]
    assert recipe["profiles"] == [{"image": [[1, 3, 248, 248], [1, 3, 248, 248], [8, 3, 248, 248]]}]
    assert any("has not been measured" in note for note in report["notes"])
    assert "3 probes are left to the device" in compile_("verify", release).stdout
    done = compile_("verify", release, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["unasked"] == 3, done.stdout


def test_a_second_run_makes_nothing(inspection):
    recipe, folder, _ = inspection
    again = compile_("run", recipe, "--cache", folder / "cache", "--out", folder / "out", "--threads", 1)
    assert again.returncode == 0 and "about" not in again.stderr


def test_a_broken_picture_is_named_and_nothing_is_written(inspection, weights, cloth, tmp_path):
    _, folder, _ = inspection
    bad = tmp_path / "bad"
    shutil.copytree(cloth, bad)
    first = sorted((bad / "nominal").glob("*.jpg"))[0]
    first.write_bytes(first.read_bytes()[:2000])
    recipe = recipe_of("textile/inspect-ci.yaml", tmp_path, weights, bad)
    done = compile_("run", recipe, "--cache", folder / "cache", "--out", tmp_path / "out")
    assert done.returncode == 1 and f"nominal/{first.name}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_too_few_good_parts_for_the_promise_are_refused_before_anything_runs(weights, cloth, tmp_path):
    recipe = recipe_of(
        "textile/inspect-ci.yaml", tmp_path, weights, cloth, threshold={"false_reject_rate": 0.01}
    )
    done = compile_("run", recipe, "--cache", tmp_path / "cache", "--out", tmp_path / "out")
    assert done.returncode == 3 and "99 would do" in done.stderr
    assert not (tmp_path / "cache").exists()


def test_a_wrong_key_is_named_with_its_nearest(weights, cloth, tmp_path):
    recipe = recipe_of("textile/inspect-ci.yaml", tmp_path, weights, cloth, memory={"neighborhood": 12})
    done = compile_("plan", recipe)
    assert done.returncode == 2 and "'memory.neighborhood'; did you mean 'neighbourhood'?" in done.stderr
    recipe = recipe_of("textile/inspect-ci.yaml", tmp_path, weights, cloth, image={"width": 250})
    done = compile_("plan", recipe)
    assert done.returncode == 2 and "multiple of 8" in done.stderr


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    script = runpy.run_path(str(ROOT / "examples" / "vision" / "digits.py"))
    return script["write_digits"](tmp_path_factory.mktemp("digits"), each=40)


INT8 = {"type": "int8-static", "calibration_images": 8, "reduce_range": False}


def same_answers(graph, cache):
    """The recipe's graph says what the measured one says."""
    measured = next(cache.glob("quantize-tensorrt-*")) / "model.onnx"
    image = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    one, other = (InferenceSession(path).run(None, {"image": image})[0] for path in (graph, measured))
    assert np.abs(one - other).max() < 0.05 * np.abs(other).max()


def test_a_classifier_ships_in_int8_and_a_strict_budget_refuses_it(weights, digits, tmp_path):
    recipe = recipe_of(
        "vision/digits-ci.yaml",
        tmp_path,
        weights,
        digits,
        variants=[{**INT8, "name": "int8"}, {**INT8, "name": "tensorrt", "symmetric": True}],
        tensorrt={"variant": "tensorrt"},
    )
    cache, out = tmp_path / "cache", tmp_path / "out"
    done = compile_("run", recipe, "--cache", cache, "--out", out, "--threads", 1)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    quality = next(one for one in report["variants"] if one["name"] == "int8")["quality"]
    assert quality["size_ratio"]["value"] <= 0.3 and quality["accuracy"]["value"] > 0.6
    manifest = verify_release(out / "digits-1.0.0")
    assert quality["fallback_tensors"]["value"] == 0 and quality["fallback_tensors"]["samples"] == 50
    assert manifest.engine.labels == ("0", "1", "4", "7") and not manifest.fallback_ledger
    assert {probe.image.split("-")[1] for probe in manifest.probes} == {"0.png", "1.png", "4.png", "7.png"}
    with Image.open(out / "digits-1.0.0" / manifest.probes[0].image) as probe:
        assert probe.size == (8, 8) and probe.mode == "L"
    assert compile_("verify", out / "digits-1.0.0").returncode == 0
    with serving(f"digits={out / 'digits-1.0.0'}") as (url, _):
        image = [
            base64.b64encode((out / "digits-1.0.0" / one.image).read_bytes()).decode()
            for one in manifest.probes
        ]
        answer = httpx.post(f"{url}/v1/classify", json={"model": "digits", "image": image}, timeout=60).json()
    said = [json.loads(one.expected)["label"] for one in manifest.probes]
    assert [one["label"] for one in answer["data"]] == said and answer["outpost"][
        "release"
    ] == manifest.digest
    told = json.loads((out / "digits-trt-1.0.0" / "tensorrt.json").read_text(encoding="utf-8"))
    # 49 convolutions and the head; their biases are floats now, and so is nothing else.
    assert told["qdq"] == {"quantized": {"Conv": 49, "Gemm": 1}, "in_float": {}}
    assert len(told["widened"]) == 50 and {plan["tensorrt_major"] for plan in told["plans"]} == {10, 11}
    same_answers(out / "digits-trt-1.0.0" / "model.onnx", cache)
    strict = recipe_of(
        "vision/digits-ci.yaml", tmp_path, weights, digits, budgets={"size_ratio": {"max_rise": 0.1}}
    )
    done = compile_("run", strict, "--cache", cache, "--out", tmp_path / "refused", "--threads", 1)
    assert done.returncode == 3 and "size_ratio" in done.stderr and "nearest recipe" in done.stderr
    assert not (tmp_path / "refused" / "digits-1.0.0").exists()
