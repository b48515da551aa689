"""Task distillation: a teacher labels texts that have no label, a small encoder learns from its labels.

A teacher is a classifier's folder, which gives probabilities, or a model that answers in text
(``compile.training.teacher``), whose answer names a label or is no answer. Owns the reading of such answers
and the loss on soft labels. Refuses a teacher whose labels are not those that are wanted.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import log_softmax

from compile.errors import BadData, BadRecipe, TeacherFailed
from compile.recipe.distil import DistilLabels, TextTeacher
from compile.recipe.training import FineTune
from compile.steps import Report
from compile.training import prune
from compile.training.causal import copy_tokenizer
from compile.training.classifier import Labels, Text, load_encoder_tokenizer, untrained
from compile.training.distil_encoder import calm, collate, encode
from compile.training.run import TrainingRun
from compile.training.teacher import ANSWERS, Teacher, ask
from compile.training.trainer import Batch, Epoch, conditions, fit, write_curve

LABELLED = "labelled.jsonl"
_BATCH = 32
_ASK = "Which of these labels fits the text: {labels}?\n\nText: {text}\n\nAnswer with the label alone."


@dataclass(frozen=True)
class Labelled:
    """A text, its own label (empty when it has none), and the teacher's probabilities by label."""

    text: str
    label: str = ""
    probabilities: tuple[float, ...] = ()


def label_with_teacher(
    teacher: Path | Teacher,
    texts: Sequence[str],
    labels: Sequence[str],
    settings: DistilLabels,
    target: Path,
    scratch: Path,
    threads: int,
    report: Report,
    longest: int = 256,
) -> list[Labelled]:
    """Label ``texts`` and write ``labelled.jsonl`` to ``target``, without texts whose label cannot be read.

    ``teacher`` is a classifier's folder, or one that answers in text and is asked as ``settings.teacher``
    says; what it has answered is kept in ``scratch``. Raises ``BadRecipe``, ``TeacherFailed``.
    """
    if isinstance(teacher, Path):
        found = probabilities(teacher, texts, labels, settings.temperature, longest, threads, report)
        labelled = [
            Labelled(text, "", tuple(round(float(one), 5) for one in row))
            for text, row in zip(texts, found, strict=True)
        ]
    else:
        if not isinstance(settings.teacher, TextTeacher):
            raise BadRecipe("distil.teacher: a teacher that answers in text is a file or a url")
        question = [({"role": "user", "content": question_for(text, labels)},) for text in texts]
        answers = ask(teacher, question, settings.teacher, scratch / ANSWERS, report)
        read = [read_label(answer or "", labels) for answer in answers]
        labelled = [
            Labelled(text, "", tuple(float(label == one) for one in labels))
            for text, label in zip(texts, read, strict=True)
            if label is not None
        ]
        if not labelled:
            raise TeacherFailed(f"none of {len(texts)} answers names one of the labels {', '.join(labels)}")
    target.mkdir(parents=True, exist_ok=True)
    with (target / LABELLED).open("w", encoding="utf-8") as stream:
        for one in labelled:
            stream.write(json.dumps(asdict(one), ensure_ascii=False) + "\n")
    return labelled


def question_for(text: str, labels: Sequence[str]) -> str:
    """What a teacher that answers in text is asked."""
    return _ASK.format(labels=", ".join(labels), text=text)


def read_label(answer: str, labels: Sequence[str]) -> str | None:
    """The one label that an answer names as a whole word, whatever its case; None for none or several."""
    plain = answer.casefold()
    exact = [label for label in labels if plain.strip(" \t\r\n.\"'`*") == label.casefold()]
    if exact:
        return exact[0]
    named = [label for label in labels if re.search(rf"(?<!\w){re.escape(label.casefold())}(?!\w)", plain)]
    # A label that only stands within a longer one is not named.
    named = [
        one
        for one in named
        if not any(one != other and one.casefold() in other.casefold() for other in named)
    ]
    return named[0] if len(named) == 1 else None


def probabilities(
    folder: Path,
    texts: Sequence[str],
    labels: Sequence[str],
    temperature: float,
    longest: int,
    threads: int,
    report: Report,
) -> torch.Tensor:
    """What a classifier says of each text: float32 [texts, labels], in the order of ``labels``."""
    known = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label") or {}
    names = [str(known[key]) for key in sorted(known, key=int)]
    if sorted(names) != sorted(labels):
        raise BadRecipe(f"distil.teacher: its labels are {', '.join(names)}, not {', '.join(labels)}")
    torch.set_num_threads(threads)
    model, ids = prune.load(folder), encode(folder, texts, longest)
    pad = load_encoder_tokenizer(folder).pad_token_id
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    found = torch.empty(len(ids), len(labels))
    with torch.no_grad():
        for at in range(0, len(order), _BATCH):
            chosen = order[at : at + _BATCH]
            logits = model(**collate([ids[index] for index in chosen], pad)).logits
            found[chosen] = (logits / temperature).softmax(-1)
            report((at + len(chosen)) / len(order), "the teacher's labels")
    return found[:, [names.index(label) for label in labels]]


@dataclass(frozen=True)
class _Taught(Text):
    """``label`` is -1 when the text has none of its own."""

    probabilities: tuple[float, ...]


def distil_classifier(
    hf_folder: Path,
    train: Sequence[Labelled],
    validation: Sequence[Labelled],
    labels: Sequence[str],
    distil: DistilLabels,
    settings: FineTune,
    run: TrainingRun,
    longest: int = 256,
) -> tuple[Epoch, ...]:
    """Train a classifier on hard and soft labels and write it.

    ``hf_folder`` is an encoder or a classifier. A text with both kinds of label learns ``distil.hard`` of its
    own and the rest of the teacher's; ``validation`` has labels of its own. The metric is macro-F1.
    Raises ``BadData``, ``BadRecipe``, ``TrainingFailed``.
    """
    place = {label: at for at, label in enumerate(labels)}
    bare = [one for one in (*train, *validation) if not one.label and not one.probabilities]
    if bare or any(not one.label for one in validation):
        raise BadRecipe(
            "distil: a text to train on needs a label or probabilities, one to validate on a label"
        )
    strange = sorted({one.label for one in (*train, *validation) if one.label} - set(labels))
    if strange:
        raise BadData(f"labels that are not asked for: {', '.join(map(repr, strange))}")
    lists = [
        [
            _Taught(ids, place.get(one.label, -1), one.probabilities)
            for ids, one in zip(encode(hf_folder, [one.text for one in some], longest), some, strict=True)
        ]
        for some in (train, validation)
    ]
    with conditions(settings, run.threads):
        model = untrained(hf_folder, labels)
        if settings.dropout:
            calm(model, settings.dropout)
        objective = _SoftLabels(labels, distil.hard, load_encoder_tokenizer(hf_folder).pad_token_id)
        curve = fit(model, objective, lists[0], lists[1], settings, run)
        model.eval().save_pretrained(run.target, safe_serialization=True)
        copy_tokenizer(hf_folder, run.target)
        if (hf_folder / "vocab.txt").is_file():
            (run.target / "vocab.txt").write_bytes((hf_folder / "vocab.txt").read_bytes())
    write_curve(curve, run.target)
    return curve


class _SoftLabels(Labels):
    """Cross-entropy with a distribution: the text's own label, the teacher's probabilities, or a mix."""

    def __init__(self, labels: Sequence[str], hard: float, pad: int) -> None:
        super().__init__(labels, (1.0,) * len(labels), pad)
        self._classes, self._hard = len(labels), hard

    def collate(self, examples: Sequence[Any]) -> Batch:
        soft = torch.zeros(len(examples), self._classes)
        for row, one in enumerate(examples):
            own = 0.0 if one.label < 0 else self._hard if one.probabilities else 1.0
            if one.label >= 0:
                soft[row, one.label] += own
            if one.probabilities:
                soft[row] += (1 - own) * torch.tensor(one.probabilities)
        return super().collate(examples) | {"soft": soft}

    def weight(self, batch: Batch) -> torch.Tensor:
        return torch.tensor(float(len(batch["soft"])))

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        return -(batch["soft"] * log_softmax(self._logits(model, batch), -1)).sum()


def read_labelled(folder: Path) -> list[Labelled]:
    """What ``label_with_teacher`` wrote."""
    lines = (folder / LABELLED).read_text(encoding="utf-8").splitlines()
    stored: list[Mapping[str, Any]] = [json.loads(line) for line in lines]
    return [Labelled(one["text"], one["label"], tuple(one["probabilities"])) for one in stored]
