"""What pruning of depth and width have in common: text through a model, and folders that say what was cut.

Owns the forward passes over data and ``pruned.json``. Both kinds of data are taken: examples of a causal
model, and texts of an encoder.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from compile.errors import BadRecipe
from compile.steps import Report
from compile.training.examples import Example

PRUNED = "pruned.json"
_BATCH = 8
_OWN = ("config.json", "curve.json", "made.json", "step.json", "README.md")
_BESIDE = ("1_Pooling", "2_Normalize")

Data = Sequence[Example] | Sequence[str]


def load(folder: Path) -> Any:
    """A model of the class that its configuration names, in float32."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    name = (config.architectures or ["AutoModel"])[0]
    kind = getattr(transformers, name, transformers.AutoModel)
    model = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    model.config._name_or_path = ""
    return model.eval()


def batches(folder: Path, data: Data, longest: int, report: Report) -> Iterator[dict[str, torch.Tensor]]:
    """The data as ``input_ids`` and ``attention_mask``.

    Examples of a causal model also have ``labels``, with -100 where nothing is to be said.
    """
    if not data:
        raise BadRecipe("prune: there is no data to measure importance on")
    tokenizer, pad = None, 0
    if isinstance(data[0], str):
        from compile.training.classifier import load_encoder_tokenizer

        tokenizer = load_encoder_tokenizer(folder)
        pad = tokenizer.pad_token_id
    for at in range(0, len(data), _BATCH):
        some: Any = data[at : at + _BATCH]
        if tokenizer is not None:
            ids = [torch.tensor(one[:longest]) for one in tokenizer(list(some))["input_ids"]]
            said = None
        else:
            ids = [torch.tensor(one.ids[:longest]) for one in some]
            said = [
                torch.tensor(([-100] * one.prompt_length + list(one.ids[one.prompt_length :]))[:longest])
                for one in some
            ]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad),
            "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
        }
        if said is not None:
            batch["labels"] = pad_sequence(said, batch_first=True, padding_value=-100)
        yield batch
        report(min(1.0, (at + _BATCH) / len(data)), "measuring what each part does")


def save(model: Any, source: Path, target: Path) -> None:
    """The model, with everything in ``source`` that is neither weights nor about how they were made."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        weights = file.suffix in (".safetensors", ".bin") or file.name.endswith(".index.json")
        if file.is_file() and not weights and file.name not in _OWN:
            shutil.copyfile(file, target / file.name)
        elif file.is_dir() and file.name in _BESIDE:
            shutil.copytree(file, target / file.name, dirs_exist_ok=True)
    model.save_pretrained(target, safe_serialization=True)


def write(model: Any, source: Path, target: Path, said: Mapping[str, Any]) -> None:
    """``save``, and ``said`` as ``pruned.json``, after what ``source`` says of an earlier pruning."""
    save(model, source, target)
    before = source / PRUNED
    earlier = json.loads(before.read_text(encoding="utf-8")) if before.is_file() else []
    (target / PRUNED).write_text(json.dumps([*earlier, dict(said)], indent=1), encoding="utf-8")


def parameters(model: Any) -> int:
    """How many numbers a model has; shared ones count once."""
    return sum(one.numel() for one in model.parameters())
