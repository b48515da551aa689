"""The names under which ``compile/lines/language.py`` calls the trainer; ``causal.py`` does the work."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.recipe.training import FineTune
from compile.steps import Report
from compile.training.examples import Example

if TYPE_CHECKING:
    from compile.training.trainer import Epoch

__all__ = ["Example", "finetune", "write_fixed"]


def write_fixed(*arguments: Any) -> None:
    """See ``causal.write_fixed``."""
    from compile.training.causal import write_fixed

    write_fixed(*arguments)


def finetune(
    hf_folder: Path,
    fixed: Path,
    start_from: Path | None,
    settings: Any,
    train: Sequence[Example],
    validation: Sequence[Example],
    target: Path,
    scratch: Path,
    threads: int,
    now: Callable[[], float],
    report: Report,
) -> tuple["Epoch", ...]:
    """``causal.train_causal``, with the curve also under the keys that the report reads today."""
    from compile.training.causal import train_causal
    from compile.training.trainer import CURVE

    whole = FineTune.model_validate(settings.model_dump())
    target.mkdir(exist_ok=True)
    curve = train_causal(
        hf_folder, train, validation, whole, target, scratch, threads, now, report, start_from, fixed
    )
    told = [vars(epoch) | {"number": epoch.epoch, "validation_exact_first": epoch.metric} for epoch in curve]
    (target / CURVE).write_text(json.dumps(told), encoding="utf-8")
    return curve
