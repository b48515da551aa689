"""Releases of ONNX graphs, as the encoder and the vision line write them, and the TensorRT recipe beside one.

Owns which files they hold. What an engine needs, the probes and what lies beside the graph are a line's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from compile.evaluate.judge import VariantResult
from compile.findings import Findings
from compile.forecast import fitting
from compile.lines.release import Described, manifest_of
from compile.lines.tensorrt import RECIPE, ImageRecipe, TextRecipe, asked_variant, package_recipe
from compile.onnx.files import MODEL, files_of
from compile.package import package_release
from models.forecast import Corrections


@dataclass(frozen=True)
class Built:
    """Where the folders are: ``models`` of every variant's graph, by name, and of the TensorRT recipe."""

    models: Mapping[str, Path]
    tensorrt: Path | None


def package_graphs(
    recipe: TextRecipe | ImageRecipe,
    findings: Findings,
    built: Built,
    describe: Callable[[VariantResult, bool], Described],
    corrections: Corrections,
    out: Path,
) -> dict[str, Path]:
    """Write what was chosen, and the recipe of an engine where one is wanted and its variant passed.

    ``describe(variant, on_device)``: of the graph that ships, or of the engine that a device builds. Raises
    ``CompileError``, ``InvalidManifest``, ``UnsafeFile``.
    """
    release = recipe.release
    chosen = next(one for one in findings.variants if one.name == findings.chosen)
    graph, described = built.models[chosen.name] / MODEL, describe(chosen, False)
    profiles = release.profiles or fitting(graph, chosen.precision, corrections=corrections)
    template = manifest_of(release, findings, chosen, described, profiles)
    folder = out / f"{release.name}-{release.version}"
    manifest = package_release(folder, template, files_of(graph) | dict(described.files))
    releases = {release.name: folder}
    section = recipe.tensorrt
    if section is None or built.tensorrt is None:
        return releases
    one = asked_variant(section, findings)
    if one.passed:
        described = describe(one, True)
        place = package_recipe(
            out,
            manifest,
            release.profiles,
            one,
            section,
            built.tensorrt / RECIPE,
            described.engine,
            described.probes,
            described.files,
        )
        releases[place.name.removesuffix(f"-{release.version}")] = place
    return releases
