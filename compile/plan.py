"""``outpost-compile plan``: what would run, what is there, and what it would take, before it starts.

Times are forecasts from measured constants: within about a factor of two on an idle machine with two
cores, worse on a busy one.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compile.lines.language import Build
from compile.steps import Cache, in_order

ROUGHNESS = "within about a factor of two on an idle machine with two cores"


@dataclass(frozen=True)
class PlannedStep:
    """One step. ``seconds`` is a forecast; 0 for what is cached."""

    name: str
    key: str
    cached: bool
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A forecast. ``refusals`` say what this machine cannot do."""

    steps: tuple[PlannedStep, ...]
    peak_ram_bytes: int
    disk_bytes: int
    refusals: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """All that is left to do."""
        return sum(step.seconds for step in self.steps)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "steps": [vars(step) for step in self.steps],
            "seconds": round(self.seconds),
            "peak_ram_bytes": self.peak_ram_bytes,
            "disk_bytes": self.disk_bytes,
            "roughness": ROUGHNESS,
            "refusals": list(self.refusals),
        }


def make_plan(build: Build, cache: Cache, folder: Path) -> Plan:
    """Forecast ``build``. ``folder`` is where the cache will write."""
    steps, missing = [], []
    for step in in_order(build.steps):
        cached = cache.has(step)
        if not cached:
            missing.append(step)
        steps.append(PlannedStep(step.name, step.key, cached, 0.0 if cached else round(step.seconds, 1)))
    ram = max((step.ram_bytes for step in missing), default=0)
    disk = sum(step.disk_bytes for step in missing)
    refusals = []
    have_ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if ram > have_ram:
        refusals.append(f"needs about {ram / 1e9:.1f} GB of memory; this machine has {have_ram / 1e9:.1f} GB")
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if disk > free:
        refusals.append(f"needs about {disk / 1e9:.1f} GB of disk in {there}; {free / 1e9:.1f} GB are free")
    return Plan(tuple(steps), ram, disk, tuple(refusals))


def describe(plan: Plan) -> str:
    """For people."""
    lines = [
        f"{step.name:<24} {'cached' if step.cached else f'about {step.seconds:.0f} s':>12}  {step.key[7:19]}"
        for step in plan.steps
    ]
    lines.append(
        f"about {plan.seconds / 60:.0f} min ({ROUGHNESS}), {plan.peak_ram_bytes / 1e9:.1f} GB of memory, "
        f"{plan.disk_bytes / 1e9:.1f} GB of disk"
    )
    lines += [f"REFUSED: {refusal}" for refusal in plan.refusals]
    return "\n".join(lines)
