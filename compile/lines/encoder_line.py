"""The line of text encoders: from a Hugging Face folder to an ONNX embedder or classifier."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from compile.findings import Findings
from compile.line import Workshop
from compile.lines.encoder import EncoderParts
from compile.lines.encoder_findings import find
from compile.lines.encoder_release import package
from compile.lines.encoder_steps import EncoderSteps
from compile.recipe.encoder import ClassifyRecipe, EmbedRecipe
from compile.recipe.sections import RecipeBase
from compile.steps import Cache


class EncoderLine(EncoderParts):
    """A recipe of ``task: embed`` or ``task: classify``. Implements ``Line``."""

    @classmethod
    def make(cls, recipe: RecipeBase, path: Path, beside: Path, workshop: Workshop) -> "EncoderLine":
        """The steps of a recipe. Raises ``BadRecipe``, and ``UnsupportedBase`` for a base that is none."""
        if not isinstance(recipe, EmbedRecipe | ClassifyRecipe):
            raise TypeError(f"no recipe for texts: {type(recipe).__name__}")
        parts = EncoderSteps(recipe, path, beside, workshop).parts()
        return cls(**{one.name: getattr(parts, one.name) for one in fields(parts)})

    def findings(self, cache: Cache, command: str) -> Findings:
        """See ``Line``."""
        return find(self, cache, command)

    def package(self, cache: Cache, findings: Findings, out: Path) -> Mapping[str, Path]:
        """See ``Line``."""
        return package(self, cache, findings, out)
