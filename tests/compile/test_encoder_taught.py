"""Pruned and distilled encoders through the command line: small models, whole runs."""

import itertools
import json
import time

import pytest
from small_base import compile_
from small_models import encoder, quiet, texts

from compile.data.rows import read_splits
from compile.errors import BadRecipe
from compile.line import Workshop
from compile.lines.make import make_line
from compile.recipe.distil import DistilLabels
from compile.recipe.load import load_recipe
from compile.recipe.sections import Source
from compile.recipe.training import FineTune
from compile.steps import Cache, in_order
from compile.training.distil_labels import Labelled, distil_classifier, read_labelled
from compile.training.run import TrainingRun
from models.store import verify_release

LABELS = ("pump", "belt", "valve")
BASE = """task: {task}
base: {{name: small, version: 1.0.0, license: Apache-2.0, file: base}}
data: {{path: rows.jsonl, split: split, near_duplicate: 1.0, duplicates: drop}}
text: {{max_tokens: 32{text}}}
"""
REST = """
variants: [{{name: blocks, type: int8-blocks, block: 16}}]
evaluate: {{speed_repeats: 3, bootstrap: 200}}
budgets: {{{budget}, fallback_tensors: {{max_rise: 0}}}}
release: {{name: small, version: 1.0.0, probes: 2, tolerance: 0.9}}
"""
VECTORS = """
prune: {depth: {keep: 2}, heal: null}
distil: {kind: vectors, teacher: {file: base}, compare: true}
finetune: {method: full, epochs: 4, batch: 8, learning_rate: 0.002, max_tokens: 32, best_by: metric}
"""
TAUGHT = """
distil:
  kind: labels
  teacher: {file: teacher}
  hard: 1
  texts: {file: more.txt}
  compare: true
finetune: {method: full, epochs: 4, batch: 8, learning_rate: 0.002, max_tokens: 32, best_by: metric}
"""


def embed(sections):
    return (
        BASE.format(task="embed", text=", pooling: mean")
        + sections
        + REST.format(budget="cosine_mean: {max_loss: 0.2}")
    )


def classify(sections):
    return (
        BASE.format(task="classify", text="")
        + sections
        + REST.format(budget="label_agreement: {max_loss: 0.3}")
    )


def named(some):
    """Each text's label is which of the three words stands first in it."""
    found = [(text, next((word for word in text.split() if word in LABELS), "")) for text in some]
    return [(text, label) for text, label in found if label]


def run_(*arguments):
    done = compile_(*arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An encoder of four layers, labelled texts, and texts without a label."""
    where = tmp_path_factory.mktemp("taught")
    encoder(where / "base", 1)
    parts = {"train": texts(16, 5), "validation": texts(60, 2), "test": texts(200, 3)}
    rows = [
        {"text": text, "label": label, "split": part}
        for part, some in parts.items()
        for text, label in named(some)
    ]
    (where / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    held = next(one["text"] for one in rows if one["split"] == "test")
    (where / "more.txt").write_text("\n".join([held.upper(), *(text for text, _ in named(texts(300, 6)))]))
    return where


@pytest.mark.slow
def test_an_embedder_is_cut_taught_and_held_against_its_teacher(folder):
    recipe = folder / "vectors.yaml"
    recipe.write_text(embed(VECTORS))
    cache = folder / "cache"
    planned = run_("plan", recipe, "--cache", cache, "--threads", 1, "--json")
    steps = {one["name"]: one for one in planned["steps"]}
    assert {"prune", "finetune", "without-teacher", "export-teacher", "measure-float"} <= set(steps)
    assert all(steps[name]["ram_bytes"] and steps[name]["seconds"] for name in ("prune", "finetune"))
    report = run_("run", recipe, "--cache", cache, "--out", folder / "out", "--threads", 1, "--json")
    again = run_("plan", recipe, "--cache", cache, "--threads", 1, "--json")
    assert all(one["cached"] for one in again["steps"])
    manifest = verify_release(folder / "out" / "small-1.0.0")
    assert manifest.lineage["distilled"]["kind"] == "vectors"
    assert manifest.lineage["distilled"]["teacher"] == manifest.lineage["base_weights"]
    assert len(manifest.lineage["pruned"][0]["depth"]["kept"]) == 2
    assert manifest.lineage["reference"].startswith("the teacher in F32")
    variants = {one["name"]: one for one in report["variants"]}
    assert variants["blocks"]["bytes"] < 0.8 * variants["reference"]["bytes"]
    beside = {name: one["retrieval_precision"]["value"] for name, one in report["baselines"].items()}
    assert {"before training", "student without the teacher", "student in F32"} <= set(beside)
    assert beside["student in F32"] != beside["before training"]
    assert any("Pruned from" in note for note in report["notes"])
    assert any("Distilled from base" in note for note in report["notes"])
    assert any(note.startswith("The teacher ") for note in report["notes"])


@pytest.mark.slow
def test_a_teacher_of_labels_makes_a_better_classifier_of_few_labels(folder):
    labelled = [Labelled(text, label) for text, label in named(texts(500, 4))]
    distil_classifier(
        folder / "base", labelled, labelled[:40], LABELS, DistilLabels(teacher=Source(file="base")),
        FineTune(method="full", epochs=6, batch=8, learning_rate=2e-3),
        TrainingRun(folder / "teacher", folder / "scratch", 1, map(float, itertools.count()).__next__, quiet),
        32,
    )  # fmt: skip
    (folder / "labels.yaml").write_text(classify(TAUGHT))
    line = make_line(folder / "labels.yaml", Workshop(folder, 1, time.monotonic))
    cache = Cache(folder / "labels-cache")
    for step in in_order(line.steps):
        cache.run(step, quiet)
    findings = line.findings(cache, "outpost-compile run labels.yaml")
    beside = {one.name: one.metrics["accuracy"].value for one in findings.beside}
    student = next(one for one in findings.reference.verdicts if one.metric == "accuracy").measured.value
    assert beside["teacher"] > student > beside["student without the teacher"], beside
    assert student > beside["before training"] + 0.2
    shown = {one.text.lower() for one in read_labelled(cache.folder(line.labelled))}
    splits = read_splits(cache.folder(line.data))
    assert len(shown) > 150 and not shown & {row.text for row in (*splits.validation, *splits.test)}
    assert any(note.startswith("The teacher helps: accuracy") for note in findings.notes), findings.notes
    assert set(findings.lineage["distilled"]) >= {"teacher", "texts", "hard", "temperature"}
    assert "distilled" in findings.reference_note
    assert findings.chosen == "blocks" and findings.reference.answers


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (embed("finetune: {method: full}"), "finetune needs distil"),
        (embed(VECTORS.replace("method: full", "method: lora")), "finetune with method: full"),
        (embed("prune: {width: {neurons: 32}}"), "by: activation"),
        (embed("prune: {depth: {keep: 2}, heal: {temperature: 3}}"), "heals by vectors"),
        (classify(TAUGHT.replace("  texts: {file: more.txt}\n", "")), "name texts for the teacher"),
        (classify(TAUGHT.replace("epochs: 4", "first_layer: 1")), "leave first_layer"),
        (embed(VECTORS + "tensorrt: {variant: reference}"), "the reference is the teacher"),
    ],
)
def test_what_does_not_go_together_is_refused_by_the_recipe(tmp_path, text, says):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(BadRecipe, match=says):
        load_recipe(tmp_path / "recipe.yaml")
