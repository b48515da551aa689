"""What the parts of the line of readers agree on: what a recipe names, its steps by role, names of files.

A model that reads text in pictures, or hears speech, comes ready-made. Every precision of it reads the same
files through the engine that will serve it, and what it read is held against what is there.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compile.data.readings import LISTING, Reading, stored_readings
from compile.errors import BadRecipe, UnsupportedBase
from compile.line import REFERENCE, Workshop
from compile.readers.ocr import files_of_base
from compile.readers.whisper import check_source
from compile.recipe.reading import OcrRecipe, OcrVariant, SpeechRecipe, SpeechVariant
from compile.recipe.sections import there
from compile.steps import Cache, Step
from models.digest import Digest
from models.store import digest_of

Recipe = OcrRecipe | SpeechRecipe
Variant = OcrVariant | SpeechVariant
REFERENCES: Mapping[str, Variant] = {
    "ocr": OcrVariant(name=REFERENCE, type="fp32"),
    "transcribe": SpeechVariant(name=REFERENCE, type="float32"),
}
"""What everything is measured against, by task: the weights as they came, computed in float32."""
_ENGINES = {"ocr": ("rapidocr_onnxruntime", "edge-vision"), "transcribe": ("faster_whisper", "edge-speech")}
"""The module that reads, by task, and the extra that brings it."""


@dataclass(frozen=True)
class Sources:
    """What a recipe names, found and hashed. ``source``: the base's folder; ``root``: that of the data."""

    recipe: Recipe
    workshop: Workshop
    source: Path
    root: Path
    digests: Mapping[str, Digest]

    @classmethod
    def find(cls, recipe: Recipe, path: Path, beside: Path, workshop: Workshop) -> "Sources":
        """Look everything up. Raises ``BadRecipe``, ``UnsupportedBase``, ``UnsafeFile``."""
        module, extra = _ENGINES[recipe.task]
        if importlib.util.find_spec(module) is None:
            raise UnsupportedBase(
                f"task: {recipe.task} is measured with {module}: pip install 'outpost[compile,{extra}]'"
            )
        source, root = recipe.base.find(beside, "base"), recipe.data.find(beside, "data")
        there(root / LISTING, "data.file", recipe.data.made_by)
        if isinstance(recipe, OcrRecipe):
            files = files_of_base(recipe.base, source)
            if missing := [file.name for file in files.values() if not file.is_file()]:
                raise BadRecipe(
                    f"base: {missing[0]} is not in {source}; base.detection and so on name the files"
                )
        else:
            check_source(source)
        digests = {"base": digest_of(source), "data": digest_of(root), "recipe": digest_of(path)}
        return cls(recipe, workshop, source, root, digests)

    @property
    def weights(self) -> int:
        """Bytes of the base as it came."""
        return sum(file.stat().st_size for file in self.source.rglob("*") if file.suffix in (".bin", ".onnx"))


@dataclass(frozen=True)
class VariantSteps:
    """One precision. ``model``: a folder as the engine loads it and ``ledger.json``; ``read``: its texts."""

    variant: Variant
    model: Step
    read: Step


@dataclass(frozen=True)
class ReadingParts:
    """One recipe as steps. ``variants`` has the reference first; variants of its type share its steps."""

    recipe: Recipe
    workshop: Workshop
    sources: Sources
    data: Step
    variants: Mapping[str, VariantSteps]

    @property
    def steps(self) -> list[Step]:
        """Everything that the judgement needs."""
        return [self.data, *(one.read for one in self.variants.values())]

    def readings(self, cache: Cache) -> tuple[Reading, ...]:
        """What the data step found."""
        return stored_readings(cache.folder(self.data))
