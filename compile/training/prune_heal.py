"""Pruning and healing in one: depth, then width, then a short distillation from the unpruned model."""

from collections.abc import Sequence
from pathlib import Path

from compile.recipe.distil import DistilLogits, DistilVectors, Prune
from compile.recipe.sections import Source
from compile.training.distil_causal import distil_causal
from compile.training.distil_encoder import distil_encoder
from compile.training.examples import Example
from compile.training.prune import PRUNED, Data
from compile.training.prune_depth import prune_depth
from compile.training.prune_width import prune_width
from compile.training.run import TrainingRun
from compile.training.trainer import Epoch


def prune_causal(
    hf_folder: Path,
    settings: Prune,
    train: Sequence[Example],
    validation: Sequence[Example],
    run: TrainingRun,
) -> tuple[Epoch, ...]:
    """Cut a causal model, let it heal on ``train``, and write a Hugging Face folder.

    It has ``pruned.json`` beside the weights and, where it healed, ``curve.json``. Importance is measured on
    ``train``. Raises ``BadRecipe``, ``UnsupportedBase``, ``TrainingFailed``.
    """
    cut = _cut(hf_folder, settings, train, run)
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
        run.part("heal"),
    )
    (run.target / PRUNED).write_bytes((cut / PRUNED).read_bytes())
    return curve


def prune_encoder(
    hf_folder: Path,
    settings: Prune,
    train: Sequence[str],
    validation: Sequence[str],
    run: TrainingRun,
    longest: int = 256,
) -> tuple[Epoch, ...]:
    """Cut an encoder of sentence vectors, let it heal on texts, and write it as above.

    It heals by the unpruned model's vectors: of ``settings.heal`` only ``training`` matters. Width is judged
    by activation. Raises ``BadRecipe``, ``UnsupportedBase``, ``TrainingFailed``.
    """
    cut = _cut(hf_folder, settings, train, run)
    if settings.heal is None:
        return ()
    return distil_encoder(
        hf_folder,
        cut,
        train,
        validation,
        DistilVectors(teacher=Source(file=str(hf_folder))),
        settings.heal.training,
        run.part("heal"),
        longest,
    )


def _cut(hf_folder: Path, settings: Prune, data: Data, run: TrainingRun) -> Path:
    """Prune depth, then width; the folder of what is left, which is the target when nothing heals it."""
    cut = hf_folder
    if settings.depth is not None:
        place = run.target if settings.heal is None and settings.width is None else run.scratch / "depth"
        prune_depth(cut, data, settings.depth, place, run.threads, run.report)
        cut = place
    if settings.width is not None:
        place = run.target if settings.heal is None else run.scratch / "width"
        prune_width(cut, data, settings.width, place, run.threads, run.report)
        cut = place
    return cut
