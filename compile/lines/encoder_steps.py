"""The steps of an encoder line: what is made from what, under which key. Nothing runs here but small hashes.

What is cut, taught or fine-tuned ends in a Hugging Face folder like the base's, so each can follow any other,
and everything behind them is the same whatever came before.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compile.data.reading import source_digest, source_files
from compile.errors import BadRecipe
from compile.line import REFERENCE, Workshop, versions
from compile.lines import encoder_training as training
from compile.lines import encoder_work as work
from compile.lines.encoder import STUDENT, EncoderParts, Folders, Recipe, VariantSteps, set_aside
from compile.lines.encoder_quantize import quantize
from compile.lines.tensorrt import recipe_step
from compile.onnx.export import check_folder
from compile.recipe.distil import DistilLabels, DistilVectors, TextTeacher
from compile.recipe.encoder import EncoderVariant
from compile.steps import Report, Step
from models.store import digest_of

_TRAIN_SECONDS = 0.05
"""Per row and epoch on two quiet cores (MiniLM, 100 tokens)."""
_READ_SECONDS = 0.03
"""Per text that is measured."""
_ASK_SECONDS = 1.0
"""Per answer of a teacher that answers in text."""
_CHECKPOINTS = 9
"""On disk, in trained weights: the best, the last, and the one being written, each with two moments."""
_ROW_BYTES = 400
"""What 100 tokens take in a source, with their keys."""


class EncoderSteps:
    """Makes the steps of one recipe. Exists while a line is made."""

    def __init__(self, recipe: Recipe, path: Path, beside: Path, workshop: Workshop) -> None:
        self._recipe, self._beside, self._workshop = recipe, beside, workshop
        self._source = recipe.base.find(beside, "base")
        check_folder(self._source)
        self._weights = sum(file.stat().st_size for file in self._source.glob("*.safetensors"))
        self._rows_bytes = sum(
            file.stat().st_size
            for path in source_files(recipe.data, beside).values()
            for file in (path.rglob("*") if path.is_dir() else [path])
            if file.is_file()
        )
        self._digests = {
            "base": digest_of(self._source),
            "data": source_digest(recipe.data, beside),
            "recipe": digest_of(path),
        }
        self._teacher: Path | None = None
        self._more: Path | None = None
        if recipe.distil is not None:
            self._find_teacher(recipe.distil)
        self._check_healing()

    def parts(self) -> EncoderParts:
        """Every step of the line, by role."""
        recipe = self._recipe
        data = self._data()
        pruned = self._pruned(data) if recipe.prune is not None else None
        labelled = tuned = before = alone = None
        if recipe.finetune is not None:
            if isinstance(recipe.distil, DistilLabels):
                labelled = self._labelled(recipe.distil, data)
            after = {"data": data} | {
                name: step for name, step in (("start", pruned), ("labelled", labelled)) if step is not None
            }
            tuned, before = self._tuned(after), self._before(after)
            alone = self._alone(after) if recipe.distil is not None and recipe.distil.compare else None
        exported = self._exported("export", "base", self._source, data, tuned or pruned)
        whole = exported
        if recipe.reference == "teacher" and self._teacher is not None:
            whole = self._exported("export-teacher", "teacher", self._teacher, data, None)
        elif recipe.reference == "base":
            whole = self._exported("export-base", "base", self._source, data, None)
        variants = {REFERENCE: VariantSteps(whole, self._measured(REFERENCE, whole, whole, data))}
        prepared = self._prepared(exported)
        for one in recipe.variants:
            model = self._quantized(one, exported, prepared, data)
            variants[one.name] = VariantSteps(model, self._measured(one.name, model, exported, data))
        return EncoderParts(
            recipe=recipe,
            workshop=self._workshop,
            digests=self._digests,
            data=data,
            pruned=pruned,
            labelled=labelled,
            tuned=tuned,
            before=before,
            alone=alone,
            exported=exported,
            student=self._measured(STUDENT, exported, exported, data) if whole is not exported else None,
            baselines=self._baselines(data),
            tensorrt=self._tensorrt(variants, exported),
            variants=variants,
        )

    def _find_teacher(self, distil: DistilVectors | DistilLabels) -> None:
        """The teacher, where it is a file or a folder, and more texts. Raises as ``make`` does."""
        place = distil.teacher.file if isinstance(distil.teacher, TextTeacher) else distil.teacher
        for name, source in (("teacher", place), ("texts", distil.texts)):
            if source is not None:
                self._digests[name] = digest_of(source.find(self._beside, f"distil.{name}"))
        self._teacher = place.find(self._beside, "distil.teacher") if place is not None else None
        self._more = distil.texts.find(self._beside, "distil.texts") if distil.texts is not None else None
        if self._teacher is not None and not isinstance(distil.teacher, TextTeacher):
            check_folder(self._teacher)

    def _check_healing(self) -> None:
        """Raises ``BadRecipe`` for a classifier that is to heal by vectors, which it has not."""
        prune = self._recipe.prune
        if prune is None or prune.heal is None:
            return
        config = json.loads((self._source / "config.json").read_text(encoding="utf-8"))
        if any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ()):
            raise BadRecipe(
                "prune.heal: the base is a classifier, and heals by finetune or distil: set heal: null"
            )

    def _data(self) -> Step:
        recipe, beside = self._recipe, self._beside
        return Step(
            "data",
            {
                "task": recipe.task,  # a classifier's rows need labels
                "data": self._digests["data"],
                **recipe.data.model_dump(
                    mode="json", exclude_defaults=True, exclude={"path", "package", "file", "files"}
                ),
            },
            {},
            {"outpost-data": "2"},
            lambda inputs, folder, scratch, report: work.prepare_data(recipe, beside, folder, report),
            seconds=5,
            ram_bytes=90_000_000 + 27 * self._rows_bytes,
        )

    def _lesson(self, inputs: Folders) -> training.Lesson:
        return training.Lesson(
            self._recipe,
            inputs.get("start", self._source),
            inputs["data"],
            self._teacher,
            self._more,
            self._workshop.threads,
            self._workshop.now,
        )

    def _pruned(self, data: Step) -> Step:
        settings, rows = self._recipe.prune, self._train_rows

        def prune(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            if settings is not None:
                training.prune(self._lesson(inputs), settings, folder, scratch, report)

        heal = settings.heal if settings is not None else None
        return Step(
            "prune",
            {"base": self._digests["base"], "prune": settings and settings.model_dump(mode="json")}
            | self._reads(),
            {"data": data},
            versions("torch", "transformers") | {"outpost-prune": "1"},
            prune,
            seconds=20 + rows * (heal.training.epochs if heal is not None else 0) * _TRAIN_SECONDS,
            disk_bytes=self._weights,
            scratch_bytes=self._weights + (_CHECKPOINTS * self._weights if heal is not None else 0),
            ram_bytes=self._train_ram if heal is not None else self._read_ram,
        )

    def _labelled(self, distil: DistilLabels, data: Step) -> Step:
        environment = self._workshop.environment
        asks = isinstance(distil.teacher, TextTeacher)
        teacher = self._teacher.stat().st_size if asks and self._teacher is not None else 0
        return Step(
            "teacher",
            self._lesson_of(distil) | {"rows": self._recipe.evaluate.rows},
            {"data": data},
            versions("llama-cpp-python" if asks else "transformers") | {"outpost-teacher": "1"},
            lambda inputs, folder, scratch, report: training.label(
                self._lesson(inputs), distil, environment, folder, scratch, report
            ),
            seconds=10 + self._train_rows * (_ASK_SECONDS if asks else _READ_SECONDS),
            ram_bytes=self._read_ram + teacher,
        )

    def _tuned(self, after: Mapping[str, Step]) -> Step:
        return Step(
            "finetune",
            self._how(),
            after,
            versions("torch", "transformers", "peft") | {"outpost-classifier": "2"},
            lambda inputs, folder, scratch, report: training.finetune(
                self._lesson(inputs), inputs.get("labelled"), False, folder, scratch, report
            ),
            seconds=self._train_seconds,
            disk_bytes=self._student,
            scratch_bytes=_CHECKPOINTS * self._student,
            ram_bytes=self._train_ram,
        )

    def _before(self, after: Mapping[str, Step]) -> Step:
        return Step(
            "before-training",
            self._how() | self._measures(),
            {name: step for name, step in after.items() if name != "labelled"},
            versions("torch", "transformers") | {"outpost-before": "1"},
            lambda inputs, folder, scratch, report: training.answer_before(
                self._lesson(inputs), folder, report
            ),
            seconds=10 + (self._recipe.evaluate.rows or 1500) * _READ_SECONDS,
            ram_bytes=self._read_ram,
        )

    def _alone(self, after: Mapping[str, Step]) -> Step:
        return Step(
            "without-teacher",
            self._how() | self._measures(),
            after,
            versions("torch", "transformers") | {"outpost-alone": "1"},
            lambda inputs, folder, scratch, report: training.answer_alone(
                self._lesson(inputs), inputs.get("labelled"), folder, scratch, report
            ),
            seconds=self._train_seconds,
            scratch_bytes=(1 + _CHECKPOINTS) * self._student,
            ram_bytes=self._train_ram,
        )

    @property
    def _read_ram(self) -> int:
        """Peak memory of torch reading texts, with transformers around it."""
        return 600_000_000 + self._weights

    @property
    def _train_ram(self) -> int:
        """The same where every weight is trained: gradients and two moments beside them."""
        return 900_000_000 + 5 * self._student

    @property
    def _student(self) -> int:
        """Bytes of float32 weights that pruning leaves, of an encoder with BERT's layers."""
        config = json.loads((self._source / "config.json").read_text(encoding="utf-8"))
        layers, width, neurons = (
            config.get(name, 0) for name in ("num_hidden_layers", "hidden_size", "intermediate_size")
        )
        kept, left, prune = layers, neurons, self._recipe.prune
        if prune is not None and prune.depth is not None:
            gone = prune.depth.drop or len(prune.depth.layers or ())
            kept = prune.depth.keep or layers - gone
        if prune is not None and prune.width is not None:
            left = prune.width.neurons or neurons
        whole, rest = (
            count * 4 * width * (4 * width + 2 * each) for count, each in ((layers, neurons), (kept, left))
        )
        return max(0, self._weights - int(whole - rest))

    @property
    def _train_rows(self) -> int:
        """Rows of 100 tokens that are learned from, by the size of what holds them."""
        held = 8 * self._rows_bytes // (10 * _ROW_BYTES)
        more = self._more.stat().st_size // _ROW_BYTES if self._more is not None else 0
        return min(held, self._recipe.data.train_rows or held) + more

    @property
    def _train_seconds(self) -> float:
        epochs = self._recipe.finetune.epochs if self._recipe.finetune is not None else 0
        return 20 + self._train_rows * epochs * _TRAIN_SECONDS

    def _how(self) -> dict[str, Any]:
        """What decides a training besides the rows and what it starts from."""
        recipe = self._recipe
        settings = recipe.finetune and recipe.finetune.model_dump(mode="json", exclude_defaults=True)
        how: dict[str, Any] = {"base": self._digests["base"], "finetune": settings}
        return how if recipe.distil is None else how | self._lesson_of(recipe.distil)

    def _lesson_of(self, distil: DistilVectors | DistilLabels) -> dict[str, Any]:
        """What decides what a teacher says."""
        said = distil.model_dump(mode="json", exclude={"compare"})
        if isinstance(distil, DistilLabels) and isinstance(distil.teacher, TextTeacher):
            said["teacher"].pop("key_variable")
        found = {name: self._digests[name] for name in ("teacher", "texts") if name in self._digests}
        return {"distil": said, "found": found} | self._reads()

    def _reads(self) -> dict[str, Any]:
        """How much of a text is learned from, and which copies are left out."""
        read = self._recipe.finetune and self._recipe.finetune.max_tokens
        return {"text": self._recipe.text.model_dump(mode="json"), "max_tokens": read} | (
            {"near_duplicate": self._recipe.data.near_duplicate} if self._more is not None else {}
        )

    def _measures(self) -> dict[str, Any]:
        """Which rows are measured."""
        return {"rows": self._recipe.evaluate.rows, "seen": list(set_aside(self._recipe.variants))}

    def _exported(self, name: str, of: str, source: Path, data: Step, made: Step | None) -> Step:
        recipe = self._recipe
        return Step(
            name,
            {
                "base": self._digests[of],
                "task": recipe.task,
                "text": recipe.text.model_dump(mode="json"),
                "export": recipe.export.model_dump(mode="json"),
            },
            {"data": data} | ({"tuned": made} if made is not None else {}),
            versions("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime")
            | {"outpost-export": "2"},
            lambda inputs, folder, scratch, report: work.export(
                recipe, inputs.get("tuned", source), inputs["data"], folder, scratch, report
            ),
            seconds=15,
            disk_bytes=self._weights,
            scratch_bytes=self._weights,
            ram_bytes=660_000_000 + 33 * self._weights // 10,
        )

    def _prepared(self, exported: Step) -> Step:
        return Step(
            "prepare",
            {},
            {"exported": exported},
            versions("onnx", "onnxruntime") | {"outpost-prepare": "1"},
            lambda inputs, folder, scratch, report: work.prepare_graph(inputs["exported"], folder),
            seconds=4,
            disk_bytes=self._weights,
            scratch_bytes=self._weights,
            ram_bytes=142_000_000 + 35 * self._weights // 10,
        )

    def _quantized(self, variant: EncoderVariant, exported: Step, prepared: Step, data: Step) -> Step:
        recipe, threads = self._recipe, self._workshop.threads
        searched = 25 if variant.mixed is not None else 2
        # Fitted to peaks of 17 to 91 MB of weights (docs/encoders.md); hqq needs torch.
        held, tenths = {
            "int8-dynamic": (184_000_000, 21),
            "int8-static": (184_000_000, 33),
            "int8-blocks": (200_000_000, 34),
            "int4": (330_000_000 if variant.method == "hqq" else 200_000_000, 34),
        }[variant.type]
        unset = {"name"} if variant.symmetric else {"name", "symmetric"}  # older results keep their keys
        seen = {"calibration_rows": list(set_aside(recipe.variants)), "rows": recipe.evaluate.rows}
        return Step(
            f"quantize-{variant.name}",
            {"variant": variant.model_dump(mode="json", exclude=unset), "seen": seen},
            {"exported": exported, "prepared": prepared, "data": data},
            versions("onnx", "onnxruntime") | {"outpost-quantize": "2"},
            lambda inputs, folder, scratch, report: quantize(
                recipe, variant, inputs, folder, scratch, threads, report
            ),
            seconds=4 + searched * 3,
            disk_bytes=self._weights // (3 if variant.mixed is None else 1),
            scratch_bytes=2 * self._weights,
            ram_bytes=held + tenths * self._weights // 10,
        )

    def _tensorrt(self, variants: Mapping[str, VariantSteps], exported: Step) -> Step | None:
        section = self._recipe.tensorrt
        if section is None:
            return None
        after = {"model": variants[section.variant].model, "exported": exported}
        return recipe_step(
            section,
            after,
            lambda inputs: work.tensorrt_tokens(section, inputs["exported"]),
            self._weights,
            section.variant == REFERENCE,
        )

    def _measured(self, name: str, model: Step, exported: Step, data: Step) -> Step:
        recipe, workshop = self._recipe, self._workshop
        evaluate = recipe.evaluate.model_dump(mode="json", include={"rows", "speed_repeats"})
        return Step(
            f"measure-{name}",
            evaluate | {"threads": workshop.threads, "seen": list(set_aside(recipe.variants))},
            {"model": model, "exported": exported, "data": data},
            versions("onnxruntime", "tokenizers") | {"outpost-texts": "2"},
            lambda inputs, folder, scratch, report: work.measure(
                recipe, inputs, folder, workshop.threads, report
            ),
            seconds=6 + (recipe.evaluate.rows or 1500) * _READ_SECONDS,
            ram_bytes=(91_000_000 + 19 * self._weights // 10)
            if model is exported
            else 94_000_000 + 94 * self._weights // 100,
            alone=True,
        )

    def _baselines(self, data: Step) -> Step:
        recipe = self._recipe
        return Step(
            "baselines",
            {"task": recipe.task, "rows": recipe.evaluate.rows, "seen": list(set_aside(recipe.variants))},
            {"data": data},
            versions("scikit-learn") | {"outpost-baselines": "1"},
            lambda inputs, folder, scratch, report: work.compare_baselines(recipe, inputs["data"], folder),
            seconds=15,
            ram_bytes=200_000_000 + 230_000 * (recipe.evaluate.rows or 1500),
        )
