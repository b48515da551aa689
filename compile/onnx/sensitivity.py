"""Which nodes to keep in float so that a quantized model keeps its promise: measured, then greedy.

Of each group of nodes the loss is measured that quantizing it alone brings; the groups that lose the most
per byte stay in float, one after the other, until the whole is within the wanted loss or the bytes are
spent. Knows no kind of model: quantizing and measuring are the caller's.

Source: greedy mixed precision by measured sensitivity, as in HAWQ (Dong et al., ICCV 2019), with a measured
loss in place of a Hessian.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compile.onnx.files import between_activations, open_model, weighted
from compile.steps import Report

By = Literal["part", "block"]
_BLOCK = re.compile(r"^(layer|layers|block|blocks|h|encoder_layer|stage|stages|features)[._]?\d+$")
_LEAST_BYTES = 4096
"""What a group without weights counts as: keeping it in float costs time and no size."""


@dataclass(frozen=True)
class Group:
    """Nodes that are kept or quantized together. ``bytes``: what float costs more than eight bits."""

    name: str
    nodes: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class Point:
    """A measurement: what stayed in float, the loss, and the bytes of the file."""

    keep: tuple[str, ...]
    loss: float
    bytes: int


@dataclass(frozen=True)
class Mixture:
    """What was found. ``effects``: loss by group when it alone is quantized, largest first."""

    groups: tuple[str, ...]
    nodes: tuple[str, ...]
    loss: float
    bytes: int
    reached: bool
    effects: tuple[tuple[str, float], ...]
    trail: tuple[Point, ...]


Measure = Callable[[Collection[str]], tuple[float, int]]
"""Quantize all but these nodes; the loss, and the bytes of the result."""


def groups_of(prepared: Path, by: By = "part", activations: bool = False) -> list[Group]:
    """The nodes that quantizers touch, by block (``layer.3``) or by part of it (``layer.3/attention``).

    With ``activations`` the products of two activations are groups of their own.
    """
    model = open_model(prepared)
    members: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for one in weighted(model):
        name = _group_name(one.node, by)
        members.setdefault(name, []).append(one.node)
        sizes[name] = sizes.get(name, 0) + one.bytes * 3 // 4
    if activations:
        for node in between_activations(model):
            members.setdefault(f"{_group_name(node, by)} (activations)", []).append(node)
    return [Group(name, tuple(nodes), sizes.get(name, 0)) for name, nodes in members.items()]


def find_mixture(
    groups: Sequence[Group], measure: Measure, max_loss: float, max_bytes: int, report: Report
) -> Mixture:
    """The groups to keep. ``reached`` says whether loss and bytes are within their bounds at once.

    Law: the mixture that is returned was measured, never estimated.
    """
    everything = [node for group in groups for node in group.nodes]
    loss, size = measure(())
    trail = [Point((), loss, size)]
    if loss <= max_loss:
        return Mixture((), (), loss, size, size <= max_bytes, (), tuple(trail))
    effects: dict[str, float] = {}
    total = 2 * len(groups) + 1
    for at, group in enumerate(groups):
        effects[group.name], _ = measure([node for node in everything if node not in group.nodes])
        report((at + 1) / total, f"{group.name} alone costs {effects[group.name]:.2g}")
    ordered = sorted(
        groups, key=lambda group: effects[group.name] / max(group.bytes, _LEAST_BYTES), reverse=True
    )
    kept: list[Group] = []
    for at, group in enumerate(ordered):
        if loss <= max_loss or size + group.bytes > max_bytes:
            continue
        tried = [*kept, group]
        new_loss, new_size = measure([node for one in tried for node in one.nodes])
        trail.append(Point(tuple(one.name for one in tried), new_loss, new_size))
        report((len(groups) + at + 1) / total, f"{len(tried)} groups in float: loss {new_loss:.3g}")
        if new_loss < loss and new_size <= max_bytes:
            kept, loss, size = tried, new_loss, new_size
    return Mixture(
        groups=tuple(group.name for group in kept),
        nodes=tuple(node for group in kept for node in group.nodes),
        loss=loss,
        bytes=size,
        reached=loss <= max_loss and size <= max_bytes,
        effects=tuple(sorted(effects.items(), key=lambda item: -item[1])),
        trail=tuple(trail),
    )


def better(options: Sequence[Collection[str]], measure: Measure) -> tuple[int, tuple[tuple[float, int], ...]]:
    """The index of the option of least loss, the smallest file among equals, and what was measured of each.

    For choices such as attention's products in float or not, which help one model and cost another.
    """
    found = tuple(measure(option) for option in options)
    return min(range(len(found)), key=lambda at: found[at]), found


def _group_name(node: str, by: By) -> str:
    parts = [part for part in node.split("/") if part][:-1]
    for at, part in enumerate(parts):
        if _BLOCK.match(part):
            return "/".join(parts[: at + 1] if by == "block" else parts[: at + 2])
    return "/".join(parts[:2]) or node
