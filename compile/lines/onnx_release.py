"""Releases of ONNX graphs, as the encoder and the vision line write them, and the TensorRT recipe beside one.

Owns which files they hold. What an engine needs, the probes and what lies beside the graph are a line's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from compile.evaluate.judge import VariantResult
from compile.findings import Findings
from compile.forecast import fitting
from compile.lines.release import Described, manifest_of
from compile.lines.tensorrt import RECIPE, asked_variant, package_recipe
from compile.onnx.files import MODEL, files_of
from compile.package import package_release
from compile.steps import Cache

if TYPE_CHECKING:  # a line imports nothing of another's
    from compile.lines.encoder import EncoderParts
    from compile.lines.vision import VisionParts


def package_graphs(
    line: "EncoderParts | VisionParts",
    cache: Cache,
    findings: Findings,
    describe: Callable[[VariantResult, bool], Described],
    out: Path,
) -> dict[str, Path]:
    """Write what was chosen, and the recipe of an engine where one is wanted and its variant passed.

    ``describe(variant, on_device)``: of the graph that ships, or of the engine that a device builds. Raises
    ``CompileError``, ``InvalidManifest``, ``UnsafeFile``.
    """
    release, section = line.recipe.release, line.recipe.tensorrt
    chosen = next(one for one in findings.variants if one.name == findings.chosen)
    graph, described = cache.folder(line.variants[chosen.name].model) / MODEL, describe(chosen, False)
    profiles = release.profiles or fitting(graph, chosen.precision, corrections=line.workshop.corrections)
    template = manifest_of(release, findings, chosen, described, profiles)
    folder = out / f"{release.name}-{release.version}"
    manifest = package_release(folder, template, files_of(graph) | dict(described.files))
    releases = {release.name: folder}
    if section is None or line.tensorrt is None:
        return releases
    one = asked_variant(section, findings)
    if one.passed:
        recipe, described = cache.folder(line.tensorrt) / RECIPE, describe(one, True)
        place = package_recipe(out, manifest, release.profiles, one, section, recipe, described)
        releases[place.name.removesuffix(f"-{release.version}")] = place
    return releases
