"""The line of readers: from a ready-made model of OCR or of speech to the smallest of it that is as good."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from compile.findings import Findings
from compile.line import Workshop
from compile.lines.reading import ReadingParts, Sources
from compile.lines.reading_findings import find
from compile.lines.reading_release import package
from compile.lines.reading_steps import ReadingSteps
from compile.recipe.reading import OcrRecipe, SpeechRecipe
from compile.recipe.sections import RecipeBase
from compile.steps import Cache
from models.forecast import Workload


class ReadingLine(ReadingParts):
    """A recipe of ``task: ocr`` or ``task: transcribe``. Implements ``Line``."""

    @classmethod
    def make(cls, recipe: RecipeBase, path: Path, beside: Path, workshop: Workshop) -> "ReadingLine":
        """The steps of a recipe. Raises ``BadRecipe``, ``UnsupportedBase``, ``UnsafeFile``."""
        if not isinstance(recipe, OcrRecipe | SpeechRecipe):
            raise TypeError(f"no recipe for readers: {type(recipe).__name__}")
        parts = ReadingSteps(Sources.find(recipe, path, beside, workshop)).parts()
        return cls(**{one.name: getattr(parts, one.name) for one in fields(parts)})

    @property
    def workloads(self) -> Mapping[str, Workload]:
        """See ``Line``. How much of a network a quantizer takes is known once it has."""
        return {}

    def findings(self, cache: Cache, command: str) -> Findings:
        """See ``Line``."""
        return find(self, cache, command)

    def package(self, cache: Cache, findings: Findings, out: Path) -> Mapping[str, Path]:
        """See ``Line``."""
        return package(self, cache, findings, out)
