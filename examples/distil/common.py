"""What the examples of distillation share: texts, progress, the table at the end."""

import argparse
import importlib.util
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "examples" / "small_llama"):
    sys.path.insert(0, str(folder))

from compile.evaluate import statistics  # noqa: E402

ROUNDS, SEED = 2000, 0
"""Of the bootstrap."""


@dataclass(frozen=True)
class Line:
    """One model of a table: its scores on the same test items, in the same order."""

    name: str
    scores: Sequence[float]
    parameters: int = 0


def options(text: str | None, **more: Any) -> argparse.Namespace:
    """``--work`` (emptied first), ``--threads``, and one option per name in ``more``."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="results depend on it in the last digits")
    name = Path(sys.argv[0]).stem
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "examples" / f"distil-{name}")
    for key, default in more.items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=type(default), default=default)
    chosen = parser.parse_args()
    shutil.rmtree(chosen.work, ignore_errors=True)
    chosen.work.mkdir(parents=True)
    return chosen


def progress(what: str) -> Callable[[float, str], None]:
    """A report that writes a line to stderr at most every ten seconds."""
    began = shown = time.monotonic()

    def report(done: float, note: str) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= 10:
            shown = now
            left = f", {(now - began) / done - (now - began):.0f} s left" if 0.02 < done < 1 else ""
            print(f"  {what} {done:4.0%}{left}: {note}", file=sys.stderr, flush=True)

    return report


def table(
    metric: str, lines: Sequence[Line], compared: Sequence[tuple[str, str]], higher_is_better: bool
) -> None:
    """Print each line's mean with its 95 % interval, then paired differences between lines by name."""
    by_name: Mapping[str, Line] = {line.name: line for line in lines}
    width = max(len(line.name) for line in lines)
    count = len(lines[0].scores)
    print(f"\n{metric} on {count} items, {'higher' if higher_is_better else 'lower'} is better")
    for line in lines:
        low, high = statistics.mean_interval(line.scores, ROUNDS, SEED)
        size = f"  {line.parameters / 1e6:6.2f} M parameters" if line.parameters else ""
        print(f"  {line.name:<{width}}  {np.mean(line.scores):8.4f}  [{low:.4f}, {high:.4f}]{size}")
    print("paired differences, 95 % interval")
    for one, other in compared:
        apart = np.asarray(by_name[one].scores) - np.asarray(by_name[other].scores)
        low, high = statistics.mean_interval(apart, ROUNDS, SEED)
        better = low > 0 if higher_is_better else high < 0
        worse = high < 0 if higher_is_better else low > 0
        word = "better" if better else "worse" if worse else "undecided"
        print(f"  {one} - {other}: {apart.mean():+.4f}  [{low:+.4f}, {high:+.4f}]  {word}")


def package_file(package: str, file: str) -> Path:
    """A file inside an installed package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"the package {package} is not installed: pip install 'outpost[demo]'")
    return Path(next(iter(spec.submodule_search_locations))) / file


def small_llama(threads: int) -> Path:
    """The small Llama of ``examples/small_llama``, made now if it is not there (about four minutes)."""
    from make import Sizes, Training, make

    folder = ROOT / ".cache" / "small-llama"
    if not (folder / "made.json").is_file():
        print("training the teacher, once", file=sys.stderr)
        make(folder, Sizes(), Training(threads=threads), progress("teacher"))
    return folder


def articles() -> tuple[list[str], list[str], list[str]]:
    """News to train on, to choose the best epoch by, and to test on: no text of one tells another's news."""
    from make import _phrases, news

    train, validation = news()
    lines = package_file("gensim", "test/test_data/lee.cor").read_text(encoding="latin-1").splitlines()
    known = {phrase for text in (*train, *validation) for phrase in _phrases(text)}
    test = [line.strip() for line in lines if line.strip()]
    return train, validation, [one for one in test if 5 * len(known & _phrases(one)) < len(_phrases(one))]


def losses(folder: Path, texts: Sequence[str], window: int, threads: int) -> list[float]:
    """Nats per token of each text."""
    import torch
    from transformers import AutoModelForCausalLM

    from compile.training.distil_causal import text_examples
    from compile.training.examples import load_tokenizer

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    tokenizer, result = load_tokenizer(folder), []
    for text in texts:
        loss = count = 0.0
        for piece in text_examples([text], tokenizer, window, None):
            ids = torch.tensor([piece.ids])
            with torch.no_grad():
                loss += float(model(input_ids=ids, labels=ids).loss) * len(piece.weights)
            count += len(piece.weights)
        result.append(loss / count)
    return result


def size_of(folder: Path) -> int:
    """Parameters of a model in a folder; no weights are loaded."""
    from math import prod

    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as weights:
        return sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
