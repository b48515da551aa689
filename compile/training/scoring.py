"""What a model makes of given answers before and after training: their losses.

In torch, on the weights as they were trained; what is shipped is measured through the engine that serves it
(``compile/evaluate/measure.py``). Loads torch and transformers: import it inside the function that needs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from compile.recipe.training import FineTune
from compile.steps import Report
from compile.training.causal import Answers, _Placed
from compile.training.examples import Example
from compile.training.trainer import conditions


@dataclass(frozen=True)
class AnswerLosses:
    """Per answer: the sum of its tokens' losses (nats), its tokens, and whether each was the likeliest."""

    losses: tuple[float, ...]
    tokens: tuple[int, ...]
    right: tuple[bool, ...]


def load_tuned(hf_folder: Path, adapter: Path | None = None) -> Any:
    """A model ready to be asked, with a peft folder upon it or without."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(hf_folder, dtype=torch.float32, local_files_only=True)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
    return model.eval()


def answer_losses(
    hf_folder: Path,
    examples: Sequence[Example],
    threads: int,
    report: Report,
    adapter: Path | None = None,
    batch: int = 8,
) -> AnswerLosses:
    """The losses of the examples' answers, in the order of the examples."""
    losses, tokens, right = [0.0] * len(examples), [0] * len(examples), [False] * len(examples)
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].ids))
    with conditions(FineTune(), threads), torch.no_grad():
        model = load_tuned(hf_folder, adapter)
        answers = Answers(model)
        for at in range(0, len(order), batch):
            chosen = order[at : at + batch]
            made = answers.collate([_Placed(examples[index]) for index in chosen])
            logits = answers.logits(model, made)
            each = cross_entropy(logits, made["wanted"], reduction="none")
            hits = logits.argmax(-1) == made["wanted"]
            for row, index in enumerate(chosen):
                own = made["rows"] == row
                losses[index], tokens[index] = float(each[own].sum()), int(own.sum())
                right[index] = bool(hits[own].all())
            report((at + len(chosen)) / len(order), "losses of the answers")
    return AnswerLosses(tuple(losses), tuple(tokens), tuple(right))
