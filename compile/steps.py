"""Steps keyed by their contents, and the cache that keeps what they made.

A step's key is the digest of its name, its parameters, the versions of the tools it uses and the keys of
the steps it builds on; sources are keyed by the digests of their bytes. A key therefore stands for exactly
one result, and all keys of a build are known before anything runs. A result is a folder; it appears under
its key in one rename, after its files are on disk, or not at all.
"""

import errno
import fcntl
import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from compile.errors import CompileError
from models import canonical
from models.digest import Digest
from models.machine import peak_memory
from models.store import make_folder, sync_folder, write_durably

DONE_FILE = "step.json"


class Report(Protocol):
    """Where a step says how far it is."""

    def __call__(self, done: float, note: str) -> None:
        """``done`` is the finished part of the step, 0 to 1."""


@dataclass(frozen=True)
class Step:
    """One step. ``work(inputs, folder, scratch, report)`` fills ``folder``.

    ``inputs`` are the result folders of ``after``, by name; ``scratch`` survives a kill, so that a long
    step can go on from where it was. ``seconds`` is a rough forecast for two quiet cores, ``disk_bytes`` is
    of the result, ``scratch_bytes`` of what lies beside it until the step ends. A step that measures speed
    runs ``alone``, where steps run side by side.
    """

    name: str
    parameters: Mapping[str, Any]
    after: Mapping[str, "Step"]
    tools: Mapping[str, str]
    work: Callable[[Mapping[str, Path], Path, Path, Report], None]
    seconds: float
    disk_bytes: int = 0
    ram_bytes: int = 0
    scratch_bytes: int = 0
    alone: bool = False
    key: Digest = field(init=False)

    def __post_init__(self) -> None:
        identity = {
            "step": self.name,
            "parameters": dict(self.parameters),
            "tools": dict(self.tools),
            "after": {name: step.key for name, step in self.after.items()},
        }
        object.__setattr__(self, "key", Digest.of(canonical.encode(identity)))

    @property
    def label(self) -> str:
        """The name under which the cache keeps the result."""
        return f"{self.name}-{self.key.hex[:20]}"


def in_order(steps: Iterable[Step]) -> list[Step]:
    """``steps`` and all that they build on, each once, what is needed first."""
    ordered: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.label not in ordered:
            for before in step.after.values():
                visit(before)
            ordered[step.label] = step

    for step in steps:
        visit(step)
    return list(ordered.values())


class Cache:
    """Results of steps under ``root``."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, step: Step) -> Path:
        """Where the result is, or would be."""
        return self._root / step.label

    def has(self, step: Step) -> bool:
        """Whether the result is whole."""
        return (self.folder(step) / DONE_FILE).is_file()

    def record(self, step: Step) -> dict[str, Any]:
        """What making the result took: ``seconds``, ``peak_ram_bytes``. The result is there."""
        found: dict[str, Any] = json.loads((self.folder(step) / DONE_FILE).read_text(encoding="utf-8"))
        return found

    def run(self, step: Step, report: Report) -> Path:
        """The step's result folder, made now if it is not there; what it builds on must be there.

        Another process that makes the same step is waited for, and its result used.
        """
        if not self.has(step):
            scratch = self._root / "scratch" / step.label
            make_folder(scratch)
            try:
                with (self._root / "scratch" / f"{step.label}.lock").open("w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    if not self.has(step):
                        self._make(step, scratch, report)
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
                hint = "; nothing half-written is left, and a new run goes on behind the finished steps"
                raise CompileError(f"step {step.name}: {error}{hint if full else ''}") from error
        return self.folder(step)

    def _make(self, step: Step, scratch: Path, report: Report) -> None:
        inputs = {name: self.folder(before) for name, before in step.after.items()}
        make_folder(scratch)
        # Under the step's own lock, so what a killed run left here is nobody's any more.
        unfinished = self._root / "scratch" / f"{step.label}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        began = time.monotonic()
        try:
            step.work(inputs, unfinished, scratch, report)
            done = {
                "step": step.name,
                "key": step.key,
                "seconds": round(time.monotonic() - began, 2),
                "peak_ram_bytes": peak_ram(),
            }
            write_durably(unfinished / DONE_FILE, json.dumps(done).encode())
            _sync_files(unfinished)
            shutil.rmtree(
                self.folder(step), ignore_errors=True
            )  # a folder without its step.json is no result
            unfinished.rename(self.folder(step))
            sync_folder(self._root)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(scratch, ignore_errors=True)


def own_peak_ram() -> int:
    """Bytes. ``ru_maxrss`` would carry the parent's peak over ``exec``; this is the process's own."""
    return peak_memory(os.getpid()) or 0


def peak_ram() -> int:
    """Bytes: the largest that this process, or one that it started and waited for, has been.

    For children there is only ``ru_maxrss``; what it carries over ``exec`` is this process's, which counts.
    """
    return max(own_peak_ram(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)


def _sync_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)
