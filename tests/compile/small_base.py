"""A tiny Llama with random weights and a recipe that compiles it: real steps in seconds."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-c", "from compile.cli import main; main()"]
RECIPE = """\
base: {name: small, version: 1.0.0, license: Apache-2.0, file: base}
variants:
  - {name: q8_0, type: Q8_0}
  - {name: q4_0, type: Q4_0}
evaluate:
  text: {file: base/text/heldout.txt}
  text_tokens: 256
  window: 64
  speed_repeats: 3
  bootstrap: 200
budgets:
  kl_mean: {max_rise: 0.05}
release: {name: small, version: 1.0.0}
"""


def make_base(folder: Path) -> Path:
    """Write ``base/`` and ``recipe.yaml`` into ``folder``; returns the recipe."""
    script = ROOT / "examples" / "small_llama" / "make.py"
    command = [sys.executable, str(script), "--out", str(folder / "base"), "--untrained", "--layers", "1"]
    subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=ROOT)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder / "recipe.yaml"


def compile_(*arguments, timeout=600):
    """Run ``outpost-compile`` as a person would."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        check=False,
    )
