"""Fine-tuning causal models: loss on the answer's tokens only, by every method of ``methods.py``.

What makes it quick on a CPU: layers below ``first_layer`` are never changed, so what they compute for an
example is computed once (``write_fixed``), serves every epoch and every run that continues, and they are
taken out of the model that is trained; padding stands behind the text, where a causal model never looks, so
no mask is needed; logits are computed where there is a loss, nowhere else. Law: none of this changes a
result, only its cost; ``write_fixed`` holds it against the whole model and raises ``UnsupportedBase`` for an
architecture where it does not hold.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from compile.errors import BadRecipe, UnsupportedBase
from compile.recipe.training import FineTune
from compile.steps import Report
from compile.training import methods
from compile.training.examples import Example
from compile.training.run import TrainingRun
from compile.training.trainer import Batch, Epoch, Judged, Objective, conditions, fit, write_curve

_PAD = 0
_TOLERANCE = 1e-3
"""How far logits may be from those of the whole model, in float32, relative to the largest."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class _Placed:
    """An example, and what enters the first layer that is trained, when that is kept: [tokens, width]."""

    example: Example
    hidden: torch.Tensor | None = field(default=None, repr=False, compare=False)


def train_causal(
    hf_folder: Path,
    train: Sequence[Example],
    validation: Sequence[Example],
    settings: FineTune,
    run: TrainingRun,
    start_from: Path | None = None,
    fixed: Path | None = None,
) -> tuple[Epoch, ...]:
    """Train, and write a peft folder, or a whole model for ``full``, with ``curve.json``.

    ``start_from`` is a peft folder to go on from; ``fixed`` what ``write_fixed`` wrote for lists ``train``
    and ``validation``, which must be these (made here when it is needed and not given).
    Raises ``Refused``, ``BadRecipe``, ``UnsupportedBase``, ``TrainingFailed``.
    """
    cut = settings.first_layer > 0 and settings.method == "lora"
    if cut and fixed is None:
        # Under a name of their own, so that other examples or layers never find them.
        seen = hashlib.sha256(repr((settings.first_layer, train, validation)).encode()).hexdigest()
        fixed = run.scratch / f"fixed-{seen[:16]}.safetensors"
        if not fixed.is_file():
            lists = {"train": train, "validation": validation}
            write_fixed(hf_folder, settings.first_layer, lists, fixed, run.threads, run.report)
    with conditions(settings, run.threads):
        model = methods.load_causal(hf_folder, settings, start_from)
        if start_from is None and train:
            methods.begin_with(model, settings, train[0].ids[: train[0].prompt_length])
        if cut and fixed is not None:
            take_out(model, settings.first_layer)
            placed = [_read_fixed(fixed, "train", train), _read_fixed(fixed, "validation", validation)]
        else:
            placed = [[_Placed(example) for example in some] for some in (train, validation)]
        curve = fit(model, Answers(model), placed[0], placed[1], settings, run)
        save_tuned(model, hf_folder, settings, run.target)
    write_curve(curve, run.target)
    return curve


def save_tuned(model: Any, hf_folder: Path, settings: FineTune, target: Path) -> None:
    """A whole model with its tokenizer for ``full``, else a peft folder."""
    model.eval()
    if settings.method == "full":
        model.save_pretrained(target, safe_serialization=True)
        copy_tokenizer(hf_folder, target)
    else:
        model.save_pretrained(target, safe_serialization=True, save_embedding_layers=False)
        (target / "README.md").unlink(missing_ok=True)


def copy_tokenizer(hf_folder: Path, target: Path) -> None:
    """What belongs to a model besides weights and configuration."""
    for name in _TOKENIZER_FILES:
        if (hf_folder / name).is_file():
            shutil.copyfile(hf_folder / name, target / name)


class Answers(Objective):
    """Loss on the tokens of the answer, weighted as the example says. Metric: answers right throughout.

    Right, with everything before each token given, at every token that weighs most: for structured answers
    the label fields, for plain ones the whole answer.
    """

    def __init__(self, model: Any) -> None:
        self._head = _Head(model)

    def length(self, example: _Placed) -> int:
        return len(example.example.ids)

    def collate(self, examples: Sequence[_Placed]) -> Batch:
        plain = [placed.example for placed in examples]
        rows: list[int] = []
        columns: list[int] = []
        wanted: list[int] = []
        weights: list[float] = []
        heavy: list[bool] = []
        for row, example in enumerate(plain):
            answer = example.ids[example.prompt_length :]
            rows += [row] * len(answer)
            columns += range(example.prompt_length - 1, len(example.ids) - 1)
            wanted += answer
            weights += example.weights
            most = max(example.weights)
            heavy += [weight == most for weight in example.weights]
        batch = {
            "rows": torch.tensor(rows),
            "columns": torch.tensor(columns),
            "wanted": torch.tensor(wanted),
            "weights": torch.tensor(weights),
            "heavy": torch.tensor(heavy),
        }
        hidden = [placed.hidden for placed in examples if placed.hidden is not None]
        if hidden:
            return batch | {"inputs_embeds": pad_sequence(hidden, batch_first=True)}
        ids = [torch.tensor(example.ids) for example in plain]
        return batch | {"input_ids": pad_sequence(ids, batch_first=True, padding_value=_PAD)}

    def weight(self, batch: Batch) -> torch.Tensor:
        return batch["weights"].sum()

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """Logits [answer tokens of the batch, vocabulary]."""
        return self._head.logits(model, batch)

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        each = cross_entropy(self.logits(model, batch), batch["wanted"], reduction="none")
        return (each * batch["weights"]).sum()

    def judge(self, model: Any, batch: Batch) -> Judged:
        logits = self.logits(model, batch)
        loss = cross_entropy(logits, batch["wanted"], reduction="sum").item()
        wrong = (logits.argmax(-1) != batch["wanted"]) & batch["heavy"]
        rows = int(batch["rows"].max()) + 1
        missed = torch.zeros(rows, device=wrong.device).index_add_(0, batch["rows"], wrong.float())
        return Judged(loss, len(batch["wanted"]), (missed == 0).tolist())

    def metric(self, outcomes: Sequence[bool]) -> float:
        return sum(outcomes) / len(outcomes)


class _Head:
    """Runs a causal model and lets its head see the asked places only."""

    def __init__(self, model: Any) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._places: tuple[torch.Tensor, torch.Tensor, int] | None = None
        base.get_output_embeddings().register_forward_pre_hook(self._choose)

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        kind = "inputs_embeds" if "inputs_embeds" in batch else "input_ids"
        self._places = batch["rows"], batch["columns"], batch[kind].shape[1]
        try:
            result: torch.Tensor = model(**{kind: batch[kind]}).logits[0]
        finally:
            self._places = None
        return result

    def _choose(self, head: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if self._places is None:
            return None
        rows, columns, length = self._places
        hidden = inputs[0]
        # Virtual tokens stand before the text.
        return (hidden[rows, columns + (hidden.shape[1] - length)][None],)


class _Gone(torch.nn.Module):
    """Stands where a layer was that is not needed any more."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        if hasattr(layer, "attention_type"):
            self.attention_type = layer.attention_type

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states


def take_out(model: Any, first_layer: int) -> None:
    """Replace the layers below ``first_layer``: from now on the model takes what enters that layer."""
    layers = methods.layers_of(model)
    for index in range(first_layer):
        layers[index] = _Gone(layers[index])


class _Reached(Exception):
    """Ends a forward pass at the layer that was to be reached."""


def write_fixed(
    hf_folder: Path,
    first_layer: int,
    examples: Mapping[str, Sequence[Example]],
    target: Path,
    threads: int,
    report: Report,
) -> None:
    """Write what enters layer ``first_layer`` for each list of examples, as safetensors.

    One float32 [tokens, width] tensor per list: the examples' tokens one after the other.
    Raises ``UnsupportedBase`` when the upper layers alone do not give the whole model's logits.
    """
    from safetensors.torch import save_file

    settings = FineTune(method="full")
    total, done, fixed = max(1, sum(map(len, examples.values()))), 0, {}
    with conditions(settings, threads), torch.no_grad():
        model = methods.load_causal(hf_folder, settings).eval()
        layers = methods.layers_of(model)
        if first_layer >= len(layers):
            raise BadRecipe(f"finetune.first_layer: {first_layer}, but the model has {len(layers)} layers")
        for name, some in examples.items():
            parts: list[torch.Tensor] = [torch.empty(0)] * len(some)
            order = sorted(range(len(some)), key=lambda index: len(some[index].ids))
            for at in range(0, len(order), 16):
                indices = order[at : at + 16]
                hidden = _entering(model, layers[first_layer], [some[index] for index in indices])
                for row, index in enumerate(indices):
                    parts[index] = hidden[row, : len(some[index].ids)].clone()
                done += len(indices)
                report(done / total, "layers that stay as they are")
            fixed[name] = torch.cat(parts) if parts else torch.empty(0, model.config.hidden_size)
        sample = next((some[0] for some in examples.values() if some), None)
        if sample is not None:
            _hold(model, first_layer, sample)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".part")
    save_file(fixed, unfinished)
    unfinished.rename(target)


def _entering(model: Any, layer: Any, examples: Sequence[Example]) -> torch.Tensor:
    """What enters ``layer``: [examples, tokens, width]."""
    caught: list[torch.Tensor] = []

    def catch(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        caught.append(arguments[0] if arguments else named["hidden_states"])
        raise _Reached

    ids = [torch.tensor(example.ids) for example in examples]
    handle = layer.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model(input_ids=pad_sequence(ids, batch_first=True, padding_value=_PAD))
    except _Reached:
        pass
    finally:
        handle.remove()
    return caught[0]


def _hold(model: Any, first_layer: int, sample: Example) -> None:
    """The upper layers on what is kept give what the whole model gives. Takes the lower ones out."""
    whole = model(input_ids=torch.tensor([sample.ids])).logits
    kept = _entering(model, methods.layers_of(model)[first_layer], [sample])
    take_out(model, first_layer)
    upper = model(inputs_embeds=kept).logits
    if (whole - upper).abs().max() > _TOLERANCE * whole.abs().max():
        raise UnsupportedBase(
            f"finetune.first_layer: the upper layers of {model.config.model_type!r} alone do not give what "
            "the whole model gives; leave it at 0"
        )


def _read_fixed(path: Path, name: str, examples: Sequence[Example]) -> list[_Placed]:
    from safetensors.torch import load_file

    rows = [len(example.ids) for example in examples]
    parts = load_file(path)[name].split(rows)  # type: ignore[no-untyped-call]
    return [_Placed(example, hidden) for example, hidden in zip(examples, parts, strict=True)]
