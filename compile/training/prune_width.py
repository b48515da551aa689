"""Width pruning: neurons of the MLP and heads of attention that matter least are cut, as many in every layer.

Both are judged where they leave: at the input x of the MLP's and of the attention's output projection, where
the loss has the gradient g. ``taylor``: the mean over sequences of |sum x*g|, what the loss would change if a
head or a neuron were off, to first order (Michel et al. 2019; Molchanov et al. 2017). ``activation``: the
mean over tokens of the size of what it adds to the residual stream; it needs no answers. Heads that share
keys and values go together. Llama-like causal models, heads and neurons; BERT-like encoders, neurons.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from compile.errors import BadRecipe, UnsupportedBase
from compile.recipe.distil import PruneWidth
from compile.steps import Report
from compile.training import methods, prune


@dataclass(frozen=True)
class Narrowed:
    """How many neurons and heads (groups that share keys, where they do) each layer has left; which ones."""

    neurons: int
    heads: int
    kept_heads: tuple[tuple[int, ...], ...]
    parameters_before: int
    parameters: int


@dataclass
class _Layer:
    """The matrices of one layer, and the importance of its parts so far."""

    into: list[torch.nn.Linear]
    out: torch.nn.Linear
    attention: Any = None
    attention_out: torch.nn.Linear | None = None
    neurons: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    groups: torch.Tensor = field(default_factory=lambda: torch.zeros(0))


def prune_width(
    hf_folder: Path,
    data: prune.Data,
    settings: PruneWidth,
    target: Path,
    threads: int,
    report: Report,
    longest: int = 512,
) -> Narrowed:
    """Write the narrowed model to ``target``, unhealed, with ``pruned.json``.

    Raises ``BadRecipe`` for a width that the model cannot have, ``UnsupportedBase`` for an architecture
    whose parts are not known.
    """
    torch.set_num_threads(threads)
    model = prune.load(hf_folder)
    before = prune.parameters(model)
    layers = _layers(model)
    groups = _check(model, layers, settings)
    _measure(model, layers, settings.by, prune.batches(hf_folder, data, longest, report))
    kept_heads: tuple[tuple[int, ...], ...] = ()
    if settings.neurons is not None:
        for layer in layers:
            keep = _best(layer.neurons, settings.neurons)
            for matrix in layer.into:
                _cut(matrix, keep, rows=True)
            _cut(layer.out, keep, rows=False)
        model.config.intermediate_size = settings.neurons
    if settings.heads is not None:
        chosen = [_best(layer.groups, groups) for layer in layers]
        kept_heads = tuple(tuple(one.tolist()) for one in chosen)
        for layer, keep in zip(layers, chosen, strict=True):
            _cut_heads(model.config, layer, keep)
        _say_heads(model.config, settings.heads, groups)
    result = Narrowed(
        model.config.intermediate_size,
        model.config.num_attention_heads,
        kept_heads,
        before,
        prune.parameters(model),
    )
    prune.write(model, hf_folder, target, {"width": vars(result), "by": settings.by})
    return result


def _layers(model: Any) -> list[_Layer]:
    """Where neurons and heads are. Raises ``UnsupportedBase``."""
    found = []
    for layer in methods.layers_of(model):
        mlp: Any = getattr(layer, "mlp", None)
        attention: Any = getattr(layer, "self_attn", None)
        if all(hasattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj")):
            known = all(hasattr(attention, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
            into = [mlp.gate_proj, mlp.up_proj]
            found.append(
                _Layer(into, mlp.down_proj, attention, attention.o_proj)
                if known
                else _Layer(into, mlp.down_proj)
            )
        elif hasattr(layer, "intermediate") and hasattr(layer, "output"):
            found.append(_Layer([layer.intermediate.dense], layer.output.dense))
        else:
            raise UnsupportedBase(f"prune.width: the parts of {model.config.model_type!r} are not known")
    return found


def _check(model: Any, layers: Sequence[_Layer], settings: PruneWidth) -> int:
    """How many groups of heads stay. Raises ``BadRecipe``, ``UnsupportedBase``."""
    config = model.config
    if settings.neurons is not None and settings.neurons > config.intermediate_size:
        raise BadRecipe(f"prune.width.neurons: {settings.neurons}, but there are {config.intermediate_size}")
    if settings.heads is None:
        return 0
    if any(layer.attention_out is None for layer in layers):
        raise UnsupportedBase(
            f"prune.width.heads: a {config.model_type!r} whose heads were cut cannot be described by its "
            "configuration; cut neurons or layers"
        )
    heads, groups, size = config.num_attention_heads, _groups(config), _head_size(config)
    each = heads // groups
    if settings.heads > heads or settings.heads % each:
        raise BadRecipe(f"prune.width.heads: {settings.heads}, of {heads} heads, {each} of which go together")
    if settings.heads * size % settings.multiple:
        raise BadRecipe(
            f"prune.width.heads: {settings.heads} heads of {size} are rows of {settings.heads * size}, no "
            f"multiple of {settings.multiple}"
        )
    return int(settings.heads // each)


def _measure(
    model: Any, layers: Sequence[_Layer], by: str, batches: Iterable[dict[str, torch.Tensor]]
) -> None:
    """Add up the importance of every neuron and every group of heads."""
    seen: dict[torch.nn.Linear, torch.Tensor] = {}

    def catch(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        if by == "taylor":
            arguments[0].retain_grad()
        seen[module] = arguments[0]

    places = [one for layer in layers for one in (layer.out, layer.attention_out) if one is not None]
    handles = [place.register_forward_pre_hook(catch) for place in places]
    try:
        for batch in batches:
            mask = batch["attention_mask"]
            if by == "taylor":
                if "labels" not in batch:
                    raise BadRecipe("prune.width.by: taylor needs answers; use activation for texts alone")
                model.zero_grad(set_to_none=True)
                # The sum, not the mean: a sequence counts the same in a short batch and in a long one.
                loss = model(**batch).loss * (batch["labels"][:, 1:] >= 0).sum()
                loss.backward()
            else:
                with torch.no_grad():
                    model(input_ids=batch["input_ids"], attention_mask=mask)
            with torch.no_grad():
                for layer in layers:
                    layer.neurons = _add(layer.neurons, _parts(seen[layer.out], layer.out, mask, by, 1))
                    if layer.attention_out is not None:
                        size = layer.attention_out.in_features // _groups(model.config)
                        some = _parts(seen[layer.attention_out], layer.attention_out, mask, by, size)
                        layer.groups = _add(layer.groups, some)
            seen.clear()
    finally:
        for handle in handles:
            handle.remove()
    model.zero_grad(set_to_none=True)


def _parts(x: torch.Tensor, out: torch.nn.Linear, mask: torch.Tensor, by: str, size: int) -> torch.Tensor:
    """The importance of the parts, each ``size`` columns of ``out``, in this batch: [parts]."""
    parts = x.shape[-1] // size
    if by == "taylor":
        if x.grad is None:
            raise UnsupportedBase("prune.width: no gradient reaches a layer")
        each = (x * x.grad * mask[..., None]).view(*x.shape[:2], parts, size).sum((1, 3))
        return each.abs().sum(0)
    if size == 1:
        sizes: torch.Tensor = torch.linalg.vector_norm(out.weight, dim=0)
        return (x.abs() * mask[..., None]).sum((0, 1)) * sizes
    rows = x[mask.bool()].view(-1, parts, size)
    columns = out.weight.view(out.out_features, parts, size)
    return torch.stack([(rows[:, at] @ columns[:, at].T).norm(dim=-1).sum() for at in range(parts)])


def _add(sums: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
    return more.clone() if sums.numel() == 0 else sums + more


def _best(importance: torch.Tensor, count: int) -> torch.Tensor:
    """The indices of the ``count`` most important, in order; of equals the first."""
    order = torch.argsort(importance, descending=True, stable=True)
    return order[:count].sort().values


def _cut(matrix: torch.nn.Linear, keep: torch.Tensor, rows: bool) -> None:
    """Leave only some outputs (rows) or inputs (columns) of a matrix."""
    weight = matrix.weight.data
    matrix.weight = torch.nn.Parameter((weight[keep] if rows else weight[:, keep]).clone())
    if rows:
        matrix.out_features = len(keep)
        if matrix.bias is not None:
            matrix.bias = torch.nn.Parameter(matrix.bias.data[keep].clone())
    else:
        matrix.in_features = len(keep)


def _cut_heads(config: Any, layer: _Layer, keep: torch.Tensor) -> None:
    """Leave only some groups: one key and value head each, with the query heads that read them."""
    size, each = _head_size(config), config.num_attention_heads // _groups(config)
    keys = _columns(keep, size)
    queries = _columns(keep, size * each)
    _cut(layer.attention.q_proj, queries, rows=True)
    _cut(layer.attention.k_proj, keys, rows=True)
    _cut(layer.attention.v_proj, keys, rows=True)
    _cut(layer.attention.o_proj, queries, rows=False)


def _columns(groups: torch.Tensor, size: int) -> torch.Tensor:
    return (groups[:, None] * size + torch.arange(size)[None]).flatten()


def _say_heads(config: Any, heads: int, groups: int) -> None:
    config.head_dim = _head_size(config)
    config.num_attention_heads = heads
    config.num_key_value_heads = groups


def _groups(config: Any) -> int:
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def _head_size(config: Any) -> int:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(size)
