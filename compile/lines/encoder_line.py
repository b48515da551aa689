"""The line of text encoders: from a Hugging Face folder to an ONNX embedder or classifier."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compile.forecast import parameters_in
from compile.line import Workshop
from compile.lines.encoder import EncoderParts
from compile.lines.encoder_findings import find
from compile.lines.encoder_release import package
from compile.lines.encoder_steps import EncoderSteps
from compile.recipe.encoder import ClassifyRecipe, EmbedRecipe
from compile.recipe.sections import RecipeBase
from models.forecast import Workload

_BITS = {"INT8": 8.2, "INT4": 7.0}
"""Bits of a weight, scales included, of MiniLM: half of its weights are a table of words, kept in INT8."""


@dataclass(frozen=True)
class EncoderLine(EncoderParts):
    """A recipe of ``task: embed`` or ``task: classify``, its model at ``base``. Implements ``Line``."""

    base: Path

    findings, package = find, package

    @classmethod
    def make(cls, recipe: RecipeBase, path: Path, beside: Path, workshop: Workshop) -> "EncoderLine":
        """The steps of a recipe. Raises ``BadRecipe``, and ``UnsupportedBase`` for a base that is none."""
        if not isinstance(recipe, EmbedRecipe | ClassifyRecipe):
            raise TypeError(f"no recipe for texts: {type(recipe).__name__}")
        parts = EncoderSteps(recipe, path, beside, workshop).parts()
        return cls(**vars(parts), base=recipe.base.find(beside, "base"))

    @property
    def workloads(self) -> Mapping[str, Workload]:
        """See ``Line``. What is cut is known once it has been cut."""
        if self.recipe.prune is not None:
            return {}
        parameters = parameters_in(self.base)
        return {
            one.name: Workload(
                "onnx", one.precision.lower(), parameters, round(parameters * _BITS[one.precision] / 8)
            )
            for one in self.recipe.variants
        }
