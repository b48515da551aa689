"""Releases of a line of readers: the smallest variant that passed, with files that it reads as its probes."""

from pathlib import Path

from compile.errors import CompileError
from compile.evaluate.readings import read_measured
from compile.findings import Findings
from compile.forecast import fitting
from compile.lines.reading import ReadingParts
from compile.lines.reading_findings import is_right, model_files
from compile.lines.release import Described, manifest_of
from compile.package import package_release
from compile.steps import Cache
from models.manifest import Engine, Probe
from models.probes import text_answer


def package(line: ReadingParts, cache: Cache, findings: Findings, out: Path) -> dict[str, Path]:
    """Write the release of what was chosen; by its name. Raises ``CompileError`` where nothing is read."""
    release = line.recipe.release
    chosen = next(one for one in findings.variants if one.name == findings.chosen)
    model = cache.folder(line.variants[chosen.name].model)
    probes, files = _probes(line, cache, chosen.name)
    described = Described(Engine(task=line.recipe.task), probes, files)
    profiles = release.profiles or fitting(model, chosen.precision, chosen.format, line.workshop.corrections)
    folder = out / f"{release.name}-{release.version}"
    package_release(
        folder, manifest_of(release, findings, chosen, described, profiles), model_files(model) | files
    )
    return {release.name: folder}


def _probes(line: ReadingParts, cache: Cache, name: str) -> tuple[tuple[Probe, ...], dict[str, Path]]:
    """Of the files with words that the variant reads right the smallest; others where there are too few."""
    readings, read = line.readings(cache), read_measured(cache.folder(line.variants[name].read))
    root, release = line.sources.root, line.recipe.release
    ranked = sorted(
        (not is_right(line, one, text), (root / one.file).stat().st_size, one.file, text)
        for one, text in zip(readings, read.texts, strict=True)
        if one.text.strip() and text.strip()
    )
    if not ranked:
        raise CompileError(f"{name} reads nothing in any file: no probe can be made")
    asked_by = "image" if line.recipe.task == "ocr" else "audio"
    probes, files = [], {}
    for number, (_, _, file, text) in enumerate(ranked[: release.probes], start=1):
        path = f"probes/{number}{Path(file).suffix.lower()}"
        files[path] = root / file
        told = {asked_by: path, "expected": text_answer(text), "tolerance": release.tolerance}
        probes.append(Probe.model_validate(told))
    return tuple(probes), files
