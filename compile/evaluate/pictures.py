"""Measurements of one vision model, taken through the engine that will serve it, in a process of their own.

The process is new for every measurement, so that its peak memory is the model's and nobody else's.
``python -m compile.evaluate.pictures`` reads one JSON job on stdin and writes its results to the folder that
the job names; a line ``PART NOTE`` on stdout says how far it is.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.child import main, run_job, say
from compile.steps import Report, own_peak_ram
from models.engines.onnx_files import EncoderFiles
from models.engines.onnx_session import OnnxSettings
from models.engines.onnx_vision import OnnxVision
from models.manifest import Engine

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

RESULT, ANSWERS = "measured.json", "answers.npz"
HEAT_SIDE = 64
_PART = 8


@dataclass(frozen=True)
class Seen:
    """What an engine made of pictures, by file: ``scores`` [n] of an inspection, or ``probabilities`` [n, k].

    ``heat_maps`` of an inspection are [n, 64, 64], float16, else empty. ``speeds``: pictures per second,
    asked one at a time.
    """

    files: tuple[str, ...]
    answers: "npt.NDArray[np.float32]"
    heat_maps: "npt.NDArray[np.float16]"
    speeds: tuple[float, ...]
    peak_ram_bytes: int


def look(
    model: Path,
    engine: Engine,
    root: Path,
    files: Sequence[str],
    folder: Path,
    threads: int,
    max_pixels: int,
    speed_repeats: int,
    report: Report,
) -> None:
    """Show ``files`` below ``root`` to the engine; ``read_seen`` reads what is left in ``folder``.

    Raises ``ToolFailed``.
    """
    job = {
        "model": str(model),
        "engine": engine.model_dump(mode="json"),
        "root": str(root),
        "files": list(files),
        "folder": str(folder),
        "threads": threads,
        "max_pixels": max_pixels,
        "speed_repeats": speed_repeats,
    }
    run_job("compile.evaluate.pictures", job, report, f"measuring {model.name}")


def read_seen(folder: Path) -> Seen:
    """What ``look`` left."""
    import numpy as np

    told = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    with np.load(folder / ANSWERS) as stored:
        return Seen(
            files=tuple(told["files"]),
            answers=stored["answers"],
            heat_maps=stored["heat_maps"],
            speeds=tuple(told["speeds"]),
            peak_ram_bytes=told["peak_ram_bytes"],
        )


def _child(job: Mapping[str, Any]) -> None:
    import numpy as np

    needs = Engine.model_validate(job["engine"])
    settings = OnnxSettings(threads=job["threads"], max_pixels=job["max_pixels"])
    engine = OnnxVision(EncoderFiles(Path(job["model"]), needs), settings)
    root, files = Path(job["root"]), job["files"]
    answers: list[Any] = []
    heats = [np.empty((0, HEAT_SIDE, HEAT_SIDE), dtype=np.float16)]
    for start in range(0, len(files), _PART):
        names = files[start : start + _PART]
        data = [(root / name).read_bytes() for name in names]
        if needs.task == "inspect":
            found = engine.inspect(data)
            answers.extend(one.score for one in found)
            heats.append(np.stack([_small(one.heat_map) for one in found]))
        else:
            answers.extend(engine.classify(data))
        say(min(1.0, (start + _PART) / len(files)), f"{start + len(names)} of {len(files)} pictures")
    speeds = _speeds(engine, [(root / name).read_bytes() for name in files[:16]], job["speed_repeats"])
    peak = own_peak_ram()
    folder = Path(job["folder"])
    np.savez(folder / ANSWERS, answers=np.array(answers, dtype=np.float32), heat_maps=np.concatenate(heats))
    result = {"files": files, "speeds": speeds, "peak_ram_bytes": peak}
    (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")
    engine.close()


def _speeds(engine: OnnxVision, pictures: Sequence[bytes], repeats: int) -> list[float]:
    """Pictures per second, asked one at a time, decoding included; one figure per repeat of eight."""
    ask = engine.inspect if engine.facts.task == "inspect" else engine.classify
    speeds = []
    for repeat in range(repeats + 1):
        chosen = [pictures[(repeat + at) % len(pictures)] for at in range(8)]
        began = time.perf_counter()
        for picture in chosen:
            ask([picture])
        if repeat:  # the first round warms the caches
            speeds.append(len(chosen) / (time.perf_counter() - began))
    return speeds


def _small(heat_map: "npt.NDArray[np.float32]") -> "npt.NDArray[np.float16]":
    import numpy as np
    from PIL import Image

    size = (HEAT_SIDE, HEAT_SIDE)
    return np.asarray(Image.fromarray(heat_map).resize(size, Image.Resampling.BOX), dtype=np.float16)


if __name__ == "__main__":
    main(_child)
