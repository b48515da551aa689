"""Measurements of one model that reads, taken through the engine that will serve it, in a process of its own.

The process is new for every measurement, so that its peak memory is the model's and nobody else's.
``python -m compile.evaluate.readings`` reads one JSON job on stdin and writes its results to the folder that
the job names; a line ``PART NOTE`` on stdout says how far it is.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compile.child import main, run_job, say
from compile.data.readings import Reading
from compile.steps import Report, own_peak_ram
from models.engines.onnx_encoder import EncoderEngine, open_encoder
from models.engines.onnx_files import EncoderFiles
from models.engines.onnx_session import OnnxSettings
from models.engines.rapid_ocr import RapidOcr
from models.engines.readings import Recording
from models.engines.whisper import WhisperEngine, whole
from models.errors import EngineError
from models.manifest import Engine, Task

RESULT = "measured.json"
_TIMED = 4
"""Files whose reading is timed, over and over."""


@dataclass(frozen=True)
class Read:
    """What an engine read in files, in their order. ``speeds``: seconds of speech or pictures per second."""

    texts: tuple[str, ...]
    speeds: tuple[float, ...]
    peak_ram_bytes: int


def measure_readings(
    model: Path,
    task: Task,
    root: Path,
    readings: Sequence[Reading],
    folder: Path,
    threads: int,
    speed_repeats: int,
    report: Report,
) -> None:
    """Have ``readings`` below ``root`` read by the model in folder ``model``; ``read_measured`` reads what is
    left in ``folder``. Raises ``ToolFailed``.
    """
    job = {
        "model": str(model),
        "task": task,
        "root": str(root),
        "files": [one.file for one in readings],
        "amounts": [one.amount for one in readings],
        "folder": str(folder),
        "threads": threads,
        "speed_repeats": speed_repeats,
    }
    run_job("compile.evaluate.readings", job, report, f"measuring {model.name}")


def read_measured(folder: Path) -> Read:
    """What ``measure_readings`` left."""
    told = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return Read(tuple(told["texts"]), tuple(told["speeds"]), told["peak_ram_bytes"])


def _child(job: dict[str, Any]) -> None:
    files = EncoderFiles(Path(job["model"]), Engine(task=job["task"]))
    engine = open_encoder(files, OnnxSettings(threads=job["threads"]))
    root, names, texts = Path(job["root"]), job["files"], []
    for number, name in enumerate(names, start=1):
        texts.append(_text(engine, (root / name).read_bytes()))
        say(number / len(names), f"{number} of {len(names)} files")
    peak = own_peak_ram()
    speeds = []
    timed = [(root / name).read_bytes() for name in names[:_TIMED]]
    for _ in range(job["speed_repeats"]):  # caches are warm by now
        began = time.perf_counter()
        for data in timed:
            _text(engine, data)
        speeds.append(sum(job["amounts"][:_TIMED]) / (time.perf_counter() - began))
    engine.close()
    result = {"texts": texts, "speeds": speeds, "peak_ram_bytes": peak}
    (Path(job["folder"]) / RESULT).write_text(json.dumps(result), encoding="utf-8")


def _text(engine: EncoderEngine, data: bytes) -> str:
    if isinstance(engine, WhisperEngine):
        return whole(*engine.transcribe(Recording(data))).text
    if isinstance(engine, RapidOcr):
        return engine.read([data])[0].text
    raise EngineError(f"a model that is made to {engine.facts.task} reads nothing")


if __name__ == "__main__":
    main(_child)
