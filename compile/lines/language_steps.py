"""The steps of a language line: what is made from what, under which key. Nothing runs here but small hashes.

A *base* is a folder with ``hf/`` (float32 safetensors, tokenizer), the reference GGUF and ``source.json``.
What changes weights (pruning, full fine-tuning, distillation) ends in a folder of the same shape, so each of
them can follow any other, and everything behind them is the same whatever came before.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compile.data.reading import source_digest
from compile.data.rows import Row, Splits, read_splits
from compile.errors import BadRecipe
from compile.evaluate import tokens
from compile.evaluate.measure import measure
from compile.gguf.base import import_base
from compile.gguf.files import CONVERTERS_VERSION, Converters, vocabulary
from compile.gguf.folder import import_folder
from compile.gguf.importance import importance
from compile.gguf.quantize import quantize
from compile.line import REFERENCE, Workshop, digest_of, versions
from compile.lines.language import (
    ADAPTER,
    BASE_PROBE,
    BASE_PROBE_TOKENS,
    FIXED,
    GENAI,
    GENAI_ADAPTER,
    HF,
    IMPORTANCE,
    MODEL,
    REFERENCE_FILE,
    LanguageLine,
    VariantSteps,
    answer_fields,
    before_rows,
    chat,
    template_of,
    test_rows,
)
from compile.recipe.distil import DistilLogits, DistilSequences, Prune
from compile.recipe.language import LanguageRecipe, LanguageVariant
from compile.recipe.training import FineTune
from compile.steps import Report, Step
from models.digest import Digest
from models.engines.llama_cpp import read_header
from models.manifest import AdapterSlots

Folders = Mapping[str, Path]

_WINDOW = 128
"""Tokens of a piece of plain text, where text without rows is learned from."""


class LanguageSteps:
    """Makes the steps of one recipe. Exists while a line is made, so that a step is a few words."""

    def __init__(
        self, recipe: LanguageRecipe, beside: Path, workshop: Workshop, previous: LanguageLine | None
    ) -> None:
        self._recipe, self._beside, self._workshop, self._previous = recipe, beside, workshop, previous
        self._converters = Converters(workshop.converters)
        self._source = recipe.base.find(beside, "base")
        self._text = recipe.evaluate.text.find(beside, "evaluate.text")
        self.digests = {"base": digest_of(self._source), "text": digest_of(self._text)}
        if recipe.data is not None:
            self.digests["data"] = source_digest(recipe.data, beside)
        if recipe.calibration is not None:
            self._calibration = recipe.calibration.text.find(beside, "calibration.text")
            self.digests["calibration"] = digest_of(self._calibration)
            if self.digests["calibration"] == self.digests["text"]:
                raise BadRecipe(
                    "calibration.text: the same text as evaluate.text, which is to be held out; split it"
                )
        if isinstance(recipe.distil, DistilLogits):
            self._teacher = recipe.distil.teacher.find(beside, "distil.teacher")
            self.digests["teacher"] = digest_of(self._teacher)

    def line(self, recipe_digest: Digest) -> LanguageLine:
        """The whole line."""
        recipe = self._recipe
        root = base = self._base()
        data = self._data() if recipe.data is not None else None
        tuned = adapter = None
        if recipe.prune is not None:
            root = self._as_base("pruned-base", self._pruned(recipe.prune, root, data))
        # What is cut is held against the whole; what learns something new, against itself before it shrinks.
        against = base
        if recipe.finetune is not None:
            tuned = self._tuned(recipe.finetune, root, data)
            if recipe.has_adapter:
                adapter = self._adapter(root, tuned)
            else:
                against = root = self._as_base("tuned-base", tuned)
        calibrated = None
        if any(one.importance for one in recipe.variants):
            calibrated = self._importance(root)
        reference = self._measured(REFERENCE, against, REFERENCE_FILE, None, root, data, adapter)
        variants = {REFERENCE: reference}
        for one in recipe.variants:
            model = self._genai(one, root) if one.is_genai else self._quantized(one, root, calibrated)
            rider = self._genai_adapter(model, tuned) if one.is_genai and adapter and tuned else adapter
            file = GENAI if one.is_genai else MODEL
            variants[one.name] = self._measured(one.name, model, file, reference.fidelity, root, data, rider)
        return LanguageLine(
            recipe=recipe,
            recipe_digest=recipe_digest,
            digests=self.digests,
            workshop=self._workshop,
            previous=self._previous,
            base=base,
            root=root,
            data=data,
            tuned=tuned,
            adapter=adapter,
            baselines=self._baselines(data) if data is not None else None,
            variants=variants,
        )

    def _base(self) -> Step:
        size = self._size()
        bring_in = import_folder if self._source.is_dir() else import_base
        return Step(
            "base",
            {"source": self.digests["base"]},
            {},
            versions("transformers", "tokenizers") | {"converters": CONVERTERS_VERSION, "outpost-base": "2"},
            lambda inputs, folder, scratch, report: bring_in(self._source, folder, self._converters, report),
            seconds=8 + 42 * size / 540e6,
            disk_bytes=2 * size,
            ram_bytes=900_000_000,
        )

    def _as_base(self, name: str, made: Step) -> Step:
        """A model that was changed here, in the shape of a base."""
        size = self._size()
        return Step(
            name,
            {},
            {"made": made},
            {"converters": CONVERTERS_VERSION, "outpost-base": "2"},
            lambda inputs, folder, scratch, report: import_folder(
                inputs["made"], folder, self._converters, report
            ),
            seconds=5 + 12 * size / 540e6,
            disk_bytes=2 * size,
            ram_bytes=900_000_000,
        )

    def _size(self) -> int:
        """Bytes of the base in float32."""
        if self._source.is_dir():
            return sum(file.stat().st_size for file in self._source.glob("*.safetensors"))
        return 4 * sum(tensor.elements for tensor in read_header(self._source).tensors)

    def _data(self) -> Step:
        source = self._recipe.data
        if source is None:
            raise BadRecipe("data is missing")

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.data.prepare import prepare

            prepare(source, self._beside, folder, report)

        stated = source.model_dump(mode="json", exclude={"path", "package", "file"})
        return Step(
            "data",
            {"rows": self.digests["data"], **stated},
            {},
            {"outpost-data": "2"},
            work,
            seconds=4,
            ram_bytes=200_000_000,
        )

    def _pruned(self, settings: Prune, root: Step, data: Step | None) -> Step:
        workshop = self._workshop

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.training.prune_heal import prune_causal

            train, validation = self._examples(inputs).values()
            prune_causal(
                inputs["root"] / HF,
                settings,
                train,
                validation,
                folder,
                scratch,
                workshop.threads,
                workshop.now,
                report,
            )

        return Step(
            "prune",
            {"prune": settings.model_dump(mode="json"), **self._lesson()},
            {"root": root} | ({"data": data} if data else {}),
            versions("torch", "transformers") | {"outpost-prune": "1"},
            work,
            seconds=30 + 600 * self._size() / 540e6,
            disk_bytes=3 * self._size(),
            ram_bytes=600_000_000 + 6 * self._size(),
        )

    def _tuned(self, settings: FineTune, root: Step, data: Step | None) -> Step:
        recipe, workshop, previous = self._recipe, self._workshop, self._previous
        after = {"root": root} | ({"data": data} if data else {})
        if settings.first_layer:
            after["fixed"] = self._fixed(settings, dict(after))
        if previous is not None and previous.tuned is not None:
            after["previous"] = previous.tuned
        if isinstance(recipe.distil, DistilSequences) and data is not None:
            after["data"] = self._taught(recipe.distil, data)

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            train, validation = self._examples(inputs).values()
            if isinstance(recipe.distil, DistilLogits):
                from compile.training.distil_causal import distil_causal

                distil_causal(
                    self._teacher,
                    inputs["root"] / HF,
                    train,
                    validation,
                    recipe.distil,
                    settings,
                    folder,
                    scratch,
                    workshop.threads,
                    workshop.now,
                    report,
                )
                return
            from compile.training.causal import train_causal

            train_causal(
                inputs["root"] / HF,
                train,
                validation,
                settings,
                folder,
                scratch,
                workshop.threads,
                workshop.now,
                report,
                start_from=inputs.get("previous"),
                fixed=inputs["fixed"] / FIXED if "fixed" in inputs else None,
            )

        lesson = {"distil": recipe.distil.model_dump(mode="json")} if recipe.distil else {}
        taught_by = {"teacher": self.digests["teacher"]} if "teacher" in self.digests else {}
        whole = settings.method == "full"
        return Step(
            "finetune",
            {"finetune": settings.model_dump(mode="json"), **self._lesson(), **lesson, **taught_by},
            after,
            versions("torch", "peft", "transformers") | {"outpost-finetune": "2"},
            work,
            seconds=300,
            disk_bytes=4 * self._size() if whole else 60_000_000,
            ram_bytes=600_000_000 + (5 if whole else 3) * self._size(),
        )

    def _taught(self, settings: DistilSequences, data: Step) -> Step:
        """The rows to train on, answered by the teacher."""
        recipe, workshop = self._recipe, self._workshop
        teacher = settings.teacher

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.data.rows import write_splits
            from compile.training.teacher import ANSWERS, LocalTeacher, RemoteTeacher, ask

            splits, parts = read_splits(inputs["data"]), {}
            if teacher.file is not None:
                place = teacher.file.find(self._beside, "distil.teacher")
                asked: LocalTeacher | RemoteTeacher = LocalTeacher(place, teacher, workshop.threads)
            else:
                key = workshop.environment.get(teacher.key_variable or "")
                asked = RemoteTeacher(teacher, key, time.sleep)
            try:
                for name in ("train", "validation"):
                    rows = getattr(splits, name)
                    unanswered = [row for row in rows if not (settings.keep_answers and row.answer)]
                    kept = scratch / f"{name}-{ANSWERS}"
                    said = ask(asked, [chat(recipe, row) for row in unanswered], teacher, kept, report)
                    by_number = {row.number: answer for row, answer in zip(unanswered, said, strict=True)}
                    answers = [by_number.get(row.number, row.answer) for row in rows]
                    parts[name] = tuple(
                        dataclasses.replace(row, answer=answer)
                        for row, answer in zip(rows, answers, strict=True)
                        if answer
                    )
            finally:
                asked.close()
            write_splits(folder, Splits(parts["train"], parts["validation"], splits.test))

        return Step(
            "teacher",
            {"teacher": settings.model_dump(mode="json"), "system": recipe.prompt.system},
            {"data": data},
            {"outpost-teacher": "1"},
            work,
            seconds=600,
            ram_bytes=1_000_000_000,
        )

    def _fixed(self, settings: FineTune, after: Mapping[str, Step]) -> Step:
        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.training.causal import write_fixed

            write_fixed(
                inputs["root"] / HF,
                settings.first_layer,
                self._examples(inputs),
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

    def _lesson(self) -> dict[str, Any]:
        """What decides the examples besides data and base."""
        recipe = self._recipe
        if recipe.data is None:
            return {
                "text": self.digests["calibration"],
                "tokens": recipe.calibration and recipe.calibration.tokens,
            }
        settings = recipe.finetune or FineTune()
        kept = {"label_weight", "field_weights", "max_tokens", "too_long"}
        return {"system": recipe.prompt.system, **settings.model_dump(mode="json", include=kept)}

    def _examples(self, inputs: Folders) -> dict[str, list[Any]]:
        """Examples to train on and to validate with: of the rows, or of plain text where there are none."""
        from compile.training.examples import encode_rows, load_tokenizer

        recipe, tokenizer = self._recipe, load_tokenizer(inputs["root"] / HF)
        known = vocabulary(read_header(inputs["root"] / REFERENCE_FILE))
        if "data" not in inputs:
            from compile.training.distil_causal import text_examples

            pieces = text_examples(
                self._calibration.read_text(encoding="utf-8").split("\n\n"), tokenizer, _WINDOW, known.eos
            )
            most = (recipe.calibration.tokens if recipe.calibration else 0) // _WINDOW
            pieces = pieces[: max(20, most)]
            return {"train": pieces[len(pieces) // 10 :], "validation": pieces[: len(pieces) // 10]}
        splits, settings = read_splits(inputs["data"]), recipe.finetune or FineTune()
        lists = {}
        for name, rows in (("train", splits.train), ("validation", splits.validation)):
            encoded = encode_rows(
                [dataclasses.replace(row, messages=chat(recipe, row)) for row in rows],
                tokenizer,
                template_of(inputs["root"]).render,
                known.tokens[known.eos],
                settings,
                [field.name for field in answer_fields(recipe) if field.labels],
            )
            lists[name] = list(encoded.examples)
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
            ram_bytes=900_000_000,
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
            (folder / "baselines.json").write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")

        return Step(
            "baselines", {"fields": fields}, {"data": data}, versions("scikit-learn"), work, 8, 0, 400_000_000
        )

    def _importance(self, root: Step) -> Step:
        settings = self._recipe.calibration
        if settings is None:
            raise BadRecipe("calibration is missing")

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            importance(
                inputs["root"] / REFERENCE_FILE,
                self._calibration,
                folder / IMPORTANCE,
                self._workshop.threads,
                settings.tokens,
                report=report,
            )

        return Step(
            "importance",
            {"text": self.digests["calibration"], "tokens": settings.tokens},
            {"root": root},
            versions("llama-cpp-python") | {"outpost-importance": "1"},
            work,
            seconds=5 + settings.tokens / 150 * self._size() / 540e6,
            ram_bytes=300_000_000 + int(1.5 * self._size()),
        )

    def _quantized(self, one: LanguageVariant, root: Step, calibrated: Step | None) -> Step:
        after = {"root": root}
        if calibrated is not None and one.importance:
            after["importance"] = calibrated

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            matrix = inputs["importance"] / IMPORTANCE if "importance" in inputs else None
            quantize(
                inputs["root"] / REFERENCE_FILE, folder / MODEL, one.type, self._workshop.threads, matrix
            )

        return Step(
            f"quantize-{one.name}",
            {"type": one.type},
            after,
            versions("llama-cpp-python") | {"outpost-quantize": "2"},
            work,
            seconds=2 + 8 * self._size() / 540e6,
            disk_bytes=int(0.3 * self._size()),
            ram_bytes=800_000_000,
        )

    def _genai(self, one: LanguageVariant, root: Step) -> Step:
        from compile.onnx.genai import BUILDER_VERSION, GenaiSettings, export

        settings = GenaiSettings(
            precision=one.genai_precision,
            slots=AdapterSlots(max_rank=self._recipe.finetune.rank, targets=self._recipe.finetune.targets)
            if self._recipe.finetune is not None and self._recipe.has_adapter
            else None,
        )

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            (folder / GENAI).mkdir()
            export(inputs["root"] / HF, settings, folder / GENAI, scratch, report)

        return Step(
            f"export-{one.name}",
            settings.as_json(),
            {"root": root},
            {"builder": BUILDER_VERSION, "outpost-genai": "1"},
            work,
            seconds=15 + 60 * self._size() / 540e6,
            disk_bytes=int(1.3 * self._size()),
            ram_bytes=700_000_000 + 3 * self._size(),
        )

    def _genai_adapter(self, model: Step, tuned: Step) -> Step:
        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.onnx.genai import export_adapter

            export_adapter(inputs["tuned"], inputs["model"] / GENAI, folder / GENAI_ADAPTER)

        return Step(
            "adapter-genai",
            {},
            {"model": model, "tuned": tuned},
            versions("onnxruntime") | {"outpost-genai": "1"},
            work,
            seconds=5,
            disk_bytes=30_000_000,
            ram_bytes=400_000_000,
        )

    def _measured(
        self,
        name: str,
        model: Step,
        file: str,
        against: Step | None,
        root: Step,
        data: Step | None,
        adapter: Step | None,
    ) -> VariantSteps:
        recipe, threads, evaluate = self._recipe, self._workshop.threads, self._recipe.evaluate
        rider = GENAI_ADAPTER if file == GENAI else ADAPTER

        def prompts(inputs: Folders, rows: tuple[Row, ...]) -> list[str]:
            template = template_of(inputs["root"])
            return [template.render(chat(recipe, row)) for row in rows]

        def fidelity(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.training.examples import load_tokenizer

            rows = before_rows(recipe, read_splits(inputs["data"])) if "data" in inputs else ()
            probe = template_of(inputs["root"]).render(({"role": "user", "content": BASE_PROBE},))
            job = {
                "model": str(inputs["model"] / file),
                "adapter": None,
                "folder": str(folder),
                "threads": threads,
                "prompts": prompts(inputs, rows),
                "max_tokens": evaluate.max_tokens,
                "speed_repeats": evaluate.speed_repeats,
                "probe": probe,
                "probe_tokens": BASE_PROBE_TOKENS,
                "text": {"path": str(self._text), "tokens": evaluate.text_tokens, "window": evaluate.window},
                "against": str(inputs["against"]) if "against" in inputs else None,
                "tokenize": tokens.CORPUS,
            }
            result = measure(job, report)
            known = vocabulary(read_header(inputs["root"] / REFERENCE_FILE))
            tokens.compare(
                result["token_ids"],
                result["token_ids_special"],
                tokens.CORPUS,
                load_tokenizer(inputs["root"] / HF),
                known.bos if known.add_bos else None,
            )

        def answer(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            job = {
                "model": str(inputs["model"] / file),
                "adapter": str(inputs["adapter"] / rider) if "adapter" in inputs else None,
                "folder": str(folder),
                "threads": threads,
                "prompts": prompts(inputs, test_rows(recipe, read_splits(inputs["data"]))),
                "max_tokens": evaluate.max_tokens,
                "speed_repeats": evaluate.speed_repeats,
            }
            measure(job, report)

        linked = {"model": model, "root": root}
        linked |= {"against": against} if against is not None else {}
        linked |= {"data": data} if data is not None and adapter is not None else {}
        tools = versions("onnxruntime-genai" if file == GENAI else "llama-cpp-python") | {
            "outpost-measure": "2"
        }
        size, slow = self._size(), 1.6 if against is None else 1.0
        heavy = slow * size / 540e6
        own = ("text_tokens", "window", "before_rows", "test_rows", "max_tokens", "speed_repeats")
        stated = {"system": recipe.prompt.system, "file": file, "threads": threads}
        settings = evaluate.model_dump(mode="json")
        measured = Step(
            f"fidelity-{name}",
            {"text": self.digests["text"], **stated, **{key: settings[key] for key in own}},
            linked,
            tools,
            fidelity,
            seconds=3 + heavy * (3 + evaluate.text_tokens / 200 + evaluate.before_rows * 0.7),
            disk_bytes=evaluate.text_tokens * 49152 * 2 if against is None else 1_000_000,
            ram_bytes=int(300_000_000 + size * (1.6 if against is None else 0.7)),
        )
        if data is None:
            return VariantSteps(model, file, measured, None, None)
        answered = Step(
            f"answers-{name}",
            {**stated, **{key: settings[key] for key in ("test_rows", "max_tokens", "speed_repeats")}},
            {"model": model, "root": root, "data": data} | ({"adapter": adapter} if adapter else {}),
            tools,
            answer,
            seconds=3 + heavy * (7 + (evaluate.test_rows or 96) * 0.45),
            ram_bytes=int(300_000_000 + size * (1.3 if against is None else 0.5)),
        )
        return VariantSteps(model, file, measured, answered, adapter)
