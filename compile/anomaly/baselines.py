"""What stands beside an anomaly model: simple scores of the same parts.

``pixel statistics``: brightness, contrast and edges of the picture. ``pooled features``: the classifier's
features of the whole picture. Both are the distance to the nearest good part, each number scaled by how much
it varies among good parts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compile.onnx.vision_export import INPUT
from compile.steps import Report
from models.engines.onnx_session import OnnxSession
from models.engines.onnx_vision import read_picture
from models.manifest import ImageInput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

NAMES = ("pixel statistics", "pooled features")


def baseline_scores(
    pooled: Path,
    train: Sequence[Path],
    test: Sequence[Path],
    image: ImageInput,
    max_pixels: int,
    threads: int,
    report: Report,
) -> "dict[str, list[float]]":
    """Scores of ``test`` by baseline; ``pooled`` is the ONNX file that gives ``features``."""
    import numpy as np

    session = OnnxSession(pooled, threads)
    pixels, features = [], []
    everything = [*train, *test]
    for number, path in enumerate(everything):
        values = read_picture(path.read_bytes(), image, max_pixels)[0]
        pixels.append(_statistics(values))
        features.append(session.run({INPUT: values[None]}, ["features"])[0][0])
        report(number / len(everything), f"{number} of {len(everything)} pictures")
    session.close()
    count = len(train)
    return {
        name: _distances(np.stack(rows[:count]), np.stack(rows[count:]))
        for name, rows in zip(NAMES, (pixels, features), strict=True)
    }


def _statistics(values: "Array") -> "Array":
    import numpy as np

    grey = values.mean(axis=0)
    across, down = np.abs(np.diff(grey, axis=1)), np.abs(np.diff(grey, axis=0))
    percentiles = np.percentile(grey, [1, 50, 99])
    parts = [grey.mean(), grey.std(), across.mean(), down.mean(), across.std(), down.std(), *percentiles]
    return np.array(parts, dtype=np.float32)


def _distances(good: "Array", tested: "Array") -> list[float]:
    import numpy as np

    mean, deviation = good.mean(axis=0), good.std(axis=0) + 1e-6
    known, asked = (good - mean) / deviation, (tested - mean) / deviation
    return [float(np.sqrt(((known - one) ** 2).sum(axis=1).min())) for one in asked]
