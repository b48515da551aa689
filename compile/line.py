"""What the lines have in common: a recipe as steps, what the steps found, and the releases they make.

A line per kind of model lives in ``compile.lines``. Steps come from the recipe alone: another process that
makes the line again from the same recipe gets the same steps under the same keys.
"""

import importlib.metadata
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from compile.evaluate.judge import Measured, spread
from compile.findings import Findings
from compile.recipe.sections import RecipeBase
from compile.steps import Cache, Step, in_order
from models.forecast import UNCORRECTED, Corrections, Workload
from models.manifest import Speed

REFERENCE = "reference"
"""The name of the unquantized variant that everything is measured against."""


@dataclass(frozen=True)
class Workshop:
    """What a line works with. ``converters`` is the folder of llama.cpp's; ``now`` a monotonic clock.

    ``environment`` is where the key of a teacher is looked up, by the name that the recipe gives.
    ``corrections``: what devices measured; it changes forecasts and the profiles of a release, no step.
    """

    converters: Path
    threads: int
    now: Callable[[], float]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    corrections: Corrections = field(default=UNCORRECTED, repr=False)


class Parts(Protocol):
    """One recipe as steps, by role."""

    @property
    def recipe(self) -> RecipeBase:
        """What was asked for."""

    @property
    def workshop(self) -> Workshop:
        """What it works with."""

    @property
    def steps(self) -> list[Step]:
        """Everything that the judgement needs, with all that it builds on."""


class Line(Parts, Protocol):
    """One recipe on its way."""

    @property
    def workloads(self) -> Mapping[str, Workload]:
        """What the variants will ask of a device, by name, as far as it is known before they are built."""

    def findings(self, cache: Cache, command: str) -> Findings:
        """Judge what the steps measured. Runs nothing."""

    def package(self, cache: Cache, findings: Findings, out: Path) -> Mapping[str, Path]:
        """Write a release folder below ``out`` for what passed; by name. Raises ``CompileError``."""


def versions(*packages: str) -> dict[str, str]:
    """The installed versions of ``packages``, for the keys of steps and for lineage."""
    return {package: importlib.metadata.version(package) for package in packages}


def tools_of(steps: Iterable[Step]) -> dict[str, str]:
    """Every tool that ``steps`` and what they build on use, with its version, for lineage."""
    found = {name: version for step in in_order(steps) for name, version in step.tools.items()}
    return found | {"python": platform.python_version()}


def size_ratio(size: int, reference: int) -> dict[str, Measured]:
    """The bytes as a share of the reference's. Nothing is estimated: a ratio of two file sizes."""
    return {"size_ratio": Measured(0.0, size / reference, None, 1)}


def speed_of(device: str, speeds: Sequence[float], peak_ram_bytes: int, unit: str) -> Speed:
    """What was measured of a variant's speed, in ``unit``, as a manifest says it."""
    median, low, high = spread(speeds)
    return Speed(
        device=device,
        tokens_per_second=median,
        spread=(low, high),
        peak_ram_bytes=peak_ram_bytes,
        unit=unit,
    )


def device_name(threads: int) -> str:
    """The processor and the threads, for the figures of speed."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}"
