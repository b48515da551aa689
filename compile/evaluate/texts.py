"""Measurements of one text encoder, taken through the engine that will serve it, in a process of their own.

The process is new for every measurement, so that its peak memory is the model's and nobody else's.
``python -m compile.evaluate.texts`` reads one JSON job on stdin and writes its results to the folder that the
job names; a line ``PART NOTE`` on stdout says how far it is.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.child import main, run_job, say
from compile.steps import Report, own_peak_ram
from models.engines.onnx_files import EncoderFiles
from models.engines.onnx_session import OnnxSettings
from models.engines.onnx_text import OnnxText
from models.manifest import Engine

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

RESULT, ANSWERS = "measured.json", "answers.npy"
_PART = 64
_SPEED_TEXTS = 32


@dataclass(frozen=True)
class Read:
    """What an engine made of texts: vectors or probabilities [n, width], in their order.

    ``speeds``: texts per second. ``truncated``: texts that were longer than the model reads.
    """

    answers: "npt.NDArray[np.float32]"
    speeds: tuple[float, ...]
    peak_ram_bytes: int
    truncated: int
    token_ids: tuple[tuple[int, ...], ...]


def measure_texts(
    files: EncoderFiles,
    texts: Sequence[str],
    folder: Path,
    threads: int,
    speed_repeats: int,
    tokenize: Sequence[str],
    report: Report,
) -> None:
    """Give ``texts`` to the engine; ``read_measured`` reads what is left in ``folder``.

    Texts that are too long are cut and counted. ``tokenize``: texts whose token ids are wanted. Raises
    ``ToolFailed``.
    """
    job = {
        "model": str(files.model),
        "tokenizer": str(files.tokenizer),
        "engine": files.engine.model_dump(mode="json"),
        "texts": list(texts),
        "tokenize": list(tokenize),
        "folder": str(folder),
        "threads": threads,
        "speed_repeats": speed_repeats,
    }
    run_job("compile.evaluate.texts", job, report, f"measuring {files.model.name}")


def read_measured(folder: Path) -> Read:
    """What ``measure_texts`` left."""
    import numpy as np

    stored: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return Read(
        answers=np.load(folder / ANSWERS, allow_pickle=False),
        speeds=tuple(stored["speed"]),
        peak_ram_bytes=stored["peak_ram_bytes"],
        truncated=stored["truncated"],
        token_ids=tuple(tuple(ids) for ids in stored["token_ids"]),
    )


def _child(job: dict[str, Any]) -> None:
    import numpy as np

    files = EncoderFiles(Path(job["model"]), Engine.model_validate(job["engine"]), Path(job["tokenizer"]))
    engine = OnnxText(files, OnnxSettings(threads=job["threads"], truncate=True))
    texts, folder = job["texts"], Path(job["folder"])
    speeds = _speeds(engine, texts, job["speed_repeats"])
    answers, truncated = [], 0
    for at in range(0, len(texts), _PART):
        answered = engine.answer(texts[at : at + _PART])
        answers.append(answered.values)
        truncated += answered.truncated
        say((at + _PART) / max(len(texts), 1), f"{at + len(answered.values)} of {len(texts)} texts")
    result = {
        "speed": speeds,
        "peak_ram_bytes": own_peak_ram(),
        "truncated": truncated,
        "token_ids": engine.tokenize(job["tokenize"]),
    }
    engine.close()
    np.save(folder / ANSWERS, np.concatenate(answers))
    (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")


def _speeds(engine: OnnxText, texts: Sequence[str], repeats: int) -> list[float]:
    """Texts per second over texts at even distances; the first round warms the caches."""
    count = min(_SPEED_TEXTS, len(texts))
    some = [texts[at * len(texts) // count] for at in range(count)]
    speeds = []
    for repeat in range(repeats + 1):
        began = time.perf_counter()
        engine.answer(some)
        if repeat:
            speeds.append(round(count / (time.perf_counter() - began), 2))
    return speeds


if __name__ == "__main__":
    main(_child)
