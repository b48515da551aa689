"""A linear head on a backbone's pooled features, for labels of one's own.

Owns its training (multinomial logistic regression, its strength chosen on the calibration split), its file,
and the baselines beside it. Features are centred and share one scale, which is folded into the head's weight:
a scale for each would make huge weights of features that hardly vary, and INT8 would see nothing else.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compile.data.images import ImageSplits, LabelledImage
from compile.errors import BadData
from compile.onnx.vision_export import INPUT
from compile.steps import Report
from models.engines.onnx_session import OnnxSession
from models.engines.onnx_vision import decode, read_picture
from models.manifest import ImageInput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

HEAD, CHOICES = "head.npz", "choices.json"
_BATCH = 8
_ROUNDS = 300
_SIDE = 16
"""Pixels of the small grey picture that the pixel baseline sees."""


def train_head(
    pooled: Path,
    root: Path,
    splits: ImageSplits,
    labels: Sequence[str],
    image: ImageInput,
    max_pixels: int,
    strengths: Sequence[float],
    folder: Path,
    threads: int,
    report: Report,
) -> None:
    """Write ``head.npz`` and ``choices.json`` (an entry per strength) into ``folder``."""
    import numpy as np

    _check(splits, labels)
    chosen = [*splits.train, *splits.calibration]
    features = _features(pooled, root, chosen, image, max_pixels, threads, report)
    count = len(splits.train)
    mean, deviation = features[:count].mean(axis=0), float(features[:count].std()) + 1e-6
    scaled = (features - mean) / deviation
    answers = np.array([labels.index(one.label) for one in chosen])
    tried, best = [], None
    for number, strength in enumerate(strengths, 1):
        weight, bias = _fit(scaled[:count], answers[:count], strength, len(labels))
        right = float(((scaled[count:] @ weight.T + bias).argmax(axis=1) == answers[count:]).mean())
        tried.append({"strength": strength, "calibration_accuracy": right})
        if best is None or right > best[0]:
            best = (right, weight, bias)
        report(0.8 + 0.2 * number / len(strengths), f"strength {strength:g}: {right:.3f}")
    if best is None:
        raise BadData("head.strengths is empty: nothing to choose from")
    weight = best[1] / deviation
    bias = best[2] - weight @ mean
    np.savez(folder / HEAD, weight=weight.astype(np.float32), bias=bias.astype(np.float32))
    (folder / CHOICES).write_text(json.dumps(tried), encoding="utf-8")


def read_head(folder: Path) -> "tuple[Array, Array]":
    """Weight [classes, features] and bias [classes]."""
    import numpy as np

    with np.load(folder / HEAD) as stored:
        return stored["weight"], stored["bias"]


def baseline_labels(root: Path, splits: ImageSplits, max_pixels: int, report: Report) -> dict[str, list[str]]:
    """What the majority label, and logistic regression on 16 x 16 grey pixels, say of the test images."""
    import numpy as np

    majority = Counter(image.label for image in splits.train).most_common(1)[0][0]
    labels = sorted({image.label for image in splits.train})
    rows = []
    everything = [*splits.train, *splits.test]
    for number, one in enumerate(everything):
        picture = decode((root / one.file).read_bytes(), max_pixels).convert("L").resize((_SIDE, _SIDE))
        rows.append(np.asarray(picture, dtype=np.float32).ravel() / 255)
        report(number / len(everything), f"{number} of {len(everything)} pictures")
    pixels = np.stack(rows)
    count = len(splits.train)
    mean, deviation = pixels[:count].mean(axis=0), pixels[:count].std(axis=0) + 1e-3
    scaled = (pixels - mean) / deviation
    answers = np.array([labels.index(one.label) for one in splits.train])
    weight, bias = _fit(scaled[:count], answers, 0.1, len(labels))
    said = (scaled[count:] @ weight.T + bias).argmax(axis=1)
    return {"majority": [majority] * len(splits.test), "pixels": [labels[at] for at in said]}


def _fit(
    features: "Array", answers: "npt.NDArray[np.int64]", strength: float, classes: int
) -> "tuple[Array, Array]":
    """Weight and bias per class. With two classes scikit-learn has one row, which is the second's."""
    import warnings

    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # A head that could still move a little is as good a head; which is best is measured.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=strength, max_iter=_ROUNDS).fit(features, answers)
    weight, bias = fitted.coef_, fitted.intercept_
    if classes == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias


def _features(
    pooled: Path,
    root: Path,
    chosen: Sequence[LabelledImage],
    image: ImageInput,
    max_pixels: int,
    threads: int,
    report: Report,
) -> "Array":
    import numpy as np

    session, found = OnnxSession(pooled, threads), []
    for start in range(0, len(chosen), _BATCH):
        part = [
            read_picture((root / one.file).read_bytes(), image, max_pixels)[0]
            for one in chosen[start : start + _BATCH]
        ]
        found.append(session.run({INPUT: np.stack(part)}, ["features"])[0])
        report(0.8 * start / len(chosen), f"{start} of {len(chosen)} pictures")
    session.close()
    return np.concatenate(found)


def _check(splits: ImageSplits, labels: Sequence[str]) -> None:
    """Every label is in the training split, and nothing else is anywhere. Raises ``BadData``."""
    trained = {image.label for image in splits.train}
    if trained != set(labels):
        raise BadData(f"the training images show {sorted(trained)}; the labels are {sorted(labels)}")
