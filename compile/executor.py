"""Who carries steps out: processes on this machine, or the tasks of a Ray cluster.

Both run the same command, ``python -m compile.step_child``, so a step is the same wherever it runs: it makes
its line again from the recipe, and its result appears in the cache. On several machines, recipe, sources and
cache lie on a file system that all of them see under the same paths.
"""

import json
import logging
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from compile import errors
from compile.errors import CompileError
from compile.progress import Progress
from compile.steps import Cache, Step
from models import errors as model_errors

_KEPT_LINES = 40


@dataclass(frozen=True)
class StepCommand:
    """What a child needs to make the steps of a recipe."""

    recipe: Path
    cache: Path
    converters: Path
    threads: int

    def argv(self, step_label: str, parent: int) -> list[str]:
        """The command line. ``parent`` is the process whose death ends the child; 0: none."""
        here = [str(path.resolve()) for path in (self.cache, self.converters)]
        command = [sys.executable, "-m", "compile.step_child", str(self.recipe.resolve()), step_label]
        return [*command, *here, str(self.threads), str(parent)]


class Executor(Protocol):
    """Carries out steps whose results are not in the cache."""

    def run(self, steps: Sequence[Step], cache: Cache, command: StepCommand, progress: Progress) -> None:
        """Make every result of ``steps``, which are in an order in which each finds what it builds on.

        Raises what the first failing step raised, once nothing runs any more.
        """


class LocalProcesses:
    """At most ``jobs`` steps at a time, each in a process of its own."""

    def __init__(self, jobs: int = 1) -> None:
        self._jobs = jobs

    def run(self, steps: Sequence[Step], cache: Cache, command: StepCommand, progress: Progress) -> None:
        """See ``Executor``."""
        waiting = list(_told_of_cached(steps, cache, progress))
        missing = {step.label for step in waiting}
        told: queue.SimpleQueue[_Told] = queue.SimpleQueue()
        running: dict[str, tuple[Step, subprocess.Popen[str]]] = {}
        try:
            while waiting or running:
                for step in _startable(waiting, missing, [step for step, _ in running.values()], self._jobs):
                    waiting.remove(step)
                    progress.start(step.label, step.name, step.seconds)
                    running[step.label] = (
                        step,
                        _start(command.argv(step.label, os.getpid()), step.label, told),
                    )
                news = told.get()
                step, _ = running[news.label]
                if isinstance(news.ended, str):
                    progress.report(step.label, *_progress_of(news.ended))
                    continue
                del running[news.label]
                if news.ended is not None:
                    raise news.ended
                missing.discard(news.label)
                progress.finish(step.label)
        finally:
            for _, process in running.values():
                process.kill()
                process.wait()


class RayTasks:
    """A Ray task per step; Ray places them where processors are free and keeps their order.

    ``address`` is a cluster's (``auto`` finds one that runs here), or None to start one on this machine.
    """

    def __init__(self, address: str | None, threads: int) -> None:
        self._address = address
        self._threads = threads

    def run(self, steps: Sequence[Step], cache: Cache, command: StepCommand, progress: Progress) -> None:
        """See ``Executor``. Raises ``ModuleNotFoundError`` where Ray is not installed."""
        waiting = list(_told_of_cached(steps, cache, progress))
        if not waiting:
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing but the cluster is spoken to
        import ray
        from ray.exceptions import RayError
        from ray.util.queue import Queue

        try:
            ray.init(
                address=self._address,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            have = ray.cluster_resources().get("CPU", 0)  # type: ignore[no-untyped-call]
            if self._threads > have:
                raise CompileError(
                    f"ray: --threads {self._threads}, but the cluster has {have:g} processors; lower it"
                )
            told = Queue()
            task = ray.remote(num_cpus=self._threads, max_retries=2)(_as_task)
            refs: dict[str, Any] = {}
            for step in waiting:
                after = [refs[before.label] for before in step.after.values() if before.label in refs]
                refs[step.label] = task.remote(command, step.label, told, *after)
            _watch(waiting, refs, told, progress)
        except RayError as error:
            raise CompileError(f"ray: {error}") from error
        finally:
            ray.shutdown()


@dataclass(frozen=True)
class _Told:
    """A line of progress of a step, or how it ended: None, or the error."""

    label: str
    ended: str | CompileError | model_errors.ModelsError | None


def _told_of_cached(steps: Sequence[Step], cache: Cache, progress: Progress) -> Iterable[Step]:
    for step in steps:
        if cache.has(step):
            progress.cached(step.name)
        else:
            yield step


def _startable(waiting: Sequence[Step], missing: set[str], running: Sequence[Step], jobs: int) -> list[Step]:
    """The steps that may begin beside those that run: what measures speed runs alone."""
    ready = [step for step in waiting if not any(one.label in missing for one in step.after.values())]
    if any(step.alone for step in running):
        return []
    together = [step for step in ready if not step.alone]
    if together:
        return together[: jobs - len(running)]
    return ready[:1] if not running else []


def _start(argv: Sequence[str], label: str, told: "queue.SimpleQueue[_Told]") -> "subprocess.Popen[str]":
    process = _open(argv)

    def listen() -> None:
        ended = _listen(process, lambda line: told.put(_Told(label, line)))
        told.put(_Told(label, ended))

    threading.Thread(target=listen, daemon=True).start()
    return process


def _open(argv: Sequence[str]) -> "subprocess.Popen[str]":
    """A step's process, with pipes for ``_listen``."""
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=_environment(),
    )


def _listen(
    process: "subprocess.Popen[str]", say: Callable[[str], None]
) -> CompileError | model_errors.ModelsError | None:
    """Follow a child to its end; the error it ended with."""
    stderr: deque[str] = deque(maxlen=_KEPT_LINES)
    drain = threading.Thread(target=lambda: stderr.extend(process.stderr or ()), daemon=True)
    drain.start()
    failure = ""
    for line in process.stdout or ():
        if line.startswith("! "):
            failure = line[2:]
        else:
            say(line.rstrip("\n"))
    drain.join()
    code = process.wait()
    if code == 0:
        return None
    return _error(failure, code, "".join(stderr))


def _error(failure: str, code: int, stderr: str) -> CompileError | model_errors.ModelsError:
    if not failure:
        return CompileError(f"the step's process ended with {code}:\n{stderr[-2000:]}")
    name, message = json.loads(failure)
    for tree, root in ((errors, CompileError), (model_errors, model_errors.ModelsError)):
        kind = getattr(tree, name, None)
        if isinstance(kind, type) and issubclass(kind, root):
            found: CompileError | model_errors.ModelsError = kind(message)
            return found
    return CompileError(message)


def _progress_of(line: str) -> tuple[float, str]:
    part, _, note = line.partition(" ")
    try:
        return float(part), note
    except ValueError:
        return 0.0, line


def _environment() -> Mapping[str, str]:
    """Children find this very package, however the parent did."""
    root = str(Path(__file__).resolve().parent.parent)
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}


def _as_task(command: StepCommand, label: str, told: Any, *after: list[str] | None) -> list[str] | None:
    """The body of a Ray task: run the step's process here; its error by name and message, None when done.

    ``after`` is what the tasks returned that this one builds on: Ray waits for them before it starts this.
    """
    for failed in after:
        if failed is not None:
            return failed
    told.put((label, "start"))
    process = _open(command.argv(label, os.getpid()))
    ended = _listen(process, lambda line: told.put((label, line)))
    return None if ended is None else [type(ended).__name__, str(ended)]


def _watch(waiting: Sequence[Step], refs: Mapping[str, Any], told: Any, progress: Progress) -> None:
    """Follow the tasks to their ends. Raises the first error."""
    import ray

    names = {step.label: step for step in waiting}
    label_of = {ref: label for label, ref in refs.items()}
    pending, started = list(refs.values()), set()
    while pending:
        done, pending = ray.wait(pending, timeout=0.5)
        while not told.empty():
            label, line = told.get()
            if line == "start":
                started.add(label)
                progress.start(label, names[label].name, names[label].seconds)
            elif label in started:
                progress.report(label, *_progress_of(line))
        for ref in done:
            failed = ray.get(ref)
            if failed is not None:
                raise _error(json.dumps(failed), 1, "")
            if label_of[ref] in started:
                progress.finish(label_of[ref])
                started.discard(label_of[ref])
