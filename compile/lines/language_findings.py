"""What the steps of a language line measured, as findings: every variant against its budgets."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.evaluate import judge
from compile.evaluate.judge import Measured, VariantResult, Verdict
from compile.evaluate.measure import TOKENS, read_measured
from compile.findings import Answer, Case, Compared, Findings, Flips
from compile.gguf.files import CONVERTERS, CONVERTERS_VERSION, fallbacks
from compile.gguf.mixture import Override
from compile.gguf.survival import Nearness, Survival, advise
from compile.line import REFERENCE, tools_of
from compile.lines.judgement import judgement
from compile.lines.language import (
    ADAPTER,
    HF,
    REFERENCE_FILE,
    SETTINGS,
    SURVIVAL,
    LanguageParts,
    VariantSteps,
    answer_fields,
)
from compile.lines.language_cases import text_cases
from compile.lines.language_scores import (
    SEED,
    Asked,
    Said,
    adapter_effect,
    baselines,
    before_and_after,
    right,
    task_metrics,
)
from compile.recipe.language import LanguageRecipe, LanguageVariant
from compile.recipe.sections import Budget
from compile.steps import Cache
from models.digest import Digest
from models.gguf import TensorType, read_header
from models.manifest import Fallback
from models.store import digest_of

if TYPE_CHECKING:
    from compile.lines.language_scores import Tokens


def find(line: LanguageParts, cache: Cache, command: str) -> Findings:
    """Judge what was measured."""
    seen = _Seen.read(line, cache)
    asked = seen.asked
    results = {name: _variant(line, cache, name, seen) for name in line.variants}
    advice = _advice(line, cache)
    cases, flips = _cases(line, cache, seen)
    return Findings(
        **judgement(line, command, results, _left(results, advice)),
        headline=headline_of(line),
        reference_note=reference_note(line, cache),
        rows=dict(asked.sizes) | ({"tested": len(asked.tested)} if asked.tested else {}),
        lineage=lineage(line, cache),
        curve=_curve(line, cache),
        beside=_beside(line, cache, seen),
        cases=cases,
        flips=flips,
        notes=tuple(one.said for one in advice),
    )


@dataclass(frozen=True)
class _Seen:
    """What was measured, read once: what every variant said with the adapter and alone, and of held-out text.

    ``tokens`` are by fidelity step; a variant that reads the text otherwise than the reference has none.
    """

    asked: Asked
    said: Mapping[str, Said]
    alone: Mapping[str, Said]
    before: Said
    tokens: Mapping[str, "Tokens"]

    @classmethod
    def read(cls, line: LanguageParts, cache: Cache) -> "_Seen":
        steps = line.variants.items()
        measured = [(one.fidelity, one.against) for one in line.variants.values()]
        texts = {step.label: step for step in (*chain(*measured), line.before_text) if step is not None}
        tokens = {label: _tokens(cache.folder(step) / TOKENS) for label, step in texts.items()}
        return cls(
            asked=Asked.read(line, cache),
            said={name: Said.read(cache, one.answers) for name, one in steps},
            alone={name: Said.read(cache, one.alone) for name, one in steps},
            before=Said.read(cache, line.before),
            tokens={label: one for label, one in tokens.items() if one is not None},
        )


def _variant(line: LanguageParts, cache: Cache, name: str, seen: _Seen) -> VariantResult:
    """One variant: what it scores, what it lost, whether it may ship."""
    recipe, steps = line.recipe, line.variants[name]
    kind = next((one for one in recipe.variants if one.name == name), None)
    settings, overrides = _settings(kind, cache.folder(steps.model))
    ledger, matrices = _ledger(steps, cache, kind, overrides)
    measured = read_measured(cache.folder(steps.answers or steps.fidelity))
    differ = read_measured(cache.folder(steps.fidelity))["tokens_differ"]
    if differ:  # all that was measured is of other texts
        verdicts: tuple[Verdict, ...] = (judge.broken("token_ids", differ),)
    else:
        metrics = _metrics(line, cache, name, seen)
        if steps.against is not None:
            metrics["fallback_tensors"] = Measured(0.0, float(len(ledger)), None, matrices)
        verdicts = _verdicts(recipe, kind, metrics)
    return VariantResult(
        name=name,
        precision=kind.type if kind else "F32",
        bytes=size_of(cache.folder(steps.model) / steps.file),
        verdicts=verdicts,
        speeds=tuple(measured["speed"]),
        peak_ram_bytes=measured["peak_ram_bytes"],
        ledger=ledger,
        answers=seen.said[name].answers,
        format="onnx-genai" if kind and kind.is_genai else "gguf",
        settings=settings,
    )


def _metrics(line: LanguageParts, cache: Cache, name: str, seen: _Seen) -> dict[str, Measured]:
    """Everything that was measured of one variant, beside the reference."""
    recipe, steps, asked = line.recipe, line.variants[name], seen.asked
    metrics: dict[str, Measured] = {}
    if asked.tested:
        metrics |= task_metrics(recipe, asked, seen.said[name], seen.said[REFERENCE])
    if line.adapter is not None and asked.tested:
        # A merged model has no base of its own: the reference's stands in.
        alone = seen.alone[name] if seen.alone[name].answers else seen.alone[REFERENCE]
        adapted = asked.also_before(seen.said[name])
        metrics["adapter_effect"] = adapter_effect(recipe, asked.before, adapted, alone)
    tokens, rounds = seen.tokens[steps.fidelity.label], recipe.evaluate.bootstrap
    if steps.against is None:
        own = judge.perplexity(tokens["loss"], rounds, SEED)
        metrics["perplexity"] = replace(own, reference=own.value)
        metrics["kl_mean"] = Measured(0.0, 0.0, None, len(tokens["loss"]))
    else:
        metrics |= judge.fidelity_metrics(tokens, seen.tokens[steps.against.label], rounds, SEED)
    if steps.survival is not None:
        metrics |= _survival(cache.folder(steps.survival))
    return metrics


def _verdicts(
    recipe: LanguageRecipe, kind: LanguageVariant | None, metrics: Mapping[str, Measured]
) -> tuple[Verdict, ...]:
    verdicts = judge.hold(metrics, _budgets(recipe, kind))
    if "adapter_margin" in recipe.budgets:
        return verdicts
    # A base on which the adapter does nothing is no base for it, whatever the recipe says.
    return tuple(
        judge.demand(one.metric, one.measured) if one.metric == "adapter_margin" else one for one in verdicts
    )


def _cases(line: LanguageParts, cache: Cache, seen: _Seen) -> tuple[tuple[Case, ...], Flips]:
    """What everyone said to the test rows; without rows, the places of the text where variants part most.

    Flips are counted over all rows, or all places.
    """
    fields, evaluate = answer_fields(line.recipe), line.recipe.evaluate
    if not seen.asked.tested:
        from compile.training.examples import load_tokenizer

        fidelity = {name: steps.fidelity.label for name, steps in line.variants.items()}
        tokens = {name: seen.tokens[label] for name, label in fidelity.items() if label in seen.tokens}
        tokenizer = load_tokenizer(cache.folder(line.root) / HF)
        shown = text_cases(tokenizer, line.text, evaluate.text_tokens, evaluate.window, tokens)
        places = list(zip(*(one["top"].tolist() for one in tokens.values()), strict=True))
        return shown, Flips(sum(len(set(tops)) > 1 for tops in places), len(places))
    cases = tuple(
        Case(
            row.text,
            row.answer,
            {
                name: Answer(some.answers[at], right(row, some.answers[at], fields))
                for name, some in seen.said.items()
            },
        )
        for at, row in enumerate(seen.asked.tested)
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


@dataclass(frozen=True)
class _Advice:
    """Of a type that was tried both ways: the variant that is nearer to the reference, the other, and why."""

    ship: str
    leave: str
    said: str


def _advice(line: LanguageParts, cache: Cache) -> tuple[_Advice, ...]:
    """Whether to merge, by measurement, for every type that was tried both ways."""
    found = []
    for kind in line.recipe.variants:
        beside = next((one.name for one in line.recipe.variants if kind.is_merged(one)), kind.name)
        apart, together = (line.variants[name].survival for name in (beside, kind.name))
        if beside == kind.name or apart is None or together is None:
            continue
        separate, merged = (read_survival(cache.folder(one))[0] for one in (apart, together))
        choice, why = advise(separate, merged)
        ship, leave = (beside, kind.name) if choice == "separate" else (kind.name, beside)
        found.append(_Advice(ship, leave, f"{kind.type}: ship the adapter {choice}; {why}."))
    return tuple(found)


def _left(results: Mapping[str, VariantResult], advice: Sequence[_Advice]) -> set[str]:
    """Of two that differ in merging alone, the one that is farther off, where the nearer one passes."""
    return {one.leave for one in advice if results[one.ship].passed}


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
    found["reference_weights"] = digest_of(cache.folder(line.root) / REFERENCE_FILE)
    found["recipe"] = line.recipe_digest
    found["tools"] = tools_of(line.steps) | {CONVERTERS: CONVERTERS_VERSION}
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


def _beside(line: LanguageParts, cache: Cache, seen: _Seen) -> tuple[Compared, ...]:
    """The baselines, and the model before and after training."""
    texts = None
    if line.before_text is not None:
        after = line.variants[REFERENCE].fidelity
        texts = seen.tokens[line.before_text.label], seen.tokens[after.label]
    said = seen.before, seen.said[REFERENCE]
    return (
        *baselines(line, cache, seen.asked.tested),
        *before_and_after(line.recipe, seen.asked, said, texts),
    )


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
        found = ledger(model, GenaiSettings(kind.genai_precision, **kind.genai_settings))
        return found, sum(len(tensor.shape) > 1 for tensor in model.initializers)
    header = read_header(place)
    return fallbacks(header, kind.type, overrides), sum(len(tensor.shape) > 1 for tensor in header.tensors)


def _settings(kind: LanguageVariant | None, folder: Path) -> tuple[dict[str, Any], tuple[Override, ...]]:
    """How a variant was made, for people, and the tensors that have a type of their own."""
    if kind is None:
        return {}, ()
    found = kind.genai_settings
    if kind.importance:
        found["importance matrix"] = "yes"
    if kind.merged:
        found["adapter"] = "merged"
    if not (folder / SETTINGS).is_file():
        return found, ()
    stored = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    overrides = tuple(Override(name, TensorType[kept]) for name, kept in stored["overrides"])
    return found | stored["settings"], overrides


def _tokens(file: Path) -> "Tokens | None":
    import numpy as np

    if not file.is_file():
        return None
    with np.load(file) as stored:
        return {name: stored[name] for name in stored.files}


def _curve(line: LanguageParts, cache: Cache) -> list[dict[str, Any]]:
    if line.tuned is None:
        return []
    before = _curve(line.previous, cache) if line.previous is not None else []
    own: list[dict[str, Any]] = json.loads(
        (cache.folder(line.tuned) / "curve.json").read_text(encoding="utf-8")
    )
    return before + own
