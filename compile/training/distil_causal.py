"""Logit distillation of causal models with one vocabulary, on the one trainer.

The student learns at the answer's tokens only, as ``train_causal`` does: examples of a chat, or pieces of
plain text (``text_examples``). Law: with ``hard`` 1 the student is, weight for weight, the one that
``train_causal`` makes; that is what it is to be compared with.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from compile.errors import BadRecipe
from compile.recipe.distil import DistilLogits
from compile.recipe.training import FineTune
from compile.steps import Report
from compile.training import methods
from compile.training.causal import Answers, _Placed, save_tuned
from compile.training.distil import divergence, teacher_digest, top_divergence, top_logprobs
from compile.training.examples import Example
from compile.training.run import TrainingRun
from compile.training.trainer import Batch, Epoch, Judged, Objective, conditions, fit, write_curve

_KEPT = "teacher.safetensors"


@dataclass(frozen=True)
class _Taught(_Placed):
    """An example, and what is kept of the teacher: [answer tokens, top] each. ``by`` tells runs apart."""

    by: str = ""
    values: torch.Tensor | None = field(default=None, repr=False, compare=False)
    indices: torch.Tensor | None = field(default=None, repr=False, compare=False)


def distil_causal(
    teacher: Path,
    student: Path,
    train: Sequence[Example],
    validation: Sequence[Example],
    distil: DistilLogits,
    settings: FineTune,
    run: TrainingRun,
) -> tuple[Epoch, ...]:
    """Train the model in ``student`` on what the one in ``teacher`` says, and write it.

    Both are Hugging Face folders; ``distil.teacher`` is not looked at. Validation is the plain loss on the
    text, so curves with and without a teacher can be compared. Raises ``BadRecipe`` when the
    vocabularies differ, ``TrainingFailed``.
    """
    check_vocabularies(teacher, student)
    by = f"{teacher_digest(teacher)} {distil.temperature} {distil.hard} {distil.top}"
    taught: list[list[_Taught]] = [
        [_Taught(example, by=by) for example in some] for some in (train, validation)
    ]
    teaches: Any = None
    if distil.hard < 1:
        with conditions(settings, run.threads):
            teaches = methods.load_causal(teacher, FineTune(method="full")).eval().requires_grad_(False)
            if distil.top is not None and train:
                taught[0] = _keep(
                    teaches, train, distil.top, distil.temperature, by, run.scratch / _KEPT, run.report
                )
                teaches = None  # not needed any more, and as big as it is
    # Seeds anew, so that a student is the same whether its teacher ran before it or not.
    with conditions(settings, run.threads):
        model = methods.load_causal(student, settings)
        objective = _Lesson(model, teaches, distil)
        curve = fit(model, objective, taught[0], taught[1], settings, run)
        save_tuned(model, student, settings, run.target)
    write_curve(curve, run.target)
    return curve


def text_examples(texts: Sequence[str], tokenizer: Any, window: int, end: int | None) -> list[Example]:
    """Plain text as examples: pieces of at most ``window`` tokens, all but the first of each to be said.

    ``end`` is the token that stands after each text, if one does.
    """
    examples = []
    for text in texts:
        ids = [*tokenizer.encode(text, add_special_tokens=False).ids, *([] if end is None else [end])]
        for at in range(0, len(ids) - 1, window):
            piece = tuple(ids[at : at + window + 1])
            examples.append(Example(piece, 1, (1.0,) * (len(piece) - 1)))
    return examples


def check_vocabularies(teacher: Path, student: Path) -> None:
    """Raise ``BadRecipe`` when the same id means another token to the two."""
    vocabularies = []
    for folder in (teacher, student):
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BadRecipe(f"distil: {folder} has no tokenizer.json, so its vocabulary cannot be compared")
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        size = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vocab_size")
        vocabularies.append((tokenizer["model"].get("vocab"), tokenizer.get("added_tokens"), size))
    if vocabularies[0] != vocabularies[1]:
        raise BadRecipe(
            "distil.kind: logits needs one vocabulary, and teacher and student have two; use kind: sequences"
        )


class _Lesson(Objective):
    """The text's own loss and the divergence from the teacher, mixed."""

    def __init__(self, model: Any, teacher: Any, distil: DistilLogits) -> None:
        self._plain = Answers(model)
        self._teacher = teacher
        self._taught = None if teacher is None else Answers(teacher)
        self._distil = distil

    def length(self, example: _Taught) -> int:
        return len(example.example.ids)

    def collate(self, examples: Sequence[_Taught]) -> Batch:
        batch = self._plain.collate(examples)
        if all(one.values is not None for one in examples):
            batch["values"] = torch.cat([one.values for one in examples])  # type: ignore[misc]
            batch["indices"] = torch.cat([one.indices for one in examples])  # type: ignore[misc]
        return batch

    def weight(self, batch: Batch) -> torch.Tensor:
        return self._plain.weight(batch)

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        logits = self._plain.logits(model, batch)
        each = cross_entropy(logits, batch["wanted"], reduction="none")
        if self._distil.hard < 1:
            each = self._distil.hard * each + (1 - self._distil.hard) * self._apart(logits, batch)
        return (each * batch["weights"]).sum()

    def judge(self, model: Any, batch: Batch) -> Judged:
        return self._plain.judge(model, batch)

    def metric(self, outcomes: Sequence[Any]) -> float:
        return self._plain.metric(outcomes)

    def _apart(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        warmth = self._distil.temperature
        if self._taught is None:
            return top_divergence(logits, batch["values"], batch["indices"], warmth)
        self._teacher.to(logits.device)
        with torch.no_grad():
            taught = self._taught.logits(self._teacher, batch)
        return divergence(logits, taught, warmth)


def _keep(
    teacher: Any,
    examples: Sequence[Example],
    top: int,
    temperature: float,
    by: str,
    file: Path,
    report: Report,
) -> list[_Taught]:
    """The teacher's ``top`` log-probabilities, computed once and kept in ``file``.

    A token takes ``6 * top`` bytes.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    whole = {"by": by, "examples": str(hash_of(examples))}
    if file.is_file():
        with safe_open(file, "pt") as stored:
            if stored.metadata() == whole:
                kept = load_file(file)
                return _share(examples, by, kept["values"], kept["indices"])
    answers = Answers(teacher)
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].ids))
    parts: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(examples)
    with torch.no_grad():
        for at in range(0, len(order), 8):
            indices = order[at : at + 8]
            some = [examples[index] for index in indices]
            logits = answers.logits(teacher, answers.collate([_Placed(one) for one in some]))
            rows = [len(one.weights) for one in some]
            for index, part in zip(indices, torch.split(logits, rows), strict=True):
                parts[index] = top_logprobs(part, top, temperature)
            report((at + len(indices)) / len(order), "what the teacher says")
    done = [part for part in parts if part is not None]
    values, places = torch.cat([one for one, _ in done]), torch.cat([one for _, one in done])
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    save_file({"values": values, "indices": places}, unfinished, metadata=whole)
    unfinished.rename(file)
    return _share(examples, by, values, places)


def _share(
    examples: Sequence[Example], by: str, values: torch.Tensor, indices: torch.Tensor
) -> list[_Taught]:
    rows = [len(example.weights) for example in examples]
    parts = zip(examples, torch.split(values, rows), torch.split(indices, rows), strict=True)
    return [_Taught(example, None, by, some, places) for example, some, places in parts]


def hash_of(examples: Sequence[Example]) -> str:
    """A digest of token ids and weights."""
    whole = hashlib.sha256()
    for example in examples:
        whole.update(repr(example).encode())
    return whole.hexdigest()
