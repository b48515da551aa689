"""What a classifier of pictures scores: beside the reference on the same pictures, and a baseline alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compile.evaluate import judge, statistics
from compile.evaluate.judge import Measured
from compile.recipe.vision import ClassifyImageRecipe

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

_SEED = 7


def class_metrics(
    recipe: ClassifyImageRecipe, truth: Sequence[str], ours: "Array", theirs: "Array"
) -> dict[str, Measured]:
    import numpy as np

    labels, rounds = recipe.data.labels, recipe.evaluate.bootstrap
    said, others = ([labels[at] for at in rows.argmax(axis=1)] for rows in (ours, theirs))
    right, wanted = ([float(a == b) for a, b in zip(each, truth, strict=True)] for each in (said, others))
    same = [float(a == b) for a, b in zip(said, others, strict=True)]
    floor = 1e-12
    reference = np.maximum(theirs.astype(np.float64), floor)
    divergence = (reference * (np.log(reference) - np.log(np.maximum(ours.astype(np.float64), floor)))).sum(
        axis=1
    )
    mean = statistics.mean_interval(divergence, rounds, _SEED)
    tail = statistics.resample(
        len(divergence), lambda at: float(np.percentile(divergence[at], 99)), rounds, _SEED
    )
    count = len(truth)
    return {
        "accuracy": judge.paired(right, wanted, rounds, _SEED),
        "macro_f1": judge.macro_f1(truth, said, others, labels, rounds, _SEED),
        "top1_agreement": judge.paired(same, [1.0] * count, rounds, _SEED),
        "kl_mean": Measured(0.0, float(divergence.mean()), mean, count, mean),
        "kl_p99": Measured(0.0, float(np.percentile(divergence, 99)), tail, count, tail),
    }


def alone(
    truth: Sequence[str], said: Sequence[str], labels: Sequence[str], rounds: int
) -> dict[str, Measured]:
    """A baseline's scores, beside nothing."""
    f1 = judge.macro_f1(truth, said, said, labels, rounds, _SEED)
    return {
        "accuracy": judge.share([a == b for a, b in zip(truth, said, strict=True)], rounds, _SEED),
        "macro_f1": Measured(None, f1.value, None, f1.samples, f1.interval),
    }
