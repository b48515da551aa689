"""``outpost-compile plan``: what would run, what is there, and what it would take, before it starts."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compile.devices import on_devices, sentence
from compile.forecast import CONTEXT
from compile.gguf.files import CONVERTERS, Converters
from compile.line import Line
from compile.steps import Cache, in_order
from compile.units import size, span
from models.forecast import Forecast
from models.machine import memory_limit

ROUGHNESS = "times within about a factor of two on an idle machine with two cores, memory within a quarter"


@dataclass(frozen=True)
class PlannedStep:
    """One step. Seconds and bytes are a forecast; what is cached takes nothing. Scratch is freed at its end.

    ``took_seconds`` and ``took_ram_bytes`` say of a cached step what it really took.
    """

    name: str
    key: str
    cached: bool
    seconds: float
    ram_bytes: int
    disk_bytes: int
    scratch_bytes: int
    took_seconds: float | None = None
    took_ram_bytes: int | None = None


@dataclass(frozen=True)
class Plan:
    """A forecast. ``refusals``: what this machine cannot do; ``devices``: what variants will be elsewhere.

    ``disk_bytes``: all results, and the largest scratch of as many steps as run at once.
    """

    steps: tuple[PlannedStep, ...]
    peak_ram_bytes: int
    disk_bytes: int
    refusals: tuple[str, ...]
    devices: Mapping[str, tuple[Forecast, ...]]

    @property
    def seconds(self) -> float:
        """All that is left to do, one step after the other."""
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
            "devices": {name: [asdict(one) for one in told] for name, told in self.devices.items()},
        }


def make_plan(line: Line, cache: Cache, folder: Path, jobs: int = 1) -> Plan:
    """Forecast ``line`` with ``jobs`` steps at a time. ``folder`` is where the cache will write."""
    steps = []
    for step in in_order(line.steps):
        if cache.has(step):
            took = cache.record(step)
            steps.append(
                PlannedStep(
                    step.name, step.key, True, 0.0, 0, 0, 0, took.get("seconds"), took.get("peak_ram_bytes")
                )
            )
        else:
            forecast = (round(step.seconds, 1), step.ram_bytes, step.disk_bytes, step.scratch_bytes)
            steps.append(PlannedStep(step.name, step.key, False, *forecast))
    largest = sorted((step.ram_bytes for step in steps), reverse=True)
    scratch = sorted((step.scratch_bytes for step in steps), reverse=True)
    ram, disk = sum(largest[:jobs]), sum(step.disk_bytes for step in steps) + sum(scratch[:jobs])
    refusals = list(_missing(line, cache))
    have_ram = memory_limit()
    if ram > have_ram:
        refusals.append(
            f"needs about {size(ram)} of memory; this machine has {size(have_ram)}"
            + (f" (with {jobs} steps at a time; --jobs 1 needs {size(largest[0])})" if jobs > 1 else "")
        )
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if disk > free:
        refusals.append(f"needs about {size(disk)} of disk in {there}; {size(free)} are free")
    devices = {
        name: on_devices(load, line.recipe.release.profiles, line.workshop.threads, line.workshop.corrections)
        for name, load in line.workloads.items()
    }
    return Plan(tuple(steps), ram, disk, tuple(refusals), devices)


def _missing(line: Line, cache: Cache) -> Iterator[str]:
    """What steps that are still to run would look for in vain."""
    if not any(CONVERTERS in step.tools and not cache.has(step) for step in in_order(line.steps)):
        return
    converters = Converters(line.workshop.converters)
    if not converters.are_there:
        yield (
            f"llama.cpp's converters are not in {converters.folder}: scripts/fetch_converters fills the "
            "default folder, --converters names another"
        )


def describe(plan: Plan) -> str:
    """For people."""
    lines = [f"{'step':<28} {'time':>14} {'memory':>9} {'disk':>9}  key"]
    for step in plan.steps:
        time = "cached" if step.cached else f"about {span(step.seconds)}"
        lines.append(
            f"{step.name:<28} {time:>14} {_size(step.ram_bytes):>9} "
            f"{_size(step.disk_bytes + step.scratch_bytes):>9}  "
            f"{step.key[7:19]}"
        )
    lines.append(
        "every step is cached: what is left is to judge, package and report"
        if all(step.cached for step in plan.steps)
        else f"about {span(plan.seconds)}, {size(plan.peak_ram_bytes)} of memory, "
        f"{size(plan.disk_bytes)} of disk ({ROUGHNESS})"
    )
    if any(plan.devices.values()):
        lines.append(f"on devices, with {CONTEXT} tokens of context:")
    for name, told in plan.devices.items():
        for one in told:
            memory, speed, basis = sentence(one)
            lines.append(f"{name:<16} {one.profile:<20} {memory}; {speed}; {basis}")
    lines += [f"REFUSED: {refusal}" for refusal in plan.refusals]
    return "\n".join(lines)


def _size(count: int) -> str:
    """Of a table: what takes nothing says nothing."""
    return size(count) if count else ""
