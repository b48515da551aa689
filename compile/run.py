"""``outpost-compile run``: carry out what is not cached, judge, package, report."""

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compile.errors import CompileError, Refused
from compile.evaluate import judge
from compile.evaluate.baselines import Baseline
from compile.evaluate.measure import TOKENS
from compile.gguf.files import CONVERTERS_VERSION, fallbacks, vocabulary
from compile.lines.language import (
    ADAPTER,
    BASE_PROBE,
    BASE_PROBE_TOKENS,
    MODEL,
    REFERENCE_NAME,
    Build,
    before_rows,
    read_measured,
    read_splits,
    test_rows,
)
from compile.package import adapter_facts, package_adapter, package_base
from compile.progress import Progress
from compile.report.page import Findings, write_report
from compile.steps import Cache, in_order
from compile.tickets import ANSWER_SCHEMA, Ticket, messages, score
from models.digest import Digest
from models.engines.llama_cpp import read_header
from models.manifest import AdapterSlots, Engine, Kind, Manifest, Probe, Quality, Speed

_BASE_METRICS = (
    "perplexity",
    "perplexity_ratio",
    "kl_mean",
    "kl_p99",
    "top_token_agreement",
    "fallback_tensors",
)


@dataclass(frozen=True)
class Finished:
    """What a run leaves: the findings, and the release folders by name (none when refused)."""

    findings: Findings
    releases: Mapping[str, Path]


def run(build: Build, cache: Cache, out: Path, progress: Progress, command: str) -> Finished:
    """Build, judge, and write releases and report into ``out``.

    Raises ``Refused`` after the report is written when no variant is within its budgets.
    """
    for step in in_order(build.steps):
        if cache.has(step):
            progress.cached(step.name)
            continue
        progress.start(step.name, step.seconds)
        cache.run(step, progress.report)
        progress.finish()
    findings = find(build, cache, command)
    _clear(out)
    releases = _package(build, cache, findings, out) if findings.chosen is not None else {}
    write_report(out, findings, releases)
    if findings.chosen is None:
        raise Refused(
            "no variant is within its budgets\n"
            + "\n".join(f"{one.name}: {one.refusal}" for one in findings.variants)
            + f"\nnearest recipe that would pass: {json.dumps(findings.nearest)}"
        )
    return Finished(findings, releases)


def find(build: Build, cache: Cache, command: str) -> Findings:
    """Judge what the steps measured. Nothing is run."""
    recipe, rounds, seed = build.recipe, build.recipe.evaluate.bootstrap, build.recipe.data.seed
    splits = read_splits(cache.folder(build.data))
    tested, before = test_rows(recipe, splits), before_rows(recipe, splits)
    at_before = [tested.index(row) for row in before]
    reference = build.variants[REFERENCE_NAME]
    their_tokens = _tokens(cache.folder(reference.fidelity))
    theirs = read_measured(cache.folder(reference.answers))
    kinds = {variant.name: variant.type for variant in recipe.variants}
    results: dict[str, judge.VariantResult] = {}
    alone: dict[str, list[str]] = {}
    for name, steps in build.variants.items():
        ours = read_measured(cache.folder(steps.answers))
        alone[name] = read_measured(cache.folder(steps.fidelity))["answers"]
        with_adapter = [ours["answers"][at] for at in at_before]
        metrics = judge.task_metrics(tested, ours["answers"], theirs["answers"], rounds, seed)
        metrics["adapter_effect"] = judge.adapter_effect(before, with_adapter, alone[name], rounds, seed)
        file = _model_file(build, cache, name)
        header = read_header(file)
        ledger = fallbacks(header, kinds[name]) if name in kinds else ()
        if name != REFERENCE_NAME:
            metrics |= judge.fidelity_metrics(
                _tokens(cache.folder(steps.fidelity)), their_tokens, rounds, seed
            )
            matrices = sum(len(tensor.shape) > 1 for tensor in header.tensors)
            metrics["fallback_tensors"] = judge.Measured(0.0, float(len(ledger)), None, matrices)
        results[name] = judge.VariantResult(
            name=name,
            precision=kinds.get(name, "F32"),
            bytes=file.stat().st_size,
            verdicts=judge.hold(metrics, recipe.budgets if name in kinds else {}),
            speeds=tuple(ours["speed"]),
            peak_ram_bytes=ours["peak_ram_bytes"],
            ledger=ledger,
            answers=tuple(ours["answers"]),
        )
    candidates = [one for name, one in results.items() if name != REFERENCE_NAME]
    chosen = judge.choose(candidates)
    nearest = None if chosen else judge.nearest_recipe(candidates, recipe.budgets)
    stored = json.loads((cache.folder(build.baselines) / "baselines.json").read_text(encoding="utf-8"))
    compared = [Baseline(one["name"], tuple(one["labels"]), tuple(one["severities"])) for one in stored]
    kept = [splits.test.index(row) for row in tested]
    return Findings(
        recipe=recipe,
        command=command,
        device=device_name(build),
        sizes={name: len(getattr(splits, name)) for name in ("train", "validation", "test")},
        curve=_curve(build, cache),
        tested=tested,
        before=before,
        reference=results[REFERENCE_NAME],
        variants=tuple(candidates),
        chosen=chosen.name if chosen else None,
        nearest=nearest,
        alone={name: tuple(answers) for name, answers in alone.items()},
        base_perplexity=float(_exp_mean(their_tokens["loss"])),
        baselines={
            one.name: {
                "class_accuracy": judge.label_accuracy(
                    [one.labels[at] == row.label for at, row in zip(kept, tested, strict=True)], rounds, seed
                ),
                "severity_accuracy": judge.label_accuracy(
                    [one.severities[at] == row.severity for at, row in zip(kept, tested, strict=True)],
                    rounds,
                    seed,
                ),
            }
            for one in compared
        },
        lineage=_lineage(build, cache),
    )


def device_name(build: Build) -> str:
    """The processor and the threads, for the figures of speed."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {build.threads} threads"


def _package(build: Build, cache: Cache, findings: Findings, out: Path) -> dict[str, Path]:
    """Bases first: the adapter's manifest holds the digests of theirs."""
    recipe, releases, digests = build.recipe, {}, {}
    adapter_weights = cache.folder(build.adapter) / ADAPTER
    facts = adapter_facts(adapter_weights, recipe.base.name, build.source_digest, ())
    passing = sorted((one for one in findings.variants if one.passed), key=lambda one: one.bytes)
    for one in passing:
        version = f"{recipe.base.version}-{one.precision.lower().replace('_', '-')}"
        folder = out / f"{recipe.base.name}-{version}"
        manifest = package_base(
            folder,
            _model_file(build, cache, one.name),
            _base_manifest(build, cache, one, version, AdapterSlots(max_rank=64, targets=facts.targets)),
        )
        digests[one.name] = manifest.digest
        releases[one.name] = folder
    chosen = passing[0]
    template = Manifest(
        kind=Kind.ADAPTER,
        name=recipe.release.name,
        version=recipe.release.version,
        format="gguf",
        precision="F16",
        files=(),
        engine=Engine(output_schema=dict(ANSWER_SCHEMA), system_prompt=recipe.prompt.system),
        adapter=adapter_facts(
            adapter_weights, recipe.base.name, digests[chosen.name], [digests[one.name] for one in passing]
        ),
        lineage={**findings.lineage, "chosen_base": digests[chosen.name]},
        quality=_qualities(chosen, task=True) + _per_base(passing),
        speed=(_speed(findings.device, chosen.speeds, chosen.peak_ram_bytes),),
        license=recipe.release.license,
    )
    folder = out / f"{recipe.release.name}-{recipe.release.version}"
    package_adapter(folder, adapter_weights, template, _probes(build, findings, chosen, passing))
    releases["adapter"] = folder
    return releases


def _base_manifest(
    build: Build, cache: Cache, one: judge.VariantResult, version: str, slots: AdapterSlots
) -> Manifest:
    known = vocabulary(read_header(_model_file(build, cache, one.name)))
    measured = read_measured(cache.folder(build.variants[one.name].fidelity))
    lineage = _lineage(build, cache)
    for key in ("dataset", "recipe", "adapter", "continues"):
        lineage.pop(key, None)  # a base is the same whatever adapter was made beside it
    return Manifest(
        kind=Kind.MODEL,
        name=build.recipe.base.name,
        version=version,
        format="gguf",
        precision=one.precision,
        files=(),
        engine=Engine(
            context_length=known.context_length,
            chat_template=Digest.of(known.chat_template.encode()),
            tokenizer=_tokenizer_digest(build, cache),
            adapter_slots=slots,
        ),
        lineage=lineage,
        quality=_qualities(one, task=False),
        speed=(_speed(device_name(build), measured["speed"], measured["peak_ram_bytes"]),),
        fallback_ledger=one.ledger,
        probes=(
            Probe(
                messages=({"role": "user", "content": BASE_PROBE},),
                max_tokens=BASE_PROBE_TOKENS,
                expected=measured["probe"],
                tolerance=0.6,
            ),
        ),
        license=build.recipe.base.license,
    )


def _probes(
    build: Build, findings: Findings, chosen: judge.VariantResult, passing: list[judge.VariantResult]
) -> tuple[Probe, ...]:
    """Test tickets that every passing base answers alike, right ones first, of as many classes as there are.

    Fewer than the recipe wants, when there are no more such tickets.
    """
    recipe, probes = build.recipe, []
    scored = list(zip(findings.tested, chosen.answers, strict=True))
    agreed = [
        (row, answer)
        for at, (row, answer) in enumerate(scored)
        if score(row, answer).valid and all(other.answers[at] == answer for other in passing)
    ]
    agreed.sort(key=lambda pair: not score(*pair).exact)
    seen: set[str] = set()
    ordered: list[tuple[Ticket, str]] = []
    for pair in agreed:
        if pair[0].label not in seen:
            seen.add(pair[0].label)
            ordered.append(pair)
    ordered += [pair for pair in agreed if pair not in ordered]
    for row, answer in ordered[: recipe.release.probes]:
        probes.append(
            Probe(
                messages=messages(recipe.prompt.system, row.text),
                max_tokens=recipe.evaluate.max_tokens,
                expected=answer,
                tolerance=recipe.release.tolerance,
            )
        )
    if not probes:
        raise CompileError(
            "no test ticket gets the same valid answer from every passing base: nothing to probe"
        )
    return tuple(probes)


def _qualities(one: judge.VariantResult, task: bool) -> tuple[Quality, ...]:
    return tuple(verdict.quality for verdict in one.verdicts if (verdict.metric not in _BASE_METRICS) is task)


def _per_base(passing: list[judge.VariantResult]) -> tuple[Quality, ...]:
    """What the adapter loses on each base that it was checked against."""
    return tuple(
        verdict.quality.model_copy(update={"metric": f"{verdict.metric}@{one.precision}"})
        for one in passing
        for verdict in one.verdicts
        if verdict.metric in ("class_accuracy", "adapter_effect")
    )


def _speed(device: str, speeds: Sequence[float], peak_ram_bytes: int) -> Speed:
    median, low, high = judge.spread(speeds)
    return Speed(device=device, tokens_per_second=median, spread=(low, high), peak_ram_bytes=peak_ram_bytes)


def _lineage(build: Build, cache: Cache) -> dict[str, Any]:
    weights = cache.folder(build.adapter) / ADAPTER
    lineage: dict[str, Any] = {
        "base_weights": build.source_digest,
        "reference": "the source's Q4_1 weights dequantized to F32: no better weights exist for this source",
        "dataset": build.data_digest,
        "held_out_text": build.text_digest,
        "recipe": build.recipe_digest,
        "adapter": Digest.of(weights.read_bytes()),
        "tools": {name: version for step in in_order(build.steps) for name, version in step.tools.items()}
        | {"converters": CONVERTERS_VERSION, "python": platform.python_version()},
    }
    if build.previous is not None:
        lineage["continues"] = Digest.of(
            (cache.folder(build.previous.tuned) / "adapter_model.safetensors").read_bytes()
        )
    return lineage


def _tokenizer_digest(build: Build, cache: Cache) -> Digest:
    return Digest.of((cache.folder(build.base) / "hf" / "tokenizer.json").read_bytes())


def _model_file(build: Build, cache: Cache, name: str) -> Path:
    from compile.gguf.base import REFERENCE

    folder = cache.folder(build.variants[name].model)
    return folder / (REFERENCE if name == REFERENCE_NAME else MODEL)


def _tokens(folder: Path) -> dict[str, Any]:
    import numpy as np

    with np.load(folder / TOKENS) as stored:
        return {name: stored[name] for name in stored.files}


def _exp_mean(losses: Any) -> Any:
    import numpy as np

    return np.exp(losses.mean())


def _curve(build: Build, cache: Cache) -> list[dict[str, Any]]:
    previous = _curve(build.previous, cache) if build.previous is not None else []
    own = json.loads((cache.folder(build.tuned) / "curve.json").read_text(encoding="utf-8"))
    return previous + [epoch | {"number": len(previous) + epoch["number"]} for epoch in own]


def _clear(out: Path) -> None:
    """Remove what an earlier run left in ``out``, and nothing else."""
    out.mkdir(parents=True, exist_ok=True)
    for path in out.iterdir():
        if path.is_dir() and (path / "release.json").is_file():
            shutil.rmtree(path)
        elif path.name in ("report.html", "report.json"):
            path.unlink()
