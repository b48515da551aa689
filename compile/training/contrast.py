"""Sentence vectors out of texts alone: what a student learns where it has no teacher.

The two halves of a text belong together, those of the other texts in the batch do not (InfoNCE; van den Oord
et al. 2018, and Gao et al., SimCSE, 2021, for sentences). It is what ``distil_encoder`` is compared with, on
the same trainer, and has the vectors and the pooling of that.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.functional import cross_entropy

from compile.recipe.training import FineTune
from compile.training import prune
from compile.training.classifier import load_encoder_tokenizer
from compile.training.distil_encoder import calm, collate, encode, pooling, vectors
from compile.training.run import TrainingRun
from compile.training.trainer import Batch, Epoch, Judged, Objective, conditions, fit, write_curve

_TEMPERATURE = 0.05

Halves = tuple[tuple[int, ...], tuple[int, ...]]


def contrast(
    student: Path,
    train: Sequence[str],
    validation: Sequence[str],
    settings: FineTune,
    run: TrainingRun,
    longest: int = 256,
) -> tuple[Epoch, ...]:
    """Train the encoder in ``student`` on texts and write it.

    The metric is the share of first halves whose nearest second half in the batch is their own. A text of one
    word has no halves and is left out. Raises ``TrainingFailed``.
    """
    with conditions(settings, run.threads):
        model = prune.load(student)
        calm(model, settings.dropout)
        objective = _Halves(pooling(student), load_encoder_tokenizer(student).pad_token_id)
        known, held = (_halves(student, texts, longest) for texts in (train, validation))
        curve = fit(model, objective, known, held, settings, run)
        prune.save(model.eval(), student, run.target)
    write_curve(curve, run.target)
    return curve


def _halves(student: Path, texts: Sequence[str], longest: int) -> list[Halves]:
    words = [text.split() for text in texts if len(text.split()) > 1]
    first = encode(student, [" ".join(one[: len(one) // 2]) for one in words], longest)
    second = encode(student, [" ".join(one[len(one) // 2 :]) for one in words], longest)
    return list(zip(first, second, strict=True))


class _Halves(Objective):
    """How much nearer the halves of a text are than those of different ones."""

    def __init__(self, pool: Literal["mean", "cls"], pad: int) -> None:
        self._pool, self._pad = pool, pad

    def length(self, example: Halves) -> int:
        return len(example[0])

    def collate(self, examples: Sequence[Halves]) -> Batch:
        return collate([one[side] for side in (0, 1) for one in examples], self._pad)

    def weight(self, batch: Batch) -> torch.Tensor:
        return torch.tensor(len(batch["input_ids"]) / 2)

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        near = self._near(model, batch)
        own = torch.arange(len(near))
        found: torch.Tensor = cross_entropy(near, own, reduction="sum")
        return (found + cross_entropy(near.T, own, reduction="sum")) / 2

    def judge(self, model: Any, batch: Batch) -> Judged:
        near = self._near(model, batch)
        right = near.argmax(-1) == torch.arange(len(near))
        return Judged(float(self.loss(model, batch)), len(near), right.tolist())

    def metric(self, outcomes: Sequence[bool]) -> float:
        return sum(outcomes) / len(outcomes)

    def _near(self, model: Any, batch: Batch) -> torch.Tensor:
        """Cosines of first halves (rows) and second ones (columns), sharpened: [texts, texts]."""
        first, second = vectors(model, batch, self._pool).chunk(2)
        return first @ second.T / _TEMPERATURE
