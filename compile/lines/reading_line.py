"""The line of readers: from a ready-made model of OCR or of speech to the smallest of it that is as good."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from compile.line import Workshop
from compile.lines.reading import ReadingParts, Sources
from compile.lines.reading_findings import find
from compile.lines.reading_release import package
from compile.lines.reading_steps import ReadingSteps
from compile.recipe.reading import OcrRecipe, SpeechRecipe
from compile.recipe.sections import RecipeBase
from models.forecast import Workload


class ReadingLine(ReadingParts):
    """A recipe of ``task: ocr`` or ``task: transcribe``. Implements ``Line``."""

    findings, package = find, package
    workloads: ClassVar[Mapping[str, Workload]] = {}
    """How much of a network a quantizer takes is known once it has."""

    @classmethod
    def make(cls, recipe: RecipeBase, path: Path, beside: Path, workshop: Workshop) -> "ReadingLine":
        """The steps of a recipe. Raises ``BadRecipe``, ``UnsupportedBase``, ``UnsafeFile``."""
        if not isinstance(recipe, OcrRecipe | SpeechRecipe):
            raise TypeError(f"no recipe for readers: {type(recipe).__name__}")
        return cls(**vars(ReadingSteps(Sources.find(recipe, path, beside, workshop)).parts()))
