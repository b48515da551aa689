"""The line of text encoders: from a Hugging Face folder to an ONNX embedder or classifier.

Owns the steps, and which builds on which. A classifier is fine-tuned first where the recipe says so; the
float export is the reference of everything; every variant is quantized from it and measured through the
engine that will serve it. ``encoder_steps`` does the work, ``encoder_findings`` judges, ``encoder_release``
packages.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compile.data.rows import Row, Splits, spread
from compile.findings import Findings
from compile.line import REFERENCE, Workshop, digest_of, versions
from compile.lines import encoder_steps as work
from compile.lines.tensorrt import recipe_step
from compile.recipe.encoder import ClassifyRecipe, EmbedRecipe, EncoderVariant
from compile.recipe.sections import RecipeBase
from compile.steps import Cache, Step
from models.digest import Digest

_TRAIN_SECONDS = 0.05
"""Per row and epoch on two quiet cores (MiniLM, 100 tokens)."""
_READ_SECONDS = 0.03
"""Per text that is measured."""


@dataclass(frozen=True)
class VariantSteps:
    """One precision: ``model`` holds ``model.onnx``, ``measured`` what the engine made of the texts."""

    model: Step
    measured: Step


@dataclass(frozen=True)
class EncoderLine:
    """One recipe. ``variants`` has the reference first."""

    recipe: EmbedRecipe | ClassifyRecipe
    workshop: Workshop
    source: Path
    digests: Mapping[str, Digest]
    data: Step
    tuned: Step | None
    exported: Step
    baselines: Step
    tensorrt: Step | None
    variants: Mapping[str, VariantSteps]

    @classmethod
    def make(cls, recipe: RecipeBase, path: Path, beside: Path, workshop: Workshop) -> "EncoderLine":
        """The steps of a recipe. Raises ``BadRecipe``, and ``UnsupportedBase`` for a base that is none."""
        if not isinstance(recipe, EmbedRecipe | ClassifyRecipe):
            raise TypeError(f"no recipe for texts: {type(recipe).__name__}")
        return _Making(recipe, path, beside, workshop).line()

    @property
    def steps(self) -> list[Step]:
        """See ``Line``."""
        engine = [self.tensorrt] if self.tensorrt is not None else []
        return [self.data, self.baselines, *engine, *(one.measured for one in self.variants.values())]

    def findings(self, cache: Cache, command: str) -> Findings:
        """See ``Line``."""
        from compile.lines.encoder_findings import find

        return find(self, cache, command)

    def package(self, cache: Cache, findings: Findings, out: Path) -> Mapping[str, Path]:
        """See ``Line``."""
        from compile.lines.encoder_release import package

        return package(self, cache, findings, out)


def evaluated(recipe: EmbedRecipe | ClassifyRecipe, splits: Splits) -> tuple[Row, ...]:
    """The rows that are measured on: the test split of a classifier; of an embedder, which is trained on
    nothing, everything but the rows that calibration and sensitivity have seen."""
    rows = splits.test
    if isinstance(recipe, EmbedRecipe):
        seen = {row.number for row in (*calibration_rows(recipe, splits), *sensitivity_rows(recipe, splits))}
        rows = tuple(
            row for _, part in splits.parts() for row in part if row.number not in seen and not row.augmented
        )
    return spread(rows, recipe.evaluate.rows)


def calibration_rows(recipe: EmbedRecipe | ClassifyRecipe, splits: Splits) -> tuple[Row, ...]:
    """As many training rows as the hungriest variant calibrates with."""
    wanted = [one.calibration_rows for one in recipe.variants if one.type == "int8-static"]
    return spread(splits.train, max(wanted)) if wanted else ()


def sensitivity_rows(recipe: EmbedRecipe | ClassifyRecipe, splits: Splits) -> tuple[Row, ...]:
    """The validation rows that losses are measured on while a mixture is searched."""
    wanted = [one.mixed.rows if one.mixed is not None else 48 for one in recipe.variants if _searches(one)]
    return spread(splits.validation, max(wanted)) if wanted else ()


def _searches(variant: EncoderVariant) -> bool:
    return variant.mixed is not None or (variant.type == "int8-static" and variant.attention == "measure")


class _Making:
    """Makes the steps of one recipe. Exists while a line is made."""

    def __init__(
        self, recipe: EmbedRecipe | ClassifyRecipe, path: Path, beside: Path, workshop: Workshop
    ) -> None:
        from compile.data.reading import source_digest, source_files
        from compile.onnx.export import check_folder

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

    def line(self) -> EncoderLine:
        recipe = self._recipe
        data = self._data()
        tuned = self._tuned(data)
        exported = self._exported(data, tuned)
        prepared = self._prepared(exported)
        reference = VariantSteps(exported, self._measured(REFERENCE, exported, exported, data))
        variants = {REFERENCE: reference}
        for one in recipe.variants:
            model = self._quantized(one, exported, prepared, data)
            variants[one.name] = VariantSteps(model, self._measured(one.name, model, exported, data))
        return EncoderLine(
            recipe=recipe,
            workshop=self._workshop,
            source=self._source,
            digests=self._digests,
            data=data,
            tuned=tuned,
            exported=exported,
            baselines=self._baselines(data),
            tensorrt=self._tensorrt(variants, exported),
            variants=variants,
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

    def _tuned(self, data: Step) -> Step | None:
        recipe, source, threads = self._recipe, self._source, self._workshop.threads
        if not isinstance(recipe, ClassifyRecipe) or recipe.finetune is None:
            return None
        settings = recipe.finetune
        rows = recipe.data.train_rows or 2000
        return Step(
            "finetune",
            {
                "base": self._digests["base"],
                "finetune": settings.model_dump(mode="json", exclude_defaults=True),
            },
            {"data": data},
            versions("torch", "transformers", "peft") | {"outpost-classifier": "2"},
            lambda inputs, folder, scratch, report: work.finetune(
                source, inputs["data"], settings, folder, scratch, threads, report
            ),
            seconds=20 + rows * settings.epochs * _TRAIN_SECONDS,
            disk_bytes=2 * self._weights,
            ram_bytes=900_000_000 + 5 * self._weights,
        )

    def _exported(self, data: Step, tuned: Step | None) -> Step:
        recipe, source = self._recipe, self._source
        return Step(
            "export",
            {
                "base": self._digests["base"],
                "task": recipe.task,
                "text": recipe.text.model_dump(mode="json"),
                "export": recipe.export.model_dump(mode="json"),
            },
            {"data": data} | ({"tuned": tuned} if tuned is not None else {}),
            versions("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime")
            | {"outpost-export": "2"},
            lambda inputs, folder, scratch, report: work.export(
                recipe, inputs.get("tuned", source), inputs["data"], folder, scratch, report
            ),
            seconds=15,
            disk_bytes=3 * self._weights,
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
            disk_bytes=3 * self._weights,
            ram_bytes=142_000_000 + 35 * self._weights // 10,
        )

    def _quantized(self, variant: EncoderVariant, exported: Step, prepared: Step, data: Step) -> Step:
        recipe, threads = self._recipe, self._workshop.threads
        searched = 25 if variant.mixed is not None else 2
        # Fitted to peaks of 41 and 91 MB of weights; hqq needs torch.
        held, tenths = {
            "int8-dynamic": (184_000_000, 21),
            "int8-static": (184_000_000, 33),
            "int8-blocks": (280_000_000, 14),
            "int4": (410_000_000 if variant.method == "hqq" else 280_000_000, 14),
        }[variant.type]
        unset = {"name"} if variant.symmetric else {"name", "symmetric"}  # older results keep their keys
        seen = {"calibration_rows": set_aside(recipe.variants), "rows": recipe.evaluate.rows}
        return Step(
            f"quantize-{variant.name}",
            {"variant": variant.model_dump(mode="json", exclude=unset), "seen": seen},
            {"exported": exported, "prepared": prepared, "data": data},
            versions("onnx", "onnxruntime") | {"outpost-quantize": "2"},
            lambda inputs, folder, scratch, report: work.quantize(
                recipe, variant, inputs, folder, scratch, threads, report
            ),
            seconds=4 + searched * 3,
            disk_bytes=3 * self._weights,
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
            evaluate | {"threads": workshop.threads, "seen": set_aside(recipe.variants)},
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
            {"task": recipe.task, "rows": recipe.evaluate.rows, "seen": set_aside(recipe.variants)},
            {"data": data},
            versions("scikit-learn") | {"outpost-baselines": "1"},
            lambda inputs, folder, scratch, report: work.compare_baselines(recipe, inputs["data"], folder),
            seconds=15,
            ram_bytes=200_000_000 + 230_000 * (recipe.evaluate.rows or 1500),
        )


def set_aside(variants: tuple[EncoderVariant, ...]) -> list[int]:
    """How many rows calibration and sensitivity see; so many are not measured on."""
    calibration = [one.calibration_rows for one in variants if one.type == "int8-static"]
    searched = [one.mixed.rows if one.mixed is not None else 48 for one in variants if _searches(one)]
    return [max(calibration, default=0), max(searched, default=0)]
