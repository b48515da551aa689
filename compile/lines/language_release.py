"""Releases of a language line: bases that passed, and the adapter that was checked against each of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from compile.data.rows import Row, read_splits
from compile.errors import CompileError
from compile.evaluate import answers, judge
from compile.evaluate.judge import VariantResult
from compile.evaluate.measure import read_measured
from compile.findings import Findings
from compile.gguf.files import vocabulary
from compile.line import device_name
from compile.lines.language import (
    ADAPTER,
    BASE_PROBE,
    BASE_PROBE_TOKENS,
    HF,
    LanguageLine,
    answer_fields,
    chat,
    test_rows,
)
from compile.lines.language_findings import headline_of, lineage
from compile.package import adapter_facts, package_adapter, package_base
from compile.recipe.language import FIDELITY
from compile.steps import Cache
from models.digest import Digest
from models.engines.llama_cpp import read_header
from models.manifest import AdapterSlots, Engine, Kind, Manifest, Probe, Quality, Speed

_BASE_METRICS = ("perplexity", *FIDELITY)
_BASE_TOLERANCE = 0.6
"""A base completes prose freely: near-ties go either way on another processor."""
MAX_RANK = 64


def package(line: LanguageLine, cache: Cache, findings: Findings, out: Path) -> dict[str, Path]:
    """Bases first: the adapter's manifest holds the digests of theirs."""
    recipe, releases = line.recipe, {}
    passing = sorted((one for one in findings.variants if one.passed), key=lambda one: one.bytes)
    targets: tuple[str, ...] = ()
    if line.adapter is not None:
        weights = cache.folder(line.adapter) / ADAPTER
        targets = adapter_facts(weights, recipe.base.name, line.digests["base"], ()).targets
    # Without an adapter the model itself is what was asked for, and one of it ships.
    shipped = passing if line.adapter is not None else passing[:1]
    digests = {}
    for one in shipped:
        manifest = _base_manifest(line, cache, one, targets)
        folder = out / f"{manifest.name}-{manifest.version}"
        steps = line.variants[one.name]
        digests[one.name] = package_base(folder, cache.folder(steps.model) / steps.file, manifest).digest
        releases[one.name] = folder
    if line.adapter is not None:
        folder = out / f"{recipe.release.name}-{recipe.release.version}"
        template = _adapter_manifest(line, cache, findings, passing, digests)
        package_adapter(folder, weights, template, _task_probes(line, cache, passing))
        releases["adapter"] = folder
    return releases


def _base_manifest(line: LanguageLine, cache: Cache, one: VariantResult, targets: Sequence[str]) -> Manifest:
    recipe, steps = line.recipe, line.variants[one.name]
    known = vocabulary(read_header(cache.folder(steps.model) / steps.file))
    measured = read_measured(cache.folder(steps.fidelity))
    traced = lineage(line, cache)
    probes = (
        Probe(
            messages=({"role": "user", "content": BASE_PROBE},),
            max_tokens=BASE_PROBE_TOKENS,
            expected=measured["probe"],
            tolerance=_BASE_TOLERANCE,
        ),
    )
    if line.adapter is not None:
        for key in ("dataset", "recipe", "adapter", "continues"):
            traced.pop(key, None)  # a base is the same whatever adapter was made beside it
        name, version, license_ = recipe.base.name, recipe.base.version, recipe.base.license
        version = f"{version}-{one.precision.lower().replace('_', '-')}"
        quality = _qualities(one, of_base=True)
    else:
        name, version, license_ = recipe.release.name, recipe.release.version, recipe.release.license
        quality = tuple(verdict.quality for verdict in one.verdicts)
        if line.data is not None:
            probes += _task_probes(line, cache, [one])
    return Manifest(
        kind=Kind.MODEL,
        name=name,
        version=version,
        format="gguf",
        precision=one.precision,
        files=(),
        profiles=recipe.release.profiles,
        engine=Engine(
            context_length=known.context_length,
            chat_template=Digest.of(known.chat_template.encode()),
            tokenizer=Digest.of((cache.folder(line.root) / HF / "tokenizer.json").read_bytes()),
            adapter_slots=AdapterSlots(max_rank=MAX_RANK, targets=tuple(targets)) if targets else None,
            output_schema=_schema(line) if line.adapter is None else None,
            system_prompt=recipe.prompt.system if line.adapter is None else None,
        ),
        lineage=traced,
        quality=quality,
        speed=(_speed(device_name(line.workshop.threads), measured["speed"], measured["peak_ram_bytes"]),),
        fallback_ledger=one.ledger,
        probes=probes,
        license=license_,
    )


def _adapter_manifest(
    line: LanguageLine,
    cache: Cache,
    findings: Findings,
    passing: Sequence[VariantResult],
    digests: Mapping[str, Digest],
) -> Manifest:
    recipe, chosen = line.recipe, passing[0]
    if line.adapter is None:
        raise CompileError("no adapter was made")
    checked = [digests[one.name] for one in passing]
    facts = adapter_facts(
        cache.folder(line.adapter) / ADAPTER, recipe.base.name, digests[chosen.name], checked
    )
    return Manifest(
        kind=Kind.ADAPTER,
        name=recipe.release.name,
        version=recipe.release.version,
        format="gguf",
        precision="F16",
        files=(),
        profiles=recipe.release.profiles,
        engine=Engine(output_schema=_schema(line), system_prompt=recipe.prompt.system),
        adapter=facts,
        lineage={**findings.lineage, "chosen_base": digests[chosen.name]},
        quality=_qualities(chosen, of_base=False) + _per_base(line, passing),
        speed=(_speed(findings.device, chosen.speeds, chosen.peak_ram_bytes),),
        license=recipe.release.license,
    )


def _task_probes(line: LanguageLine, cache: Cache, passing: Sequence[VariantResult]) -> tuple[Probe, ...]:
    """Test rows that every passing base answers alike, right ones first, of as many labels as there are.

    Fewer than the recipe wants, when there are no more such rows.
    """
    recipe, fields = line.recipe, answer_fields(line.recipe)
    if line.data is None:
        return ()
    tested = test_rows(recipe, read_splits(cache.folder(line.data)))
    agreed = [
        (row, answer)
        for at, (row, answer) in enumerate(zip(tested, passing[0].answers, strict=True))
        if all(other.answers[at] == answer for other in passing) and (not fields or _valid(row, answer, line))
    ]
    agreed.sort(key=lambda pair: not _exact(*pair, line))
    seen: set[str] = set()
    ordered: list[tuple[Row, str]] = []
    for pair in agreed:
        label = pair[0].fields.get(fields[0].name, "") if fields else pair[0].label
        if label not in seen:
            seen.add(label)
            ordered.append(pair)
    ordered += [pair for pair in agreed if pair not in ordered]
    if not ordered:
        raise CompileError("no test row gets the same valid answer from every passing base: nothing to probe")
    return tuple(
        Probe(
            messages=tuple(dict(message) for message in chat(recipe, row)),
            max_tokens=recipe.evaluate.max_tokens,
            expected=answer,
            tolerance=recipe.release.tolerance,
        )
        for row, answer in ordered[: recipe.release.probes]
    )


def _valid(row: Row, answer: str, line: LanguageLine) -> bool:
    return answers.score(row.fields, answer, answer_fields(line.recipe)).valid


def _exact(row: Row, answer: str, line: LanguageLine) -> bool:
    fields = answer_fields(line.recipe)
    return answers.score(row.fields, answer, fields).exact if fields else answer.strip() == row.answer.strip()


def _schema(line: LanguageLine) -> dict[str, object] | None:
    fields = answer_fields(line.recipe)
    return answers.schema_of(fields) if fields else None


def _qualities(one: VariantResult, of_base: bool) -> tuple[Quality, ...]:
    return tuple(verdict.quality for verdict in one.verdicts if (verdict.metric in _BASE_METRICS) is of_base)


def _per_base(line: LanguageLine, passing: Sequence[VariantResult]) -> tuple[Quality, ...]:
    """What the adapter loses on each base that it was checked against."""
    return tuple(
        verdict.quality.model_copy(update={"metric": f"{verdict.metric}@{one.precision}"})
        for one in passing
        for verdict in one.verdicts
        if verdict.metric in (headline_of(line), "adapter_effect")
    )


def _speed(device: str, speeds: Sequence[float], peak_ram_bytes: int) -> Speed:
    median, low, high = judge.spread(speeds)
    return Speed(device=device, tokens_per_second=median, spread=(low, high), peak_ram_bytes=peak_ram_bytes)
