"""LoRA fine-tuning on a CPU: loss on the answer only, the best of the epochs kept, resumable.

What makes it quick: layers below ``first_layer`` are never changed, so their output for an example is
computed once (``write_fixed``) and serves every epoch, and every run that continues; batches hold
examples of like length; padding stands behind the text, where a causal model never looks, so no mask is
needed; logits are computed where there is a loss, nowhere else. Law: the first of these changes no
result, only its cost.
"""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.recipe.schema import FineTune
from compile.steps import Report
from models.store import write_durably

if TYPE_CHECKING:
    import torch

_IGNORED_PAD = 0
_SORT_BATCHES = 16
"""Batches whose examples are sorted by length together: enough to save padding, few enough to stay mixed."""


@dataclass(frozen=True)
class Example:
    """Token ids of prompt and answer. ``weights`` are those of the answer's tokens in the loss."""

    ids: tuple[int, ...]
    prompt_length: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Epoch:
    """What one pass gave: weighted training loss, plain validation loss per token, seconds spent."""

    number: int
    train_loss: float
    validation_loss: float
    validation_exact_first: float
    seconds: float


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
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(hf_folder, dtype=torch.float32, local_files_only=True)
    trunk = _Trunk(model, first_layer)
    total, done, fixed = sum(map(len, examples.values())), 0, {}
    for name, some in examples.items():
        before = done
        parts = trunk.fixed(
            some,
            lambda part, before=before, some=some: report(  # type: ignore[misc]
                (before + part * len(some)) / total, "layers that stay as they are"
            ),
        )
        fixed[name] = torch.cat(parts)
        done += len(some)
    save_file(fixed, target)


def _read_fixed(path: Path, name: str, examples: Sequence[Example]) -> list["torch.Tensor"]:
    from safetensors.torch import load_file

    rows = [len(example.ids) for example in examples]
    return list(load_file(path)[name].split(rows))  # type: ignore[no-untyped-call]


def finetune(
    hf_folder: Path,
    fixed: Path,
    start_from: Path | None,
    settings: FineTune,
    train: Sequence[Example],
    validation: Sequence[Example],
    target: Path,
    scratch: Path,
    threads: int,
    now: Callable[[], float],
    report: Report,
) -> tuple[Epoch, ...]:
    """Train an adapter and write it to ``target`` as peft does; returns the learning curve.

    ``fixed`` is what ``write_fixed`` wrote for lists ``train`` and ``validation``, which must be these.
    ``start_from`` is a peft folder to continue from. A run that was killed goes on after its last whole
    epoch, which ``scratch`` holds. ``now`` is a monotonic clock in seconds.
    """
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    torch.set_num_threads(threads)
    torch.manual_seed(settings.seed)
    model = _adapted(hf_folder, start_from, settings)
    trunk = _Trunk(model, settings.first_layer)
    fixed_train = _read_fixed(fixed, "train", train)
    fixed_validation = _read_fixed(fixed, "validation", validation)
    matrices = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(matrices, lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    per_epoch = math.ceil(len(train) / settings.batch)
    total = settings.epochs * per_epoch
    curve = _resume(scratch, model, optimizer)
    best = min((epoch.validation_loss for epoch in curve), default=math.inf)
    for number in range(len(curve), settings.epochs):
        began, losses = now(), 0.0
        model.train()
        order = _batches(
            [len(example.ids) for example in train], settings.batch, settings.seed * 1000 + number
        )
        for at, indices in enumerate(order):
            step = number * per_epoch + at
            rate = settings.learning_rate * _schedule(step, total, settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            logits, wanted, weights = trunk.answers(train, fixed_train, indices)
            each = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
            loss = (each * weights).sum() / weights.sum()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(matrices, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses += loss.item()
            report((step + 1) / total, f"epoch {number + 1}, loss {losses / (at + 1):.3f}")
        valid, first = _validate(model, trunk, validation, fixed_validation, settings.batch)
        curve.append(Epoch(number + 1, losses / len(order), valid, first, round(now() - began, 1)))
        if valid <= best:
            best = valid
            _save_best(model, scratch)
        _checkpoint(scratch, model, optimizer, curve)
    _publish(scratch, target)
    (target / "curve.json").write_text(json.dumps([vars(epoch) for epoch in curve]), encoding="utf-8")
    return tuple(curve)


def _adapted(hf_folder: Path, start_from: Path | None, settings: FineTune) -> Any:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(hf_folder, dtype=torch.float32, local_files_only=True)
    if start_from is not None:
        return PeftModel.from_pretrained(base, str(start_from), is_trainable=True)
    layers = list(range(settings.first_layer, base.config.num_hidden_layers))
    shape = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        layers_to_transform=layers,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, shape)


class _Trunk:
    """A Llama decoder cut at ``first``: below it nothing changes, from it on gradients flow."""

    def __init__(self, model: Any, first: int) -> None:
        self._causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._core = self._causal.model
        self._first = first

    def fixed(self, examples: Sequence[Example], told: Callable[[float], None]) -> list["torch.Tensor"]:
        """What enters layer ``first``: one float32 [tokens, width] per example."""
        import torch

        result: list[Any] = [None] * len(examples)
        order = sorted(range(len(examples)), key=lambda index: len(examples[index].ids))
        with torch.no_grad():
            for at in range(0, len(order), 16):
                indices = order[at : at + 16]
                longest = len(examples[indices[-1]].ids)
                padded = [
                    [*examples[i].ids, *[_IGNORED_PAD] * (longest - len(examples[i].ids))] for i in indices
                ]
                hidden = self._layers(self._core.embed_tokens(torch.tensor(padded)), 0, self._first)
                for row, index in enumerate(indices):
                    result[index] = hidden[row, : len(examples[index].ids)].clone()
                told((at + len(indices)) / len(order))
        return result

    def answers(
        self, examples: Sequence[Example], fixed: Sequence["torch.Tensor"], indices: Sequence[int]
    ) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
        """Logits [answer tokens of the batch, vocabulary], the tokens wanted there, and their weights."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        hidden = self._layers(
            pad_sequence([fixed[index] for index in indices], batch_first=True),
            self._first,
            len(self._core.layers),
        )
        rows: list[int] = []
        columns: list[int] = []
        wanted: list[int] = []
        weights: list[float] = []
        for row, index in enumerate(indices):
            example = examples[index]
            answer = example.ids[example.prompt_length :]
            rows += [row] * len(answer)
            columns += range(example.prompt_length - 1, len(example.ids) - 1)
            wanted += answer
            weights += example.weights
        there = self._core.norm(hidden[rows, columns])
        return self._causal.lm_head(there), torch.tensor(wanted), torch.tensor(weights)

    def _layers(self, hidden: "torch.Tensor", low: int, high: int) -> "torch.Tensor":
        import torch

        positions = torch.arange(hidden.shape[1])[None]
        rotary = self._core.rotary_emb(hidden, positions)
        for layer in self._core.layers[low:high]:
            out = layer(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary)
            hidden = out[0] if isinstance(out, tuple) else out
        return hidden


def _batches(lengths: Sequence[int], size: int, seed: int) -> list[list[int]]:
    """Every index once, in batches of like length, in an order that the seed fixes."""
    chance = random.Random(seed)  # noqa: S311 - an order, not a secret
    indices = list(range(len(lengths)))
    chance.shuffle(indices)
    batches = []
    # Whole batches first, so that their number is the same whatever the order.
    for at in range(0, len(indices), size * _SORT_BATCHES):
        group = sorted(indices[at : at + size * _SORT_BATCHES], key=lambda index: lengths[index])
        batches += [group[b : b + size] for b in range(0, len(group), size)]
    chance.shuffle(batches)
    return batches


def _schedule(step: int, total: int, warmup: float) -> float:
    """Linear warm-up, then a linear fall towards zero."""
    rising = (step + 1) / max(1.0, warmup * total)
    falling = (total - step) / max(1.0, (1 - warmup) * total)
    return min(1.0, rising, falling)


def _validate(
    model: Any, trunk: _Trunk, examples: Sequence[Example], fixed: Sequence["torch.Tensor"], batch: int
) -> tuple[float, float]:
    """Loss per answer token, and the part of the most heavily weighted spans that are right throughout."""
    import torch

    model.eval()
    loss, tokens, right = 0.0, 0, 0
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].ids))
    with torch.no_grad():
        for at in range(0, len(order), batch):
            indices = order[at : at + batch]
            logits, wanted, weights = trunk.answers(examples, fixed, indices)
            loss += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
            hits = logits.argmax(-1) == wanted
            start = 0
            for index in indices:
                end = start + len(examples[index].weights)
                heavy = weights[start:end] == max(examples[index].weights)
                right += bool(hits[start:end][heavy].all())
                start = end
            tokens += len(wanted)
    return loss / tokens, right / len(examples)


def _save_best(model: Any, scratch: Path) -> None:
    model.save_pretrained(scratch / "best", safe_serialization=True)


def _checkpoint(scratch: Path, model: Any, optimizer: Any, curve: Sequence[Epoch]) -> None:
    """All that is needed to go on after this epoch. The JSON file comes last: with it, all is there."""
    from safetensors.torch import save_file

    state: dict[str, Any] = {}
    trainable = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    for name, value in trainable:
        state[f"weight/{name}"] = value.detach()
        for part, tensor in optimizer.state[value].items():
            state[f"optimizer/{part}/{name}"] = tensor.detach().reshape(-1) if tensor.dim() == 0 else tensor
    file = scratch / f"epoch-{curve[-1].number}.safetensors"
    save_file(state, file)
    write_durably(scratch / "curve.json", json.dumps([vars(epoch) for epoch in curve]).encode())
    for older in scratch.glob("epoch-*.safetensors"):
        if older != file:
            older.unlink()


def _resume(scratch: Path, model: Any, optimizer: Any) -> list[Epoch]:
    from safetensors.torch import load_file

    if not (scratch / "curve.json").is_file():
        return []
    curve = [Epoch(**epoch) for epoch in json.loads((scratch / "curve.json").read_text())]
    state = load_file(scratch / f"epoch-{curve[-1].number}.safetensors")
    for name, value in model.named_parameters():
        if value.requires_grad:
            value.data.copy_(state[f"weight/{name}"])
            optimizer.state[value] = {
                part: state[f"optimizer/{part}/{name}"].squeeze(0)
                if part == "step"
                else state[f"optimizer/{part}/{name}"]
                for part in ("step", "exp_avg", "exp_avg_sq")
            }
    return curve


def _publish(scratch: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (target / name).write_bytes((scratch / "best" / name).read_bytes())
