"""The engines on a GPU beside the same engines on the CPU of the same machine.

    python -m benchmarks.gpu [--gguf FILE] [--encoder FOLDER] [--threads N] [--out FILE.json]

Needs llama-cpp-python built with CUDA (``CMAKE_ARGS=-DGGML_CUDA=ON``) for ``--gguf``, onnxruntime-gpu for
``--encoder``, a folder as optimum writes it. Each figure comes from a process of its own; the CPU's does not
see the GPU. Prints the tables of docs/gpu.md.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT = "The maintenance log of the second shift says that the hydraulic press lost pressure twice. "
SEQUENCES = (1, 8, 32)
TOKENS, ROUNDS, TEXTS = 128, 3, 512


def generation(path: Path, threads: int) -> dict[str, Any]:
    """Prefill and decoding, tokens a second, and what is answered greedily."""
    from models.engines.base import GenerateRequest, Sampling
    from models.engines.llama_cpp import LlamaEngine, LlamaSettings

    most = max(SEQUENCES)
    settings = LlamaSettings(
        threads=threads, context_tokens=1024, max_sequences=most, batch_tokens=512, cache_tokens=most * 256
    )
    began = time.monotonic()
    engine = LlamaEngine(path, settings)
    result: dict[str, Any] = {"load seconds": time.monotonic() - began}
    asked = 0

    def answer(prompts: list[str], tokens: int) -> tuple[list[str], float]:
        nonlocal asked
        texts = {}
        for prompt in prompts:
            asked += 1
            texts[str(asked)] = ""
            engine.submit(GenerateRequest(str(asked), prompt, Sampling(tokens, ignore_eos=tokens > 1)))
        began = time.monotonic()
        while events := engine.step():
            for event in events:
                texts[event.id] += event.text
        return list(texts.values()), time.monotonic() - began

    answer([PROMPT], 8)  # kernels are loaded when they are first needed
    long = len(engine.prompt_tokens(PROMPT * 30))
    times = [answer([f"{round_}: {PROMPT * 30}"], 1)[1] for round_ in range(ROUNDS)]
    result["prefill tokens/s"] = [long / seconds for seconds in times]
    for count in SEQUENCES:
        times = [
            answer([f"{round_}.{one}: {PROMPT}" for one in range(count)], TOKENS)[1]
            for round_ in range(ROUNDS)
        ]
        result[f"{count} at once, tokens/s"] = [count * TOKENS / seconds for seconds in times]
    result["said"] = answer([PROMPT], 48)[0][0]
    engine.close()
    return result


def embedding(folder: Path, threads: int) -> dict[str, Any]:
    """Texts a second, and the vectors of some of them."""
    from models.engines.onnx_files import files_of_folder
    from models.engines.onnx_session import Device, OnnxSettings
    from models.engines.onnx_text import OnnxText

    device: Device = "cpu" if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else "cuda"
    engine = OnnxText(files_of_folder(folder), OnnxSettings(threads=threads, batch=64, device=device))
    texts = [f"{number}: {PROMPT * (1 + number % 3)}" for number in range(TEXTS)]
    engine.embed(texts[:64])
    result: dict[str, Any] = {}
    for size in (1, 64):
        some = texts[: 64 if size == 1 else TEXTS]
        times = []
        for _ in range(ROUNDS):
            began = time.monotonic()
            for start in range(0, len(some), size):
                engine.embed(some[start : start + size])
            times.append(time.monotonic() - began)
        result[f"{size} at once, texts/s"] = [len(some) / seconds for seconds in times]
    result["vectors"] = engine.embed(texts[:16]).tolist()
    engine.close()
    return result


MEASURES: dict[str, Callable[[Path, int], dict[str, Any]]] = {"gguf": generation, "encoder": embedding}


def measured(kind: str, path: Path, threads: int, gpu: bool) -> dict[str, Any]:
    """``MEASURES[kind]`` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu", f"--{kind}", str(path), "--threads", str(threads)]
    environment = dict(os.environ) if gpu else os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "--child"], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {"GPU": gpu, "CPU": f"{cpu}, {os.cpu_count()} cores", "Python": platform.python_version()}


def table(gpu: dict[str, Any], cpu: dict[str, Any]) -> list[str]:
    """Medians, and the ratio of medians with its spread over all pairs of rounds."""
    lines = ["| | GPU | CPU | GPU / CPU |", "|---|---|---|---|"]
    for name, ours in gpu.items():
        theirs = cpu[name]
        if isinstance(ours, list) and isinstance(ours[0], float):
            ratios = [a / b for a in ours for b in theirs]
            ratio = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
            lines.append(
                f"| {name} | {statistics.median(ours):,.0f} | {statistics.median(theirs):,.0f} | {ratio} |"
            )
    return lines


def agreement(gpu: dict[str, Any], cpu: dict[str, Any]) -> str:
    """Whether the two say the same."""
    if "said" in gpu:
        pairs = zip(gpu["said"], cpu["said"], strict=False)
        same = next((at for at, (a, b) in enumerate(pairs) if a != b), len(cpu["said"]))
        return f"greedy answers agree for {same} of {len(cpu['said'])} characters"
    import numpy as np

    ours, theirs = np.array(gpu["vectors"]), np.array(cpu["vectors"])
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    return f"smallest cosine of {len(ours)} vectors: {cosine.min():.6f}"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--gguf", type=Path)
    options.add_argument("--encoder", type=Path)
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--out", type=Path)
    options.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    paths = {kind: getattr(given, kind) for kind in MEASURES if getattr(given, kind) is not None}
    if not paths:
        options.error("--gguf or --encoder is needed")
    if given.child:
        ((kind, path),) = paths.items()
        print(json.dumps(MEASURES[kind](path, given.threads)))
        return
    found: dict[str, Any] = {"machine": machine()}
    for name, value in found["machine"].items():
        print(f"{name}: {value}")
    for kind, path in paths.items():
        gpu, cpu = (measured(kind, path, given.threads, on) for on in (True, False))
        found[kind] = {"gpu": gpu, "cpu": cpu}
        print(f"\n{path.name}: {agreement(gpu, cpu)}\n", *table(gpu, cpu), sep="\n", flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
