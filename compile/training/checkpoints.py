"""Checkpoints of a training run: written whole or not at all, and without pickle.

A checkpoint is a folder ``checkpoint-STEP`` with the trainable weights, the optimizer's state and the random
state as safetensors, the Trainer's state and the curve so far as JSON. It is written under another name and
renamed when all of it is on disk, so that a kill at any moment leaves the one before it or this one. Folders
of another run (other settings, other data) are never gone on from.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from models.store import sync_folder

_WRITING = "writing"
_WEIGHTS = "weights.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_RANDOM = "random.safetensors"
_GROUPS = "optimizer.json"
_PROGRESS = "progress.json"


def last(scratch: Path, run: str) -> Path | None:
    """The newest whole checkpoint of ``run``; everything else under ``scratch`` that looks like one goes."""
    found = sorted(scratch.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    ours = [folder for folder in found if read_progress(folder)["run"] == run]
    if not ours:
        for folder in found:
            shutil.rmtree(folder)
    return ours[-1] if ours else None


def read_progress(folder: Path) -> dict[str, Any]:
    """What ``write`` was given as ``progress``."""
    result: dict[str, Any] = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
    return result


def write(
    scratch: Path,
    step: int,
    model: Any,
    optimizer: Any,
    scheduler: Any,
    progress: Mapping[str, Any],
    more: Callable[[Path], None],
    keep: Sequence[Path],
) -> Path:
    """Write ``checkpoint-STEP``, ``more`` files in it, and remove those that are not in ``keep``."""
    from safetensors.torch import save_file

    folder, part = scratch / f"checkpoint-{step}", scratch / _WRITING
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(trainable(model), part / _WEIGHTS)
    states = optimizer.state_dict()
    tensors = {
        f"{index}/{name}": value.detach().contiguous()
        for index, state in states["state"].items()
        for name, value in state.items()
    }
    save_file(tensors, part / _OPTIMIZER)
    kept = {"groups": states["param_groups"], "scheduler": scheduler.state_dict()}
    (part / _GROUPS).write_text(json.dumps(kept), encoding="utf-8")
    save_file(_random_state(), part / _RANDOM)
    (part / _PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
    more(part)
    for file in part.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    sync_folder(part)
    part.rename(folder)
    sync_folder(scratch)
    for older in scratch.glob("checkpoint-*"):
        if older != folder and older not in keep:
            shutil.rmtree(older)
    return folder


def trainable(model: Any) -> dict[str, Any]:
    """The weights that are trained, by name."""
    return {
        name: value.detach().contiguous() for name, value in model.named_parameters() if value.requires_grad
    }


def load_weights(folder: Path, model: Any) -> None:
    """Put the weights of a checkpoint into ``model``, which must have been made alike."""
    import torch
    from safetensors.torch import load_file

    stored = load_file(folder / _WEIGHTS)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad:
                value.copy_(stored[name])


def load_optimizer(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Put optimizer and schedule where they were."""
    from safetensors.torch import load_file

    kept = json.loads((folder / _GROUPS).read_text(encoding="utf-8"))
    for group in kept["groups"]:
        group["betas"] = tuple(group["betas"])
    state: dict[int, dict[str, Any]] = {}
    for key, value in load_file(folder / _OPTIMIZER).items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": kept["groups"]})
    scheduler.load_state_dict(kept["scheduler"])


def load_random_state(folder: Path) -> None:
    """Put torch's random generators where they were."""
    import torch
    from safetensors.torch import load_file

    states = load_file(folder / _RANDOM)
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def _random_state() -> dict[str, Any]:
    import torch

    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states
