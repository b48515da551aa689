"""The steps of one variant of a vision line: quantizing, the memory bank, and what the engine sees."""

import json
from pathlib import Path

from compile.anomaly.features import Grid
from compile.data import images
from compile.data.rows import spread
from compile.line import versions
from compile.lines.vision import (
    FEATURES,
    GRID,
    LEDGER,
    MIXTURE,
    UNCALIBRATED,
    Folders,
    Sources,
    VariantSteps,
    engine_of,
    measured_files,
)
from compile.onnx.files import MODEL
from compile.onnx.vision_export import texture
from compile.onnx.vision_pretrained import Pretrained
from compile.recipe.vision import ImageVariant, InspectRecipe, Memory
from compile.steps import Report, Step
from models.manifest import AnomalyFacts, ImageInput


class VariantMaker:
    """Makes the steps of variants, over what they share: data, backbone and, for a classifier, its head."""

    def __init__(self, sources: Sources, data: Step, backbone: Step, head: Step | None) -> None:
        self._sources, self._data, self._backbone, self._head = sources, data, backbone, head

    def variant(self, variant: ImageVariant, reference: Step | None) -> VariantSteps:
        """The steps of one precision; ``reference`` is the model in float, None where this is that one."""
        quantized = None
        if isinstance(self._sources.recipe, InspectRecipe):
            if variant.type != "fp32":
                quantized = self._quantized(variant, self._backbone, FEATURES)
            model = self._memory(variant, quantized, reference)
        else:
            model = whole = reference or self._classifier()
            if variant.type != "fp32":
                model = self._quantized(variant, whole, MODEL)
        return VariantSteps(variant, model, self._seen(variant, model))

    def _classifier(self) -> Step:
        head = self._head
        if head is None:
            return self._backbone
        config, image = self._sources.lite, self._sources.image

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.onnx.files import write_model
            from compile.onnx.vision_export import classifier, read_weights
            from compile.onnx.vision_head import read_head

            weights, trained = read_weights(self._sources.source), read_head(inputs["head"])
            write_model(classifier(weights, config, image.width, image.height, trained), folder / MODEL)

        return Step(
            "classifier",
            {"base": self._sources.digests["base"], "size": [image.width, image.height]},
            {"backbone": self._backbone, "head": head},
            versions("onnx", "safetensors") | {"outpost-vision": "1"},
            work,
            seconds=1,
            disk_bytes=20_000_000,
            ram_bytes=205_000_000,
        )

    def _quantized(self, variant: ImageVariant, source: Step, file: str) -> Step:
        recipe = self._sources.recipe

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.onnx.vision_quantize import quantize_vision

            splits = images.read_image_splits(inputs["data"])
            found = quantize_vision(
                inputs["source"] / file,
                folder / MODEL,
                variant,
                self._sources.paths(spread(splits.train, variant.calibration_images)),
                # Not training pictures: the head is surer of those than of any others.
                self._sources.paths(spread(splits.calibration, variant.measured_on)),
                self._sources.image,
                recipe.data.max_pixels,
                scratch,
                report,
            )
            (folder / MIXTURE).write_text(json.dumps(found), encoding="utf-8")
            _write_ledger(folder, activations=variant.type == "int8-static")

        return Step(
            f"quantize-{variant.name}",
            {
                "variant": variant.model_dump(mode="json", exclude={"name"}),
                "image": self._sources.image.model_dump(mode="json"),
                "file": file,
            },
            {"data": self._data, "source": source},
            versions("onnx", "onnxruntime", "pillow") | {"outpost-quantize": "5"},
            work,
            seconds=5 if variant.mixed is None else 90,
            disk_bytes=max(8_000_000, self._sources.weights // 2),
            ram_bytes=self._quantizing_bytes(variant, file),
        )

    def _memory(self, variant: ImageVariant, quantized: Step | None, reference: Step | None) -> Step:
        recipe = self._sources.recipe
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
                [self._sources.root / image.file for image in splits.train],
                self._sources.image,
                recipe.memory,
                folder,
                recipe.data.max_pixels,
                self._sources.workshop.threads,
                report,
                np.load(inputs["reference"] / CHOSEN) if "reference" in inputs else None,
                small=variant.type != "fp32",
            )
            if variant.type != "fp32":
                _write_ledger(folder)

        after = {"data": self._data, "backbone": self._backbone}
        after |= {"quantized": quantized} if quantized is not None else {}
        after |= {"reference": reference} if reference is not None else {}
        memory = recipe.memory
        patches = places(self._sources.image, memory)
        width = sum(texture(self._sources.lite.architecture, stage)[1] for stage in memory.stages)
        held = recipe.data.train * patches * width * 4
        return Step(
            f"memory-{variant.name}",
            {
                "memory": recipe.memory.model_dump(mode="json"),
                "image": self._sources.image.model_dump(mode="json"),
                "small": variant.type != "fp32",
            },
            after,
            versions("numpy", "onnx", "onnxruntime", "pillow") | {"outpost-memory": "2"},
            work,
            seconds=2 + recipe.data.train * 0.02 + memory.patches * recipe.data.train * patches * 4e-8,
            disk_bytes=recipe.memory.patches * width * 5 + 2_000_000,
            ram_bytes=190_000_000 + int(1.8 * held),
        )

    def _seen(self, variant: ImageVariant, model: Step) -> Step:
        recipe, threads = self._sources.recipe, self._sources.workshop.threads
        facts = AnomalyFacts(threshold=UNCALIBRATED, false_reject_rate=0.0, calibrated_on=0)
        engine = engine_of(recipe, self._sources.config, facts)

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.evaluate.pictures import look

            look(
                inputs["model"] / MODEL,
                engine,
                self._sources.root,
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
            {"data": self._data, "model": model},
            versions("onnxruntime", "pillow") | {"outpost-look": "1"},
            work,
            seconds=20,
            disk_bytes=8_000_000,
            ram_bytes=self._serving_bytes(variant),
            alone=True,
        )

    def _quantizing_bytes(self, variant: ImageVariant, file: str) -> int:
        """Peak memory of a quantizer, as measured; of transformers with 5 and with 76 MB of weights."""
        if isinstance(self._sources.config, Pretrained):
            return 120_000_000 + 38 * self._sources.weights // 10
        held = 175_000_000 if file == MODEL else 155_000_000
        return held + (25_000_000 if variant.mixed is not None else 0)

    def _serving_bytes(self, variant: ImageVariant) -> int:
        """Peak memory of the engine, as measured: it takes 16 pictures at once."""
        pixels, batch = self._sources.image.width * self._sources.image.height, 16
        small = variant.type != "fp32"
        held = 75_000_000 + batch * pixels * (235 if small else 290)
        if isinstance(self._sources.recipe, InspectRecipe):
            memory = self._sources.recipe.memory
            return held + batch * places(self._sources.image, memory) * memory.patches * 4
        if isinstance(self._sources.config, Pretrained):
            return held + (6 if small else 12) * self._sources.weights // 10
        return held + (9_000_000 if small else 37_000_000)


def places(image: ImageInput, memory: Memory) -> int:
    """How many patches a picture has."""
    rows, columns = (length // memory.grid - 2 * memory.border for length in (image.height, image.width))
    return rows * columns


def _write_ledger(folder: Path, activations: bool = False) -> None:
    """What in ``folder/model.onnx`` did not become INT8: of an anomaly model, the space that banks lie in;
    with ``activations`` also attention's products, which dynamic quantization never touches."""
    from compile.onnx.files import ledger

    told = [one.model_dump(mode="json") for one in ledger(folder / MODEL, "INT8", activations)]
    (folder / LEDGER).write_text(json.dumps(told), encoding="utf-8")
