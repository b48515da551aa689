"""The engines on a GPU beside the same engines on the CPU of the same machine.

    python -m benchmarks.gpu [--gguf FILE] [--genai FOLDER] [--encoder FOLDER] [--vision FOLDER]
        [--threads N] [--out FILE.json]

Needs llama-cpp-python built with CUDA (``CMAKE_ARGS=-DGGML_CUDA=ON``) for ``--gguf``, onnxruntime-genai-cuda
for ``--genai``, a folder that GenAI's model builder wrote, and onnxruntime-gpu for ``--encoder`` and
``--vision``, a folder as optimum writes it or a release. Each figure comes from a process of its own; the
CPU's does not see the GPU. Prints the tables of docs/gpu.md.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.engines.llama_cpp import LlamaEngine
    from models.engines.onnx_genai import GenaiEngine
    from models.engines.onnx_session import Device

PROMPT = "The maintenance log of the second shift says that the hydraulic press lost pressure twice. "
SEQUENCES, IN_TURN = (1, 8, 32), (1, 4)
TOKENS, ROUNDS, TEXTS, PICTURES = 128, 3, 512, 256


def device() -> "Device":
    """Where this process measures: the CPU's children see no GPU."""
    return "cpu" if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else "cuda"


def llama_cpp(path: Path, threads: int) -> dict[str, Any]:
    """``generation`` of a GGUF file."""
    from models.engines.llama_cpp import LlamaEngine, LlamaSettings

    most = max(SEQUENCES)
    settings = LlamaSettings(
        threads=threads, context_tokens=1024, max_sequences=most, batch_tokens=512, cache_tokens=most * 256
    )
    return generation(lambda: LlamaEngine(path, settings), SEQUENCES, goes_on=True)


def genai(path: Path, threads: int) -> dict[str, Any]:
    """``generation`` of a GenAI folder."""
    from models.engines.onnx_genai import GenaiEngine, GenaiSettings

    settings = GenaiSettings(
        threads=threads,
        context_tokens=1024,
        max_sequences=max(IN_TURN),
        batch_tokens=512,
        device=device(),
    )
    # It computes one sequence after the other, and stops where the model does.
    return generation(lambda: GenaiEngine(path, settings), IN_TURN, goes_on=False)


def generation(
    load: "Callable[[], LlamaEngine | GenaiEngine]", sequences: Sequence[int], goes_on: bool
) -> dict[str, Any]:
    """Prefill and decoding, tokens a second, and what is answered greedily."""
    from models.engines.base import GenerateRequest, Sampling

    began = time.monotonic()
    engine = load()
    result: dict[str, Any] = {"load seconds": time.monotonic() - began}
    asked = 0

    def answer(prompts: list[str], tokens: int) -> tuple[list[str], float]:
        """What is said to each, and tokens a second of all together."""
        nonlocal asked
        texts: dict[str, str] = {}
        said: dict[str, int] = {}
        for prompt in prompts:
            asked += 1
            texts[str(asked)] = ""
            sampling = Sampling(tokens, ignore_eos=goes_on and tokens > 1)
            engine.submit(GenerateRequest(str(asked), prompt, sampling))
        began = time.monotonic()
        while events := engine.step():
            for event in events:
                if event.error is not None:
                    raise event.error
                texts[event.id] += event.text
                said[event.id] = event.usage.completion_tokens
        return list(texts.values()), sum(said.values()) / (time.monotonic() - began)

    answer([PROMPT], 8)  # kernels are loaded when they are first needed
    long = len(engine.prompt_tokens(PROMPT * 30))
    rates = [answer([f"{round_}: {PROMPT * 30}"], 1)[1] for round_ in range(ROUNDS)]
    result["prefill tokens/s"] = [long * rate for rate in rates]
    for count in sequences:
        result[f"{count} at once, tokens/s"] = [
            answer([f"{round_}.{one}: {PROMPT}" for one in range(count)], TOKENS)[1]
            for round_ in range(ROUNDS)
        ]
    result["said"] = answer([PROMPT], 48)[0][0]
    engine.close()
    return result


def embedding(folder: Path, threads: int) -> dict[str, Any]:
    """Texts a second, and the vectors of some of them."""
    from models.engines.onnx_files import files_of_folder
    from models.engines.onnx_session import OnnxSettings
    from models.engines.onnx_text import OnnxText

    engine = OnnxText(files_of_folder(folder), OnnxSettings(threads=threads, batch=64, device=device()))
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


def seeing(folder: Path, threads: int) -> dict[str, Any]:
    """Pictures a second, decoded and of the graph alone, and what is found on some of them."""
    import numpy as np

    from edge_agent.engines.files import of_path, of_release
    from models.engines.onnx_session import OnnxSession, OnnxSettings
    from models.engines.onnx_vision import OnnxVision
    from models.manifest import MANIFEST_FILE
    from models.store import read_release

    is_release = (folder / MANIFEST_FILE).is_file()
    files = (of_release(folder, read_release(folder)[0]) if is_release else of_path(folder)).encoder
    if files is None or files.engine.image is None:
        raise SystemExit(f"{folder} is no vision model")
    engine = OnnxVision(files, OnnxSettings(threads=threads, batch=32, device=device()))
    image = files.engine.image
    pictures = [picture(number, image.width, image.height) for number in range(PICTURES)]

    def look(some: list[bytes]) -> list[list[float]]:
        """Of each picture: chances of the classes, or its score and heat map."""
        if files.engine.task == "inspect":
            return [[one.score, *np.ravel(one.heat_map).tolist()] for one in engine.inspect(some)]
        chances: list[list[float]] = engine.classify(some).tolist()
        return chances

    session = OnnxSession(files.model, threads, device())
    ((name, _),) = session.inputs.items()
    batch = np.random.default_rng(0).normal(size=(32, 3, image.height, image.width)).astype(np.float32)
    result: dict[str, Any] = {}
    for size in (1, 32):
        some = pictures[:64] if size == 1 else pictures
        look(some[:size])
        session.run({name: batch[:size]}, list(session.outputs))
        times, alone = [], []
        for _ in range(ROUNDS):
            began = time.monotonic()
            for start in range(0, len(some), size):
                look(some[start : start + size])
            times.append(time.monotonic() - began)
            began = time.monotonic()
            for _ in range(0, len(some), size):
                session.run({name: batch[:size]}, list(session.outputs))
            alone.append(time.monotonic() - began)
        result[f"{size} at once, pictures/s"] = [len(some) / seconds for seconds in times]
        result[f"{size} at once, the graph alone, pictures/s"] = [len(some) / seconds for seconds in alone]
    result["found"] = look(pictures[:64])
    session.close()
    engine.close()
    return result


def picture(number: int, width: int, height: int) -> bytes:
    """A PNG of soft spots, another for each number."""
    import io

    import numpy as np
    from PIL import Image

    spots = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


MEASURES: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "gguf": llama_cpp,
    "genai": genai,
    "encoder": embedding,
    "vision": seeing,
}


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

    if "found" in gpu:
        ours, theirs = np.array(gpu["found"]), np.array(cpu["found"])
        same = (ours.argmax(1) == theirs.argmax(1)).mean()
        difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
        return (
            f"of {len(ours)} pictures: the largest number in the same place for {same:.0%}, "
            f"numbers differ by at most {difference:.1e} of the largest"
        )
    ours, theirs = np.array(gpu["vectors"]), np.array(cpu["vectors"])
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    return f"smallest cosine of {len(ours)} vectors: {cosine.min():.6f}"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for kind in MEASURES:
        options.add_argument(f"--{kind}", type=Path)
    options.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options.add_argument("--out", type=Path)
    options.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    paths = {kind: getattr(given, kind) for kind in MEASURES if getattr(given, kind) is not None}
    if not paths:
        options.error("--gguf, --genai, --encoder or --vision is needed")
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
