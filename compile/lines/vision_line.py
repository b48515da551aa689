"""The line of vision models: from a folder of images and a backbone to an anomaly model or a classifier."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from compile.anomaly.threshold import parts_needed
from compile.errors import Refused
from compile.line import Workshop
from compile.lines.vision import Sources, VisionParts
from compile.lines.vision_findings import find
from compile.lines.vision_release import package
from compile.lines.vision_steps import VisionSteps
from compile.recipe.sections import RecipeBase
from compile.recipe.vision import ClassifyImageRecipe, InspectRecipe
from models.forecast import Workload


class VisionLine(VisionParts):
    """A recipe of ``task: inspect`` or ``task: classify-image``. Implements ``Line``."""

    findings, package = find, package
    workloads: ClassVar[Mapping[str, Workload]] = {}
    """How much of a backbone stays, and how large a bank is, is known once it is built."""

    @classmethod
    def make(cls, recipe: RecipeBase, path: Path, beside: Path, workshop: Workshop) -> "VisionLine":
        """The steps of a recipe. Raises ``BadRecipe``, ``UnsupportedBase``, and ``Refused`` at once where the
        recipe leaves too few good parts for the promise that it asks for."""
        if not isinstance(recipe, InspectRecipe | ClassifyImageRecipe):
            raise TypeError(f"no recipe for pictures: {type(recipe).__name__}")
        if isinstance(recipe, InspectRecipe):
            needed = parts_needed(recipe.threshold.false_reject_rate)
            if recipe.data.calibration < needed:
                raise Refused(
                    f"data.calibration: {recipe.data.calibration} good parts cannot promise a false-reject "
                    f"rate of {recipe.threshold.false_reject_rate:g}; {needed} would do"
                )
        return cls(**vars(VisionSteps(Sources.find(recipe, path, beside, workshop)).parts()))
