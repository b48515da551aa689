"""What the steps of a language line measured, as findings: every variant against its budgets."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.data.rows import Row, read_splits
from compile.evaluate import answers, judge
from compile.evaluate.judge import Measured, VariantResult
from compile.evaluate.measure import TOKENS, read_measured
from compile.findings import Answer, Case, Compared, Findings, Flips
from compile.gguf.files import CONVERTERS_VERSION, fallbacks
from compile.gguf.mixture import Override
from compile.gguf.survival import Nearness, Survival, advise
from compile.line import REFERENCE, device_name, tools_of
from compile.lines.language import (
    ADAPTER,
    HF,
    SETTINGS,
    SURVIVAL,
    LanguageParts,
    VariantSteps,
    answer_fields,
    before_rows,
    test_rows,
)
from compile.lines.language_cases import text_cases
from compile.recipe.language import LanguageRecipe, LanguageVariant
from compile.recipe.sections import Budget
from compile.steps import Cache
from models.digest import Digest
from models.gguf import TensorType, read_header
from models.manifest import Fallback

if TYPE_CHECKING:
    import numpy.typing as npt

_SEED = 7


def find(line: LanguageParts, cache: Cache, command: str) -> Findings:
    """Judge what was measured."""
    recipe = line.recipe
    seen = _Seen.read(line, cache)
    results = {name: _variant(line, cache, name, seen) for name in line.variants}
    candidates = tuple(one for name, one in results.items() if name != REFERENCE)
    chosen = judge.choose(candidates)
    cases, flips = _cases(line, cache, seen)
    return Findings(
        title=f"{recipe.release.name} {recipe.release.version} on {recipe.base.name}",
        command=command,
        device=device_name(line.workshop.threads),
        headline=headline_of(line),
        reference_note=reference_note(line, cache),
        rows=dict(seen.sizes) | ({"tested": len(seen.tested)} if seen.tested else {}),
        reference=results[REFERENCE],
        variants=candidates,
        chosen=chosen.name if chosen else None,
        nearest=None if chosen else judge.nearest_recipe(candidates),
        lineage=lineage(line, cache),
        curve=_curve(line, cache),
        beside=_beside(line, cache, seen),
        cases=cases,
        flips=flips,
        notes=_advice(line, cache),
    )


@dataclass(frozen=True)
class _Seen:
    """The rows that were tested, those also ``before`` the adapter, and what every variant said to them."""

    sizes: Mapping[str, int]
    tested: tuple[Row, ...]
    before: tuple[Row, ...]
    said: Mapping[str, list[str]]
    alone: Mapping[str, list[str]]

    @classmethod
    def read(cls, line: LanguageParts, cache: Cache) -> "_Seen":
        tested: tuple[Row, ...] = ()
        before: tuple[Row, ...] = ()
        sizes: Mapping[str, int] = {}
        if line.data is not None:
            splits = read_splits(cache.folder(line.data))
            tested, before = test_rows(line.recipe, splits), before_rows(line.recipe, splits)
            sizes = splits.sizes
        said = {name: _answers(steps, cache) for name, steps in line.variants.items()}
        alone = {
            name: read_measured(cache.folder(steps.fidelity)).get("answers", [])
            for name, steps in line.variants.items()
        }
        return cls(sizes, tested, before, said, alone)


def _variant(line: LanguageParts, cache: Cache, name: str, seen: _Seen) -> VariantResult:
    """One variant: what it scores, what it lost, whether it may ship."""
    recipe, steps = line.recipe, line.variants[name]
    kind = next((one for one in recipe.variants if one.name == name), None)
    metrics: dict[str, Measured] = {}
    if seen.tested:
        metrics |= _task_metrics(line, seen.tested, seen.said[name], seen.said[REFERENCE])
    if line.adapter is not None and seen.tested:
        with_adapter = [seen.said[name][seen.tested.index(row)] for row in seen.before]
        # A merged model has no base of its own: the reference's stands in.
        without = seen.alone[name] or seen.alone[REFERENCE]
        metrics["adapter_effect"] = _adapter_effect(line, seen.before, with_adapter, without)
    settings, overrides = _settings(kind, cache.folder(steps.model))
    ledger, matrices = _ledger(steps, cache, kind, overrides)
    tokens = _tokens(cache.folder(steps.fidelity))
    if steps.against is None:
        metrics["perplexity"] = _perplexity(tokens)
        metrics["kl_mean"] = Measured(0.0, 0.0, None, len(tokens["loss"]))
    else:
        theirs = _tokens(cache.folder(steps.against))
        metrics |= judge.fidelity_metrics(tokens, theirs, recipe.evaluate.bootstrap, _SEED)
        metrics["fallback_tensors"] = Measured(0.0, float(len(ledger)), None, matrices)
    if steps.survival is not None:
        metrics |= _survival(cache.folder(steps.survival))
    verdicts = judge.hold(metrics, _budgets(recipe, kind))
    if "adapter_margin" not in recipe.budgets:
        # A base on which the adapter does nothing is no base for it, whatever the recipe says.
        verdicts = tuple(
            judge.demand(one.metric, one.measured) if one.metric == "adapter_margin" else one
            for one in verdicts
        )
    measured = read_measured(cache.folder(steps.answers or steps.fidelity))
    return VariantResult(
        name=name,
        precision=kind.type if kind else "F32",
        bytes=size_of(cache.folder(steps.model) / steps.file),
        verdicts=verdicts,
        speeds=tuple(measured["speed"]),
        peak_ram_bytes=measured["peak_ram_bytes"],
        ledger=ledger,
        answers=tuple(seen.said[name]),
        format="onnx-genai" if kind and kind.is_genai else "gguf",
        settings=settings,
    )


def _cases(line: LanguageParts, cache: Cache, seen: _Seen) -> tuple[tuple[Case, ...], Flips]:
    """What everyone said to the test rows; without rows, the places of the text where variants part most.

    Flips are counted over all rows, or all places.
    """
    fields, evaluate = answer_fields(line.recipe), line.recipe.evaluate
    if not seen.tested:
        from compile.training.examples import load_tokenizer

        tokens = {name: _tokens(cache.folder(steps.fidelity)) for name, steps in line.variants.items()}
        tokenizer = load_tokenizer(cache.folder(line.root) / HF)
        shown = text_cases(tokenizer, line.text, evaluate.text_tokens, evaluate.window, tokens)
        places = list(zip(*(one["top"].tolist() for one in tokens.values()), strict=True))
        return shown, Flips(sum(len(set(tops)) > 1 for tops in places), len(places))
    cases = tuple(
        Case(
            row.text,
            row.answer,
            {name: Answer(some[at], _right(row, some[at], fields)) for name, some in seen.said.items()},
        )
        for at, row in enumerate(seen.tested)
    )
    return cases, Flips.of(cases)


def _budgets(recipe: LanguageRecipe, kind: LanguageVariant | None) -> Mapping[str, Budget]:
    """What a variant is held to; a merged one has no base without the adapter to be better than."""
    if kind is None:
        return {}
    return {
        metric: budget
        for metric, budget in recipe.budgets.items()
        if not (kind.merged and metric == "adapter_margin")
    }


def _survival(folder: Path) -> dict[str, Measured]:
    """What is left of the adapter: how near to the reference with it, and how much nearer than without."""
    adapted, alone = read_survival(folder)
    near, tokens = adapted.mean_kl, sum(adapted.tokens)
    span = (near.low, near.high)
    found = {"answer_kl": Measured(0.0, near.value, span, tokens, span)}
    if alone is not None:
        margin = Survival(adapted, alone).margin
        found["adapter_margin"] = Measured(near.value, alone.mean_kl.value, (margin.low, margin.high), tokens)
    return found


def read_survival(folder: Path) -> tuple[Nearness, Nearness | None]:
    """What a survival step measured: with the adapter, and without where it can be taken away."""
    stored = json.loads((folder / SURVIVAL).read_text(encoding="utf-8"))
    read = {
        name: Nearness(tuple(one["tokens"]), tuple(one["kl"]), tuple(one["flips"]))
        for name, one in stored.items()
    }
    return read["adapted"], read.get("alone")


def _advice(line: LanguageParts, cache: Cache) -> tuple[str, ...]:
    """Whether to merge, by measurement, for every type that was tried both ways."""
    kinds = {one.name: one for one in line.recipe.variants}
    said = []
    for name, kind in kinds.items():
        steps = line.variants[name]
        same = (other for other, one in kinds.items() if one.type == kind.type and not one.merged)
        apart = next(same, None)
        if not kind.merged or apart is None or steps.survival is None:
            continue
        beside = line.variants[apart].survival
        if beside is not None:
            merged, separate = (read_survival(cache.folder(one))[0] for one in (steps.survival, beside))
            choice, why = advise(separate, merged)
            said.append(f"{kind.type}: ship the adapter {choice}; {why}.")
    return tuple(said)


def headline_of(line: LanguageParts) -> str:
    """The metric that plots and summaries show."""
    first = next((field for field in answer_fields(line.recipe)), None)
    if first is not None:
        return first.metric
    return "chrf" if line.data is not None else "kl_mean"


def reference_note(line: LanguageParts, cache: Cache) -> str:
    """What the reference is: no better weights exist for this source than it holds."""
    facts = json.loads((cache.folder(line.base) / "source.json").read_text(encoding="utf-8"))
    note = (
        f"the source's {facts['precision']} weights in F32"
        if facts["precision"] in ("F32", "F16", "BF16")
        else f"the source's {facts['precision']} weights dequantized to F32: this source has no better ones"
    )
    if line.root is not line.base:
        note += ", fine-tuned"
    return note


def lineage(line: LanguageParts, cache: Cache) -> dict[str, Any]:
    """Where everything comes from, by digest and by version."""
    names = {
        "base": "base_weights",
        "text": "held_out_text",
        "data": "dataset",
        "calibration": "calibration_text",
        "teacher": "teacher",
    }
    found: dict[str, Any] = {names[name]: digest for name, digest in line.digests.items()}
    found["reference"] = reference_note(line, cache)
    found["recipe"] = line.recipe_digest
    found["tools"] = tools_of(line.steps) | {"converters": CONVERTERS_VERSION}
    if line.adapter is not None:
        found["adapter"] = Digest.of((cache.folder(line.adapter) / ADAPTER).read_bytes())
    if line.previous is not None and line.previous.tuned is not None:
        weights = cache.folder(line.previous.tuned) / "adapter_model.safetensors"
        found["continues"] = Digest.of(weights.read_bytes())
    return found


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _task_metrics(
    line: LanguageParts, tested: Sequence[Row], said: Sequence[str], reference: Sequence[str]
) -> dict[str, Measured]:
    """Scores of answers beside those of the reference on the same rows."""
    fields, rounds = answer_fields(line.recipe), line.recipe.evaluate.bootstrap
    same = [float(a == b) for a, b in zip(said, reference, strict=True)]
    agreement = {"answer_agreement": judge.paired(same, [1.0] * len(same), rounds, _SEED)}
    if not fields:
        from compile.evaluate.text_metrics import compare_texts

        return compare_texts([row.answer for row in tested], said, reference, rounds, _SEED) | agreement
    ours = [answers.score(row.fields, text, fields) for row, text in zip(tested, said, strict=True)]
    theirs = [answers.score(row.fields, text, fields) for row, text in zip(tested, reference, strict=True)]

    def share(read: Any) -> Measured:
        return judge.paired([float(read(a)) for a in ours], [float(read(b)) for b in theirs], rounds, _SEED)

    found = {}
    for field in fields:
        found[field.metric] = share(lambda one, name=field.name: one.right[name])
        if field.labels:
            found[f"{field.name}_macro_f1"] = judge.macro_f1(
                [row.fields[field.name] for row in tested],
                [one.said.get(field.name, "") for one in ours],
                [one.said.get(field.name, "") for one in theirs],
                field.labels,
                rounds,
                _SEED,
            )
    found["exact_match"] = share(lambda one: one.exact)
    found["valid_json"] = share(lambda one: one.valid)
    return found | agreement


def _adapter_effect(
    line: LanguageParts, rows: Sequence[Row], with_adapter: Sequence[str], without: Sequence[str]
) -> Measured:
    """The headline score with the adapter (value) and without it (reference), on the same base."""
    rounds, fields = line.recipe.evaluate.bootstrap, answer_fields(line.recipe)
    if not fields:
        from compile.evaluate.text_metrics import compare_texts

        return compare_texts([row.answer for row in rows], with_adapter, without, rounds, _SEED)["chrf"]
    name = fields[0].name
    values, others = (
        [
            float(answers.score(row.fields, text, fields).right[name])
            for row, text in zip(rows, said, strict=True)
        ]
        for said in (with_adapter, without)
    )
    return judge.paired(values, others, rounds, _SEED)


def _beside(line: LanguageParts, cache: Cache, seen: _Seen) -> tuple[Compared, ...]:
    """The baselines, and the base before training."""
    tested, before, alone = seen.tested, seen.before, seen.alone[REFERENCE]
    fields, rounds = answer_fields(line.recipe), line.recipe.evaluate.bootstrap
    found: dict[str, dict[str, Measured]] = {}
    if line.baselines is not None and line.data is not None:
        splits = read_splits(cache.folder(line.data))
        kept = [splits.test.index(row) for row in tested]
        stored = json.loads((cache.folder(line.baselines) / "baselines.json").read_text(encoding="utf-8"))
        for field_name, by_name in stored.items():
            for name, labels in by_name.items():
                right = [labels[at] == row.fields[field_name] for at, row in zip(kept, tested, strict=True)]
                found.setdefault(name, {})[f"{field_name}_accuracy"] = judge.share(right, rounds, _SEED)
    rows = [Compared(name, metrics) for name, metrics in found.items()]
    if before and alone and fields:
        scores = [answers.score(row.fields, text, fields) for row, text in zip(before, alone, strict=True)]
        metrics = {
            field.metric: judge.share([one.right[field.name] for one in scores], rounds, _SEED)
            for field in fields
        }
        metrics["valid_json"] = judge.share([one.valid for one in scores], rounds, _SEED)
        rows.append(Compared("base alone, before fine-tuning", metrics))
    return tuple(rows)


def _right(row: Row, answer: str, fields: Sequence[answers.Field]) -> bool:
    if fields:
        return answers.score(row.fields, answer, fields).right[fields[0].name]
    return answer.strip() == row.answer.strip()


def _perplexity(tokens: Mapping[str, "npt.NDArray[Any]"]) -> Measured:
    import numpy as np

    value = float(np.exp(tokens["loss"].mean()))
    return Measured(value, value, None, len(tokens["loss"]))


def _ledger(
    steps: VariantSteps, cache: Cache, kind: LanguageVariant | None, overrides: Sequence[Override]
) -> tuple[tuple[Fallback, ...], int]:
    """What fell back, and out of how many matrices."""
    if kind is None:
        return (), 0
    place = cache.folder(steps.model) / steps.file
    if kind.is_genai:
        from compile.onnx.genai import GenaiSettings, ledger
        from models.onnx import read_model

        model = read_model(place / "model.onnx")
        found = ledger(model, GenaiSettings(precision=kind.genai_precision))
        return found, sum(len(tensor.shape) > 1 for tensor in model.initializers)
    header = read_header(place)
    return fallbacks(header, kind.type, overrides), sum(len(tensor.shape) > 1 for tensor in header.tensors)


def _settings(kind: LanguageVariant | None, folder: Path) -> tuple[dict[str, Any], tuple[Override, ...]]:
    """How a variant was made, for people, and the tensors that have a type of their own."""
    if kind is None:
        return {}, ()
    found: dict[str, Any] = {"importance matrix": "yes"} if kind.importance else {}
    if kind.merged:
        found["adapter"] = "merged"
    if not (folder / SETTINGS).is_file():
        return found, ()
    stored = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    overrides = tuple(Override(name, TensorType[kept]) for name, kept in stored["overrides"])
    return found | stored["settings"], overrides


def _answers(steps: VariantSteps, cache: Cache) -> list[str]:
    return list(read_measured(cache.folder(steps.answers))["answers"]) if steps.answers is not None else []


def _tokens(folder: Path) -> dict[str, Any]:
    import numpy as np

    with np.load(folder / TOKENS) as stored:
        return {name: stored[name] for name in stored.files}


def _curve(line: LanguageParts, cache: Cache) -> list[dict[str, Any]]:
    if line.tuned is None:
        return []
    before = _curve(line.previous, cache) if line.previous is not None else []
    own: list[dict[str, Any]] = json.loads(
        (cache.folder(line.tuned) / "curve.json").read_text(encoding="utf-8")
    )
    return before + own
