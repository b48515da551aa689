"""A recipe as steps: what is made from what, keyed by contents. Nothing runs here but small hashes."""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compile.errors import BadData, BadRecipe
from compile.evaluate import tokens
from compile.evaluate.baselines import baselines
from compile.evaluate.measure import RESULT, measure
from compile.gguf.base import REFERENCE, find_source, import_base
from compile.gguf.files import CONVERTERS_VERSION, Converters, vocabulary
from compile.gguf.quantize import quantize
from compile.recipe.schema import Recipe, load_recipe
from compile.steps import Report, Step
from compile.ticket_data import Splits, check_splits, read_rows, split
from compile.tickets import Ticket, messages
from compile.training.examples import encode, load_tokenizer
from compile.training.finetune import Example, finetune, write_fixed
from models.digest import Digest
from models.engines.llama_cpp import read_header
from models.gguf import GgufHeader
from models.prompts import ChatTemplate
from models.store import chunks_of

MODEL = "model.gguf"
FIXED = "fixed.safetensors"
ADAPTER = "adapter.gguf"
SPLITS = "splits.json"
BASE_PROBE = "What is the capital of France?"
BASE_PROBE_TOKENS = 8
REFERENCE_NAME = "reference"

_TRAIN_SECONDS = 0.0158
"""Per row, epoch and trained layer on two quiet cores (83 tokens a row): the roughest of the forecasts."""
_FIXED_SECONDS = 0.0065
"""Per row and layer that stays as it is."""


@dataclass(frozen=True)
class Workshop:
    """What a build works with."""

    converters: Converters
    threads: int
    now: Callable[[], float]


@dataclass(frozen=True)
class Variants:
    """The steps of one precision of the base."""

    model: Step
    fidelity: Step
    answers: Step


@dataclass(frozen=True)
class Build:
    """The steps of a recipe, by role. ``variants`` has the reference first."""

    recipe: Recipe
    source: Path
    source_digest: Digest
    data_digest: Digest
    recipe_digest: Digest
    text_digest: Digest
    previous: "Build | None"
    base: Step
    data: Step
    tuned: Step
    adapter: Step
    baselines: Step
    threads: int
    variants: Mapping[str, Variants]

    @property
    def steps(self) -> list[Step]:
        """Everything that the judgement needs."""
        measured = [step for one in self.variants.values() for step in (one.fidelity, one.answers)]
        return [self.base, self.data, self.baselines, self.tuned, self.adapter, *measured]


def make_build(path: Path, workshop: Workshop, continued: frozenset[Path] = frozenset()) -> Build:
    """Read a recipe and what it names. Raises ``BadRecipe``."""
    recipe = load_recipe(path)
    path = path.resolve()
    if path in continued:
        raise BadRecipe(f"{path}: continues: the recipes continue each other in a circle")
    beside = path.parent
    source = find_source(recipe.base, beside)
    rows = _existing(beside / recipe.data.path, "data.path")
    text = _package_file(recipe.evaluate.text_package, recipe.evaluate.text_file)
    previous = None
    if recipe.continues is not None:
        before = _existing(beside / recipe.continues, "continues")
        previous = make_build(before, workshop, continued | {path})
        _check_continues(recipe, previous.recipe)
    digests = {name: _digest(file) for name, file in (("source", source), ("rows", rows), ("text", text))}
    template = _template(read_header(source))
    base = Step(
        "base",
        {"source": digests["source"]},
        {},
        _versions("transformers", "tokenizers") | {"converters": CONVERTERS_VERSION},
        lambda inputs, folder, scratch, report: import_base(source, folder, workshop.converters, report),
        seconds=50,
        disk_bytes=1_090_000_000,
        ram_bytes=2_600_000_000,
    )
    data = Step(
        "data",
        {"rows": digests["rows"], **recipe.data.model_dump(exclude={"path"})},
        {},
        {"outpost-data": "1"},
        lambda inputs, folder, scratch, report: _prepare(recipe, rows, folder),
        seconds=2,
    )
    tuned = _finetune_step(recipe, base, data, previous, template, workshop)
    adapter = Step(
        "adapter",
        {},
        {"base": base, "tuned": tuned},
        {"converters": CONVERTERS_VERSION},
        lambda inputs, folder, scratch, report: workshop.converters.adapter(
            inputs["tuned"], inputs["base"] / "hf", folder / ADAPTER
        ),
        seconds=8,
        disk_bytes=12_000_000,
    )
    compared = Step(
        "baselines",
        {},
        {"data": data},
        _versions("scikit-learn"),
        lambda inputs, folder, scratch, report: _baselines(inputs["data"], folder),
        seconds=6,
    )
    variants = _variants(recipe, base, data, adapter, text, digests["text"], template, workshop)
    return Build(
        recipe,
        source,
        digests["source"],
        digests["rows"],
        Digest.of(path.read_bytes()),
        digests["text"],
        previous,
        base,
        data,
        tuned,
        adapter,
        compared,
        workshop.threads,
        variants,
    )


def read_splits(folder: Path) -> Splits:
    """What the data step made."""
    stored = json.loads((folder / SPLITS).read_text(encoding="utf-8"))
    return Splits(**{name: tuple(Ticket(**row) for row in rows) for name, rows in stored.items()})


def read_measured(folder: Path) -> dict[str, Any]:
    """What a measuring step made."""
    result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return result


def test_rows(recipe: Recipe, splits: Splits) -> tuple[Ticket, ...]:
    """The tickets that the recipe tests on."""
    return _spread(splits.test, recipe.evaluate.test_rows)


def before_rows(recipe: Recipe, splits: Splits) -> tuple[Ticket, ...]:
    """Those of them that are also given to the base without its adapter."""
    return _spread(test_rows(recipe, splits), recipe.evaluate.before_rows)


def _spread(rows: tuple[Ticket, ...], wanted: int | None) -> tuple[Ticket, ...]:
    """``wanted`` rows at even distances: the splits are ordered by class and language."""
    if wanted is None or wanted >= len(rows):
        return rows
    return tuple(rows[at * len(rows) // wanted] for at in range(wanted))


def _finetune_step(
    recipe: Recipe, base: Step, data: Step, previous: Build | None, template: ChatTemplate, workshop: Workshop
) -> Step:
    def examples(inputs: Mapping[str, Path]) -> dict[str, list[Example]]:
        splits = read_splits(inputs["data"])
        known = vocabulary(read_header(inputs["base"] / REFERENCE))
        tokenizer = load_tokenizer(inputs["base"] / "hf")
        system, weight = recipe.prompt.system, recipe.finetune.label_weight
        return {
            name: encode(rows, tokenizer, template, system, known.tokens[known.eos], weight)
            for name, rows in (("train", splits.train), ("validation", splits.validation))
        }

    def fix(inputs: Mapping[str, Path], folder: Path, scratch: Path, report: Report) -> None:
        write_fixed(
            inputs["base"] / "hf",
            recipe.finetune.first_layer,
            examples(inputs),
            folder / FIXED,
            workshop.threads,
            report,
        )

    def work(inputs: Mapping[str, Path], folder: Path, scratch: Path, report: Report) -> None:
        lists = examples(inputs)
        finetune(
            inputs["base"] / "hf",
            inputs["fixed"] / FIXED,
            inputs.get("previous"),
            recipe.finetune,
            lists["train"],
            lists["validation"],
            folder,
            scratch,
            workshop.threads,
            workshop.now,
            report,
        )

    rows = recipe.data.train_rows or 768
    layers = 30 - recipe.finetune.first_layer
    fixed = Step(
        "fixed-layers",
        {"first_layer": recipe.finetune.first_layer, "system": recipe.prompt.system},
        {"base": base, "data": data},
        _versions("torch", "transformers"),
        fix,
        seconds=10 + rows * 1.1 * recipe.finetune.first_layer * _FIXED_SECONDS,
        disk_bytes=rows * 220_000,
        ram_bytes=1_500_000_000,
    )
    after = {"base": base, "data": data, "fixed": fixed} | ({"previous": previous.tuned} if previous else {})
    return Step(
        "finetune",
        {"finetune": recipe.finetune.model_dump(mode="json"), "system": recipe.prompt.system},
        after,
        _versions("torch", "peft", "transformers") | {"outpost-finetune": "1"},
        work,
        seconds=20 + rows * recipe.finetune.epochs * layers * _TRAIN_SECONDS,
        disk_bytes=60_000_000,
        ram_bytes=2_300_000_000,
    )


def _variants(
    recipe: Recipe,
    base: Step,
    data: Step,
    adapter: Step,
    text: Path,
    text_digest: Digest,
    template: ChatTemplate,
    workshop: Workshop,
) -> dict[str, Variants]:
    reference = _measured_steps(
        recipe,
        REFERENCE_NAME,
        base,
        REFERENCE,
        None,
        base,
        data,
        adapter,
        text,
        text_digest,
        template,
        workshop,
    )
    result = {REFERENCE_NAME: reference}
    for variant in recipe.variants:

        def shrink(
            inputs: Mapping[str, Path], folder: Path, scratch: Path, report: Report, kind: str = variant.type
        ) -> None:
            quantize(inputs["base"] / REFERENCE, folder / MODEL, kind, workshop.threads)

        model = Step(
            f"quantize-{variant.type.lower()}",
            {"type": variant.type},
            {"base": base},
            _versions("llama-cpp-python"),
            shrink,
            seconds=10,
            disk_bytes=150_000_000,
            ram_bytes=800_000_000,
        )
        result[variant.name] = _measured_steps(
            recipe,
            variant.name,
            model,
            MODEL,
            reference.fidelity,
            base,
            data,
            adapter,
            text,
            text_digest,
            template,
            workshop,
        )
    return result


def _measured_steps(
    recipe: Recipe,
    name: str,
    model: Step,
    file: str,
    against: Step | None,
    base: Step,
    data: Step,
    adapter: Step,
    text: Path,
    text_digest: Digest,
    template: ChatTemplate,
    workshop: Workshop,
) -> Variants:
    evaluate, system = recipe.evaluate, recipe.prompt.system

    def prompts(rows: tuple[Ticket, ...]) -> list[str]:
        return [template.render(messages(system, row.text)) for row in rows]

    def fidelity(inputs: Mapping[str, Path], folder: Path, scratch: Path, report: Report) -> None:
        job = {
            "model": str(inputs["model"] / file),
            "adapter": None,
            "folder": str(folder),
            "threads": workshop.threads,
            "prompts": prompts(before_rows(recipe, read_splits(inputs["data"]))),
            "max_tokens": evaluate.max_tokens,
            "speed_repeats": evaluate.speed_repeats,
            "probe": template.render([{"role": "user", "content": BASE_PROBE}]),
            "probe_tokens": BASE_PROBE_TOKENS,
            "text": {"path": str(text), "tokens": evaluate.text_tokens, "window": evaluate.window},
            "against": str(inputs["against"]) if "against" in inputs else None,
            "tokenize": tokens.CORPUS,
        }
        result = measure(job, report)
        known = vocabulary(read_header(inputs["model"] / file))
        tokens.compare(
            result["token_ids"],
            result["token_ids_special"],
            tokens.CORPUS,
            load_tokenizer(inputs["base"] / "hf"),
            known.bos if known.add_bos else None,
        )

    def answers(inputs: Mapping[str, Path], folder: Path, scratch: Path, report: Report) -> None:
        job = {
            "model": str(inputs["model"] / file),
            "adapter": str(inputs["adapter"] / ADAPTER),
            "folder": str(folder),
            "threads": workshop.threads,
            "prompts": prompts(test_rows(recipe, read_splits(inputs["data"]))),
            "max_tokens": evaluate.max_tokens,
            "speed_repeats": evaluate.speed_repeats,
        }
        measure(job, report)

    tools = _versions("llama-cpp-python") | {"outpost-measure": "1"}
    linked = {"model": model, "base": base, "data": data} | ({"against": against} if against else {})
    size = evaluate.model_dump(mode="json")
    heavy = 1.6 if against is None else 1.0
    return Variants(
        model,
        Step(
            f"fidelity-{name}",
            {"text": text_digest, "system": system, "file": file, "threads": workshop.threads}
            | {
                key: size[key]
                for key in (
                    "text_tokens",
                    "window",
                    "before_rows",
                    "test_rows",
                    "max_tokens",
                    "speed_repeats",
                )
            },
            linked,
            tools,
            fidelity,
            seconds=heavy * (6 + evaluate.text_tokens / 200 + evaluate.before_rows * 0.7),
            disk_bytes=evaluate.text_tokens * 49152 * 2 if against is None else 1_000_000,
            ram_bytes=1_300_000_000,
        ),
        Step(
            f"answers-{name}",
            {"system": system, "file": file, "threads": workshop.threads}
            | {key: size[key] for key in ("test_rows", "max_tokens", "speed_repeats")},
            {"model": model, "data": data, "adapter": adapter},
            tools,
            answers,
            seconds=heavy * (10 + (evaluate.test_rows or 96) * 0.45),
            ram_bytes=1_200_000_000,
        ),
    )


def _prepare(recipe: Recipe, rows: Path, folder: Path) -> None:
    source = recipe.data
    try:
        parsed = read_rows(rows.read_bytes(), source.text, source.language)
        splits = split(parsed, source.seed)
        check_splits(splits, source.near_duplicate)
    except BadData as error:
        raise BadData(f"{rows}: {error}") from error
    train = _spread(splits.train, source.train_rows)
    stored = {"train": train, "validation": splits.validation, "test": splits.test}
    if source.train_rows is not None:
        stored["validation"] = _spread(splits.validation, max(8, source.train_rows // 8))
    written = {name: [dataclasses.asdict(row) for row in part] for name, part in stored.items()}
    (folder / SPLITS).write_text(json.dumps(written, ensure_ascii=False), encoding="utf-8")


def _baselines(data: Path, folder: Path) -> None:
    splits = read_splits(data)
    stored = [dataclasses.asdict(one) for one in baselines(splits.train, splits.test)]
    (folder / "baselines.json").write_text(json.dumps(stored), encoding="utf-8")


def _check_continues(recipe: Recipe, before: Recipe) -> None:
    """What continues an adapter must have its shape."""
    for key in ("rank", "alpha", "targets", "first_layer"):
        ours, theirs = getattr(recipe.finetune, key), getattr(before.finetune, key)
        if ours != theirs:
            raise BadRecipe(
                f"finetune.{key}: {ours!r}, but the recipe that this one continues has {theirs!r}"
            )
    if recipe.base != before.base or recipe.prompt != before.prompt or recipe.data != before.data:
        raise BadRecipe("continues: base, prompt and data must be those of the recipe that is continued")


def _template(header: GgufHeader) -> ChatTemplate:
    known = vocabulary(header)
    return ChatTemplate(known.chat_template, known.tokens[known.bos], known.tokens[known.eos])


def _existing(path: Path, key: str) -> Path:
    if not path.is_file():
        raise BadRecipe(f"{key}: {path} is not there")
    return path


def _package_file(package: str, file: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BadRecipe(f"evaluate.text_package: the package {package!r} is not installed")
    return _existing(Path(next(iter(spec.submodule_search_locations))) / file, "evaluate.text_file")


def _digest(path: Path) -> Digest:
    whole = hashlib.sha256()
    for chunk in chunks_of(path):
        whole.update(chunk)
    return Digest.from_hex(whole.hexdigest())


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}
