"""Pruning and healing in one: depth, then width, then a short distillation from the unpruned model."""

from collections.abc import Callable, Sequence
from pathlib import Path

from compile.recipe.distil import DistilLogits, Prune
from compile.recipe.sections import Source
from compile.steps import Report
from compile.training.distil_causal import distil_causal
from compile.training.examples import Example
from compile.training.prune_depth import prune_depth
from compile.training.prune_width import prune_width
from compile.training.trainer import Epoch


def prune_causal(
    hf_folder: Path,
    settings: Prune,
    train: Sequence[Example],
    validation: Sequence[Example],
    target: Path,
    scratch: Path,
    threads: int,
    now: Callable[[], float],
    report: Report,
) -> tuple[Epoch, ...]:
    """Cut a causal model, let it heal on ``train``, and write it to ``target``.

    ``target`` gets a Hugging Face folder with ``pruned.json`` and, where it healed, ``curve.json``.
    Importance is measured on ``train``. Raises ``BadRecipe``, ``UnsupportedBase``, ``TrainingFailed``.
    """
    cut = hf_folder
    for part in ("depth", "width"):
        asked = getattr(settings, part)
        if asked is None:
            continue
        last = settings.heal is None and (part == "width" or settings.width is None)
        place = target if last else scratch / part
        if part == "depth":
            prune_depth(cut, train, asked, place, threads, report)
        else:
            prune_width(cut, train, asked, place, threads, report)
        cut = place
    if settings.heal is None:
        return ()
    heal = settings.heal
    lesson = DistilLogits(
        teacher=Source(file=str(hf_folder)), temperature=heal.temperature, hard=heal.hard, top=heal.top
    )
    curve = distil_causal(
        hf_folder,
        cut,
        train,
        validation,
        lesson,
        heal.training,
        target,
        scratch / "heal",
        threads,
        now,
        report,
    )
    (target / "pruned.json").write_bytes((cut / "pruned.json").read_bytes())
    return curve
