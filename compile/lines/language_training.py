"""The steps of a language line that change weights: pruning, fine-tuning, distillation, and their lessons."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compile.data.rows import Row, Splits, read_splits
from compile.errors import BadRecipe
from compile.forecast import facts_of, predict
from compile.gguf.files import vocabulary
from compile.line import versions
from compile.lines.language import (
    FIXED,
    HF,
    REFERENCE_FILE,
    LanguageParts,
    answer_fields,
    chat,
    template_of,
)
from compile.lines.language_sources import Sources
from compile.recipe.distil import DistilLogits, DistilSequences, Prune
from compile.recipe.training import FineTune
from compile.steps import Report, Step
from compile.training.run import TrainingRun
from compile.training.teacher import memory_of
from models.digest import Digest
from models.gguf import read_header

Folders = Mapping[str, Path]

_WINDOW = 128
"""Tokens of a piece of plain text, where text without rows is learned from."""
_TYPICAL_ROW = 128
"""Tokens of a row, for forecasts."""
_ROWS_BYTES = 100_000_000
"""Memory of a step that only reads, asks about and writes rows."""
_NO_LESSON = "distil: the rows are preferences, which are learned without a teacher"


class TrainingSteps:
    """Makes them. ``previous`` is the line that this one continues."""

    def __init__(self, sources: Sources, previous: LanguageParts | None) -> None:
        self._sources, self._previous = sources, previous
        self._recipe, self._workshop = sources.recipe, sources.workshop

    def pruned(self, settings: Prune, root: Step, data: Step | None) -> Step:
        """What is left of ``root``, healed, as a Hugging Face folder."""

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.training.prune_heal import prune_causal

            train, validation = self._examples(inputs, report).values()
            run = self._run(folder, scratch, report)
            prune_causal(inputs["root"] / HF, settings, train, validation, run)

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

    def tuned(self, settings: FineTune, root: Step, data: Step | None) -> Step:
        """A peft folder, or a whole model; with ``first_layer`` after what the layers below compute."""
        recipe, previous = self._recipe, self._previous
        after = {"root": root} | ({"data": data} if data else {})
        if settings.first_layer:
            after["fixed"] = self._fixed(settings, dict(after))
        if previous is not None and previous.tuned is not None:
            after["previous"] = previous.tuned
        if isinstance(recipe.distil, DistilSequences) and data is not None:
            after["data"] = self._taught(recipe.distil, data)

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            self._learn(inputs, settings, self._run(folder, scratch, report))

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
            ram_bytes=self._with_teacher(forecast.ram_bytes),
        )

    def _with_teacher(self, learning: int) -> int:
        """Peak memory where learning alone takes ``learning``: a teacher of logits runs beside the student,
        or before it where what it says is kept on disk."""
        distil, place = self._recipe.distil, self._sources.teacher
        if not isinstance(distil, DistilLogits) or place is None or distil.hard == 1:
            return learning
        facts = facts_of(place)
        if distil.top is None:
            return learning + facts.float_bytes
        return max(learning, predict("finetune-lora", facts).ram_bytes)

    def _learn(self, inputs: Folders, settings: FineTune, run: TrainingRun) -> None:
        """From pairs of answers where the rows have them, from a teacher's logits, or from the answers."""
        recipe, start = self._recipe, inputs["root"] / HF
        if "data" in inputs and _are_pairs(read_splits(inputs["data"])):
            from compile.training.preferences import train_preferences

            if recipe.distil is not None:
                raise BadRecipe(_NO_LESSON)
            pairs = self._pairs(inputs, settings)
            train_preferences(start, *pairs, settings, run, start_from=inputs.get("previous"))
            return
        train, validation = self._examples(inputs, run.report).values()
        if isinstance(recipe.distil, DistilLogits) and self._sources.teacher is not None:
            from compile.training.distil_causal import distil_causal

            distil_causal(self._sources.teacher, start, train, validation, recipe.distil, settings, run)
            return
        from compile.training.causal import train_causal

        fixed = inputs["fixed"] / FIXED if "fixed" in inputs else None
        train_causal(start, train, validation, settings, run, start_from=inputs.get("previous"), fixed=fixed)

    def _taught(self, settings: DistilSequences, data: Step) -> Step:
        """The rows to train on, answered by the teacher."""
        recipe, workshop = self._recipe, self._workshop
        teacher, place = settings.teacher, self._sources.teacher

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.data.rows import write_splits
            from compile.training.teacher import ANSWERS, ask, open_teacher

            splits, parts = read_splits(inputs["data"]), {}
            if _are_pairs(splits):
                raise BadRecipe(_NO_LESSON)
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
            ram_bytes=_ROWS_BYTES if place is None else memory_of(place, teacher),
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
        facts = self._sources.facts
        entering = rows * _TYPICAL_ROW * 4 * facts.hidden
        return Step(
            "fixed-layers",
            {"first_layer": settings.first_layer, **self._lesson()},
            after,
            versions("torch", "transformers") | {"outpost-examples": "2"},
            work,
            seconds=10 + rows * 0.2 * settings.first_layer / facts.layers * facts.float_bytes / 540e6,
            disk_bytes=entering,
            # Row by row, and then all rows in one piece.
            ram_bytes=self._sources.forecast("finetune-lora").ram_bytes + 2 * entering,
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


def _are_pairs(splits: Splits) -> bool:
    """Whether the rows are preferences: a chosen and a rejected answer each."""
    return any(row.rejected for row in splits.train)
