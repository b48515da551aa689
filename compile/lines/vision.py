"""What the parts of the vision line agree on: what a recipe names, its steps by role, the names of files.

A backbone sees pictures; a memory bank or a head makes of that what the task wants; every variant is shown
the same pictures through the engine that will serve it. ``vision_steps`` and ``vision_variants`` make the
steps, ``vision_findings`` judges, ``vision_release`` packages, and ``vision_line`` is all of it together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compile.data import images
from compile.data.images import ImageSplits, LabelledImage
from compile.errors import BadRecipe, UnsupportedBase
from compile.line import REFERENCE, Workshop
from compile.onnx.vision_export import VisionConfig, read_config
from compile.onnx.vision_pretrained import Pretrained, is_pretrained, read_pretrained
from compile.recipe.vision import ClassifyImageRecipe, ImageVariant, InspectRecipe
from compile.steps import Cache, Step
from models.digest import Digest
from models.manifest import AnomalyFacts, Engine, ImageInput
from models.store import digest_of

FEATURES, POOLED, GRID = "features.onnx", "pooled.onnx", "grid.json"
LEDGER, MIXTURE, BASELINES = "ledger.json", "mixture.json", "baselines.json"
FP32 = ImageVariant(name=REFERENCE, type="fp32")
UNCALIBRATED = 1.0
"""The threshold under which scores are taken that the threshold is then made of."""

Recipe = InspectRecipe | ClassifyImageRecipe
Folders = Mapping[str, Path]


@dataclass(frozen=True)
class Sources:
    """What a recipe names, found and hashed. ``root`` has a folder of pictures for each of ``labels``."""

    recipe: Recipe
    workshop: Workshop
    source: Path
    root: Path
    config: VisionConfig | Pretrained
    labels: tuple[str, ...]
    digests: Mapping[str, Digest]

    @classmethod
    def find(cls, recipe: Recipe, path: Path, beside: Path, workshop: Workshop) -> "Sources":
        """Look everything up. Raises ``BadRecipe``, ``UnsupportedBase``."""
        source, root = recipe.base.find(beside, "base"), recipe.data.find(beside, "data")
        if isinstance(recipe, InspectRecipe):
            labels = (recipe.data.good, *recipe.data.defects)
        else:
            labels = recipe.data.labels
        config = read_pretrained(source) if is_pretrained(source) else read_config(source)
        if isinstance(config, Pretrained):
            _check_pretrained(recipe, config)
        digests = {
            "base": digest_of(source),
            "data": _digest_of_labels(root, labels),
            "recipe": digest_of(path),
        }
        return cls(recipe, workshop, source, root, config, labels, digests)

    @property
    def weights(self) -> int:
        """Bytes of the base's weights."""
        return sum(file.stat().st_size for file in self.source.glob("*.safetensors"))

    @property
    def lite(self) -> VisionConfig:
        """The backbone that graphs are written of here; there is none where the base is exported whole."""
        assert isinstance(self.config, VisionConfig)  # noqa: S101  # for the type checker
        return self.config

    @property
    def image(self) -> ImageInput:
        """How the model sees a picture."""
        return image_input(self.recipe, self.config)

    def paths(self, chosen: Sequence[LabelledImage]) -> list[Path]:
        """Where pictures lie."""
        return [self.root / image.file for image in chosen]


@dataclass(frozen=True)
class VariantSteps:
    """One precision: ``model`` holds ``model.onnx`` and, unless it is float, ``ledger.json``."""

    variant: ImageVariant
    model: Step
    seen: Step


@dataclass(frozen=True)
class VisionParts:
    """One recipe as steps. ``variants`` has the reference first; variants in float share its steps.

    ``backbone`` is the base as graphs; without a ``head`` that is a classifier, where one is asked for.
    """

    recipe: Recipe
    workshop: Workshop
    sources: Sources
    data: Step
    backbone: Step
    head: Step | None
    baselines: Step
    tensorrt: Step | None
    variants: Mapping[str, VariantSteps]

    @property
    def steps(self) -> list[Step]:
        """Everything that the judgement needs."""
        engine = [self.tensorrt] if self.tensorrt is not None else []
        return [self.data, *engine, *(one.seen for one in self.variants.values()), self.baselines]

    def splits(self, cache: Cache) -> ImageSplits:
        """What the data step made."""
        return images.read_image_splits(cache.folder(self.data))

    def engine(self, threshold: float = UNCALIBRATED, rate: float = 0.0, parts: int = 0) -> Engine:
        """What the engine needs to be right."""
        facts = AnomalyFacts(threshold=threshold, false_reject_rate=rate, calibrated_on=parts)
        return engine_of(self.recipe, self.sources.config, facts)


def image_input(recipe: Recipe, config: VisionConfig | Pretrained) -> ImageInput:
    """How the model sees a picture."""
    return ImageInput(**recipe.image.model_dump(), mean=config.mean, std=config.std)


def engine_of(recipe: Recipe, config: VisionConfig | Pretrained, anomaly: AnomalyFacts) -> Engine:
    """The manifest's section for the engine; ``anomaly`` is for inspection only."""
    image = image_input(recipe, config)
    if isinstance(recipe, InspectRecipe):
        return Engine(task="inspect", image=image, anomaly=anomaly)
    return Engine(task="classify-image", image=image, labels=recipe.data.labels)


def measured_files(splits: ImageSplits) -> list[str]:
    """The pictures that every variant is shown, in order: calibration, then test."""
    return [image.file for image in (*splits.calibration, *splits.test)]


def _check_pretrained(recipe: Recipe, config: Pretrained) -> None:
    """Raises ``UnsupportedBase`` for another task than classifying, ``BadRecipe`` where the recipe says
    otherwise than the classifier."""
    if isinstance(recipe, InspectRecipe):
        raise UnsupportedBase(
            f"{recipe.base.name}: {config.kind} is exported whole, as a classifier; inspection looks into a "
            "backbone, and needs an efficientnet-lite"
        )
    if "head" in recipe.model_fields_set:
        raise BadRecipe(f"head: {recipe.base.name} is a classifier and keeps its own")
    if recipe.data.labels != config.labels:
        raise BadRecipe(f"data.labels: {recipe.base.name} says {', '.join(config.labels)}, in this order")
    if (recipe.image.width, recipe.image.height) != (config.width, config.height):
        raise BadRecipe(f"image: {recipe.base.name} sees {config.width} x {config.height} pixels")


def _digest_of_labels(root: Path, labels: Sequence[str]) -> Digest:
    """Of the label folders that a recipe names, and of nothing else below ``root``."""
    return Digest.of("".join(f"{label}\0{digest_of(root / label)}\n" for label in labels).encode())
