"""Releases of an encoder line: the smallest variant that passed, with its probes and what was measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from compile.data.rows import read_splits, spread
from compile.errors import CompileError
from compile.evaluate.judge import VariantResult
from compile.evaluate.texts import read_measured
from compile.findings import Findings
from compile.forecast import fitting
from compile.line import REFERENCE, speed_of
from compile.lines.encoder import EncoderParts, engine_of, evaluated
from compile.lines.encoder_findings import lineage
from compile.lines.encoder_work import release_files, tensorrt_tokens
from compile.lines.tensorrt import RECIPE, asked_variant, package_recipe
from compile.onnx.export import TOKENIZER
from compile.onnx.files import MODEL
from compile.package import package_release
from compile.recipe.encoder import ClassifyRecipe
from compile.steps import Cache
from models.digest import Digest
from models.manifest import Engine, Kind, Manifest, Probe
from models.probes import label_answer, vector_answer


def package(line: EncoderParts, cache: Cache, findings: Findings, out: Path) -> dict[str, Path]:
    """Write the chosen variant's release. Raises ``CompileError`` when nothing can be probed."""
    recipe = line.recipe
    chosen = next(one for one in findings.variants if one.name == findings.chosen)
    exported = cache.folder(line.exported)
    files = release_files(cache.folder(line.variants[chosen.name].model), exported)
    engine = engine_of(exported)
    template = Manifest(
        kind=Kind.MODEL,
        name=recipe.release.name,
        version=recipe.release.version,
        format="onnx",
        precision=chosen.precision,
        files=(),
        profiles=recipe.release.profiles
        or fitting(files[MODEL], chosen.precision, corrections=line.workshop.corrections),
        engine=engine.model_copy(update={"tokenizer": Digest.of((exported / TOKENIZER).read_bytes())}),
        lineage=lineage(line, cache) | {"settings": dict(chosen.settings)},
        quality=tuple(verdict.quality for verdict in chosen.verdicts),
        speed=(speed_of(findings.device, chosen),),
        fallback_ledger=chosen.ledger,
        probes=_probes(line, cache, chosen, engine),
        license=recipe.release.license,
    )
    folder = out / f"{recipe.release.name}-{recipe.release.version}"
    manifest = package_release(folder, template, files)
    return {chosen.name: folder} | _tensorrt(line, cache, findings, manifest, out)


def _tensorrt(
    line: EncoderParts, cache: Cache, findings: Findings, beside: Manifest, out: Path
) -> dict[str, Path]:
    """The recipe of an engine, where one is wanted and its variant passed."""
    section, exported = line.recipe.tensorrt, cache.folder(line.exported)
    if section is None or line.tensorrt is None:
        return {}
    one = asked_variant(section, findings)
    if not one.passed:
        return {}
    engine = beside.engine
    if engine.text is not None:
        longest = tensorrt_tokens(section, exported)[2]
        engine = engine.model_copy(update={"text": engine.text.model_copy(update={"max_tokens": longest})})
    probes = _probes(line, cache, one, engine)
    place = package_recipe(
        out,
        beside,
        line.recipe.release.profiles,
        one,
        section,
        cache.folder(line.tensorrt) / RECIPE,
        engine,
        probes,
        {TOKENIZER: exported / TOKENIZER},
    )
    return {place.name.removesuffix(f"-{beside.version}"): place}


def _probes(line: EncoderParts, cache: Cache, chosen: VariantResult, engine: Engine) -> tuple[Probe, ...]:
    """Measured texts with the variant's own answers; of a classifier the surest right ones, of as many
    labels as there are."""
    recipe, labels = line.recipe, engine.labels
    rows = evaluated(recipe, read_splits(cache.folder(line.data)))
    whole = _read_whole(cache.folder(line.exported), engine, [row.text for row in rows])
    answers = read_measured(cache.folder(line.variants[chosen.name].measured)).answers
    theirs = read_measured(cache.folder(line.variants[REFERENCE].measured)).answers
    if not isinstance(recipe, ClassifyRecipe):
        picked = list(spread(whole, recipe.release.probes))
        said: Mapping[int, str] = {at: vector_answer(answers[at].tolist()) for at in picked}
    else:
        right = [
            at
            for at in whole
            if labels[answers[at].argmax()] == labels[theirs[at].argmax()] == rows[at].label
        ]
        right.sort(key=lambda at: -float(answers[at].max()))
        first = {rows[at].label: at for at in reversed(right)}
        picked = [*first.values(), *(at for at in right if at not in first.values())][: recipe.release.probes]
        said = {at: label_answer(labels, answers[at].tolist()) for at in picked}
    if not picked:
        raise CompileError(
            "of the measured texts that are read whole, the chosen variant gets none right: nothing to probe"
        )
    return tuple(
        Probe(text=rows[at].text, expected=said[at], tolerance=recipe.release.tolerance) for at in picked
    )


def _read_whole(exported: Path, engine: Engine, texts: Sequence[str]) -> list[int]:
    """Which texts fit the model: measuring cuts the others, a device refuses them."""
    from tokenizers import Tokenizer

    needs = engine.text
    tokenizer = Tokenizer.from_file(str(exported / TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    read = tokenizer.encode_batch(list(texts))
    return [at for at, one in enumerate(read) if needs is None or len(one.ids) <= needs.max_tokens]
