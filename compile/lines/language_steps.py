"""The steps of a language line: what is made from what, under which key. Nothing runs here but small hashes.

A *base* is a folder with ``hf/`` (float32 safetensors, tokenizer), the reference GGUF and ``source.json``.
What changes weights (pruning, full fine-tuning, distillation) ends in a folder of the same shape, so each of
them can follow any other, and everything behind them is the same whatever came before.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compile.data.reading import source_files
from compile.data.rows import Row, Splits, read_splits
from compile.errors import BadRecipe
from compile.gguf.base import import_base
from compile.gguf.files import CONVERTERS_VERSION, Converters, vocabulary
from compile.gguf.folder import import_folder
from compile.line import REFERENCE, versions
from compile.lines.language import (
    ADAPTER,
    BASELINES,
    FIXED,
    GENAI,
    HF,
    MODEL,
    REFERENCE_FILE,
    LanguageParts,
    VariantSteps,
    answer_fields,
    chat,
    template_of,
)
from compile.lines.language_measures import Measurer
from compile.lines.language_sources import Sources
from compile.lines.language_variants import VariantMaker
from compile.recipe.distil import DistilLogits, DistilSequences, Prune
from compile.recipe.training import FineTune
from compile.steps import Report, Step
from compile.training.run import TrainingRun
from models.digest import Digest
from models.gguf import read_header

Folders = Mapping[str, Path]

_WINDOW = 128
"""Tokens of a piece of plain text, where text without rows is learned from."""
_TYPICAL_ROW = 128
"""Tokens of a row, for forecasts."""


class LanguageSteps:
    """Makes the steps of one recipe. Exists while a line is made, so that a step is a few words."""

    def __init__(self, sources: Sources, previous: LanguageParts | None) -> None:
        self._sources, self._previous = sources, previous
        self._recipe, self._workshop = sources.recipe, sources.workshop
        self._converters = Converters(sources.workshop.converters)
        self._maker = VariantMaker(sources)

    def parts(self, recipe_digest: Digest) -> LanguageParts:
        """Every step of the line, by role."""
        recipe = self._recipe
        root = against = base = self._base()
        data = self._data() if recipe.data is not None else None
        tuned = adapter = None
        if recipe.prune is not None:
            root = self._as_base("pruned-base", self._pruned(recipe.prune, root, data))
        untrained = root
        # What is cut is held against the whole; what learns something new, against itself before it shrinks.
        if recipe.finetune is not None:
            tuned = self._tuned(recipe.finetune, root, data)
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
            before=self._before(measurer, untrained, variants[REFERENCE].fidelity),
            variants=variants,
        )

    def _before(self, measurer: Measurer, untrained: Step, reference: Step) -> Step | None:
        """What the model says before training: with an adapter, the reference without it says that."""
        if self._recipe.finetune is None:
            return None
        if self._recipe.has_adapter:
            return reference
        return measurer.fidelity("before-training", untrained, REFERENCE_FILE, reference, True, None)

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
            merged_fidelity = measurer.fidelity("of-merged", merged, REFERENCE_FILE, None, False, None)
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
            versions("transformers", "tokenizers") | {"converters": CONVERTERS_VERSION, "outpost-base": "2"},
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
            {"converters": CONVERTERS_VERSION, "outpost-base": "2"},
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

    def _pruned(self, settings: Prune, root: Step, data: Step | None) -> Step:
        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.training.prune_heal import prune_causal

            train, validation = self._examples(inputs, report).values()
            prune_causal(
                inputs["root"] / HF,
                settings,
                train,
                validation,
                self._run(folder, scratch, report),
            )

        return Step(
            "prune",
            {"prune": settings.model_dump(mode="json"), **self._lesson()},
            {"root": root} | ({"data": data} if data else {}),
            versions("torch", "transformers") | {"outpost-prune": "1"},
            work,
            seconds=30 + 600 * self._sources.base_bytes / 540e6,
            disk_bytes=3 * self._sources.base_bytes,
            ram_bytes=600_000_000 + 6 * self._sources.base_bytes,
        )

    def _tuned(self, settings: FineTune, root: Step, data: Step | None) -> Step:
        recipe, previous = self._recipe, self._previous
        after = {"root": root} | ({"data": data} if data else {})
        if settings.first_layer:
            after["fixed"] = self._fixed(settings, dict(after))
        if previous is not None and previous.tuned is not None:
            after["previous"] = previous.tuned
        if isinstance(recipe.distil, DistilSequences) and data is not None:
            after["data"] = self._taught(recipe.distil, data)

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            if "data" in inputs and any(row.rejected for row in read_splits(inputs["data"]).train):
                from compile.training.preferences import train_preferences

                train_preferences(
                    inputs["root"] / HF,
                    *self._pairs(inputs, settings),
                    settings,
                    self._run(folder, scratch, report),
                    start_from=inputs.get("previous"),
                )
                return
            train, validation = self._examples(inputs, report).values()
            if isinstance(recipe.distil, DistilLogits) and self._sources.teacher is not None:
                from compile.training.distil_causal import distil_causal

                distil_causal(
                    self._sources.teacher,
                    inputs["root"] / HF,
                    train,
                    validation,
                    recipe.distil,
                    settings,
                    self._run(folder, scratch, report),
                )
                return
            from compile.training.causal import train_causal

            train_causal(
                inputs["root"] / HF,
                train,
                validation,
                settings,
                self._run(folder, scratch, report),
                start_from=inputs.get("previous"),
                fixed=inputs["fixed"] / FIXED if "fixed" in inputs else None,
            )

        lesson = {"distil": recipe.distil.model_dump(mode="json")} if recipe.distil else {}
        whole = settings.method == "full"
        layers = self._sources.facts.layers
        trained = max(1, layers - settings.first_layer)
        batch = settings.batch * min(settings.max_tokens, _TYPICAL_ROW) * trained // layers
        forecast = self._sources.forecast("finetune-full" if whole else "finetune-lora", batch=batch)
        return Step(
            "finetune",
            {"finetune": settings.model_dump(mode="json"), **self._lesson(), **lesson, **self._taught_by()},
            after,
            versions("torch", "peft", "transformers") | {"outpost-finetune": "2"},
            work,
            seconds=forecast.seconds,
            disk_bytes=4 * self._sources.base_bytes if whole else 60_000_000,
            ram_bytes=forecast.ram_bytes,
        )

    def _taught(self, settings: DistilSequences, data: Step) -> Step:
        """The rows to train on, answered by the teacher."""
        recipe, workshop = self._recipe, self._workshop
        teacher, place = settings.teacher, self._sources.teacher

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.data.rows import write_splits
            from compile.training.teacher import ANSWERS, ask, open_teacher

            splits, parts = read_splits(inputs["data"]), {}
            with open_teacher(teacher, place, workshop.environment, workshop.threads) as asked:
                for name in ("train", "validation"):
                    rows = getattr(splits, name)
                    unanswered = [row for row in rows if not (settings.keep_answers and row.answer)]
                    # Answers are kept by the name of a teacher: by its bytes here, where it is a file.
                    kept = scratch / f"{name}-{self._sources.digests.get('teacher', '')[7:19]}-{ANSWERS}"
                    said = ask(asked, [chat(recipe, row) for row in unanswered], teacher, kept, report)
                    by_number = {row.number: answer for row, answer in zip(unanswered, said, strict=True)}
                    answers = [by_number.get(row.number, row.answer) for row in rows]
                    parts[name] = tuple(
                        dataclasses.replace(row, answer=answer)
                        for row, answer in zip(rows, answers, strict=True)
                        if answer
                    )
            write_splits(folder, Splits(parts["train"], parts["validation"], splits.test))

        return Step(
            "teacher",
            {
                "teacher": settings.model_dump(mode="json"),
                "system": recipe.prompt.system,
                **self._taught_by(),
            },
            {"data": data},
            versions("llama-cpp-python") | {"outpost-teacher": "2"},
            work,
            seconds=600,
            ram_bytes=1_000_000_000,
        )

    def _taught_by(self) -> dict[str, Digest]:
        """The teacher's bytes, where it is a file."""
        return {name: one for name, one in self._sources.digests.items() if name == "teacher"}

    def _fixed(self, settings: FineTune, after: Mapping[str, Step]) -> Step:
        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.training.causal import write_fixed

            write_fixed(
                inputs["root"] / HF,
                settings.first_layer,
                self._examples(inputs, report),
                folder / FIXED,
                self._workshop.threads,
                report,
            )

        rows = (self._recipe.data.train_rows if self._recipe.data else None) or 768
        return Step(
            "fixed-layers",
            {"first_layer": settings.first_layer, **self._lesson()},
            after,
            versions("torch", "transformers") | {"outpost-examples": "2"},
            work,
            seconds=10 + rows * 0.007 * settings.first_layer,
            disk_bytes=rows * 220_000,
            ram_bytes=1_500_000_000,
        )

    def _run(self, folder: Path, scratch: Path, report: Report) -> TrainingRun:
        return TrainingRun(folder, scratch, self._workshop.threads, self._workshop.now, report)

    def _lesson(self) -> dict[str, Any]:
        """What decides the examples besides data and base."""
        recipe = self._recipe
        if recipe.data is None:
            return {
                "text": self._sources.digests["calibration"],
                "tokens": recipe.calibration and recipe.calibration.tokens,
            }
        settings = recipe.finetune or FineTune()
        kept = {"label_weight", "field_weights", "max_tokens", "too_long"}
        return {"system": recipe.prompt.system, **settings.model_dump(mode="json", include=kept)}

    def _pairs(self, inputs: Folders, settings: FineTune) -> tuple[list[Any], list[Any]]:
        """Preferences to train on and to validate with."""
        from compile.training.examples import load_tokenizer
        from compile.training.preferences import encode_preferences

        known = vocabulary(read_header(inputs["root"] / REFERENCE_FILE))
        splits, end = read_splits(inputs["data"]), known.tokens[known.eos]
        tokenizer, template = load_tokenizer(inputs["root"] / HF), template_of(inputs["root"])
        train, validation = (
            encode_preferences(self._asked(rows), tokenizer, template.prompt, end, settings)
            for rows in (splits.train, splits.validation)
        )
        return train, validation

    def _asked(self, rows: tuple[Row, ...]) -> list[Row]:
        """The rows with the chat as it will be asked."""
        return [dataclasses.replace(row, messages=chat(self._recipe, row)) for row in rows]

    def _examples(self, inputs: Folders, report: Report) -> dict[str, list[Any]]:
        """Examples to train on and to validate with: of the rows, or of plain text where there are none."""
        from compile.training.examples import encode_rows, load_tokenizer

        recipe, tokenizer = self._recipe, load_tokenizer(inputs["root"] / HF)
        known = vocabulary(read_header(inputs["root"] / REFERENCE_FILE))
        text = self._sources.calibration
        if "data" not in inputs and text is not None:
            from compile.training.distil_causal import text_examples

            parts = text.read_text(encoding="utf-8").split("\n\n")
            pieces = text_examples(parts, tokenizer, _WINDOW, known.eos)
            most = (recipe.calibration.tokens if recipe.calibration else 0) // _WINDOW
            pieces = pieces[: max(20, most)]
            return {"train": pieces[len(pieces) // 10 :], "validation": pieces[: len(pieces) // 10]}
        splits, settings = read_splits(inputs["data"]), recipe.finetune or FineTune()
        lists = {}
        for name, rows in (("train", splits.train), ("validation", splits.validation)):
            encoded = encode_rows(
                self._asked(rows),
                tokenizer,
                template_of(inputs["root"]).prompt,
                known.tokens[known.eos],
                settings,
                [field.name for field in answer_fields(recipe) if field.labels],
            )
            lists[name] = list(encoded.examples)
            if encoded.note:
                report(0.0, f"{name}: {encoded.note}")
        return lists

    def _adapter(self, root: Step, tuned: Step) -> Step:
        return Step(
            "adapter",
            {},
            {"root": root, "tuned": tuned},
            {"converters": CONVERTERS_VERSION},
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
