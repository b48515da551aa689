"""The section ``tensorrt``: a second release, from which NVIDIA devices build their engine.

Owns what can be refused by the recipe alone: graphs that TensorRT cannot take, JetPacks that are not known,
and profiles that have no TensorRT.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator

from compile.errors import BadRecipe
from compile.onnx.tensorrt import devices_of, line_of
from compile.recipe.sections import ReleaseSection, Section
from models.profiles import PROFILES

SUFFIX = "-trt"
"""What the name of such a release ends with."""
REFERENCE = "reference"
_LONGEST_NAME = 64


def _jetpack(value: str) -> str:
    try:
        line_of(value)
    except BadRecipe as error:
        raise ValueError(str(error)) from error
    return value


def _ordered(value: tuple[int, int, int]) -> tuple[int, int, int]:
    low, best, high = value
    if not 1 <= low <= best <= high:
        raise ValueError(f"smallest, best and largest size, each at least 1, not {low}, {best}, {high}")
    return value


JetPack = Annotated[str, AfterValidator(_jetpack)]
Range = Annotated[tuple[int, int, int], AfterValidator(_ordered)]


class TensorRt(Section):
    """``variant`` is the one whose graph is taken, ``reference`` for the float one.

    ``jetpacks`` are those of the devices; none stands for GPUs without JetPack. ``batch``: the smallest, the
    best and the largest number of inputs at once.
    """

    variant: str
    jetpacks: tuple[JetPack, ...] = ()
    batch: Range = (1, 1, 8)

    def check(self, unfit: Mapping[str, str], release: ReleaseSection) -> None:
        """``unfit`` says of every variant why TensorRT cannot take it, ``""`` where it can.

        Raises ``ValueError``.
        """
        known = {REFERENCE: "", **unfit}
        if self.variant not in known:
            raise ValueError(f"tensorrt.variant: {self.variant!r} is none of {', '.join(known)}")
        if known[self.variant]:
            raise ValueError(f"tensorrt.variant: {self.variant}: {known[self.variant]}")
        if release.profiles and not self.profiles(release.profiles):
            raise ValueError(
                f"release.profiles: none of {', '.join(release.profiles)} has TensorRT by tensorrt.jetpacks; "
                f"{', '.join(devices_of(self.jetpacks))} have"
            )
        if len(release.name + SUFFIX) > _LONGEST_NAME:
            raise ValueError(f"release.name: with {SUFFIX} it has more than {_LONGEST_NAME} characters")

    def profiles(self, candidates: tuple[str, ...]) -> tuple[str, ...]:
        """Those of ``candidates`` that have such a TensorRT."""
        have = devices_of(self.jetpacks)
        return tuple(name for name in candidates if name in have and "tensorrt-recipe" in PROFILES[name].runs)


class TextTensorRt(TensorRt):
    """``tokens``: the smallest, the best and the largest length; by default up to what the model reads."""

    tokens: Range | None = None
