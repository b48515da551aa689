"""The cache takes a result for what the code of today would make: that code must not change unseen.

A step's key holds versions of tools; tags of our own (``"outpost-base": "2"``) are raised by hand. For each
tag ``step_tags.json`` holds the code behind it, by digest. Comments, docstrings and layout do not count.
Renew it with::

    python tests/compile/test_step_tags.py
"""

import ast
import hashlib
import json
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PINS = Path(__file__).with_name("step_tags.json")
TAG = re.compile(r'"(outpost-[a-z-]+)": "(\d+)"')

TRAINING = ["training/trainer", "training/methods", "training/examples", "training/causal"]
MODULES = {
    "encoder_steps outpost-alone": ["training/classifier", "training/trainer", "lines/encoder_training"],
    "encoder_steps outpost-baselines": ["evaluate/baselines", "lines/encoder_work"],
    "encoder_steps outpost-before": ["training/classifier", "lines/encoder_training"],
    "encoder_steps outpost-classifier": [
        "training/classifier", "training/trainer", "training/contrast", "training/distil",
        "training/distil_encoder", "training/distil_labels", "lines/encoder_training",
    ],
    "encoder_steps outpost-data": [
        "data/prepare", "data/reading", "data/shapes", "data/cleaning", "data/duplicates", "data/splits",
    ],
    "encoder_steps outpost-export": ["onnx/export", "lines/encoder_work"],
    "encoder_steps outpost-prepare": ["onnx/quantize", "lines/encoder_work"],
    "encoder_steps outpost-prune": ["training/prune", "training/prune_depth", "training/prune_heal"],
    "encoder_steps outpost-quantize": [
        "onnx/quantize", "onnx/int4", "onnx/sensitivity", "lines/encoder_quantize",
    ],
    "encoder_steps outpost-teacher": ["training/teacher", "training/distil_labels", "lines/encoder_training"],
    "encoder_steps outpost-texts": ["evaluate/texts", "evaluate/tokens", "lines/encoder_work"],
    "language_measures outpost-measure": ["evaluate/measure", "evaluate/tokens"],
    "language_measures outpost-survival": ["gguf/survival"],
    "language_steps outpost-base": ["gguf/base", "gguf/folder", "gguf/dequantize", "gguf/tokenizer"],
    "language_steps outpost-data": [
        "data/prepare", "data/reading", "data/shapes", "data/cleaning", "data/duplicates", "data/splits",
    ],
    "language_training outpost-examples": ["training/examples", "training/scoring", "training/causal"],
    "language_training outpost-finetune": [
        *TRAINING, "training/preferences", "training/distil", "training/distil_causal",
    ],
    "language_training outpost-prune": ["training/prune", "training/prune_width", "training/prune_heal"],
    "language_training outpost-teacher": ["training/teacher"],
    "language_variants outpost-genai": ["onnx/genai"],
    "language_variants outpost-importance": ["gguf/importance", "gguf/importance_file"],
    "language_variants outpost-merge": ["gguf/survival"],
    "language_variants outpost-quantize": [
        "gguf/quantize", "gguf/quantize_child", "gguf/mixture", "gguf/sensitivity",
    ],
    "reading_steps outpost-ocr": ["readers/ocr", "readers/ledger", "onnx/quantize"],
    "reading_steps outpost-read": ["evaluate/readings"],
    "reading_steps outpost-readings": ["data/readings"],
    "reading_steps outpost-whisper": ["readers/whisper", "readers/ledger"],
    "tensorrt outpost-tensorrt": ["onnx/tensorrt"],
    "vision_steps outpost-baselines": ["anomaly/baselines", "onnx/vision_head"],
    "vision_steps outpost-export-vision": ["onnx/vision_pretrained"],
    "vision_steps outpost-head": ["onnx/vision_head"],
    "vision_steps outpost-images": ["data/images"],
    "vision_steps outpost-vision": ["anomaly/features", "onnx/vision_export", "onnx/files"],
    "vision_variants outpost-look": ["evaluate/pictures"],
    "vision_variants outpost-memory": ["anomaly/build", "anomaly/bank", "anomaly/threshold", "anomaly/graph"],
    "vision_variants outpost-quantize": ["onnx/vision_quantize"],
    "vision_variants outpost-vision": ["onnx/vision_export", "onnx/vision_head"],
}  # fmt: skip


def stated() -> dict[str, str]:
    """The tags in the lines, by module, with their versions."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "compile" / "lines").glob("*.py")):
        for name, version in TAG.findall(path.read_text(encoding="utf-8")):
            tag = f"{path.stem} {name}"
            assert found.setdefault(tag, version) == version, f"{tag} has two versions"
    return found


def digest(source: str) -> str:
    """Of what a module does: its syntax without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


@cache
def today() -> dict[str, dict[str, object]]:
    """What the pins should be."""

    def of(module: str) -> str:
        return digest((ROOT / "compile" / f"{module}.py").read_text(encoding="utf-8"))

    return {
        tag: {"version": version, "code": {module: of(module) for module in sorted(MODULES[tag])}}
        for tag, version in stated().items()
    }


def test_every_tag_names_the_code_behind_it() -> None:
    assert set(stated()) == set(MODULES)


@pytest.mark.parametrize("tag", sorted(MODULES))
def test_a_tag_is_raised_when_the_code_behind_it_changes(tag: str) -> None:
    now, pinned = today()[tag], json.loads(PINS.read_text(encoding="utf-8"))[tag]
    changed = [name for name, one in now["code"].items() if pinned["code"].get(name) != one]
    line, name = tag.split()
    assert now == pinned, (
        f"{', '.join(changed) or 'the version'} changed behind {name}. Where a step now makes something "
        f"else, raise the tag in compile/lines/{line}.py; then run python tests/compile/test_step_tags.py"
    )


def test_only_what_a_module_does_counts() -> None:
    one = 'def f(a):\n    """Says."""\n    return a + 1\n'
    assert digest(one) == digest("def f(a):  # says\n    return (a + 1)\n")
    assert digest(one) != digest(one.replace("1", "2"))


if __name__ == "__main__":
    PINS.write_text(json.dumps(today(), indent=1) + "\n", encoding="utf-8")
