"""The line of causal language models: what is made from what. Nothing runs here but small hashes.

A base becomes float32 weights and a reference GGUF; training changes it or puts an adapter beside it; every
variant is quantized from the reference and measured against it, through the engine that will serve it.
``language_findings`` judges, ``language_release`` packages.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compile.data.reading import source_digest
from compile.data.rows import Row, Splits, read_splits
from compile.errors import BadRecipe
from compile.evaluate import answers, tokens
from compile.evaluate.measure import measure
from compile.findings import Findings
from compile.gguf.base import REFERENCE as REFERENCE_FILE
from compile.gguf.base import import_base
from compile.gguf.files import CONVERTERS_VERSION, Converters, vocabulary
from compile.gguf.folder import import_folder
from compile.gguf.importance import importance
from compile.gguf.quantize import quantize
from compile.line import REFERENCE, Workshop, digest_of, versions
from compile.recipe.language import LanguageRecipe, LanguageVariant
from compile.recipe.load import load_recipe
from compile.recipe.training import FineTune
from compile.steps import Cache, Report, Step
from models.digest import Digest
from models.engines.llama_cpp import read_header
from models.prompts import ChatTemplate

MODEL = "model.gguf"
ADAPTER = "adapter.gguf"
HF = "hf"
FIXED = "fixed.safetensors"
IMPORTANCE = "importance.safetensors"
BASE_PROBE = "What is the capital of France?"
BASE_PROBE_TOKENS = 8

Folders = Mapping[str, Path]


@dataclass(frozen=True)
class VariantSteps:
    """The steps of one variant. ``fidelity`` measures it without the adapter, ``answers`` with it."""

    model: Step
    file: str
    fidelity: Step
    answers: Step | None


@dataclass(frozen=True)
class LanguageLine:
    """A recipe of ``task: generate`` as steps. ``root`` holds what the variants are quantized from.

    ``digests`` are those of the sources, by name. ``variants`` has the reference first.
    """

    recipe: LanguageRecipe
    recipe_digest: Digest
    digests: Mapping[str, Digest]
    workshop: Workshop
    previous: "LanguageLine | None"
    base: Step
    root: Step
    data: Step | None
    tuned: Step | None
    adapter: Step | None
    baselines: Step | None
    variants: Mapping[str, VariantSteps]

    @classmethod
    def make(cls, path: Path, workshop: Workshop, continued: frozenset[Path] = frozenset()) -> "LanguageLine":
        """Read a recipe and what it names. Raises ``BadRecipe``."""
        recipe = load_recipe(path)
        if not isinstance(recipe, LanguageRecipe):
            raise BadRecipe(f"{path}: task {recipe.task!r}, where 'generate' is needed")
        path = path.resolve()
        if path in continued:
            raise BadRecipe(f"{path}: continues: the recipes continue each other in a circle")
        previous = None
        if recipe.continues is not None:
            before = path.parent / recipe.continues
            if not before.is_file():
                raise BadRecipe(f"continues: {before} is not there")
            previous = cls.make(before, workshop, continued | {path})
            _check_continues(recipe, previous.recipe)
        return _Maker(recipe, path.parent, workshop, previous).line(Digest.of(path.read_bytes()))

    @property
    def steps(self) -> list[Step]:
        """Everything that the judgement needs."""
        made = [self.data, self.baselines, self.tuned, self.adapter]
        measured = [step for one in self.variants.values() for step in (one.fidelity, one.answers)]
        return [self.base, self.root, *(step for step in (*made, *measured) if step is not None)]

    def findings(self, cache: Cache, command: str) -> Findings:
        """See ``Line``."""
        from compile.lines.language_findings import find

        return find(self, cache, command)

    def package(self, cache: Cache, findings: Findings, out: Path) -> Mapping[str, Path]:
        """See ``Line``."""
        from compile.lines.language_release import package

        return package(self, cache, findings, out)


def answer_fields(recipe: LanguageRecipe) -> tuple[answers.Field, ...]:
    """The fields of a structured answer; none where the answer is text."""
    described = (recipe.data.answer or {}) if recipe.data is not None else {}
    return tuple(answers.Field(name, field.labels) for name, field in described.items())


def chat(recipe: LanguageRecipe, row: Row) -> tuple[Mapping[str, str], ...]:
    """The messages of a request: the recipe's system prompt comes first unless the row has one."""
    system = recipe.prompt.system
    if system is None or any(message["role"] == "system" for message in row.messages):
        return row.messages
    return ({"role": "system", "content": system}, *row.messages)


def template_of(folder: Path) -> ChatTemplate:
    """The chat template of the reference in ``folder``."""
    known = vocabulary(read_header(folder / REFERENCE_FILE))
    return ChatTemplate(known.chat_template, known.tokens[known.bos], known.tokens[known.eos])


def test_rows(recipe: LanguageRecipe, splits: Splits) -> tuple[Row, ...]:
    """The rows that the recipe tests on."""
    return spread(splits.test, recipe.evaluate.test_rows)


def before_rows(recipe: LanguageRecipe, splits: Splits) -> tuple[Row, ...]:
    """Those of them that are also given to the base without its adapter."""
    return spread(test_rows(recipe, splits), recipe.evaluate.before_rows)


def spread(rows: tuple[Row, ...], wanted: int | None) -> tuple[Row, ...]:
    """``wanted`` rows at even distances: splits are ordered by label and language."""
    if wanted is None or wanted >= len(rows):
        return rows
    return tuple(rows[at * len(rows) // wanted] for at in range(wanted))


class _Maker:
    """Makes the steps of one recipe. Exists while a line is made, so that a step is a few words."""

    def __init__(
        self, recipe: LanguageRecipe, beside: Path, workshop: Workshop, previous: LanguageLine | None
    ) -> None:
        self._recipe, self._beside, self._workshop, self._previous = recipe, beside, workshop, previous
        self._converters = Converters(workshop.converters)
        self._source = recipe.base.find(beside, "base")
        self._text = recipe.evaluate.text.find(beside, "evaluate.text")
        self._digests = {"base": digest_of(self._source), "text": digest_of(self._text)}
        if recipe.data is not None:
            self._digests["data"] = source_digest(recipe.data, beside)
        if recipe.calibration is not None:
            self._calibration = recipe.calibration.text.find(beside, "calibration.text")
            self._digests["calibration"] = digest_of(self._calibration)
            if self._digests["calibration"] == self._digests["text"]:
                raise BadRecipe(
                    "calibration.text: the same text as evaluate.text, which is to be held out; split it"
                )

    def line(self, recipe_digest: Digest) -> LanguageLine:
        recipe = self._recipe
        base = self._base()
        data = self._data() if recipe.data is not None else None
        tuned = adapter = baselines = None
        root = base
        if recipe.finetune is not None and data is not None:
            tuned = self._tuned(recipe.finetune, base, data)
            if recipe.has_adapter:
                adapter = self._adapter(base, tuned)
            else:
                root = self._whole(tuned)
        if data is not None and any(field.labels for field in answer_fields(recipe)):
            baselines = self._baselines(data)
        calibrated = (
            self._importance(root) if any(one.importance or one.mixed for one in recipe.variants) else None
        )
        reference = self._measured(REFERENCE, root, REFERENCE_FILE, None, root, data, adapter)
        variants = {REFERENCE: reference}
        for one in recipe.variants:
            model = self._quantized(one, root, calibrated)
            variants[one.name] = self._measured(
                one.name, model, MODEL, reference.fidelity, root, data, adapter
            )
        return LanguageLine(
            recipe=recipe,
            recipe_digest=recipe_digest,
            digests=self._digests,
            workshop=self._workshop,
            previous=self._previous,
            base=base,
            root=root,
            data=data,
            tuned=tuned,
            adapter=adapter,
            baselines=baselines,
            variants=variants,
        )

    def _base(self) -> Step:
        size = self._size()
        return Step(
            "base",
            {"source": self._digests["base"]},
            {},
            versions("transformers", "tokenizers") | {"converters": CONVERTERS_VERSION, "outpost-base": "2"},
            lambda inputs, folder, scratch, report: (
                import_folder if self._source.is_dir() else import_base
            )(self._source, folder, self._converters, report),
            seconds=8 + 42 * size / 540e6,
            disk_bytes=2 * size,
            ram_bytes=900_000_000,
        )

    def _size(self) -> int:
        """Bytes of the base in float32, about: a quantized file holds 5 bits a weight."""
        if self._source.is_dir():
            return sum(file.stat().st_size for file in self._source.glob("*.safetensors"))
        header = read_header(self._source)
        return 4 * sum(tensor.elements for tensor in header.tensors)

    def _data(self) -> Step:
        source = self._recipe.data
        if source is None:
            raise BadRecipe("data is missing")

        def prepare_rows(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.data.prepare import prepare

            prepare(source, self._beside, folder, report)

        return Step(
            "data",
            {
                "rows": self._digests["data"],
                **source.model_dump(mode="json", exclude={"path", "package", "file"}),
            },
            {},
            {"outpost-data": "2"},
            prepare_rows,
            seconds=4,
            ram_bytes=200_000_000,
        )

    def _tuned(self, settings: FineTune, base: Step, data: Step) -> Step:
        recipe, workshop, previous = self._recipe, self._workshop, self._previous
        after = {"base": base, "data": data}
        if settings.first_layer:
            after["fixed"] = self._fixed(settings, base, data)
        if previous is not None and previous.tuned is not None:
            after["previous"] = previous.tuned

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.training.causal import train_causal

            lists = self._examples(inputs)
            train_causal(
                inputs["base"] / HF,
                lists["train"],
                lists["validation"],
                settings,
                folder,
                scratch,
                workshop.threads,
                workshop.now,
                report,
                start_from=inputs.get("previous"),
                fixed=inputs["fixed"] / FIXED if "fixed" in inputs else None,
            )

        return Step(
            "finetune",
            {"finetune": settings.model_dump(mode="json"), "system": recipe.prompt.system},
            after,
            versions("torch", "peft", "transformers") | {"outpost-finetune": "2"},
            work,
            seconds=300,
            disk_bytes=60_000_000,
            ram_bytes=2_300_000_000,
        )

    def _fixed(self, settings: FineTune, base: Step, data: Step) -> Step:
        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.training.causal import write_fixed

            write_fixed(
                inputs["base"] / HF,
                settings.first_layer,
                self._examples(inputs),
                folder / FIXED,
                self._workshop.threads,
                report,
            )

        rows = (self._recipe.data.train_rows if self._recipe.data else None) or 768
        return Step(
            "fixed-layers",
            {"first_layer": settings.first_layer, "system": self._recipe.prompt.system},
            {"base": base, "data": data},
            versions("torch", "transformers") | {"outpost-examples": "2"},
            work,
            seconds=10 + rows * 0.007 * settings.first_layer,
            disk_bytes=rows * 220_000,
            ram_bytes=1_500_000_000,
        )

    def _examples(self, inputs: Folders) -> dict[str, list[Any]]:
        from compile.training.examples import encode_rows, load_tokenizer

        recipe, splits = self._recipe, read_splits(inputs["data"])
        known = vocabulary(read_header(inputs["base"] / REFERENCE_FILE))
        settings = recipe.finetune or FineTune()
        lists = {}
        for name, rows in (("train", splits.train), ("validation", splits.validation)):
            asked = [dataclasses.replace(row, messages=chat(recipe, row)) for row in rows]
            encoded = encode_rows(
                asked,
                load_tokenizer(inputs["base"] / HF),
                template_of(inputs["base"]).render,
                known.tokens[known.eos],
                settings,
                [field.name for field in answer_fields(recipe) if field.labels],
            )
            lists[name] = list(encoded.examples)
        return lists

    def _adapter(self, base: Step, tuned: Step) -> Step:
        return Step(
            "adapter",
            {},
            {"base": base, "tuned": tuned},
            {"converters": CONVERTERS_VERSION},
            lambda inputs, folder, scratch, report: self._converters.adapter(
                inputs["tuned"], inputs["base"] / HF, folder / ADAPTER
            ),
            seconds=8,
            disk_bytes=12_000_000,
            ram_bytes=900_000_000,
        )

    def _whole(self, tuned: Step) -> Step:
        """A model that training changed, in the shape of a base."""
        size = self._size()
        return Step(
            "tuned-base",
            {},
            {"tuned": tuned},
            {"converters": CONVERTERS_VERSION, "outpost-base": "2"},
            lambda inputs, folder, scratch, report: import_folder(
                inputs["tuned"], folder, self._converters, report
            ),
            seconds=5 + 12 * size / 540e6,
            disk_bytes=2 * size,
            ram_bytes=900_000_000,
        )

    def _baselines(self, data: Step) -> Step:
        fields = [field.name for field in answer_fields(self._recipe) if field.labels]

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.evaluate.baselines import baselines

            splits, found = read_splits(inputs["data"]), {}
            texts = ([row.text for row in splits.train], [row.text for row in splits.test])
            for name in fields:
                found[name] = baselines(texts[0], [row.fields[name] for row in splits.train], texts[1])
            said = {name: {one.name: list(one.labels) for one in some} for name, some in found.items()}
            (folder / "baselines.json").write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")

        return Step(
            "baselines", {"fields": fields}, {"data": data}, versions("scikit-learn"), work, 8, 0, 400_000_000
        )

    def _importance(self, root: Step) -> Step:
        settings = self._recipe.calibration
        if settings is None:
            raise BadRecipe("calibration is missing")
        return Step(
            "importance",
            {"text": self._digests["calibration"], "tokens": settings.tokens},
            {"root": root},
            versions("llama-cpp-python") | {"outpost-importance": "1"},
            lambda inputs, folder, scratch, report: _discard(
                importance(
                    inputs["root"] / REFERENCE_FILE,
                    self._calibration,
                    folder / IMPORTANCE,
                    self._workshop.threads,
                    settings.tokens,
                    report=report,
                )
            ),
            seconds=5 + settings.tokens / 150,
            ram_bytes=1_000_000_000,
        )

    def _quantized(self, one: LanguageVariant, root: Step, calibrated: Step | None) -> Step:
        after = {"root": root}
        if calibrated is not None and one.importance:
            after["importance"] = calibrated

        def shrink(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            matrix = inputs["importance"] / IMPORTANCE if "importance" in inputs else None
            quantize(
                inputs["root"] / REFERENCE_FILE, folder / MODEL, one.type, self._workshop.threads, matrix
            )

        size = self._size()
        return Step(
            f"quantize-{one.name}",
            {"type": one.type},
            after,
            versions("llama-cpp-python") | {"outpost-quantize": "2"},
            shrink,
            seconds=2 + 8 * size / 540e6,
            disk_bytes=int(0.3 * size),
            ram_bytes=800_000_000,
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

        def prompts(inputs: Folders, rows: tuple[Row, ...]) -> list[str]:
            template = template_of(inputs["root"])
            return [template.render(chat(recipe, row)) for row in rows]

        def fidelity(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            before = adapter is not None and "data" in inputs
            probe = template_of(inputs["root"]).render(({"role": "user", "content": BASE_PROBE},))
            job = {
                "model": str(inputs["model"] / file),
                "adapter": None,
                "folder": str(folder),
                "threads": threads,
                "prompts": prompts(inputs, before_rows(recipe, read_splits(inputs["data"])))
                if before
                else [],
                "max_tokens": evaluate.max_tokens,
                "speed_repeats": evaluate.speed_repeats,
                "probe": probe,
                "probe_tokens": BASE_PROBE_TOKENS,
                "text": {"path": str(self._text), "tokens": evaluate.text_tokens, "window": evaluate.window},
                "against": str(inputs["against"]) if "against" in inputs else None,
                "tokenize": tokens.CORPUS,
            }
            result = measure(job, report)
            from compile.training.examples import load_tokenizer

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
                "adapter": str(inputs["adapter"] / ADAPTER) if "adapter" in inputs else None,
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
        tools = versions("llama-cpp-python") | {"outpost-measure": "2"}
        size, slow = self._size(), 1.6 if against is None else 1.0
        heavy = slow * size / 540e6
        own = ("text_tokens", "window", "before_rows", "test_rows", "max_tokens", "speed_repeats")
        stated = {"system": recipe.prompt.system, "file": file, "threads": threads}
        settings = evaluate.model_dump(mode="json")
        measured = Step(
            f"fidelity-{name}",
            {"text": self._digests["text"], **stated, **{key: settings[key] for key in own}},
            linked,
            tools,
            fidelity,
            seconds=3 + heavy * (3 + evaluate.text_tokens / 200 + evaluate.before_rows * 0.7),
            disk_bytes=evaluate.text_tokens * 49152 * 2 if against is None else 1_000_000,
            ram_bytes=int(300_000_000 + size * (1.6 if against is None else 0.7)),
        )
        if data is None:
            return VariantSteps(model, file, measured, None)
        answered = Step(
            f"answers-{name}",
            {**stated, **{key: settings[key] for key in ("test_rows", "max_tokens", "speed_repeats")}},
            {"model": model, "root": root, "data": data} | ({"adapter": adapter} if adapter else {}),
            tools,
            answer,
            seconds=3 + heavy * (7 + (evaluate.test_rows or 96) * 0.45),
            ram_bytes=int(300_000_000 + size * (1.3 if against is None else 0.5)),
        )
        return VariantSteps(model, file, measured, answered)


def _check_continues(recipe: LanguageRecipe, before: LanguageRecipe) -> None:
    """What continues an adapter must have its shape."""
    if recipe.finetune is None or before.finetune is None or not before.has_adapter:
        raise BadRecipe("continues: both recipes fine-tune an adapter")
    for key in ("method", "rank", "alpha", "targets", "first_layer"):
        ours, theirs = getattr(recipe.finetune, key), getattr(before.finetune, key)
        if ours != theirs:
            raise BadRecipe(
                f"finetune.{key}: {ours!r}, but the recipe that this one continues has {theirs!r}"
            )
    if recipe.base != before.base or recipe.prompt != before.prompt or recipe.data != before.data:
        raise BadRecipe("continues: base, prompt and data must be those of the recipe that is continued")


def _discard(result: object) -> None:
    """A step's work says what it did in its folder, not by what it returns."""
