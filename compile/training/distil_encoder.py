"""Encoder distillation: a student with fewer layers learns the sentence vectors of its teacher.

The vectors are those that are served: pooled as the teacher's folder says (mean, unless ``1_Pooling`` says
otherwise), of length one. The teacher's are computed once. The student's are as wide; a usual student is the
teacher after ``prune_depth``. Layers are trained without dropout: the aim is one vector, not a robust one.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from compile.errors import BadRecipe
from compile.recipe.distil import DistilVectors
from compile.recipe.training import FineTune
from compile.steps import Report
from compile.training import prune
from compile.training.classifier import load_encoder_tokenizer
from compile.training.distil import teacher_digest, vector_loss
from compile.training.run import TrainingRun
from compile.training.trainer import Batch, Epoch, Judged, Objective, conditions, fit, write_curve

_KEPT = "vectors.safetensors"
_BATCH = 16


@dataclass(frozen=True)
class Piece:
    """A text as token ids, and its teacher's vector."""

    ids: tuple[int, ...]
    by: str = ""
    vector: torch.Tensor | None = field(default=None, repr=False, compare=False)


def distil_encoder(
    teacher: Path,
    student: Path,
    train: Sequence[str],
    validation: Sequence[str],
    distil: DistilVectors,
    settings: FineTune,
    run: TrainingRun,
    longest: int = 256,
) -> tuple[Epoch, ...]:
    """Train the encoder in ``student`` on the vectors of the one in ``teacher``, and write it.

    Validation: the same loss, and the mean cosine as the metric. Raises
    ``BadRecipe`` when the vectors have different widths, ``TrainingFailed``.
    """
    if width(teacher) != width(student):
        raise BadRecipe(
            f"distil.kind: vectors needs one width, and the teacher's vectors have {width(teacher)} numbers, "
            f"the student's {width(student)}"
        )
    by = f"{teacher_digest(teacher)} {distil.cosine} {longest}"
    lists = [
        taught(teacher, texts, by, longest, run.scratch / f"{name}-{_KEPT}", run.threads, run.report)
        for name, texts in (("train", train), ("validation", validation))
    ]
    with conditions(settings, run.threads):
        model = prune.load(student)
        calm(model, settings.dropout)
        objective = _Vectors(pooling(student), distil.cosine, load_encoder_tokenizer(student).pad_token_id)
        # The student reads text as its own tokenizer does.
        lists = [
            [
                Piece(ids, one.by, one.vector)
                for ids, one in zip(encode(student, texts, longest), some, strict=True)
            ]
            for texts, some in zip((train, validation), lists, strict=True)
        ]
        curve = fit(model, objective, lists[0], lists[1], settings, run)
        model.eval()
        prune.save(model, student, run.target)
    write_curve(curve, run.target)
    return curve


def encode(folder: Path, texts: Sequence[str], longest: int) -> list[tuple[int, ...]]:
    """Token ids with the special tokens that the model expects, cut to ``longest``."""
    tokenizer = load_encoder_tokenizer(folder)
    if not texts:
        return []
    ids = tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]
    return [tuple(one) for one in ids]


def collate(ids: Sequence[Sequence[int]], pad: int) -> Batch:
    """Padded ``input_ids`` and ``attention_mask``."""
    rows = [torch.tensor(one) for one in ids]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=pad),
        "attention_mask": pad_sequence([torch.ones_like(one) for one in rows], batch_first=True),
    }


def vectors(model: Any, batch: Batch, pool: Literal["mean", "cls"]) -> torch.Tensor:
    """Sentence vectors of length one: [texts, width]."""
    hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    if pool == "cls":
        pooled = hidden[:, 0]
    else:
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
    return normalize(pooled, dim=-1)


def embed(folder: Path, texts: Sequence[str], longest: int, threads: int, report: Report) -> torch.Tensor:
    """The vectors of an encoder in a folder: float32 [texts, width]."""
    torch.set_num_threads(threads)
    model, pool, ids = prune.load(folder), pooling(folder), encode(folder, texts, longest)
    pad = load_encoder_tokenizer(folder).pad_token_id
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    found = torch.empty(len(ids), width(folder))
    with torch.no_grad():
        for at in range(0, len(order), _BATCH):
            chosen = order[at : at + _BATCH]
            found[chosen] = vectors(model, collate([ids[index] for index in chosen], pad), pool)
            report((at + len(chosen)) / len(order), "the teacher's vectors")
    return found


def pooling(folder: Path) -> Literal["mean", "cls"]:
    """How a folder of sentence-transformers pools; the mean when it does not say. Raises ``BadRecipe``."""
    path = folder / "1_Pooling" / "config.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    ways = [name for name, chosen in said.items() if name.startswith("pooling_mode_") and chosen is True]
    if ways == ["pooling_mode_cls_token"]:
        return "cls"
    if ways in ([], ["pooling_mode_mean_tokens"]):
        return "mean"
    raise BadRecipe(f"{path}: pooling by {', '.join(ways)} is not known; known are mean and cls")


def width(folder: Path) -> int:
    """How many numbers a vector has."""
    return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"])


def taught(
    teacher: Path,
    texts: Sequence[str],
    by: str,
    longest: int,
    file: Path,
    threads: int,
    report: Report,
) -> list[Piece]:
    """The texts with the teacher's vectors, computed once and kept in ``file``."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    whole = {"by": by, "texts": hashlib.sha256("\0".join(texts).encode("utf-8", "replace")).hexdigest()}
    known: torch.Tensor | None = None
    if file.is_file():
        with safe_open(file, "pt") as stored:
            if stored.metadata() == whole:
                known = load_file(file)["vectors"]
    if known is None:
        known = embed(teacher, texts, longest, threads, report)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".part")
        save_file({"vectors": known}, unfinished, metadata=whole)
        unfinished.rename(file)
    ids = encode(teacher, texts, longest)
    return [Piece(one, by, vector) for one, vector in zip(ids, known, strict=True)]


def calm(model: Any, dropout: float) -> None:
    """Set every dropout of a model; its configuration keeps what it says."""
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = dropout
        if isinstance(getattr(part, "dropout_prob", None), float):
            part.dropout_prob = dropout


class _Vectors(Objective):
    """How far the student's vectors are from the teacher's."""

    def __init__(self, pool: Literal["mean", "cls"], cosine: float, pad: int) -> None:
        self._pool, self._cosine, self._pad = pool, cosine, pad

    def length(self, example: Piece) -> int:
        return len(example.ids)

    def collate(self, examples: Sequence[Piece]) -> Batch:
        wanted = [one.vector for one in examples if one.vector is not None]
        return {**collate([one.ids for one in examples], self._pad), "vectors": torch.stack(wanted)}

    def weight(self, batch: Batch) -> torch.Tensor:
        return torch.tensor(float(len(batch["vectors"])))

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        return vector_loss(vectors(model, batch, self._pool), batch["vectors"], self._cosine).sum()

    def judge(self, model: Any, batch: Batch) -> Judged:
        found = vectors(model, batch, self._pool)
        loss = vector_loss(found, batch["vectors"], self._cosine)
        return Judged(float(loss.sum()), len(loss), (found * batch["vectors"]).sum(-1).tolist())

    def metric(self, outcomes: Sequence[float]) -> float:
        return sum(outcomes) / len(outcomes)
