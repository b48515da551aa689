"""Pruning and healing in one: depth, then width, then a short distillation from the unpruned model."""

from collections.abc import Callable, Sequence
from pathlib import Path

from compile.recipe.distil import DistilLogits, DistilVectors, Prune
from compile.recipe.sections import Source
from compile.steps import Report
from compile.training.distil_causal import distil_causal
from compile.training.distil_encoder import distil_encoder
from compile.training.examples import Example
from compile.training.prune import PRUNED, Data
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
    cut = _cut(hf_folder, settings, train, target, scratch, threads, report)
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
    (target / PRUNED).write_bytes((cut / PRUNED).read_bytes())
    return curve


def prune_encoder(
    hf_folder: Path,
    settings: Prune,
    train: Sequence[str],
    validation: Sequence[str],
    target: Path,
    scratch: Path,
    threads: int,
    now: Callable[[], float],
    report: Report,
    longest: int = 256,
) -> tuple[Epoch, ...]:
    """Cut an encoder of sentence vectors, let it heal on texts, and write it to ``target`` as above.

    It heals by the unpruned model's vectors: of ``settings.heal`` only ``training`` matters. Width is judged
    by activation. Raises ``BadRecipe``, ``UnsupportedBase``, ``TrainingFailed``.
    """
    cut = _cut(hf_folder, settings, train, target, scratch, threads, report)
    if settings.heal is None:
        return ()
    return distil_encoder(
        hf_folder,
        cut,
        train,
        validation,
        DistilVectors(teacher=Source(file=str(hf_folder))),
        settings.heal.training,
        target,
        scratch / "heal",
        threads,
        now,
        report,
        longest,
    )


def _cut(
    hf_folder: Path,
    settings: Prune,
    data: Data,
    target: Path,
    scratch: Path,
    threads: int,
    report: Report,
) -> Path:
    """Prune depth, then width; the folder of what is left, which is ``target`` when nothing heals it."""
    cut = hf_folder
    if settings.depth is not None:
        place = target if settings.heal is None and settings.width is None else scratch / "depth"
        prune_depth(cut, data, settings.depth, place, threads, report)
        cut = place
    if settings.width is not None:
        place = target if settings.heal is None else scratch / "width"
        prune_width(cut, data, settings.width, place, threads, report)
        cut = place
    return cut
