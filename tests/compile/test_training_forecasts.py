"""The memory that plans foresee for steps of training: it grows with the base, and with who teaches."""

import json
import time

import numpy as np
import yaml
from gguf_models import Shape, write_llama
from safetensors.numpy import save_file
from small_base import ROOT

from compile.line import Workshop
from compile.lines.language_line import LanguageLine
from compile.steps import in_order

ROWS = "".join(f'{{"question": "How loud is pump {at}?", "answer": "{at} dB"}}\n' for at in range(40))


def foreseen(folder, base, **sections):
    """Bytes of memory by step, for a recipe with these sections."""
    (folder / "rows.jsonl").write_text(ROWS)
    (folder / "text.txt").write_text("The pump of line one is loud. " * 200)
    recipe = {
        "base": {"name": "base", "version": "1.0.0", "license": "Apache-2.0", "file": base.name},
        "data": {"path": "rows.jsonl", "train_rows": 400},
        "variants": [{"name": "q8_0", "type": "Q8_0"}],
        "evaluate": {"text": {"file": "text.txt"}},
        "budgets": {"kl_mean": {"max_rise": 0.05}},
        "release": {"name": "made", "version": "1.0.0"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | sections))
    line = LanguageLine.make(path, Workshop(ROOT / ".cache", 1, time.monotonic))
    return {step.name: step.ram_bytes for step in in_order(line.steps)}


def write_folder(folder, width):
    """A Hugging Face folder of ``8 * width * width`` weights, as far as a plan reads it."""
    folder.mkdir()
    save_file({"weight": np.zeros((8 * width, width), np.float32)}, folder / "model.safetensors")
    sizes = {"num_hidden_layers": 1, "hidden_size": width, "vocab_size": 8, "num_attention_heads": 1}
    (folder / "config.json").write_text(json.dumps(sizes))
    return 4 * 8 * width * width


def test_layers_that_are_computed_once_take_the_base_and_what_leaves_them_twice(tmp_path):
    tuning = {"finetune": {"method": "lora", "first_layer": 1}}
    small, wide = (
        write_llama(tmp_path / f"{width}.gguf", Shape(layers=2, width=width, inner=256))
        for width in (128, 256)
    )
    less, more = (foreseen(tmp_path, base, **tuning)["fixed-layers"] for base in (small, wide))
    entering = 4 * 128 * 400 * 128  # bytes x tokens of a row x rows x further width
    grown = wide.stat().st_size - small.stat().st_size
    assert abs(more - less - grown - 2 * entering) < 100_000


def test_a_teacher_of_answers_takes_what_it_takes_to_serve_it_and_one_elsewhere_nothing(tmp_path):
    base = write_llama(tmp_path / "base.gguf", Shape(layers=1))
    big = write_llama(tmp_path / "big.gguf", Shape(layers=4, inner=2048))

    def with_teacher(**teacher):
        lesson = {"kind": "sequences", "keep_answers": False, "teacher": teacher}
        return foreseen(tmp_path, base, distil=lesson, finetune={"method": "full"})["teacher"]

    small, large, longer = (
        with_teacher(file={"file": base.name}),
        with_teacher(file={"file": big.name}),
        with_teacher(file={"file": big.name}, context_tokens=4096),
    )
    assert large - small > big.stat().st_size - base.stat().st_size
    assert longer > large
    assert with_teacher(url="https://llm.example.com/v1", model="big") < small


def test_a_teacher_of_logits_runs_beside_the_student_or_before_it(tmp_path):
    base = write_llama(tmp_path / "base.gguf", Shape(layers=1))
    teacher = write_folder(tmp_path / "teacher", 2048)

    def with_lesson(**more):
        lesson = {"kind": "logits", "teacher": {"file": "teacher"}, **more}
        return foreseen(tmp_path, base, distil=lesson, finetune={"method": "full"})["finetune"]

    alone = foreseen(tmp_path, base, finetune={"method": "full"})["finetune"]
    assert with_lesson(hard=1) == alone
    assert with_lesson() == alone + teacher
    assert alone < with_lesson(top=16) < alone + teacher + 100_000_000
