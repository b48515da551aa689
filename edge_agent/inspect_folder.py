"""``outpost-edge inspect``: every picture of a folder against one model, with no server and no hub.

Owns the order: pictures are read while others are computed, results are written in the order of names, the
worst are kept for the sheet. A picture that cannot be read is listed and the others go on. Refuses models
that do not inspect. The model runs in a process of its own, as when it is served.
"""

import asyncio
import csv
import heapq
import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_agent.contact_sheet import Cell, draw_sheet, thumbnail
from edge_agent.engines.encoder_calls import EncoderCall, Inspected
from edge_agent.engines.encoder_process import EncoderProcess
from edge_agent.engines.settings import EngineSettings
from edge_agent.errors import WrongUse
from edge_agent.serve import read_plan
from models.errors import InvalidImage
from models.store import write_durably

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
MAX_FILE = 64 << 20
"""Bytes of one encoded picture."""
AHEAD = 24
"""Pictures that are read or computed at once: the engine takes eight in a step, and the next wait for it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What to do. ``shown``: how many pictures the sheet shows, the most suspicious; 0: no sheet."""

    folder: Path
    model: Path
    out: Path
    sheet: Path
    shown: int = 60
    threads: int = 0


@dataclass(slots=True)
class Found:
    """What came out, by the picture's path below the folder."""

    verdicts: dict[str, Inspected] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    worst: list[tuple[float, int, Cell]] = field(default_factory=list)

    @property
    def defects(self) -> int:
        """Pictures at the threshold or above."""
        return sum(one.is_defect for one in self.verdicts.values())


async def inspect_folder(asked: Asked, say: Callable[[str], None]) -> dict[str, Any]:
    """Inspect, write ``asked.out`` and the sheet; returns the figures. ``say`` is told of progress.

    Raises ``WrongUse`` that names the flag, what ``read_plan`` raises, ``UnsafeFile``, ``EngineError``.
    """
    if not asked.out.parent.is_dir() or not asked.sheet.parent.is_dir():
        raise WrongUse(f"--out {asked.out}: there is no folder {asked.out.parent}")
    source = read_plan([f"model={asked.model}"], []).models[0]
    if source.files is None or source.files.encoder is None or source.files.encoder.engine.task != "inspect":
        raise WrongUse(f"--model {asked.model}: not made to inspect")
    names = pictures_in(asked.folder)
    threads = asked.threads or len(os.sched_getaffinity(0))  # nobody else is served meanwhile
    engine = await EncoderProcess.start(source.files, EngineSettings(threads=threads))
    began = time.monotonic()
    try:
        found = await _Run(asked, engine, say).all_of(names)
    finally:
        await engine.close()
    seconds = time.monotonic() - began
    write_durably(asked.out, table(names, found))
    worst = [cell for _, _, cell in sorted(found.worst, reverse=True)]
    if worst:
        title = f"{engine.facts.name}: {found.defects} of {len(found.verdicts)} pictures are defects"
        title += f"; the {len(worst)} highest scores" if len(worst) < len(found.verdicts) else ""
        write_durably(asked.sheet, await asyncio.to_thread(draw_sheet, title, worst))
    return {
        "model": engine.facts.name,
        "release": source.release,
        "inspected": len(found.verdicts),
        "defects": found.defects,
        "unread": found.unread,
        "pictures_per_second": round(len(names) / seconds, 2),
        "out": str(asked.out),
        "sheet": str(asked.sheet) if worst else None,
    }


def pictures_in(folder: Path) -> list[str]:
    """Paths below ``folder`` of what is named like a picture, in order. Raises ``WrongUse`` for none."""
    names = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not names:
        raise WrongUse(f"{folder}: holds no picture ({', '.join(sorted(SUFFIXES))})")
    return names


def table(names: list[str], found: Found) -> bytes:
    """CSV: one line for each picture, also for one that could not be read."""
    stream = io.StringIO(newline="")
    rows = csv.writer(stream)
    rows.writerow(("file", "verdict", "score", "threshold", "error"))
    for name in names:
        if one := found.verdicts.get(name):
            verdict = "defect" if one.is_defect else "good"
            rows.writerow((name, verdict, f"{one.score:.6g}", f"{one.threshold:.6g}", ""))
        else:
            rows.writerow((name, "", "", "", found.unread[name]))
    return stream.getvalue().encode("utf-8", "surrogateescape")


class _Run:
    """One pass over the pictures."""

    def __init__(self, asked: Asked, engine: EncoderProcess, say: Callable[[str], None]) -> None:
        self._asked, self._engine, self._say = asked, engine, say
        self._found = Found()
        self._told = time.monotonic()

    async def all_of(self, names: list[str]) -> Found:
        """Every picture, ``AHEAD`` at a time."""
        left = iter(enumerate(names))
        workers = [asyncio.create_task(self._some_of(left, len(names))) for _ in range(AHEAD)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
        return self._found

    async def _some_of(self, left: Iterator[tuple[int, str]], total: int) -> None:
        for number, name in left:
            await self._one(number, name)
            self._progress(total)

    async def _one(self, number: int, name: str) -> None:
        try:
            data = await asyncio.to_thread(_read, self._asked.folder / name)
            call = EncoderCall(images=(data,), heat_maps=self._asked.shown > 0)
            (verdict,) = (await self._engine.ask(call)).inspections
        except (InvalidImage, OSError) as error:
            self._found.unread[name] = str(error)
            self._say(f"{name}: {error}")
            return
        worst = self._found.worst
        if self._asked.shown and (len(worst) < self._asked.shown or verdict.score > worst[0][0]):
            cell = await asyncio.to_thread(thumbnail, name, data, verdict)
            # Of equals the first by name stays: numbers count down.
            push = heapq.heappush if len(worst) < self._asked.shown else heapq.heappushpop
            push(worst, (verdict.score, -number, cell))
        self._found.verdicts[name] = Inspected(
            verdict.score, verdict.is_defect, verdict.threshold, verdict.region
        )

    def _progress(self, total: int) -> None:
        now = time.monotonic()
        if now - self._told > 2:
            self._told = now
            done = len(self._found.verdicts) + len(self._found.unread)
            self._say(f"{done} of {total}, {self._found.defects} defects")


def _read(path: Path) -> bytes:
    with path.open("rb") as stream:
        data = stream.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise InvalidImage(f"more than {MAX_FILE} bytes")
    return data
