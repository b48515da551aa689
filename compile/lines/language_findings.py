"""What the steps of a language line measured, as findings: every variant against its budgets."""

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.data.rows import Row, read_splits
from compile.evaluate import answers, judge
from compile.evaluate.judge import Measured, VariantResult
from compile.evaluate.measure import TOKENS, read_measured
from compile.findings import Answer, Case, Compared, Findings
from compile.gguf.files import CONVERTERS_VERSION, fallbacks
from compile.line import REFERENCE, device_name
from compile.lines.language import (
    ADAPTER,
    LanguageLine,
    VariantSteps,
    answer_fields,
    before_rows,
    test_rows,
)
from compile.recipe.language import LanguageVariant
from compile.steps import Cache, in_order
from models.digest import Digest
from models.engines.llama_cpp import read_header
from models.manifest import Fallback

if TYPE_CHECKING:
    import numpy.typing as npt

_SEED = 7


def find(line: LanguageLine, cache: Cache, command: str) -> Findings:
    """Judge what was measured."""
    recipe, fields = line.recipe, answer_fields(line.recipe)
    tested: tuple[Row, ...] = ()
    before: tuple[Row, ...] = ()
    sizes: Mapping[str, int] = {}
    if line.data is not None:
        splits = read_splits(cache.folder(line.data))
        tested, before, sizes = test_rows(recipe, splits), before_rows(recipe, splits), splits.sizes
    kinds = {variant.name: variant for variant in recipe.variants}
    tokens = {name: _tokens(cache.folder(steps.fidelity)) for name, steps in line.variants.items()}
    said = {name: _answers(steps, cache) for name, steps in line.variants.items()}
    alone = {
        name: read_measured(cache.folder(steps.fidelity)).get("answers", [])
        for name, steps in line.variants.items()
    }
    results: dict[str, VariantResult] = {}
    for name, steps in line.variants.items():
        metrics: dict[str, Measured] = {}
        if tested:
            metrics |= _task_metrics(line, tested, said[name], said[REFERENCE])
        if line.adapter is not None and tested:
            at = [tested.index(row) for row in before]
            metrics["adapter_effect"] = _adapter_effect(
                line, before, [said[name][i] for i in at], alone[name]
            )
        ledger, matrices = _ledger(steps, cache, kinds.get(name))
        if name == REFERENCE:
            metrics["perplexity"] = _perplexity(line, tokens[REFERENCE])
        else:
            metrics |= judge.fidelity_metrics(
                tokens[name], tokens[REFERENCE], recipe.evaluate.bootstrap, _SEED
            )
            metrics["fallback_tensors"] = Measured(0.0, float(len(ledger)), None, matrices)
        measured = read_measured(cache.folder(steps.answers or steps.fidelity))
        kind = kinds.get(name)
        results[name] = VariantResult(
            name=name,
            precision=kind.type if kind else "F32",
            bytes=size_of(cache.folder(steps.model) / steps.file),
            verdicts=judge.hold(metrics, recipe.budgets if kind else {}),
            speeds=tuple(measured["speed"]),
            peak_ram_bytes=measured["peak_ram_bytes"],
            ledger=ledger,
            answers=tuple(said[name]),
            format="onnx-genai" if kind and kind.is_genai else "gguf",
            settings=_settings(kind, cache.folder(steps.model)),
        )
    candidates = [one for name, one in results.items() if name != REFERENCE]
    chosen = judge.choose(candidates)
    return Findings(
        title=f"{recipe.release.name} {recipe.release.version} on {recipe.base.name}",
        command=command,
        device=device_name(line.workshop.threads),
        headline=headline_of(line),
        reference_note=reference_note(line, cache),
        rows=dict(sizes) | ({"tested": len(tested)} if tested else {}),
        reference=results[REFERENCE],
        variants=tuple(candidates),
        chosen=chosen.name if chosen else None,
        nearest=None if chosen else judge.nearest_recipe(candidates, recipe.budgets),
        lineage=lineage(line, cache),
        curve=_curve(line, cache),
        beside=_beside(line, cache, tested, before, alone[REFERENCE]),
        cases=tuple(
            Case(
                row.text,
                row.answer,
                {name: Answer(some[at], _right(row, some[at], fields)) for name, some in said.items()},
            )
            for at, row in enumerate(tested)
        ),
    )


def headline_of(line: LanguageLine) -> str:
    """The metric that plots and summaries show."""
    first = next((field for field in answer_fields(line.recipe)), None)
    if first is not None:
        return first.metric
    return "chrf" if line.data is not None else "kl_mean"


def reference_note(line: LanguageLine, cache: Cache) -> str:
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


def lineage(line: LanguageLine, cache: Cache) -> dict[str, Any]:
    """Where everything comes from, by digest and by version."""
    names = {
        "base": "base_weights",
        "text": "held_out_text",
        "data": "dataset",
        "calibration": "calibration_text",
    }
    found: dict[str, Any] = {names[name]: digest for name, digest in line.digests.items()}
    found["reference"] = reference_note(line, cache)
    found["recipe"] = line.recipe_digest
    found["tools"] = {
        name: version for step in in_order(line.steps) for name, version in step.tools.items()
    } | {"converters": CONVERTERS_VERSION, "python": platform.python_version()}
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
    line: LanguageLine, tested: Sequence[Row], said: Sequence[str], reference: Sequence[str]
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
    line: LanguageLine, rows: Sequence[Row], with_adapter: Sequence[str], without: Sequence[str]
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


def _beside(
    line: LanguageLine, cache: Cache, tested: Sequence[Row], before: Sequence[Row], alone: Sequence[str]
) -> tuple[Compared, ...]:
    """The baselines, and the base before training."""
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


def _perplexity(line: LanguageLine, tokens: Mapping[str, "npt.NDArray[Any]"]) -> Measured:
    import numpy as np

    value = float(np.exp(tokens["loss"].mean()))
    return Measured(value, value, None, len(tokens["loss"]))


def _ledger(
    steps: VariantSteps, cache: Cache, kind: LanguageVariant | None
) -> tuple[tuple[Fallback, ...], int]:
    """What fell back, and out of how many matrices."""
    if kind is None or kind.is_genai:
        return (), 0
    header = read_header(cache.folder(steps.model) / steps.file)
    return fallbacks(header, kind.type), sum(len(tensor.shape) > 1 for tensor in header.tensors)


def _settings(kind: LanguageVariant | None, folder: Path) -> dict[str, Any]:
    if kind is None:
        return {}
    found: dict[str, Any] = {"importance matrix": "yes"} if kind.importance else {}
    stored = folder / "settings.json"
    if stored.is_file():
        found |= json.loads(stored.read_text(encoding="utf-8"))
    return found


def _answers(steps: VariantSteps, cache: Cache) -> list[str]:
    return list(read_measured(cache.folder(steps.answers))["answers"]) if steps.answers is not None else []


def _tokens(folder: Path) -> dict[str, Any]:
    import numpy as np

    with np.load(folder / TOKENS) as stored:
        return {name: stored[name] for name in stored.files}


def _curve(line: LanguageLine, cache: Cache) -> list[dict[str, Any]]:
    if line.tuned is None:
        return []
    before = _curve(line.previous, cache) if line.previous is not None else []
    own = json.loads((cache.folder(line.tuned) / "curve.json").read_text(encoding="utf-8"))
    return before + own
