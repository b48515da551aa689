"""Vision models to INT8: pictures as feeds for the quantizers, and a convolutional network's operators.

Owns the parts of a network that stay in float together (``stem``, ``block0``, ..., ``head``; of a
transformer ``vit/encoder/layer.0/attention``, ...), by name or by measured sensitivity, and whether
attention's products do. Refuses a part that is not there.
"""

import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.errors import BadData, BadRecipe
from compile.onnx.files import between_activations, nodes_of, open_model, size_of, weighted
from compile.onnx.quantize import (
    DynamicSettings,
    StaticSettings,
    calibrate,
    prepare,
    quantize_dynamic,
    quantize_static,
)
from compile.onnx.sensitivity import Group, better, find_mixture, groups_of
from compile.onnx.vision_export import LOGITS
from compile.recipe.vision import ImageVariant
from compile.steps import Report
from models.engines.onnx_session import OnnxSession, softmax
from models.engines.onnx_vision import read_picture
from models.manifest import ImageInput
from models.onnx import read_model

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

OPERATORS = ("Conv", "Clip", "Add", "AveragePool", "GlobalAveragePool", "Gemm")
"""Between two convolutions nothing returns to float: a Clip disappears into the scales around it."""


def quantize_vision(
    source: Path,
    target: Path,
    variant: ImageVariant,
    pictures: Sequence[Path],
    held_out: Sequence[Path],
    image: ImageInput,
    max_pixels: int,
    scratch: Path,
    report: Report,
) -> dict[str, Any]:
    """Write ``target``; returns what was found out on the way.

    ``pictures`` calibrate; ``held_out`` measure what attention's products and parts cost, where the variant
    asks for that. Raises ``BadRecipe`` for a part in ``variant.keep`` that the network does not have.
    """
    prepared = scratch / "prepared.onnx"
    prepare(source, prepared)
    attention = between_activations(open_model(prepared))
    parts = groups_of(prepared) if attention else parts_of(prepared)
    unknown = sorted(set(variant.keep) - {part.name for part in parts})
    if unknown:
        known = ", ".join(part.name for part in parts)
        raise BadRecipe(f"{variant.name}: keep: no part {', '.join(unknown)}; there are {known}")
    always = [node for part in parts if part.name in variant.keep for node in part.nodes]
    if variant.type == "int8-dynamic":
        dynamic = DynamicSettings(variant.reduce_range, op_types=("Conv", "MatMul", "Gemm"))
        quantize_dynamic(prepared, target, dynamic, always)
        return {}
    static = _Static(prepared, variant, bool(attention), scratch)
    feeds = _feeds(pictures, static.input, image, max_pixels)
    static.calibrate(feeds, len(pictures), lambda done, note: report(done * 0.3, note))
    asked = [feed[static.input] for feed in _feeds(held_out, static.input, image, max_pixels)]
    found: dict[str, Any] = {}
    if attention:
        choice, told = static.decide_attention(attention, always, asked)
        found |= told
        always += attention if choice == "float" else []
    if variant.mixed is not None:
        left = [part for part in parts if part.name not in variant.keep]
        most = int(variant.mixed.max_size_ratio * size_of(source))
        mixture = find_mixture(
            left,
            lambda keep: static.measure([*always, *keep], asked),
            variant.mixed.max_loss,
            most,
            lambda done, note: report(0.3 + 0.6 * done, note),
        )
        always += mixture.nodes
        found |= {
            "kept in float": list(mixture.groups),
            "loss on held-out": mixture.loss,
            "loss without": mixture.trail[0].loss,
            "reached": mixture.reached,
        }
    static.write(target, always)
    shutil.copyfile(static.ranges, target.parent / "ranges.json")
    return found


class _Static:
    """One static precision on its way. Exists while ``quantize_vision`` runs.

    With ``attention`` only products are quantized: what a transformer does between them (normalizing,
    softmax, GELU) has no kernels in INT8.
    """

    def __init__(self, prepared: Path, variant: ImageVariant, attention: bool, scratch: Path) -> None:
        self.ranges = scratch / "ranges.json"
        self.input = next(value.name for value in read_model(prepared).inputs)
        self._prepared, self._variant, self._scratch = prepared, variant, scratch
        self._settings = StaticSettings(
            calibration=variant.calibration,
            reduce_range=variant.reduce_range,
            symmetric=variant.symmetric,
        )
        if not attention:
            self._settings = replace(self._settings, op_types=OPERATORS, float_outputs=())
        self._theirs: Array | None = None

    def calibrate(self, feeds: "Iterator[dict[str, Array]]", count: int, report: Report) -> None:
        """Find the range of every activation."""
        calibrate(self._prepared, self.ranges, feeds, self._settings, self._scratch, report, count)

    def decide_attention(
        self, products: Collection[str], always: Collection[str], asked: "Sequence[Array]"
    ) -> tuple[str, dict[str, Any]]:
        """``int8`` or ``float`` for products of two activations, and how that was found."""
        choice = self._variant.attention
        if choice != "measure":
            return choice, {"attention": choice}
        at, losses = better([always, [*always, *products]], lambda keep: self.measure(keep, asked))
        choices = ("int8", "float")
        tried = {name: loss for name, (loss, _) in zip(choices, losses, strict=True)}
        return choices[at], {"attention": choices[at], "attention measured": tried}

    def measure(self, keep: Collection[str], asked: "Sequence[Array]") -> tuple[float, int]:
        """Mean KL divergence on pictures [1, 3, height, width], and the bytes, with ``keep`` in float."""
        if not asked:
            raise BadData(f"{self._variant.name}: there are no held-out pictures to measure losses on")
        tried = self._scratch / "tried.onnx"
        self.write(tried, keep)
        if self._theirs is None:
            self._theirs = _answers(self._prepared, self.input, asked)
        return _divergence(self._theirs, _answers(tried, self.input, asked)), size_of(tried)

    def write(self, target: Path, keep: Collection[str]) -> None:
        """Quantize with ``keep`` in float."""
        quantize_static(self._prepared, self.ranges, target, self._settings, keep)


def parts_of(prepared: Path) -> list[Group]:
    """The nodes that are quantized, by the part of the network that their names begin with."""
    members: dict[str, list[str]] = {}
    for node in nodes_of(prepared):
        if node.op_type in OPERATORS:
            members.setdefault(node.name.split(".")[0], []).append(node.name)
    sizes: dict[str, int] = {}
    for one in weighted(open_model(prepared)):
        name = one.node.split(".")[0]
        sizes[name] = sizes.get(name, 0) + one.bytes * 3 // 4
    return [Group(name, tuple(nodes), sizes.get(name, 0)) for name, nodes in members.items()]


def _feeds(
    pictures: Sequence[Path], name: str, image: ImageInput, max_pixels: int
) -> "Iterator[dict[str, Array]]":
    for path in pictures:
        yield {name: read_picture(path.read_bytes(), image, max_pixels)[0][None]}


def _answers(model: Path, name: str, images: "Sequence[Array]") -> "Array":
    import numpy as np

    session = OnnxSession(model, 1)
    logits = np.concatenate([session.run({name: one}, [LOGITS])[0] for one in images])
    session.close()
    return softmax(logits)


def _divergence(theirs: "Array", ours: "Array") -> float:
    """Mean KL divergence of probabilities [n, classes] from the reference's."""
    import numpy as np

    left, right = (np.maximum(one.astype(np.float64), 1e-12) for one in (theirs, ours))
    return float((left * np.log(left / right)).sum(axis=1).mean())
