"""The steps of a vision line: what is made from what, under which key. Nothing runs here but small hashes.

For inspection the backbone is quantized first, and the memory bank is made of what the quantized backbone
sees; for classification a head is trained on float features, and the whole is quantized. A classifier of
transformers is exported whole and keeps its head.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from compile.data import images
from compile.data.images import Limits
from compile.data.rows import spread
from compile.line import REFERENCE, versions
from compile.lines.tensorrt import recipe_step
from compile.lines.vision import (
    BASELINES,
    FEATURES,
    FP32,
    GRID,
    POOLED,
    Folders,
    Recipe,
    Sources,
    VariantSteps,
    VisionParts,
)
from compile.lines.vision_variants import VariantMaker
from compile.onnx.vision_pretrained import Pretrained
from compile.recipe.vision import ClassifyImageRecipe, InspectRecipe
from compile.steps import Report, Step

_COMPARED = 16
"""Pictures on which an exported graph is compared with torch."""


class VisionSteps:
    """Makes the steps of one recipe. Exists while a line is made."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def parts(self) -> VisionParts:
        """Every step of the line, by role."""
        data, whole = self._data(), isinstance(self._sources.config, Pretrained)
        backbone = self._exported(data) if whole else self._backbone()
        learns = isinstance(self._sources.recipe, ClassifyImageRecipe) and not whole
        head = self._head(data, backbone) if learns else None
        maker = VariantMaker(self._sources, data, backbone, head)
        reference = maker.variant(FP32, None)
        variants = {REFERENCE: reference}
        for one in self._sources.recipe.variants:
            variants[one.name] = (
                replace(reference, variant=one) if one.type == "fp32" else maker.variant(one, reference.model)
            )
        return VisionParts(
            recipe=self._sources.recipe,
            workshop=self._sources.workshop,
            sources=self._sources,
            data=data,
            backbone=backbone,
            head=head,
            baselines=self._baselines(data, backbone),
            tensorrt=self._tensorrt(variants),
            variants=variants,
        )

    def _tensorrt(self, variants: Mapping[str, VariantSteps]) -> Step | None:
        section = self._sources.recipe.tensorrt
        if section is None:
            return None
        chosen, weights = variants[section.variant], self._sources.weights
        if isinstance(self._sources.recipe, InspectRecipe):
            weights = chosen.model.disk_bytes  # the first stages of the backbone, and the bank
        after, in_float = {"model": chosen.model}, chosen.variant.type == "fp32"
        return recipe_step(section, after, lambda inputs: None, weights, in_float)

    def _data(self) -> Step:
        recipe = self._sources.recipe

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            prepare_images(recipe, self._sources.root, self._sources.labels, folder, report)

        return Step(
            "images",
            {
                "data": self._sources.digests["data"],
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
        recipe, image, config = self._sources.recipe, self._sources.image, self._sources.lite
        parameters: dict[str, object] = {
            "base": self._sources.digests["base"],
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

            weights = read_weights(self._sources.source)
            write_model(features(weights, config, image.width, image.height), folder / POOLED)
            if isinstance(recipe, InspectRecipe):
                model, grid = feature_graph(weights, config, image.width, image.height, recipe.memory)
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

    def _exported(self, data: Step) -> Step:
        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.onnx.vision_pretrained import export_classifier

            splits = images.read_image_splits(inputs["data"])
            export_classifier(
                self._sources.source,
                self._sources.image,
                self._sources.paths(spread(splits.train, _COMPARED)),
                self._sources.recipe.data.max_pixels,
                folder,
                scratch,
                report,
            )

        weights = self._sources.weights
        return Step(
            "export",
            {"base": self._sources.digests["base"], "image": self._sources.image.model_dump(mode="json")},
            {"data": data},
            versions("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime", "pillow")
            | {"outpost-export-vision": "1"},
            work,
            seconds=15,
            disk_bytes=weights,
            scratch_bytes=weights,
            ram_bytes=660_000_000 + 33 * weights // 10,
        )

    def _head(self, data: Step, backbone: Step) -> Step:
        recipe = self._sources.recipe

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.onnx.vision_head import train_head

            splits = images.read_image_splits(inputs["data"])
            strengths = recipe.head.strengths if isinstance(recipe, ClassifyImageRecipe) else ()
            train_head(
                inputs["backbone"] / POOLED,
                self._sources.root,
                splits,
                self._sources.labels,
                self._sources.image,
                recipe.data.max_pixels,
                strengths,
                folder,
                self._sources.workshop.threads,
                report,
            )

        return Step(
            "head",
            {"labels": list(self._sources.labels), "image": self._sources.image.model_dump(mode="json")}
            | (recipe.head.model_dump(mode="json") if isinstance(recipe, ClassifyImageRecipe) else {}),
            {"data": data, "backbone": backbone},
            versions("onnxruntime", "scikit-learn", "pillow") | {"outpost-head": "3"},
            work,
            seconds=20,
            disk_bytes=1_000_000,
            ram_bytes=245_000_000,
        )

    def _baselines(self, data: Step, backbone: Step) -> Step:
        recipe = self._sources.recipe

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            splits = images.read_image_splits(inputs["data"])
            found: object
            if isinstance(recipe, InspectRecipe):
                from compile.anomaly.baselines import baseline_scores

                found = baseline_scores(
                    inputs["backbone"] / POOLED,
                    self._sources.paths(splits.train),
                    self._sources.paths(splits.test),
                    self._sources.image,
                    recipe.data.max_pixels,
                    self._sources.workshop.threads,
                    report,
                )
            else:
                from compile.onnx.vision_head import baseline_labels

                found = baseline_labels(self._sources.root, splits, recipe.data.max_pixels, report)
            (folder / BASELINES).write_text(json.dumps(found), encoding="utf-8")

        return Step(
            "baselines",
            {"task": recipe.task, "image": self._sources.image.model_dump(mode="json")},
            {"data": data, "backbone": backbone},
            versions("onnxruntime", "pillow", "scikit-learn") | {"outpost-baselines": "1"},
            work,
            seconds=15,
            ram_bytes=150_000_000 if isinstance(recipe, InspectRecipe) else 240_000_000,
        )


def prepare_images(
    recipe: Recipe,
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
