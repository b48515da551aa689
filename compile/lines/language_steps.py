"""The steps of a language line: what is made from what, under which key. Nothing runs here but small hashes.

A *base* is a folder with ``hf/`` (float32 safetensors, tokenizer), the reference GGUF and ``source.json``.
What changes weights (pruning, full fine-tuning, distillation) ends in a folder of the same shape, so each of
them can follow any other, and everything behind them is the same whatever came before.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from compile.data.reading import source_files
from compile.data.rows import read_splits
from compile.errors import BadRecipe
from compile.gguf.base import import_base
from compile.gguf.files import CONVERTERS, CONVERTERS_VERSION, Converters
from compile.gguf.folder import import_folder
from compile.line import REFERENCE, versions
from compile.lines.language import (
    ADAPTER,
    BASELINES,
    GENAI,
    HF,
    MODEL,
    REFERENCE_FILE,
    LanguageParts,
    VariantSteps,
    answer_fields,
)
from compile.lines.language_measures import Measurer
from compile.lines.language_sources import Sources
from compile.lines.language_training import TrainingSteps
from compile.lines.language_variants import VariantMaker
from compile.steps import Report, Step
from models.digest import Digest

Folders = Mapping[str, Path]


class LanguageSteps:
    """Makes the steps of one recipe. Exists while a line is made, so that a step is a few words."""

    def __init__(self, sources: Sources, previous: LanguageParts | None) -> None:
        self._sources, self._previous = sources, previous
        self._recipe, self._workshop = sources.recipe, sources.workshop
        self._converters = Converters(sources.workshop.converters)
        self._trainer, self._maker = TrainingSteps(sources, previous), VariantMaker(sources)

    def parts(self, recipe_digest: Digest) -> LanguageParts:
        """Every step of the line, by role."""
        recipe = self._recipe
        root = against = base = self._base()
        data = self._data() if recipe.data is not None else None
        tuned = adapter = None
        if recipe.prune is not None:
            root = self._as_base("pruned-base", self._trainer.pruned(recipe.prune, root, data))
        untrained = root
        # What is cut is held against the whole; what learns something new, against itself before it shrinks.
        if recipe.finetune is not None:
            tuned = self._trainer.tuned(recipe.finetune, root, data)
            if recipe.has_adapter:
                adapter = self._adapter(root, tuned)
            else:
                root = self._as_base("tuned-base", tuned)
            against = root
        measurer = Measurer(self._sources, root, data)
        variants = self._variants(measurer, against, root, data, tuned, adapter)
        return LanguageParts(
            recipe=recipe,
            recipe_digest=recipe_digest,
            digests=self._sources.digests,
            text=self._sources.text,
            workshop=self._workshop,
            previous=self._previous,
            base=base,
            root=root,
            data=data,
            tuned=tuned,
            adapter=adapter,
            baselines=self._baselines(data) if data is not None else None,
            before=self._before(measurer, untrained, variants[REFERENCE]),
            before_text=self._before_text(measurer, untrained, variants[REFERENCE]),
            variants=variants,
        )

    def _before(self, measurer: Measurer, untrained: Step, reference: VariantSteps) -> Step | None:
        """What the model says before training: with an adapter, the reference without it says that."""
        if self._recipe.finetune is None:
            return None
        if self._recipe.has_adapter:
            return reference.alone
        return measurer.alone("before-training", untrained, REFERENCE_FILE, None)

    def _before_text(self, measurer: Measurer, untrained: Step, reference: VariantSteps) -> Step | None:
        """The same on text, where an adapter is not measured: the reference stands there without it."""
        if self._recipe.finetune is None or self._recipe.has_adapter:
            return None
        return measurer.fidelity("before-training", untrained, REFERENCE_FILE, reference.fidelity, None)

    def _variants(
        self,
        measurer: Measurer,
        against: Step,
        root: Step,
        data: Step | None,
        tuned: Step | None,
        adapter: Step | None,
    ) -> dict[str, VariantSteps]:
        """The reference first, then what the recipe asks for."""
        maker = self._maker
        reference = measurer.variant(REFERENCE, against, REFERENCE_FILE, None, adapter, None, None)
        wanted = self._recipe.variants
        calibrated = merged_importance = None
        if any(one.importance and not one.merged for one in wanted):
            calibrated = maker.importance("importance", root)
        yardstick = measurer.yardstick(root, adapter) if adapter is not None and data is not None else None
        merged = merged_fidelity = None
        if adapter is not None and any(one.merged for one in wanted):
            merged = maker.merged(root, adapter)
            merged_fidelity = measurer.fidelity("of-merged", merged, REFERENCE_FILE, None, None)
            if any(one.importance and one.merged for one in wanted):
                merged_importance = maker.importance("importance-of-merged", merged)
        found = {REFERENCE: reference}
        for one in wanted:
            if one.is_genai:
                model = maker.genai(one, root)
                rider = (
                    maker.genai_adapter(model, tuned) if adapter is not None and tuned is not None else None
                )
                found[one.name] = measurer.variant(
                    one.name, model, GENAI, reference.fidelity, rider, one, yardstick
                )
            elif one.merged and merged is not None:
                model = maker.quantized(one, merged, merged_importance)
                found[one.name] = measurer.variant(
                    one.name, model, MODEL, merged_fidelity, None, one, yardstick
                )
            else:
                model = maker.quantized(one, root, calibrated)
                found[one.name] = measurer.variant(
                    one.name, model, MODEL, reference.fidelity, adapter, one, yardstick
                )
        return found

    def _base(self) -> Step:
        source = self._sources.base
        bring_in = import_folder if source.is_dir() else import_base
        forecast = self._sources.forecast("import-folder" if source.is_dir() else "import-gguf")
        return Step(
            "base",
            {"source": self._sources.digests["base"]},
            {},
            versions("transformers", "tokenizers") | {CONVERTERS: CONVERTERS_VERSION, "outpost-base": "2"},
            lambda inputs, folder, scratch, report: bring_in(source, folder, self._converters, report),
            seconds=forecast.seconds,
            disk_bytes=forecast.disk_bytes,
            ram_bytes=forecast.ram_bytes,
        )

    def _as_base(self, name: str, made: Step) -> Step:
        """A model that was changed here, in the shape of a base."""
        forecast = self._sources.forecast("import-folder")
        return Step(
            name,
            {},
            {"made": made},
            {CONVERTERS: CONVERTERS_VERSION, "outpost-base": "2"},
            lambda inputs, folder, scratch, report: import_folder(
                inputs["made"], folder, self._converters, report
            ),
            seconds=forecast.seconds,
            disk_bytes=forecast.disk_bytes,
            ram_bytes=forecast.ram_bytes,
        )

    def _data(self) -> Step:
        source = self._recipe.data
        if source is None:
            raise BadRecipe("data is missing")

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.data.prepare import prepare

            prepare(source, self._sources.beside, folder, report)

        size = sum(place.stat().st_size for place in source_files(source, self._sources.beside).values())
        stated = source.model_dump(mode="json", exclude={"path", "package", "file"})
        return Step(
            "data",
            {"rows": self._sources.digests["data"], **stated},
            {},
            {"outpost-data": "2"},
            work,
            seconds=4,
            ram_bytes=90_000_000 + 27 * size,
        )

    def _adapter(self, root: Step, tuned: Step) -> Step:
        return Step(
            "adapter",
            {},
            {"root": root, "tuned": tuned},
            {CONVERTERS: CONVERTERS_VERSION},
            lambda inputs, folder, scratch, report: self._converters.adapter(
                inputs["tuned"], inputs["root"] / HF, folder / ADAPTER
            ),
            seconds=8,
            disk_bytes=12_000_000,
            ram_bytes=500_000_000,
        )

    def _baselines(self, data: Step) -> Step | None:
        fields = [field.name for field in answer_fields(self._recipe) if field.labels]
        if not fields:
            return None

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.evaluate.baselines import baselines

            splits, said = read_splits(inputs["data"]), {}
            known, texts = ([row.text for row in rows] for rows in (splits.train, splits.test))
            for name in fields:
                found = baselines(known, [row.fields[name] for row in splits.train], texts)
                said[name] = {one.name: list(one.labels) for one in found}
            (folder / BASELINES).write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")

        return Step(
            "baselines", {"fields": fields}, {"data": data}, versions("scikit-learn"), work, 8, 0, 270_000_000
        )
