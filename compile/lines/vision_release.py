"""Releases of a vision line: the smallest variant that passed, with probes that are pictures."""

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

from compile.data.images import LabelledImage
from compile.evaluate.judge import VariantResult
from compile.evaluate.pictures import read_seen
from compile.findings import Findings
from compile.lines.onnx_release import package_graphs
from compile.lines.release import Described
from compile.lines.vision import VisionParts
from compile.lines.vision_findings import inspected
from compile.recipe.vision import InspectRecipe
from compile.steps import Cache
from models.engines.onnx_vision import decode
from models.manifest import Engine, Probe
from models.probes import label_answer, score_answer

_MARGIN = 0.1
"""A probe's score lies at least this share from the threshold: a verdict must not hang on the last digit."""


def package(line: VisionParts, cache: Cache, findings: Findings, out: Path) -> dict[str, Path]:
    """Write the release of what was chosen; by its name."""
    with tempfile.TemporaryDirectory() as scratch:

        def describe(one: VariantResult, on_device: bool) -> Described:
            return Described(_engine(line, cache, one), *_asked(line, cache, one, Path(scratch)))

        return package_graphs(line, cache, findings, describe, out)


def _asked(
    line: VisionParts, cache: Cache, one: VariantResult, scratch: Path
) -> tuple[tuple[Probe, ...], dict[str, Path]]:
    """The probes of a variant, and their pictures by name, which are written into ``scratch``."""
    release, probes, pictures = line.recipe.release, [], {}
    for number, (image, expected) in enumerate(_probes(line, cache, one), 1):
        name = f"probes/{number}-{image.label}.png"
        path = scratch / f"{one.name}-{number}.png"
        path.write_bytes(_png((line.sources.root / image.file).read_bytes(), line.recipe.data.max_pixels))
        pictures[name] = path
        probes.append(Probe(image=name, expected=expected, tolerance=release.tolerance))
    return tuple(probes), pictures


def _engine(line: VisionParts, cache: Cache, chosen: VariantResult) -> Engine:
    if not isinstance(line.recipe, InspectRecipe):
        return line.engine()
    threshold = inspected(line, line.recipe, cache, chosen.name).threshold
    return line.engine(threshold.value, threshold.expected, threshold.parts)


def _probes(line: VisionParts, cache: Cache, chosen: VariantResult) -> list[tuple[LabelledImage, str]]:
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
