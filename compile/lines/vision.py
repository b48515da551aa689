"""The line of vision models: from a folder of images and a backbone to an anomaly model or a classifier.

Owns the steps, and which builds on which. ``vision_findings`` judges what they measured, ``vision_release``
packages what passed. For inspection the backbone is quantized first, and the memory bank is made of what the
quantized backbone sees; for classification a head is trained on float features, and the whole is quantized.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from compile.anomaly.features import Grid
from compile.anomaly.threshold import parts_needed
from compile.data import images
from compile.data.images import ImageSplits, LabelledImage, Limits
from compile.data.rows import spread
from compile.errors import Refused
from compile.findings import Findings
from compile.line import REFERENCE, Workshop, versions
from compile.lines.tensorrt import recipe_step
from compile.onnx.vision_export import VisionConfig, read_config, texture
from compile.recipe.sections import RecipeBase
from compile.recipe.vision import ClassifyImageRecipe, ImageVariant, InspectRecipe, Memory
from compile.steps import Cache, Report, Step
from models.digest import Digest
from models.forecast import Workload
from models.manifest import AnomalyFacts, Engine, ImageInput
from models.store import digest_of

FEATURES, POOLED, GRID = "features.onnx", "pooled.onnx", "grid.json"
LEDGER, MIXTURE, MODEL = "ledger.json", "mixture.json", "model.onnx"
BASELINES = "baselines.json"
FP32 = ImageVariant(name=REFERENCE, type="fp32")
UNCALIBRATED = 1.0
"""The threshold under which scores are taken that the threshold is then made of."""

Folders = Mapping[str, Path]


@dataclass(frozen=True)
class VariantSteps:
    """One precision: ``model`` holds ``model.onnx`` and, unless it is float, ``ledger.json``."""

    variant: ImageVariant
    model: Step
    seen: Step


@dataclass(frozen=True)
class VisionLine:
    """One recipe. ``variants`` has the reference first; variants in float share its steps."""

    recipe: InspectRecipe | ClassifyImageRecipe
    workshop: Workshop
    config: VisionConfig
    source: Path
    root: Path
    digests: Mapping[str, Digest]
    data: Step
    backbone: Step
    head: Step | None
    baselines: Step
    tensorrt: Step | None
    variants: Mapping[str, VariantSteps]

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
        return _Making(recipe, path, beside, workshop).line()

    @property
    def workloads(self) -> Mapping[str, Workload]:
        """See ``Line``. How much of a backbone stays, and how large a bank is, is known once it is built."""
        return {}

    @property
    def steps(self) -> list[Step]:
        """See ``Line``."""
        engine = [self.tensorrt] if self.tensorrt is not None else []
        return [self.data, *engine, *(one.seen for one in self.variants.values()), self.baselines]

    def findings(self, cache: Cache, command: str) -> Findings:
        """See ``Line``."""
        from compile.lines.vision_findings import find

        return find(self, cache, command)

    def package(self, cache: Cache, findings: Findings, out: Path) -> Mapping[str, Path]:
        """See ``Line``."""
        from compile.lines.vision_release import package

        return package(self, cache, findings, out)

    def splits(self, cache: Cache) -> ImageSplits:
        """What the data step made."""
        return images.read_image_splits(cache.folder(self.data))

    def engine(self, threshold: float = UNCALIBRATED, rate: float = 0.0, parts: int = 0) -> Engine:
        """What the engine needs to be right."""
        return engine_of(
            self.recipe,
            self.config,
            AnomalyFacts(threshold=threshold, false_reject_rate=rate, calibrated_on=parts),
        )


def image_input(recipe: InspectRecipe | ClassifyImageRecipe, config: VisionConfig) -> ImageInput:
    """How the model sees a picture."""
    return ImageInput(**recipe.image.model_dump(), mean=config.mean, std=config.std)


def engine_of(
    recipe: InspectRecipe | ClassifyImageRecipe, config: VisionConfig, anomaly: AnomalyFacts
) -> Engine:
    """The manifest's section for the engine; ``anomaly`` is for inspection only."""
    image = image_input(recipe, config)
    if isinstance(recipe, InspectRecipe):
        return Engine(task="inspect", image=image, anomaly=anomaly)
    return Engine(task="classify-image", image=image, labels=recipe.data.labels)


def measured_files(splits: ImageSplits) -> list[str]:
    """The pictures that every variant is shown, in order: calibration, then test."""
    return [image.file for image in (*splits.calibration, *splits.test)]


class _Making:
    """Makes the steps of one recipe. Exists while a line is made."""

    def __init__(
        self, recipe: InspectRecipe | ClassifyImageRecipe, path: Path, beside: Path, workshop: Workshop
    ) -> None:
        self._recipe, self._workshop = recipe, workshop
        self._source = recipe.base.find(beside, "base")
        self._root = recipe.data.find(beside, "data")
        self._config = read_config(self._source)
        self._image = image_input(recipe, self._config)
        labels = (
            (recipe.data.good, *recipe.data.defects)
            if isinstance(recipe, InspectRecipe)
            else recipe.data.labels
        )
        self._labels = labels
        self._digests = {
            "base": digest_of(self._source),
            "data": _digest_of_labels(self._root, labels),
            "recipe": digest_of(path),
        }

    def line(self) -> VisionLine:
        data, backbone = self._data(), self._backbone()
        head = self._head(data, backbone) if isinstance(self._recipe, ClassifyImageRecipe) else None
        reference = self._variant(FP32, data, backbone, head, None)
        variants = {REFERENCE: reference}
        for one in self._recipe.variants:
            variants[one.name] = (
                replace(reference, variant=one)
                if one.type == "fp32"
                else self._variant(one, data, backbone, head, reference.model)
            )
        return VisionLine(
            recipe=self._recipe,
            workshop=self._workshop,
            config=self._config,
            source=self._source,
            root=self._root,
            digests=self._digests,
            data=data,
            backbone=backbone,
            head=head,
            baselines=self._baselines(data, backbone),
            tensorrt=self._tensorrt(variants),
            variants=variants,
        )

    def _tensorrt(self, variants: Mapping[str, VariantSteps]) -> Step | None:
        section = self._recipe.tensorrt
        if section is None:
            return None
        chosen = variants[section.variant]
        weights = sum(file.stat().st_size for file in self._source.glob("*.safetensors"))
        if isinstance(self._recipe, InspectRecipe):
            weights = chosen.model.disk_bytes  # the first stages of the backbone, and the bank
        after, in_float = {"model": chosen.model}, chosen.variant.type == "fp32"
        return recipe_step(section, after, lambda inputs: None, weights, in_float)

    def _data(self) -> Step:
        recipe = self._recipe

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            prepare_images(recipe, self._root, self._labels, folder, report)

        return Step(
            "images",
            {
                "data": self._digests["data"],
                **recipe.data.model_dump(mode="json", exclude={"package", "file"}),
            },
            {},
            versions("pillow") | {"outpost-images": "1"},
            work,
            seconds=8,
            disk_bytes=4_000_000,
            ram_bytes=60_000_000,
        )

    def _backbone(self) -> Step:
        recipe, image = self._recipe, self._image
        parameters: dict[str, object] = {
            "base": self._digests["base"],
            "size": [image.width, image.height],
        }
        if isinstance(recipe, InspectRecipe):
            memory = recipe.memory
            parameters["whole"] = list(memory.whole)
            parameters["patches"] = [
                list(memory.stages),
                memory.neighbourhood,
                memory.grid,
                list(memory.whole),
            ]

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.anomaly.features import feature_graph
            from compile.onnx.files import write_model
            from compile.onnx.vision_export import features, read_weights

            weights = read_weights(self._source)
            write_model(features(weights, self._config, image.width, image.height), folder / POOLED)
            if isinstance(recipe, InspectRecipe):
                model, grid = feature_graph(weights, self._config, image.width, image.height, recipe.memory)
                write_model(model, folder / FEATURES)
                (folder / GRID).write_text(json.dumps(asdict(grid)), encoding="utf-8")

        return Step(
            "backbone",
            parameters,
            {},
            versions("onnx", "safetensors") | {"outpost-vision": "1"},
            work,
            seconds=1,
            disk_bytes=25_000_000,
            ram_bytes=205_000_000,
        )

    def _head(self, data: Step, backbone: Step) -> Step:
        recipe = self._recipe

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.onnx.vision_head import train_head

            splits = images.read_image_splits(inputs["data"])
            strengths = recipe.head.strengths if isinstance(recipe, ClassifyImageRecipe) else ()
            train_head(
                inputs["backbone"] / POOLED,
                self._root,
                splits,
                self._labels,
                self._image,
                recipe.data.max_pixels,
                strengths,
                folder,
                self._workshop.threads,
                report,
            )

        return Step(
            "head",
            {"labels": list(self._labels), "image": self._image.model_dump(mode="json")}
            | (recipe.head.model_dump(mode="json") if isinstance(recipe, ClassifyImageRecipe) else {}),
            {"data": data, "backbone": backbone},
            versions("onnxruntime", "scikit-learn", "pillow") | {"outpost-head": "3"},
            work,
            seconds=20,
            disk_bytes=1_000_000,
            ram_bytes=245_000_000,
        )

    def _variant(
        self,
        variant: ImageVariant,
        data: Step,
        backbone: Step,
        head: Step | None,
        reference: Step | None,
    ) -> VariantSteps:
        if head is None:
            quantized = None if variant.type == "fp32" else self._quantized(variant, data, backbone, FEATURES)
            model = self._memory(variant, data, backbone, quantized, reference)
        else:
            whole = reference or self._classifier(backbone, head)
            quantized = None if variant.type == "fp32" else self._quantized(variant, data, whole, MODEL)
            model = quantized or whole
        return VariantSteps(variant, model, self._seen(variant, data, model))

    def _classifier(self, backbone: Step, head: Step) -> Step:
        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.onnx.files import write_model
            from compile.onnx.vision_export import classifier, read_weights
            from compile.onnx.vision_head import read_head

            weights, image = read_weights(self._source), self._image
            trained = read_head(inputs["head"])
            write_model(classifier(weights, self._config, image.width, image.height, trained), folder / MODEL)

        return Step(
            "classifier",
            {"base": self._digests["base"], "size": [self._image.width, self._image.height]},
            {"backbone": backbone, "head": head},
            versions("onnx", "safetensors") | {"outpost-vision": "1"},
            work,
            seconds=1,
            disk_bytes=20_000_000,
            ram_bytes=205_000_000,
        )

    def _quantized(self, variant: ImageVariant, data: Step, source: Step, file: str) -> Step:
        recipe = self._recipe

        held_out = variant.mixed.pictures if variant.mixed is not None else 0

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.onnx.vision_quantize import quantize_vision

            splits = images.read_image_splits(inputs["data"])
            found = quantize_vision(
                inputs["source"] / file,
                folder / MODEL,
                variant,
                self._paths(spread(splits.train, variant.calibration_images)),
                # Not training pictures: the head is surer of those than of any others.
                self._paths(spread(splits.calibration, held_out)),
                self._image,
                recipe.data.max_pixels,
                scratch,
                report,
            )
            (folder / MIXTURE).write_text(json.dumps(found), encoding="utf-8")
            _write_ledger(folder)

        return Step(
            f"quantize-{variant.name}",
            {
                "variant": variant.model_dump(mode="json", exclude={"name"}),
                "image": self._image.model_dump(mode="json"),
                "file": file,
            },
            {"data": data, "source": source},
            versions("onnx", "onnxruntime", "pillow") | {"outpost-quantize": "4"},
            work,
            seconds=5 if variant.mixed is None else 90,
            disk_bytes=8_000_000,
            ram_bytes=(175 if file == MODEL else 155) * 1_000_000 + (25_000_000 if held_out else 0),
        )

    def _memory(
        self,
        variant: ImageVariant,
        data: Step,
        backbone: Step,
        quantized: Step | None,
        reference: Step | None,
    ) -> Step:
        recipe = self._recipe
        assert isinstance(recipe, InspectRecipe)  # noqa: S101  # for the type checker: only inspection has one

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            import numpy as np

            from compile.anomaly.build import CHOSEN, build_memory

            splits = images.read_image_splits(inputs["data"])
            grid = Grid(**json.loads((inputs["backbone"] / GRID).read_text(encoding="utf-8")))
            source = inputs["quantized"] / MODEL if "quantized" in inputs else inputs["backbone"] / FEATURES
            build_memory(
                source,
                grid,
                [self._root / image.file for image in splits.train],
                self._image,
                recipe.memory,
                folder,
                recipe.data.max_pixels,
                self._workshop.threads,
                report,
                np.load(inputs["reference"] / CHOSEN) if "reference" in inputs else None,
                small=variant.type != "fp32",
            )
            if variant.type != "fp32":
                _write_ledger(folder)

        after = {"data": data, "backbone": backbone}
        after |= {"quantized": quantized} if quantized is not None else {}
        after |= {"reference": reference} if reference is not None else {}
        memory = recipe.memory
        patches = places(self._image, memory)
        width = sum(texture(self._config.architecture, stage)[1] for stage in memory.stages)
        held = recipe.data.train * patches * width * 4
        return Step(
            f"memory-{variant.name}",
            {
                "memory": recipe.memory.model_dump(mode="json"),
                "image": self._image.model_dump(mode="json"),
                "small": variant.type != "fp32",
            },
            after,
            versions("numpy", "onnx", "onnxruntime", "pillow") | {"outpost-memory": "2"},
            work,
            seconds=2 + recipe.data.train * 0.02 + memory.patches * recipe.data.train * patches * 4e-8,
            disk_bytes=recipe.memory.patches * width * 5 + 2_000_000,
            ram_bytes=190_000_000 + int(1.8 * held),
        )

    def _seen(self, variant: ImageVariant, data: Step, model: Step) -> Step:
        recipe, threads = self._recipe, self._workshop.threads
        facts = AnomalyFacts(threshold=UNCALIBRATED, false_reject_rate=0.0, calibrated_on=0)
        engine = engine_of(recipe, self._config, facts)

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.evaluate.pictures import look

            look(
                inputs["model"] / MODEL,
                engine,
                self._root,
                measured_files(images.read_image_splits(inputs["data"])),
                folder,
                threads,
                recipe.data.max_pixels,
                recipe.evaluate.speed_repeats,
                report,
            )

        return Step(
            f"seen-{variant.name}",
            {
                "engine": engine.model_dump(mode="json"),
                "threads": threads,
                "speed_repeats": recipe.evaluate.speed_repeats,
                "max_pixels": recipe.data.max_pixels,
            },
            {"data": data, "model": model},
            versions("onnxruntime", "pillow") | {"outpost-look": "1"},
            work,
            seconds=20,
            disk_bytes=8_000_000,
            ram_bytes=self._serving_bytes(variant),
            alone=True,
        )

    def _baselines(self, data: Step, backbone: Step) -> Step:
        recipe = self._recipe

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            splits = images.read_image_splits(inputs["data"])
            found: object
            if isinstance(recipe, InspectRecipe):
                from compile.anomaly.baselines import baseline_scores

                found = baseline_scores(
                    inputs["backbone"] / POOLED,
                    self._paths(splits.train),
                    self._paths(splits.test),
                    self._image,
                    recipe.data.max_pixels,
                    self._workshop.threads,
                    report,
                )
            else:
                from compile.onnx.vision_head import baseline_labels

                found = baseline_labels(self._root, splits, recipe.data.max_pixels, report)
            (folder / BASELINES).write_text(json.dumps(found), encoding="utf-8")

        return Step(
            "baselines",
            {"task": recipe.task, "image": self._image.model_dump(mode="json")},
            {"data": data, "backbone": backbone},
            versions("onnxruntime", "pillow", "scikit-learn") | {"outpost-baselines": "1"},
            work,
            seconds=15,
            ram_bytes=150_000_000 if isinstance(recipe, InspectRecipe) else 240_000_000,
        )

    def _serving_bytes(self, variant: ImageVariant) -> int:
        """Peak memory of the engine, as measured: it takes 16 pictures at once."""
        pixels, batch = self._image.width * self._image.height, 16
        small = variant.type != "fp32"
        held = 75_000_000 + batch * pixels * (235 if small else 290)
        if isinstance(self._recipe, InspectRecipe):
            memory = self._recipe.memory
            return held + batch * places(self._image, memory) * memory.patches * 4
        return held + (9_000_000 if small else 37_000_000)

    def _paths(self, chosen: Sequence[LabelledImage]) -> list[Path]:
        return [self._root / image.file for image in chosen]


def places(image: ImageInput, memory: Memory) -> int:
    """How many patches a picture has."""
    rows, columns = (length // memory.grid - 2 * memory.border for length in (image.height, image.width))
    return rows * columns


def prepare_images(
    recipe: InspectRecipe | ClassifyImageRecipe,
    root: Path,
    labels: Sequence[str],
    folder: Path,
    report: Report,
) -> None:
    """Read, check and split the images; the splits and the card go into ``folder``. Raises ``BadData``."""
    source = recipe.data
    reading = images.read_images(root, labels, Limits(source.max_pixels), report)
    images.refuse_bad(reading, source.keep_good)
    if isinstance(recipe, InspectRecipe):
        data = recipe.data
        counts = {"train": data.train, "calibration": data.calibration, "test": data.test}
        splits = images.split_good_and_defects(reading, data.good, counts, data.test_defects, data.seed)
    else:
        splits = images.split_by_label(reading, recipe.data.each, recipe.data.seed)
    images.write_image_splits(folder, splits)
    card = json.dumps(images.card(reading, splits), indent=1, ensure_ascii=False)
    (folder / images.CARD_FILE).write_text(card, encoding="utf-8")


def _write_ledger(folder: Path) -> None:
    """What in ``folder/model.onnx`` did not become INT8: of an anomaly model, the space that banks lie in."""
    from compile.onnx.files import ledger

    told = [one.model_dump(mode="json") for one in ledger(folder / MODEL, "INT8")]
    (folder / LEDGER).write_text(json.dumps(told), encoding="utf-8")


def _digest_of_labels(root: Path, labels: Sequence[str]) -> Digest:
    """Of the label folders that a recipe names, and of nothing else below ``root``."""
    return Digest.of("".join(f"{label}\0{digest_of(root / label)}\n" for label in labels).encode())
