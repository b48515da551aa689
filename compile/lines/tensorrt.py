"""A line's second release: the recipe by which an NVIDIA device builds its engine from a variant's graph.

Owns the step that writes the recipe, which fails before anything is measured where TensorRT cannot take the
graph, and what its manifest may claim: the figures are those of the ONNX graph, and the engine has none.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from compile.evaluate.judge import VariantResult
from compile.findings import Findings
from compile.forecast import fitting
from compile.line import versions
from compile.lines.release import Described
from compile.onnx.files import MODEL
from compile.onnx.tensorrt import TO_BE_BUILT, UNTESTED, Range, profile_for, write_recipe
from compile.package import files_below, package_release
from compile.recipe.encoder import ClassifyRecipe, EmbedRecipe
from compile.recipe.tensorrt import SUFFIX, TensorRt
from compile.recipe.vision import ClassifyImageRecipe, InspectRecipe
from compile.steps import Report, Step
from models.manifest import Fallback, Manifest
from models.onnx import read_model
from models.tensorrt_recipe import MODEL_FILE, RECIPE_FILE

TextRecipe = EmbedRecipe | ClassifyRecipe
ImageRecipe = InspectRecipe | ClassifyImageRecipe

RECIPE = "recipe"
_LABEL = "@onnx"
_FIGURES = "measured of the ONNX graph through ONNX Runtime on a CPU; the engine has not been measured"


def recipe_step(
    section: TensorRt,
    after: Mapping[str, Step],
    tokens: Callable[[Mapping[str, Path]], Range | None],
    weights: int,
    in_float: bool,
) -> Step:
    """The step that leaves the files of the release in ``recipe``.

    ``after`` has the variant's graph as ``model``; ``tokens`` finds their range in what ``after`` made.
    ``weights``: bytes in float; ``in_float`` where the graph has them so.
    """

    def work(inputs: Mapping[str, Path], folder: Path, scratch: Path, report: Report) -> None:
        graph = inputs["model"] / MODEL
        profile = profile_for(read_model(graph).inputs, section.batch, tokens(inputs))
        write_recipe(graph, section.jetpacks, [profile], folder / RECIPE, as_typed=True)

    return Step(
        f"tensorrt-{section.variant}",
        section.model_dump(mode="json", exclude={"variant"}),
        after,
        versions("onnx") | {"outpost-tensorrt": "2"},
        work,
        seconds=2,
        disk_bytes=weights,
        ram_bytes=67_000_000 + (60 if in_float else 42) * weights // 10,
    )


def asked_variant(section: TensorRt, findings: Findings) -> VariantResult:
    """What was measured of the variant that the section names."""
    everyone = (findings.reference, *findings.variants)
    return next(one for one in everyone if one.name == section.variant)


def package_recipe(
    out: Path,
    beside: Manifest,
    asked: tuple[str, ...],
    one: VariantResult,
    section: TensorRt,
    folder: Path,
    described: Described,
) -> Path:
    """Write the release of the recipe in ``folder``; ``beside`` is the ONNX release as it was written.

    ``asked``: profiles that the recipe names, in place of those that fit by forecast. ``described``: what is
    said of the engine; its files go beside the graph. Raises ``UnsafeFile``, ``InvalidManifest``.
    """
    fits = fitting(folder / MODEL_FILE, one.precision, "tensorrt-recipe")
    lineage = {name: value for name, value in beside.lineage.items() if name != "settings"}
    manifest = beside.model_copy(
        update={
            "name": beside.name + SUFFIX,
            "format": "tensorrt-recipe",
            "precision": one.precision,
            "profiles": section.profiles(asked) or section.profiles(fits),
            "engine": described.engine,
            "lineage": lineage
            | {
                "settings": dict(one.settings),
                "onnx_release": beside.digest,
                "onnx_variant": one.name,
                "tensorrt": {"state": TO_BE_BUILT, "tested": UNTESTED, "figures": _FIGURES},
            },
            "quality": tuple(
                verdict.quality.model_copy(update={"metric": verdict.metric + _LABEL})
                for verdict in one.verdicts
            ),
            "speed": (),
            "fallback_ledger": (*one.ledger, *_widened(folder, one.precision)),
            "probes": described.probes,
        }
    )
    place = out / f"{manifest.name}-{manifest.version}"
    package_release(place, manifest, files_below(folder) | dict(described.files))
    return place


def _widened(folder: Path, asked: str) -> tuple[Fallback, ...]:
    """What had the precision that was asked for in the ONNX graph, and does not have it here."""
    recipe = json.loads((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    return tuple(
        Fallback(tensor=name, asked=asked, got="F32")
        for name, was in sorted(recipe["widened"].items())
        if was == asked
    )


def note(recipe: TextRecipe | ImageRecipe, results: Mapping[str, VariantResult]) -> tuple[str, ...]:
    """What a report says of the engine's recipe."""
    section, name = recipe.tensorrt, recipe.release.name
    if section is None:
        return ()
    one = results[section.variant]
    if not one.passed:
        return (f"No TensorRT recipe: {one.name} is not within its budgets.",)
    jetpacks = ", ".join(section.jetpacks)
    where = f"JetPack {jetpacks}" if jetpacks else "GPUs without JetPack"
    return (
        f"{name}{SUFFIX} holds {one.name} as a TensorRT recipe for {where}. Its engine is {TO_BE_BUILT} and "
        f"has not been measured: the figures of {one.name} are those of the ONNX graph through ONNX Runtime.",
    )
