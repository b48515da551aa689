"""Releases of an encoder line: the smallest variant that passed, with its probes and what was measured."""

from collections.abc import Mapping
from pathlib import Path

from compile.data.rows import read_splits
from compile.errors import CompileError
from compile.evaluate import judge
from compile.evaluate.judge import VariantResult
from compile.evaluate.texts import read_measured
from compile.findings import Findings
from compile.line import REFERENCE
from compile.lines.encoder import EncoderLine, evaluated
from compile.lines.encoder_findings import lineage
from compile.lines.encoder_steps import engine_of, release_files
from compile.onnx.export import TOKENIZER
from compile.package import package_release
from compile.recipe.encoder import ClassifyRecipe
from compile.steps import Cache
from models.digest import Digest
from models.manifest import Kind, Manifest, Probe, Speed
from models.probes import label_answer, vector_answer


def package(line: EncoderLine, cache: Cache, findings: Findings, out: Path) -> dict[str, Path]:
    """Write the chosen variant's release. Raises ``CompileError`` when nothing can be probed."""
    recipe = line.recipe
    chosen = next(one for one in findings.variants if one.name == findings.chosen)
    exported = cache.folder(line.exported)
    files = release_files(cache.folder(line.variants[chosen.name].model), exported)
    median, low, high = judge.spread(chosen.speeds)
    engine = engine_of(exported)
    manifest = Manifest(
        kind=Kind.MODEL,
        name=recipe.release.name,
        version=recipe.release.version,
        format="onnx",
        precision=chosen.precision,
        files=(),
        profiles=recipe.release.profiles,
        engine=engine.model_copy(update={"tokenizer": Digest.of((exported / TOKENIZER).read_bytes())}),
        lineage=lineage(line, cache) | {"settings": dict(chosen.settings)},
        quality=tuple(verdict.quality for verdict in chosen.verdicts),
        # The field says tokens; what is counted here are texts, and the device line says so.
        speed=(
            Speed(
                device=f"{findings.device}, texts/s",
                tokens_per_second=median,
                spread=(low, high),
                peak_ram_bytes=chosen.peak_ram_bytes,
            ),
        ),
        fallback_ledger=chosen.ledger,
        probes=_probes(line, cache, chosen),
        license=recipe.release.license,
    )
    folder = out / f"{recipe.release.name}-{recipe.release.version}"
    package_release(folder, manifest, files)
    return {chosen.name: folder}


def _probes(line: EncoderLine, cache: Cache, chosen: VariantResult) -> tuple[Probe, ...]:
    """Measured texts with the variant's own answers; of a classifier the surest right ones, of as many
    labels as there are."""
    recipe, labels = line.recipe, engine_of(cache.folder(line.exported)).labels
    rows = evaluated(recipe, read_splits(cache.folder(line.data)))
    answers = read_measured(cache.folder(line.variants[chosen.name].measured)).answers
    theirs = read_measured(cache.folder(line.variants[REFERENCE].measured)).answers
    if not isinstance(recipe, ClassifyRecipe):
        picked = [
            at * len(rows) // recipe.release.probes for at in range(min(recipe.release.probes, len(rows)))
        ]
        said: Mapping[int, str] = {at: vector_answer(answers[at].tolist()) for at in picked}
    else:
        right = [
            at
            for at, row in enumerate(rows)
            if labels[answers[at].argmax()] == labels[theirs[at].argmax()] == row.label
        ]
        right.sort(key=lambda at: -float(answers[at].max()))
        first = {rows[at].label: at for at in reversed(right)}
        picked = [*first.values(), *(at for at in right if at not in first.values())][: recipe.release.probes]
        said = {at: label_answer(labels, answers[at].tolist()) for at in picked}
    if not picked:
        raise CompileError("the chosen variant gets no measured text right: nothing to probe")
    return tuple(
        Probe(text=rows[at].text, expected=said[at], tolerance=recipe.release.tolerance) for at in picked
    )
