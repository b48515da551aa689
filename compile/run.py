"""``outpost-compile run``: carry out what is not cached, judge, package, report.

A folder that already holds what the recipe would make is left as it is: ``build.json`` says from which
steps, by which version of the product, it was made.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compile.devices import on_devices, workload_of_release
from compile.errors import CompileError
from compile.executor import Executor, StepCommand
from compile.findings import Findings
from compile.line import Line
from compile.progress import Progress
from compile.report.page import DATA_CARD, write_report
from compile.steps import Cache, in_order
from models import canonical
from models.digest import Digest
from models.errors import ModelsError
from models.forecast import Forecast
from models.manifest import MANIFEST_FILE, Kind
from models.store import digest_of, make_folder, read_release, sync_folder, write_durably

BUILD_FILE, REPORT_FILE, CARD = "build.json", "report.json", "card.html"


def run(
    line: Line, command: StepCommand, executor: Executor, progress: Progress, out: Path, said: str
) -> str:
    """Build, judge, and write releases and report into ``out``. ``said`` is the command, for the report.

    Returns why nothing ships, with numbers; empty when something does.
    """
    identity = _identity(line, command)
    if _is_there(out, identity):
        return ""
    cache = Cache(command.cache)
    executor.run(in_order(line.steps), cache, command, progress)
    findings = line.findings(cache, said)
    with _replaced(out) as unfinished:
        findings, releases = _packaged(line, cache, findings, unfinished)
        findings = replace(findings, devices=_on_devices(line, releases))
        for step in in_order(line.steps):
            if step.name == "data" and (cache.folder(step) / CARD).is_file():
                shutil.copyfile(cache.folder(step) / CARD, unfinished / DATA_CARD)
        write_report(unfinished, findings, releases)
        if releases:
            digests = {path.name: _release_digest(path) for path in releases.values()}
            report = Digest.of((unfinished / REPORT_FILE).read_bytes())
            stored = json.dumps({"of": identity, "report": report, "releases": digests}, indent=1)
            write_durably(unfinished / BUILD_FILE, stored.encode())
    return "" if findings.chosen is not None else refusal(findings)


def _packaged(line: Line, cache: Cache, findings: Findings, out: Path) -> tuple[Findings, Mapping[str, Path]]:
    """The releases. What cannot be packaged is a refusal with its report: hours of measuring are not lost."""
    if findings.chosen is None:
        return findings, {}
    try:
        return findings, line.package(cache, findings, out)
    except CompileError as error:
        for path in out.iterdir():
            shutil.rmtree(path)
        why = f"nothing was packaged: {error}"
        return replace(findings, chosen=None, nearest=None, notes=(*findings.notes, why)), {}


def _on_devices(line: Line, releases: Mapping[str, Path]) -> Mapping[str, tuple[Forecast, ...]]:
    """What the models that ship will be on devices, by the sizes that they really have."""
    found = {}
    for name, folder in releases.items():
        manifest, _ = read_release(folder)
        if manifest.kind is Kind.MODEL:
            load, workshop = workload_of_release(folder, manifest), line.workshop
            found[name] = on_devices(
                load, line.recipe.release.profiles, workshop.threads, workshop.corrections
            )
    return found


def refusal(findings: Findings) -> str:
    """Why nothing ships: every variant with its numbers, and the nearest recipe that would pass."""
    lines = ["nothing ships"]
    lines += [f"{one.name}: {one.refusal or 'within its budgets'}" for one in findings.variants]
    lines += findings.notes
    if findings.nearest is not None:
        lines.append(f"nearest recipe that would pass: {findings.nearest_recipe}")
    return "\n".join(lines)


def _identity(line: Line, command: StepCommand) -> Digest:
    """Stands for all that decides what ends in the folder: the steps, the recipe, the product."""
    deciding: Mapping[str, Any] = {
        "steps": [step.key for step in in_order(line.steps)],
        "recipe": digest_of(command.recipe),
        "outpost": version("outpost"),
    }
    if line.workshop.corrections.measured:  # they decide what the releases say that they fit
        deciding = {**deciding, "figures": [repr(one) for one in line.workshop.corrections.measured]}
    return Digest.of(canonical.encode(deciding))


def _is_there(out: Path, identity: Digest) -> bool:
    """Whether ``out`` is whole and of this identity. Files are judged by their sizes; ``verify`` hashes."""
    try:
        stored = json.loads((out / BUILD_FILE).read_text(encoding="utf-8"))
        report = Digest.of((out / REPORT_FILE).read_bytes())
        if stored["of"] != identity or stored["report"] != report:
            return False
        for name, digest in stored["releases"].items():
            manifest, data = read_release(out / name)
            if Digest.of(data) != digest:
                return False
            if any((out / name / file.path).stat().st_size != file.size for file in manifest.files):
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelsError):
        return False
    return bool(stored["releases"])


def _release_digest(folder: Path) -> Digest:
    return Digest.of((folder / MANIFEST_FILE).read_bytes())


@contextmanager
def _replaced(out: Path) -> Iterator[Path]:
    """A folder whose contents replace, at the end of the block, what the last run wrote into ``out``.

    What that was says its ``build.json``; nothing else is touched, and nothing at all when the block fails.
    Where no release is made, those of before stay: they are what passed.
    """
    make_folder(out)
    unfinished = Path(tempfile.mkdtemp(dir=out, prefix=".unfinished-"))
    try:
        yield unfinished
        made = {path.name for path in unfinished.iterdir()}
        old = _built(out) if BUILD_FILE in made else []
        aside = unfinished / ".before"
        aside.mkdir()
        for name in {*old, *made}:
            if (out / name).exists():
                (out / name).rename(aside / name)
        for name in sorted(
            made, key=lambda name: name == BUILD_FILE
        ):  # the record last: with it, all is there
            (unfinished / name).rename(out / name)
        sync_folder(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _built(out: Path) -> list[str]:
    """The release folders that the last run left."""
    try:
        stored = json.loads((out / BUILD_FILE).read_text(encoding="utf-8"))
        return [name for name in stored["releases"] if (out / name / MANIFEST_FILE).is_file()]
    except (OSError, ValueError, KeyError, TypeError):
        return []
