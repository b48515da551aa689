"""A tiny Llama as GenAI folders, made once per test run: real exports in seconds."""

import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from compile.onnx.genai import GenaiSettings, export
from models.manifest import AdapterSlots

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("q_proj", "v_proj", "down_proj")
MAX_RANK = 8
LAYERS = 2


def quiet(done: float, note: str) -> None:
    """A report that nobody reads."""


@cache
def work() -> Path:
    """Removed when the test process ends."""
    folder = tempfile.TemporaryDirectory(prefix="genai-")
    work.keep = folder  # type: ignore[attr-defined]
    return Path(folder.name)


@cache
def hf_folder() -> Path:
    """Random weights, rows of 256, a byte-level tokenizer with ChatML's control tokens."""
    script = ROOT / "examples" / "small_llama" / "make.py"
    target = work() / "hf"
    command = [sys.executable, str(script), "--out", str(target), "--untrained", "--layers", str(LAYERS)]
    subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=ROOT)
    return target


def exported(precision: str, slots: bool = False) -> Path:
    """The GenAI folder at a precision."""
    return _exported(precision, slots)


@cache
def _exported(precision: str, slots: bool) -> Path:
    target = work() / f"{precision}-{slots}"
    target.mkdir()
    takes = AdapterSlots(max_rank=MAX_RANK, targets=TARGETS) if slots else None
    settings = GenaiSettings(precision, algorithm="rtn", slots=takes)  # type: ignore[arg-type]
    scratch = work() / "scratch" / target.name
    scratch.mkdir(parents=True)
    export(hf_folder(), settings, target, scratch, quiet)
    return target


def write_peft(folder: Path, seed: int, rank: int = 4, targets: tuple[str, ...] = TARGETS) -> Path:
    """A peft adapter with random numbers that are large enough to be heard."""
    import json

    config = json.loads((hf_folder() / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {"q_proj": (hidden, hidden), "v_proj": (hidden, hidden), "down_proj": (inner, hidden)}
    shapes |= {"o_proj": (hidden, hidden), "up_proj": (hidden, inner)}
    numbers, tensors = np.random.default_rng(seed), {}
    for layer in range(LAYERS):
        for target in targets:
            rows, columns = shapes[target]
            part = "mlp" if target in ("down_proj", "up_proj") else "self_attn"
            stem = f"base_model.model.model.layers.{layer}.{part}.{target}"
            tensors[f"{stem}.lora_A.weight"] = numbers.normal(0, 0.3, (rank, rows)).astype(np.float32)
            tensors[f"{stem}.lora_B.weight"] = numbers.normal(0, 0.3, (columns, rank)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets),
        "bias": "none",
        "base_model_name_or_path": "",
    }
    (folder / "adapter_config.json").write_text(json.dumps(described))
    return folder
