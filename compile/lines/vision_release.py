"""Releases of a vision line: the smallest variant that passed, with probes that are pictures."""

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from compile.data.images import LabelledImage
from compile.evaluate.judge import VariantResult
from compile.evaluate.pictures import read_seen
from compile.findings import Findings
from compile.forecast import fitting
from compile.line import speed_of
from compile.lines.tensorrt import RECIPE, asked_variant, package_recipe
from compile.lines.vision import VisionLine
from compile.lines.vision_findings import MODEL, inspected, lineage
from compile.onnx.files import files_of
from compile.package import package_release
from compile.recipe.vision import InspectRecipe
from compile.steps import Cache
from models.engines.onnx_vision import decode
from models.manifest import Engine, Kind, Manifest, Probe
from models.probes import label_answer, score_answer

_MARGIN = 0.1
"""A probe's score lies at least this share from the threshold: a verdict must not hang on the last digit."""


def package(line: VisionLine, cache: Cache, findings: Findings, out: Path) -> dict[str, Path]:
    """Write the release of what was chosen; by its name."""
    recipe = line.recipe
    chosen = next(one for one in findings.variants if one.name == findings.chosen)
    model = cache.folder(line.variants[chosen.name].model) / MODEL
    manifest = Manifest(
        kind=Kind.MODEL,
        name=recipe.release.name,
        version=recipe.release.version,
        format="onnx",
        precision=chosen.precision,
        files=(),
        profiles=recipe.release.profiles
        or fitting(model, chosen.precision, corrections=line.workshop.corrections),
        engine=_engine(line, cache, chosen),
        lineage=lineage(line, cache),
        quality=tuple(verdict.quality for verdict in chosen.verdicts),
        speed=(speed_of(findings.device, chosen),),
        fallback_ledger=chosen.ledger,
        license=recipe.release.license,
    )
    folder = out / f"{recipe.release.name}-{recipe.release.version}"
    with tempfile.TemporaryDirectory() as scratch:
        probes, pictures = _asked(line, cache, chosen, Path(scratch))
        template = manifest.model_copy(update={"probes": probes})
        manifest = package_release(folder, template, files_of(model) | pictures)
        return {recipe.release.name: folder} | _tensorrt(line, cache, findings, manifest, out, Path(scratch))


def _tensorrt(
    line: VisionLine, cache: Cache, findings: Findings, beside: Manifest, out: Path, scratch: Path
) -> dict[str, Path]:
    """The recipe of an engine, where one is wanted and its variant passed."""
    section = line.recipe.tensorrt
    if section is None or line.tensorrt is None:
        return {}
    one = asked_variant(section, findings)
    if not one.passed:
        return {}
    probes, pictures = _asked(line, cache, one, scratch)
    place = package_recipe(
        out,
        beside,
        line.recipe.release.profiles,
        one,
        section,
        cache.folder(line.tensorrt) / RECIPE,
        _engine(line, cache, one),
        probes,
        pictures,
    )
    return {place.name.removesuffix(f"-{beside.version}"): place}


def _asked(
    line: VisionLine, cache: Cache, one: VariantResult, scratch: Path
) -> tuple[tuple[Probe, ...], dict[str, Path]]:
    """The probes of a variant, and their pictures by name, which are written into ``scratch``."""
    release, probes, pictures = line.recipe.release, [], {}
    for number, (image, expected) in enumerate(_probes(line, cache, one), 1):
        name = f"probes/{number}-{image.label}.png"
        path = scratch / f"{one.name}-{number}.png"
        path.write_bytes(_png((line.root / image.file).read_bytes(), line.recipe.data.max_pixels))
        pictures[name] = path
        probes.append(Probe(image=name, expected=expected, tolerance=release.tolerance))
    return tuple(probes), pictures


def _engine(line: VisionLine, cache: Cache, chosen: VariantResult) -> Engine:
    if not isinstance(line.recipe, InspectRecipe):
        return line.engine()
    threshold = inspected(line, line.recipe, cache, chosen.name).threshold
    return line.engine(threshold.value, threshold.expected, threshold.parts)


def _probes(line: VisionLine, cache: Cache, chosen: VariantResult) -> list[tuple[LabelledImage, str]]:
    """Test pictures with what the chosen variant says of them, labels in turn, right and sure ones first."""
    recipe, splits = line.recipe, line.splits(cache)
    ranked: list[tuple[bool, float, int, str]] = []
    if isinstance(recipe, InspectRecipe):
        said = inspected(line, recipe, cache, chosen.name)
        for at, (image, score) in enumerate(zip(splits.test, said.test.tolist(), strict=True)):
            defect = bool(said.defects[at])
            margin = abs(score / said.threshold.value - 1)
            right = defect == (image.label != recipe.data.good)
            ranked.append((right and margin >= _MARGIN, margin, at, score_answer(score, defect)))
    else:
        seen = read_seen(cache.folder(line.variants[chosen.name].seen))
        for at, row in enumerate(seen.answers[len(splits.calibration) :]):
            label = recipe.data.labels[int(row.argmax())]
            answer = label_answer(recipe.data.labels, row.tolist())
            ranked.append((label == splits.test[at].label, float(row.max()), at, answer))
    sure = sorted(ranked, key=lambda one: (not one[0], -one[1], one[2]))
    queues: dict[str, list[tuple[LabelledImage, str]]] = {}
    for _, _, at, answer in sure:
        queues.setdefault(splits.test[at].label, []).append((splits.test[at], answer))
    return _in_turn(list(queues.values()), recipe.release.probes)


def _in_turn(
    queues: Sequence[list[tuple[LabelledImage, str]]], count: int
) -> list[tuple[LabelledImage, str]]:
    found: list[tuple[LabelledImage, str]] = []
    while len(found) < count and any(queues):
        for queue in queues:
            if queue and len(found) < count:
                found.append(queue.pop(0))
    return found


def _png(data: bytes, max_pixels: int) -> bytes:
    """The same pixels without loss: a JPEG may decode a little differently elsewhere."""
    picture = decode(data, max_pixels)
    grey = picture.convert("L")
    out = io.BytesIO()
    (grey if grey.convert("RGB").tobytes() == picture.tobytes() else picture).save(out, "PNG", optimize=True)
    return out.getvalue()
