"""The steps of a line of readers: what is made from what, under which key. Nothing runs here."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from compile.line import REFERENCE, versions
from compile.lines.reading import REFERENCES, ReadingParts, Sources, Variant, VariantSteps
from compile.recipe.reading import OcrVariant, SpeechVariant
from compile.steps import Report, Step

Folders = Mapping[str, Path]


class ReadingSteps:
    """Makes the steps of one recipe. Exists while a line is made."""

    def __init__(self, sources: Sources) -> None:
        self._sources, self._recipe = sources, sources.recipe

    def parts(self) -> ReadingParts:
        """Every step of the line, by role."""
        data, first = self._data(), REFERENCES[self._recipe.task]
        reference = self._variant(first, data, self._model(first, None))
        variants = {REFERENCE: reference}
        for one in self._recipe.variants:
            variants[one.name] = (
                replace(reference, variant=one)
                if one.type == first.type
                else self._variant(one, data, self._model(one, reference.model))
            )
        return ReadingParts(
            recipe=self._recipe,
            workshop=self._sources.workshop,
            sources=self._sources,
            data=data,
            variants=variants,
        )

    def _data(self) -> Step:
        root, task = self._sources.root, self._recipe.task

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.data.readings import read_readings, write_readings

            write_readings(folder, read_readings(root, task, report))

        return Step(
            "readings",
            {"data": self._sources.digests["data"], "task": task},
            {},
            versions("pillow" if task == "ocr" else "av") | {"outpost-readings": "1"},
            work,
            seconds=2,
            disk_bytes=1_000_000,
            ram_bytes=100_000_000,
        )

    def _variant(self, variant: Variant, data: Step, model: Step) -> VariantSteps:
        return VariantSteps(variant, model, self._read(variant, data, model))

    def _model(self, variant: Variant, reference: Step | None) -> Step:
        """``reference``: what OCR's networks are quantized from; None where it is made."""
        return self._speech(variant) if isinstance(variant, SpeechVariant) else self._ocr(variant, reference)

    def _speech(self, variant: SpeechVariant) -> Step:
        source = self._sources.source

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.readers.whisper import convert

            convert(source, folder, variant.type).write(folder)

        weights = self._sources.weights
        return Step(
            f"weights-{variant.name}",
            {"base": self._sources.digests["base"], "type": variant.type},
            {},
            versions("ctranslate2") | {"outpost-whisper": "2"},
            work,
            seconds=3,
            disk_bytes=2 * weights,
            ram_bytes=250_000_000 + 5 * weights,
        )

    def _ocr(self, variant: OcrVariant, reference: Step | None) -> Step:
        base, source = self._recipe.base, self._sources.source

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.readers.ledger import Ledger
            from compile.readers.ocr import gather, quantize
            from compile.recipe.reading import OcrBase

            if "reference" in inputs:
                quantize(inputs["reference"], folder, variant, scratch).write(folder)
            elif isinstance(base, OcrBase):
                gather(base, source, folder)
                Ledger().write(folder)

        files = base.model_dump(mode="json", include={"detection", "direction", "recognition", "characters"})
        return Step(
            f"networks-{variant.name}",
            {"base": self._sources.digests["base"], "files": files}
            if reference is None
            else {"variant": variant.model_dump(mode="json", exclude={"name"})},
            {} if reference is None else {"reference": reference},
            versions("onnx", "onnxruntime") | {"outpost-ocr": "2"},
            work,
            seconds=2 if reference is None else 20,
            disk_bytes=self._sources.weights,
            ram_bytes=200_000_000 + 10 * self._sources.weights,
        )

    def _read(self, variant: Variant, data: Step, model: Step) -> Step:
        recipe, root, threads = self._recipe, self._sources.root, self._sources.workshop.threads

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.data.readings import stored_readings
            from compile.evaluate.readings import measure_readings

            measure_readings(
                inputs["model"],
                recipe.task,
                root,
                stored_readings(inputs["data"]),
                folder,
                threads,
                recipe.evaluate.speed_repeats,
                report,
            )

        engine = ("rapidocr-onnxruntime", "onnxruntime", "pillow")
        return Step(
            f"read-{variant.name}",
            {"task": recipe.task, "threads": threads, "speed_repeats": recipe.evaluate.speed_repeats},
            {"data": data, "model": model},
            versions(*(engine if recipe.task == "ocr" else ("faster-whisper", "ctranslate2", "av")))
            | {"outpost-read": "1"},
            work,
            seconds=60,
            disk_bytes=100_000,
            ram_bytes=300_000_000 + 2 * self._sources.weights,
            alone=True,
        )
