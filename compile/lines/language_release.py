"""Releases of a language line: bases that passed, and the adapter that was checked against each of them.

An adapter has one format, so where variants of two engines pass, it ships once for each. Where a model with
the adapter merged in is the smallest that passes, it ships alone.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from compile.data.rows import Row, read_splits
from compile.errors import CompileError
from compile.evaluate import answers
from compile.evaluate.judge import VariantResult
from compile.evaluate.measure import measure, read_measured
from compile.findings import Findings
from compile.forecast import fitting
from compile.gguf.files import CONVERTERS, CONVERTERS_VERSION, vocabulary
from compile.line import speed_of, tools_of
from compile.lines.language import (
    ADAPTER,
    BASE_PROBE,
    BASE_PROBE_TOKENS,
    GENAI_ADAPTER,
    HF,
    REFERENCE_FILE,
    LanguageParts,
    answer_fields,
    chat,
    template_of,
    test_rows,
)
from compile.lines.language_findings import headline_of
from compile.package import ADAPTER_WEIGHTS, WEIGHTS, adapter_facts, files_below, package_release
from compile.recipe.language import FIDELITY
from compile.recipe.training import FineTune
from compile.steps import Cache
from models import probes
from models.digest import Digest
from models.gguf import read_header
from models.manifest import AdapterFacts, AdapterSlots, Engine, Kind, Manifest, Probe, Quality

_BASE_METRICS = ("perplexity", *FIDELITY)
_BASE_TOLERANCE = 0.6
"""A base completes prose freely: near-ties go either way on another processor."""
_CANDIDATES = 3
"""How many rows are tried for each probe that is wanted."""
MAX_RANK = 64
_SUFFIX = {"gguf": "", "onnx-genai": "-onnx"}
"""What the name of an adapter ends with, by format."""


def package(line: LanguageParts, cache: Cache, findings: Findings, out: Path) -> dict[str, Path]:
    """Bases first: the adapter's manifest holds the digests of theirs."""
    recipe, releases = line.recipe, {}
    passing = sorted((one for one in findings.variants if one.passed), key=lambda one: one.bytes)
    merged = {one.name for one in recipe.variants if one.merged}
    beside_adapter = line.adapter is not None and findings.chosen not in merged
    # Without an adapter the model itself is what was asked for, and one of it ships.
    passing = [
        one for one in passing if (one.name not in merged if beside_adapter else one.name == findings.chosen)
    ]
    digests = {}
    for one in passing:
        manifest = _base_manifest(line, cache, findings, one, beside_adapter)
        folder = out / f"{manifest.name}-{manifest.version}"
        steps = line.variants[one.name]
        place = cache.folder(steps.model) / steps.file
        files = files_below(place) if place.is_dir() else {WEIGHTS: place}
        digests[one.name] = package_release(folder, manifest, files).digest
        releases[one.name] = folder
    if not beside_adapter:
        return releases
    for kind in _SUFFIX:
        same = [one for one in passing if one.format == kind]
        if same:
            manifest, weights = _adapter(line, cache, findings, same, digests)
            folder = out / f"{manifest.name}-{recipe.release.version}"
            name = ADAPTER_WEIGHTS if kind == "gguf" else weights.name
            package_release(folder, manifest, {name: weights})
            releases[f"adapter{_SUFFIX[kind]}"] = folder
    return releases


def _base_manifest(
    line: LanguageParts, cache: Cache, findings: Findings, one: VariantResult, beside_adapter: bool
) -> Manifest:
    recipe, steps = line.recipe, line.variants[one.name]
    known = vocabulary(read_header(cache.folder(line.root) / REFERENCE_FILE))
    measured = read_measured(cache.folder(steps.fidelity))
    traced = dict(findings.lineage)
    asked: tuple[Probe, ...] = (
        Probe(
            messages=({"role": "user", "content": BASE_PROBE},),
            max_tokens=BASE_PROBE_TOKENS,
            expected=measured["probe"],
            tolerance=_BASE_TOLERANCE,
        ),
    )
    slots = None
    if beside_adapter:
        for key in ("dataset", "recipe", "adapter", "continues"):
            traced.pop(key, None)  # a base is the same whatever adapter was made beside it
        traced["tools"] = tools_of([steps.model, steps.fidelity]) | {CONVERTERS: CONVERTERS_VERSION}
        name, version, license_ = recipe.base.name, recipe.base.version, recipe.base.license
        version = f"{version}-{one.name.replace('_', '-')}"
        quality = _qualities(one, of_base=True)
        facts = _facts(line, cache, findings, one, ())
        slots = AdapterSlots(max_rank=MAX_RANK if one.format == "gguf" else facts.rank, targets=facts.targets)
    else:
        name, version, license_ = recipe.release.name, recipe.release.version, recipe.release.license
        quality = tuple(verdict.quality for verdict in one.verdicts)
        asked = (*asked, *_task_probes(line, cache, [one]))
    return Manifest(
        kind=Kind.MODEL,
        name=name,
        version=version,
        format="gguf" if one.format == "gguf" else "onnx-genai",
        precision=one.precision,
        files=(),
        profiles=recipe.release.profiles
        or fitting(
            cache.folder(steps.model) / steps.file, one.precision, corrections=line.workshop.corrections
        ),
        engine=Engine(
            context_length=known.context_length,
            chat_template=Digest.of(known.chat_template.encode()),
            tokenizer=Digest.of((cache.folder(line.root) / HF / "tokenizer.json").read_bytes()),
            adapter_slots=slots,
            output_schema=None if beside_adapter else _schema(line),
            system_prompt=None if beside_adapter else recipe.prompt.system,
        ),
        lineage=traced,
        quality=quality,
        speed=(speed_of(findings.device, measured["speed"], measured["peak_ram_bytes"], one.speed_unit),),
        fallback_ledger=one.ledger,
        probes=asked,
        license=license_,
    )


def _adapter(
    line: LanguageParts,
    cache: Cache,
    findings: Findings,
    passing: Sequence[VariantResult],
    digests: Mapping[str, Digest],
) -> tuple[Manifest, Path]:
    """The manifest of the adapter in the format of the variants that passed, and its weights."""
    recipe, chosen = line.recipe, passing[0]
    checked = [digests[one.name] for one in passing]
    manifest = Manifest(
        kind=Kind.ADAPTER,
        name=f"{recipe.release.name}{_SUFFIX[chosen.format]}",
        version=recipe.release.version,
        format="gguf" if chosen.format == "gguf" else "onnx-genai",
        precision="F16" if chosen.format == "gguf" else "F32",
        files=(),
        profiles=recipe.release.profiles,
        engine=Engine(output_schema=_schema(line), system_prompt=recipe.prompt.system),
        adapter=_facts(line, cache, findings, chosen, checked),
        lineage={**findings.lineage, "chosen_base": digests[chosen.name]},
        quality=_qualities(chosen, of_base=False) + _per_base(line, passing),
        speed=(speed_of(findings.device, chosen.speeds, chosen.peak_ram_bytes, chosen.speed_unit),),
        probes=_task_probes(line, cache, passing),
        license=recipe.release.license,
    )
    return manifest, _adapter_file(line, cache, chosen)


def _adapter_file(line: LanguageParts, cache: Cache, one: VariantResult) -> Path:
    step = line.variants[one.name].adapter
    if step is None:
        raise CompileError(f"no adapter was made for {one.name}")
    return cache.folder(step) / (ADAPTER if one.format == "gguf" else GENAI_ADAPTER)


def _facts(
    line: LanguageParts, cache: Cache, findings: Findings, one: VariantResult, checked: Sequence[Digest]
) -> AdapterFacts:
    """``trained_on`` is the reference's digest: no compiled base is what the adapter learned upon."""
    name, trained_on = line.recipe.base.name, findings.lineage["reference_weights"]
    if one.format == "gguf":
        return adapter_facts(_adapter_file(line, cache, one), name, trained_on, checked)
    settings = line.recipe.finetune or FineTune()
    return AdapterFacts(
        base_name=name,
        trained_on=trained_on,
        checked_against=tuple(checked),
        rank=settings.rank,
        targets=settings.targets,
    )


def _task_probes(line: LanguageParts, cache: Cache, passing: Sequence[VariantResult]) -> tuple[Probe, ...]:
    """Test rows that every passing base answers alike, right ones first, of as many labels as there are.

    Fewer than the recipe wants, when there are no more such rows; none without data.
    """
    recipe, fields = line.recipe, answer_fields(line.recipe)
    if line.data is None:
        return ()
    tested = test_rows(recipe, read_splits(cache.folder(line.data)))
    agreed = [
        (row, answer)
        for at, (row, answer) in enumerate(zip(tested, passing[0].answers, strict=True))
        if all(other.answers[at] == answer for other in passing) and _counts(row, answer, fields)
    ]
    agreed.sort(key=lambda pair: not _exact(pair[0], pair[1], fields))
    seen: set[str] = set()
    ordered: list[tuple[Row, str]] = []
    for row, answer in agreed:
        label = row.fields.get(fields[0].name, "") if fields else row.label
        if label not in seen:
            seen.add(label)
            ordered.append((row, answer))
    ordered += [pair for pair in agreed if pair not in ordered]
    if not ordered:
        raise CompileError("no test row gets the same valid answer from every passing base: nothing to probe")
    candidates = [
        Probe(
            messages=tuple(dict(message) for message in chat(recipe, row)),
            max_tokens=recipe.evaluate.max_tokens,
            expected=answer,
            tolerance=recipe.release.tolerance,
        )
        for row, answer in ordered[: _CANDIDATES * recipe.release.probes]
    ]
    for one in passing:
        candidates = _that_hold(line, cache, one, candidates)
    if not candidates:
        raise CompileError("no answer to a test row is the same when it is asked alone: nothing to probe")
    return tuple(candidates[: recipe.release.probes])


def _that_hold(
    line: LanguageParts, cache: Cache, one: VariantResult, candidates: Sequence[Probe]
) -> list[Probe]:
    """Those that a variant also meets alone, as a device asks them: it was measured with many at a time,
    where other kernels compute and near-ties may fall otherwise.
    """
    steps, template = line.variants[one.name], template_of(cache.folder(line.root))
    with tempfile.TemporaryDirectory() as folder:
        job = {
            "model": str(cache.folder(steps.model) / steps.file),
            "adapter": None if steps.adapter is None else str(_adapter_file(line, cache, one)),
            "folder": folder,
            "threads": line.workshop.threads,
            "prompts": [template.render([dict(m) for m in probe.messages]) for probe in candidates],
            "max_tokens": line.recipe.evaluate.max_tokens,
            "alone": True,
        }
        said = measure(job, lambda done, note: None)["answers"] if candidates else []
    pairs = zip(candidates, said, strict=True)
    return [probe for probe, answer in pairs if probes.judge(probe, answer).passed]


def _counts(row: Row, answer: str, fields: Sequence[answers.Field]) -> bool:
    return answers.score(row.fields, answer, fields).valid if fields else bool(answer.strip())


def _exact(row: Row, answer: str, fields: Sequence[answers.Field]) -> bool:
    if fields:
        return answers.score(row.fields, answer, fields).exact
    return answer.strip() == row.answer.strip()


def _schema(line: LanguageParts) -> dict[str, object] | None:
    fields = answer_fields(line.recipe)
    return answers.schema_of(fields) if fields else None


def _qualities(one: VariantResult, of_base: bool) -> tuple[Quality, ...]:
    return tuple(verdict.quality for verdict in one.verdicts if (verdict.metric in _BASE_METRICS) is of_base)


def _per_base(line: LanguageParts, passing: Sequence[VariantResult]) -> tuple[Quality, ...]:
    """What the adapter loses on each base that it was checked against."""
    return tuple(
        verdict.quality.model_copy(update={"metric": f"{verdict.metric}@{one.name}"})
        for one in passing
        for verdict in one.verdicts
        if verdict.metric in (headline_of(line), "adapter_effect", "adapter_margin", "answer_kl")
    )
