"""From good parts to an anomaly model: features out of a graph, banks, scales, one ONNX file.

Owns which pictures make a bank and which set its scale: the first four fifths of the training pictures, and
the rest. Reads pictures as the engine does. A quantized backbone gets a bank of its own features at the
places that the reference chose: its distances are measured between features of one kind, and differences in
score are not differences in what was kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compile.anomaly import bank as banks
from compile.anomaly.features import PATCHES, WHOLE, Grid
from compile.anomaly.graph import assemble
from compile.errors import BadData
from compile.onnx.files import MODEL, open_model, write_model
from compile.onnx.vision_export import INPUT
from compile.recipe.vision import Memory
from compile.steps import Report
from models.engines.onnx_session import OnnxSession
from models.engines.onnx_vision import read_picture
from models.manifest import ImageInput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

CHOSEN = "chosen.npy"
_BATCH = 4
_SCALE_PART = 5
"""One picture in so many sets the scale instead of filling the bank."""


@dataclass(frozen=True)
class Features:
    """Of some pictures: ``patches`` [pictures, places, width], ``whole`` [pictures, whole_width]."""

    patches: "Array"
    whole: "Array | None"


def build_memory(
    features: Path,
    grid: Grid,
    pictures: Sequence[Path],
    image: ImageInput,
    memory: Memory,
    target: Path,
    max_pixels: int,
    threads: int,
    report: Report,
    chosen: "npt.NDArray[np.int64] | None" = None,
    small: bool = False,
) -> None:
    """Write ``target/model.onnx``, and ``chosen.npy``: which patches the bank keeps.

    ``chosen``: keep these. ``small``: the bank is stored in INT8. Raises ``BadData`` for too few pictures.
    """
    import numpy as np

    apart = max(1, len(pictures) // _SCALE_PART)
    if len(pictures) - apart < 2:
        raise BadData(f"{len(pictures)} good pictures: a memory bank needs at least 4")
    seen = extract(
        features, pictures, image, max_pixels, threads, lambda done, note: report(done * 0.5, note)
    )
    kept = len(pictures) - apart
    width = seen.patches.shape[-1]
    known = seen.patches[:kept].reshape(-1, width)
    space = banks.space_of(known, memory.whiten, memory.directions)
    inside = space.into(known)
    if chosen is None:
        chosen = banks.coreset(
            inside,
            memory.patches,
            memory.projection,
            memory.seed,
            lambda done, note: report(0.5 + done * 0.4, note),
        )
    np.save(target / CHOSEN, chosen)
    patches = banks.with_neighbours(space, banks.rounded(inside[chosen], small), memory.neighbours)
    whole, unseen = None, None
    if seen.whole is not None:
        across = banks.space_of(seen.whole[:kept], True, min(memory.whole_directions, kept - 1))
        points = banks.rounded(across.into(seen.whole[:kept]), small)
        whole, unseen = banks.with_neighbours(across, points, 1), seen.whole[kept:]
    patches, whole = banks.scaled(patches, whole, seen.patches[kept:], unseen)
    report(0.95, "writing the model")
    write_model(assemble(open_model(features), grid, patches, whole, small), target / MODEL)


def extract(
    features: Path,
    pictures: Sequence[Path],
    image: ImageInput,
    max_pixels: int,
    threads: int,
    report: Report,
) -> Features:
    """The features of ``pictures``, in order."""
    import numpy as np

    session = OnnxSession(features, threads)
    outputs = [PATCHES, WHOLE] if WHOLE in session.outputs else [PATCHES]
    found: list[list[Array]] = []
    for start in range(0, len(pictures), _BATCH):
        part = [
            read_picture(path.read_bytes(), image, max_pixels)[0] for path in pictures[start : start + _BATCH]
        ]
        found.append(session.run({INPUT: np.stack(part)}, outputs))
        report(start / len(pictures), f"{start} of {len(pictures)} pictures")
    session.close()
    patches = np.concatenate([one[0] for one in found])
    return Features(patches, np.concatenate([one[1] for one in found]) if len(outputs) > 1 else None)
