"""Learning from preferences: of two answers to a prompt, the chosen one becomes likelier than the rejected.

Direct preference optimization (Rafailov et al. 2023, equation 7), as one more objective of the one trainer,
so that validation, the best epoch and going on after a kill are those of every other run. What the untrained
model gives to both answers is computed once, before training, and not kept in memory as a second model.
Refuses rows without a rejected answer.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from compile.data.rows import Row
from compile.errors import BadData
from compile.recipe.training import FineTune
from compile.training import methods
from compile.training.causal import Answers, _Placed, save_tuned
from compile.training.examples import Example, encode_rows
from compile.training.run import TrainingRun
from compile.training.scoring import answer_losses
from compile.training.trainer import Batch, Epoch, Judged, Objective, conditions, fit, write_curve
from models.prompts import Prompt


@dataclass(frozen=True)
class Pair:
    """Both answers to one prompt."""

    chosen: Example
    rejected: Example


@dataclass(frozen=True)
class _Measured:
    """A pair, and how much likelier the untrained model finds the chosen answer (nats)."""

    pair: Pair
    margin: float


def encode_preferences(
    rows: Sequence[Row],
    tokenizer: Any,
    prompt_of: Callable[[Sequence[Mapping[str, str]]], Prompt | str],
    end_of_turn: str,
    settings: FineTune,
) -> list[Pair]:
    """One pair per row. Raises ``BadData`` as ``encode_rows`` does, and for rows that are no preference."""
    without = [str(row.number) for row in rows if not row.rejected]
    if without:
        raise BadData(
            f"{len(without)} of {len(rows)} rows have no rejected answer: rows {', '.join(without[:20])}"
        )
    chosen = [dataclasses.replace(row, rejected="", fields={}) for row in rows]
    rejected = [dataclasses.replace(row, answer=row.rejected, rejected="", fields={}) for row in rows]
    sides = (
        encode_rows(side, tokenizer, prompt_of, end_of_turn, settings).examples for side in (chosen, rejected)
    )
    return [Pair(one, other) for one, other in zip(*sides, strict=True)]


def train_preferences(
    hf_folder: Path,
    train: Sequence[Pair],
    validation: Sequence[Pair],
    settings: FineTune,
    run: TrainingRun,
    start_from: Path | None = None,
) -> tuple[Epoch, ...]:
    """As ``train_causal``, from pairs. The reference is the model as it is before (with ``start_from``).

    The metric of the curve is the part of the pairs whose margin grew. Raises as ``train_causal`` does.
    """
    methods.check_machine(settings)
    measured = [_with_margins(hf_folder, pairs, run, start_from) for pairs in (train, validation)]
    with conditions(settings, run.threads):
        model = methods.load_causal(hf_folder, settings, start_from)
        if start_from is None and train:
            prompt = train[0].chosen
            methods.begin_with(model, settings, prompt.ids[: prompt.prompt_length])
        objective = Preferences(Answers(model), settings.preference_strength)
        curve = fit(model, objective, measured[0], measured[1], settings, run)
        save_tuned(model, hf_folder, settings, run.target)
    write_curve(curve, run.target)
    return curve


class Preferences(Objective):
    """The loss of direct preference optimization. Metric: pairs that are told apart better than before."""

    def __init__(self, answers: Answers, strength: float) -> None:
        self._answers, self._strength = answers, strength

    def length(self, example: _Measured) -> int:
        return max(len(example.pair.chosen.ids), len(example.pair.rejected.ids))

    def collate(self, examples: Sequence[_Measured]) -> Batch:
        flat = [_Placed(answer) for one in examples for answer in (one.pair.chosen, one.pair.rejected)]
        margins = torch.tensor([one.margin for one in examples])
        return self._answers.collate(flat) | {"margins": margins}

    def weight(self, batch: Batch) -> torch.Tensor:
        return torch.tensor(float(len(batch["margins"])))

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        return -logsigmoid(self._strength * self.gains(model, batch)).sum()

    def judge(self, model: Any, batch: Batch) -> Judged:
        gains = self.gains(model, batch)
        loss = -logsigmoid(self._strength * gains).sum().item()
        return Judged(loss, len(gains), (gains > 0).tolist())

    def metric(self, outcomes: Sequence[bool]) -> float:
        return sum(outcomes) / len(outcomes)

    def gains(self, model: Any, batch: Batch) -> torch.Tensor:
        """By how much each pair's margin is larger than the untrained model's: [pairs]."""
        each = cross_entropy(self._answers.logits(model, batch), batch["wanted"], reduction="none")
        sums = torch.zeros(2 * len(batch["margins"]), device=each.device).index_add(0, batch["rows"], -each)
        return sums[0::2] - sums[1::2] - batch["margins"]


def _with_margins(
    hf_folder: Path, pairs: Sequence[Pair], run: TrainingRun, adapter: Path | None
) -> list[_Measured]:
    sides = []
    for side in ("chosen", "rejected"):
        answers = [getattr(pair, side) for pair in pairs]
        sides.append(answer_losses(hf_folder, answers, run.threads, run.report, adapter).losses)
    return [
        _Measured(pair, round(rejected - chosen, 6))
        for pair, chosen, rejected in zip(pairs, *sides, strict=True)
    ]
