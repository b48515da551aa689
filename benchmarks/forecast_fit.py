"""What the steps of a language build really take: a recipe per model, each step's peak and time.

    python benchmarks/forecast_fit.py --out FOLDER NAME=HF_FOLDER_OR_GGUF ...
    python benchmarks/forecast_fit.py --fit FOLDER

The first makes ``FOLDER/NAME.json``, the facts of a model and what each step took; run it on a quiet machine
when seconds matter (peaks do not mind). The second prints how far ``compile.forecast`` is off each of them.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPE = """\
base: {{name: {name}, version: 1.0.0, license: Apache-2.0, file: {file}}}
variants:
  - {{name: q8_0, type: Q8_0}}
  - {{name: q4_0, type: Q4_0}}
  - {{name: q4i, type: Q4_K_M, importance: true}}
  - {{name: gf, type: genai-fp32}}
  - {{name: gi8, type: genai-int8}}
  - {{name: gi4, type: genai-int4}}
calibration: {{text: {{file: {text}}}, tokens: 1024}}
evaluate:
  text: {{file: {text}}}
  text_tokens: 512
  window: 128
  speed_repeats: 3
  bootstrap: 200
budgets:
  kl_mean: {{max_rise: 1000}}
release: {{name: {name}, version: 1.0.0}}
"""

BITS = {"q8_0": 8.5, "q4_0": 4.5, "q4i": 4.85, "gi8": 9, "gi4": 5}
KINDS = {
    "base": "import-{source}",
    "importance": "importance",
    "quantize": "quantize-gguf",
    "fidelity": "measure-{engine}",
    "export": "export-genai-{how}",
}


def run(name: str, source: Path, out: Path) -> None:
    """Build, and write ``out/NAME.json``."""
    from compile.forecast import facts_of

    work = out / f"{name}-work"
    work.mkdir(parents=True, exist_ok=True)
    text = news(work / "text.txt")
    recipe = work / "recipe.yaml"
    recipe.write_text(RECIPE.format(name=name, file=source.resolve(), text=text), encoding="utf-8")
    command = [sys.executable, "-c", "from compile.cli import main; main()", "run", str(recipe)]
    command += ["--out", str(work / "out"), "--cache", str(work / "cache"), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        sys.exit(done.stderr[-3000:])
    facts = facts_of(source, text_bytes=text.stat().st_size, window=128)
    rows = []
    for path in sorted((work / "cache").glob("*/step.json")):
        step = json.loads(path.read_text(encoding="utf-8"))
        rows.append({"step": step["step"], "seconds": step["seconds"], "ram": step["peak_ram_bytes"]})
    (out / f"{name}.json").write_text(
        json.dumps({"facts": vars(facts), "gguf": source.is_file(), "rows": rows}, indent=1)
    )


def news(target: Path) -> Path:
    """The news text of the package ``gensim``."""
    import importlib.util

    spec = importlib.util.find_spec("gensim")
    folder = (
        Path(next(iter(spec.submodule_search_locations or ()))) if spec else sys.exit("gensim is missing")
    )
    source = folder / "test" / "test_data" / "lee_background.cor"
    target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return target


def fit(folder: Path) -> None:
    """Print the table of docs/profiles.md: what was taken beside what is predicted."""
    from dataclasses import replace

    from compile.forecast import Facts, predict

    print("| model | step | peak MB | predicted | off |\n|---|---|---|---|---|")
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        facts = Facts(**data["facts"])
        for row in data["rows"]:
            name, _, variant = row["step"].partition("-")
            bits = BITS.get(variant, 32)
            kind = KINDS.get(name, "").format(
                engine="genai" if variant.startswith("g") else "gguf",
                how="fp32" if bits == 32 else "quantized",
                source="gguf" if data["gguf"] else "folder",
            )
            if not kind:
                continue
            told = predict(kind, replace(facts, weight_bytes=int(facts.parameters * bits / 8)))
            peak, off = row["ram"] / 1e6, told.ram_bytes / row["ram"] - 1
            print(f"| {path.stem} | {row['step']} | {peak:.0f} | {told.ram_bytes / 1e6:.0f} | {off:+.0%} |")


if __name__ == "__main__":
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--out", type=Path)
    options.add_argument("--fit", type=Path)
    options.add_argument("models", nargs="*")
    given = options.parse_args()
    sys.path.insert(0, str(ROOT))
    if given.fit:
        fit(given.fit)
    for model in given.models:
        label, _, where = model.partition("=")
        run(label, Path(where), given.out)
