"""What the manifest of a measured variant says, whatever its kind. What an engine needs is a line's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compile.evaluate.judge import VariantResult
from compile.findings import Findings
from compile.line import speed_of
from compile.recipe.sections import ReleaseSection
from models.manifest import Engine, Kind, Manifest, Probe


@dataclass(frozen=True)
class Described:
    """What a release says of a variant besides its figures. ``files`` by their path in the release."""

    engine: Engine
    probes: tuple[Probe, ...]
    files: Mapping[str, Path]


def manifest_of(
    release: ReleaseSection,
    findings: Findings,
    chosen: VariantResult,
    described: Described,
    profiles: tuple[str, ...],
) -> Manifest:
    """Whole but for its files; ``package_release`` adds them, and only then are its probes looked at."""
    return Manifest(
        kind=Kind.MODEL,
        name=release.name,
        version=release.version,
        format=chosen.format,
        precision=chosen.precision,
        files=(),
        profiles=profiles,
        engine=described.engine,
        lineage=_traced(findings, chosen),
        quality=tuple(verdict.quality for verdict in chosen.verdicts),
        speed=(speed_of(findings.device, chosen.speeds, chosen.peak_ram_bytes, chosen.speed_unit),),
        fallback_ledger=chosen.ledger,
        license=release.license,
    ).model_copy(update={"probes": described.probes})  # which may name files, and these come last


def _traced(findings: Findings, chosen: VariantResult) -> dict[str, Any]:
    """Where the chosen variant comes from, and how it was made."""
    return {**findings.lineage, "settings": dict(chosen.settings)}
