"""Depth pruning: layers that change their input least are dropped.

A layer's block influence is 1 - cosine(what enters it, what leaves it), averaged over tokens (ShortGPT, Men
et al. 2024). It is measured once, on the whole model. Works on causal models and encoders whose layers
``methods.layers_of`` finds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compile.errors import BadRecipe
from compile.recipe.distil import PruneDepth
from compile.steps import Report
from compile.training import methods, prune


@dataclass(frozen=True)
class Shortened:
    """Which layers are left, and the influence of every layer that was there."""

    kept: tuple[int, ...]
    influence: tuple[float, ...]
    parameters_before: int
    parameters: int


def prune_depth(
    hf_folder: Path,
    data: prune.Data,
    settings: PruneDepth,
    target: Path,
    threads: int,
    report: Report,
    longest: int = 512,
) -> Shortened:
    """Write the model without some of its layers to ``target``, unhealed, with ``pruned.json``.

    Raises ``BadRecipe`` when the model has not that many layers.
    """
    torch.set_num_threads(threads)
    model = prune.load(hf_folder)
    influence = block_influence(model, prune.batches(hf_folder, data, longest, report))
    kept = choose_layers(influence, settings)
    before = prune.parameters(model)
    keep_layers(model, kept)
    result = Shortened(kept, tuple(round(one, 6) for one in influence), before, prune.parameters(model))
    prune.write(model, hf_folder, target, {"depth": vars(result)})
    return result


def block_influence(model: Any, batches: Any) -> list[float]:
    """Per layer: the mean over tokens of 1 - cosine of its input and its output."""
    layers = methods.layers_of(model)
    sums, tokens = [0.0] * len(layers), 0
    entered: dict[int, torch.Tensor] = {}
    mask: torch.Tensor | None = None

    def before(at: int) -> Callable[..., None]:
        def keep(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            entered[at] = arguments[0] if arguments else named["hidden_states"]

        return keep

    def after(at: int) -> Callable[..., None]:
        def measure(_: Any, __: Any, output: Any) -> None:
            left = output[0] if isinstance(output, tuple) else output
            apart = 1 - torch.cosine_similarity(entered.pop(at), left, dim=-1)
            sums[at] += float(apart[mask.bool()].sum()) if mask is not None else float(apart.sum())

        return measure

    handles = []
    for at, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(before(at), with_kwargs=True))
        handles.append(layer.register_forward_hook(after(at)))
    try:
        with torch.no_grad():
            for batch in batches:
                mask = batch["attention_mask"]
                tokens += int(mask.sum())
                model(input_ids=batch["input_ids"], attention_mask=mask)
    finally:
        for handle in handles:
            handle.remove()
    return [one / tokens for one in sums]


def choose_layers(influence: Sequence[float], settings: PruneDepth) -> tuple[int, ...]:
    """The layers that stay, in order. Raises ``BadRecipe``."""
    count = len(influence)
    if settings.layers is not None:
        wrong = [one for one in settings.layers if not 0 <= one < count]
        if wrong or len(settings.layers) >= count:
            raise BadRecipe(f"prune.depth.layers: the model has layers 0 to {count - 1}, and one must stay")
        gone = set(settings.layers)
    else:
        drop = settings.drop if settings.drop is not None else count - (settings.keep or 0)
        free = range(settings.spare, count - settings.spare)
        if not 0 < drop <= len(free) or drop >= count:
            raise BadRecipe(
                f"prune.depth: {drop} of {count} layers cannot go; {len(free)} are neither among the first "
                f"{settings.spare} nor among the last {settings.spare}"
            )
        gone = set(sorted(free, key=lambda at: influence[at])[:drop])
    return tuple(at for at in range(count) if at not in gone)


def keep_layers(model: Any, kept: Sequence[int]) -> None:
    """Leave only the layers ``kept``, in that order, and say so in the configuration."""
    layers = methods.layers_of(model)
    chosen = [layers[at] for at in kept]
    for number, layer in enumerate(chosen):
        # Keys and values are cached under a layer's number.
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = number
    config = model.config
    for name in ("layer_types", "no_rope_layers"):
        each = getattr(config, name, None)
        if isinstance(each, list) and len(each) == len(layers):
            setattr(config, name, [each[at] for at in kept])
    del layers[len(chosen) :]
    for number, layer in enumerate(chosen):
        layers[number] = layer
    config.num_hidden_layers = len(chosen)
