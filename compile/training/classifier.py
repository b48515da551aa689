"""Fine-tuning an encoder to tell labels apart, and asking one.

Owns how texts become batches (padded to the longest of a batch, which holds texts of like length), the
weights of classes that are unequally frequent, and the folder that is written: weights, configuration with
the labels, tokenizer, ``curve.json``, and ``texts.json`` on how well the tokenizer knows the texts. Refuses
labels that are not among those asked for, methods that make no whole classifier, and texts that are too long
unless they are to be cut.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from compile.data.rows import Row, Splits
from compile.errors import BadData, BadRecipe
from compile.evaluate.statistics import macro_f1
from compile.recipe.training import FineTune
from compile.training import methods
from compile.training.causal import copy_tokenizer
from compile.training.run import TrainingRun
from compile.training.trainer import Batch, Epoch, Judged, Objective, conditions, fit, write_curve

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_UNBALANCED = 1.5
"""From this ratio of the most to the least frequent class on, ``auto`` weighs classes."""
_MANY_UNKNOWN = 0.1
_SHOWN = 20


@dataclass(frozen=True)
class Text:
    """Token ids with the special tokens, and the index of the label."""

    ids: tuple[int, ...]
    label: int


def train_classifier(
    hf_folder: Path,
    splits: Splits,
    labels: Sequence[str],
    settings: FineTune,
    run: TrainingRun,
) -> tuple[Epoch, ...]:
    """Train on ``splits.train``, choose the epoch by ``splits.validation``, write a Hugging Face folder.

    ``full``, or ``lora`` merged into the weights at the end. The metric of the curve is macro-F1. Raises
    ``BadData``, ``BadRecipe``, ``Refused``, ``TrainingFailed``.
    """
    if settings.method not in ("full", "lora"):
        raise BadRecipe(f"finetune.method: {settings.method} makes no whole classifier; use full or lora")
    tokenizer = load_encoder_tokenizer(hf_folder)
    with conditions(settings, run.threads):
        model = untrained(hf_folder, labels)
        longest = min(settings.max_tokens, model.config.max_position_embeddings)
        cut = settings.too_long == "truncate"
        train = encode_texts(splits.train, tokenizer, labels, longest, cut)
        validation = encode_texts(splits.validation, tokenizer, labels, longest, cut)
        weights = class_weights([text.label for text in train], len(labels), settings.class_weights)
        model = methods.adapt(model, settings, "SEQ_CLS")
        told = facts(train, tokenizer.unk_token_id, longest, weights)
        if told["many_unknown"]:
            share = f"{told['unknown_tokens']:.0%} of the tokens are unknown to this model's tokenizer"
            run.report(0.0, f"{share}: compare with the TF-IDF baseline before you ship it")
        objective = Labels(labels, weights, tokenizer.pad_token_id)
        curve = fit(model, objective, train, validation, settings, run)
        if settings.method == "lora":
            model = model.merge_and_unload()
        model.eval().save_pretrained(run.target, safe_serialization=True)
        copy_tokenizer(hf_folder, run.target)
        if (hf_folder / "vocab.txt").is_file():
            (run.target / "vocab.txt").write_bytes((hf_folder / "vocab.txt").read_bytes())
    (run.target / "texts.json").write_text(json.dumps(told), encoding="utf-8")
    write_curve(curve, run.target)
    return curve


def untrained(hf_folder: Path, labels: Sequence[str]) -> Any:
    """The encoder of a folder with a head for ``labels``, as training begins with it.

    A head that the folder lacks, or has for another number of labels, is drawn at random: call it within
    ``conditions``, whose seed decides. Law: after training for no step, it says what this one says.
    """
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        hf_folder,
        dtype=torch.float32,
        local_files_only=True,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type="single_label_classification",
        ignore_mismatched_sizes=True,
    )
    model.config._name_or_path = ""
    return model


def facts(
    texts: Sequence[Text], unknown: int | None, longest: int, weights: Sequence[float]
) -> dict[str, Any]:
    """What ``texts.json`` says: ``unknown_tokens`` is the part of the tokens that stand for text unseen, and
    ``many_unknown`` whether so much is that people must hear of it."""
    tokens = sum(len(text.ids) for text in texts)
    strange = sum(text.ids.count(unknown) for text in texts) if unknown is not None else 0
    return {
        "texts": len(texts),
        "tokens": tokens,
        "unknown_tokens": round(strange / max(1, tokens), 4),
        "many_unknown": strange > _MANY_UNKNOWN * tokens,
        "longest": longest,
        "at_longest": sum(len(text.ids) == longest for text in texts),
        "class_weights": [round(weight, 4) for weight in weights],
    }


def predict(folder: Path, texts: Sequence[str], max_tokens: int, threads: int) -> "npt.NDArray[np.float32]":
    """Probabilities [texts, labels] of a classifier's folder; longer texts are cut."""
    from transformers import AutoModelForSequenceClassification

    with conditions(FineTune(), threads):
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
        return _answer(model, load_encoder_tokenizer(folder), texts, max_tokens)


def predict_untrained(
    hf_folder: Path,
    labels: Sequence[str],
    settings: FineTune,
    texts: Sequence[str],
    max_tokens: int,
    threads: int,
) -> "npt.NDArray[np.float32]":
    """The same of the classifier that training with ``settings`` begins with."""
    with conditions(settings, threads):
        model = untrained(hf_folder, labels)
        return _answer(model, load_encoder_tokenizer(hf_folder), texts, max_tokens)


def _answer(
    model: Any, tokenizer: Any, texts: Sequence[str], max_tokens: int, batch: int = 32
) -> "npt.NDArray[np.float32]":
    """Probabilities, texts of like length together."""
    import numpy as np

    longest = min(max_tokens, model.config.max_position_embeddings)
    ids = [_ids(tokenizer, text, longest) for text in texts]
    result = np.zeros((len(texts), model.config.num_labels), dtype=np.float32)
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    model.eval()
    with torch.no_grad():
        for at in range(0, len(order), batch):
            chosen = order[at : at + batch]
            padded = _pad([ids[index] for index in chosen], tokenizer.pad_token_id)
            result[chosen] = model(**padded).logits.softmax(-1).numpy()
    return result


def load_encoder_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer. Raises ``BadRecipe`` when it has no token to pad with."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
    if tokenizer.pad_token_id is None:
        raise BadRecipe(f"{folder}: the tokenizer names no padding token")
    return tokenizer


def encode_texts(
    rows: Sequence[Row], tokenizer: Any, labels: Sequence[str], longest: int, cut: bool
) -> list[Text]:
    """Each row's text as ids. Raises ``BadData`` for unknown labels, and for long texts unless ``cut``."""
    known = {label: index for index, label in enumerate(labels)}
    strange = sorted({row.label for row in rows} - set(known))
    if strange:
        numbers = [str(row.number) for row in rows if row.label not in known]
        raise BadData(
            f"labels that the recipe does not name: {', '.join(map(repr, strange[:_SHOWN]))} "
            f"(rows {', '.join(numbers[:_SHOWN])})"
        )
    long = [row.number for row in rows if not cut and len(_ids(tokenizer, row.text, None)) > longest]
    if long:
        raise BadData(
            f"{len(long)} of {len(rows)} texts are longer than {longest} tokens (rows "
            f"{', '.join(map(str, long[:_SHOWN]))}); raise finetune.max_tokens, or set too_long: truncate"
        )
    return [Text(tuple(_ids(tokenizer, row.text, longest)), known[row.label]) for row in rows]


def class_weights(labels: Sequence[int], classes: int, how: str) -> tuple[float, ...]:
    """A weight per class, 1 on average over the examples. ``auto``: balanced when classes are unequal."""
    counts = Counter(labels)
    missing = [index for index in range(classes) if not counts[index]]
    if missing:
        raise BadData(f"no example to train on for {len(missing)} of {classes} labels")
    unequal = max(counts.values()) > _UNBALANCED * min(counts.values())
    if how == "none" or (how == "auto" and not unequal):
        return (1.0,) * classes
    return tuple(len(labels) / (classes * counts[index]) for index in range(classes))


class Labels(Objective):
    """Cross-entropy with a weight per class. Metric: macro-F1."""

    def __init__(self, labels: Sequence[str], weights: Sequence[float], pad: int) -> None:
        self._labels, self._weights, self._pad = list(labels), torch.tensor(weights), pad

    def length(self, example: Text) -> int:
        return len(example.ids)

    def collate(self, examples: Sequence[Text]) -> Batch:
        wanted = torch.tensor([example.label for example in examples])
        return _pad([example.ids for example in examples], self._pad) | {"wanted": wanted}

    def weight(self, batch: Batch) -> torch.Tensor:
        return self._weights.to(batch["wanted"].device)[batch["wanted"]].sum()

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        weights = self._weights.to(batch["wanted"].device)
        return cross_entropy(self._logits(model, batch), batch["wanted"], weight=weights, reduction="sum")

    def judge(self, model: Any, batch: Batch) -> Judged:
        logits = self._logits(model, batch)
        loss = cross_entropy(logits, batch["wanted"], reduction="sum").item()
        said = logits.argmax(-1).tolist()
        return Judged(loss, len(said), list(zip(batch["wanted"].tolist(), said, strict=True)))

    def metric(self, outcomes: Sequence[tuple[int, int]]) -> float:
        wanted = [self._labels[index] for index, _ in outcomes]
        return macro_f1(wanted, [self._labels[index] for _, index in outcomes], self._labels)

    def _logits(self, model: Any, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
        return logits


def _ids(tokenizer: Any, text: str, longest: int | None) -> list[int]:
    ids: list[int] = tokenizer(text, truncation=longest is not None, max_length=longest)["input_ids"]
    return ids


def _pad(ids: Sequence[Sequence[int]], pad: int) -> Batch:
    tensors = [torch.tensor(some) for some in ids]
    mask = [torch.ones(len(some), dtype=torch.long) for some in ids]
    return {
        "input_ids": pad_sequence(tensors, batch_first=True, padding_value=pad),
        "attention_mask": pad_sequence(mask, batch_first=True),
    }
