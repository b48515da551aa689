"""Jobs in processes of their own: a JSON job on stdin, ``PART NOTE`` lines as progress, results in files.

A new process for each, so that its peak memory is the model's and nobody else's, and so that a library that
aborts or prints ends and spoils only itself. A module that is such a child ends in ``main(work)``.
"""

import ctypes
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from compile.errors import CompileError, ToolFailed
from models.errors import ModelsError

if TYPE_CHECKING:
    from compile.steps import Report

_PR_SET_PDEATHSIG = 1
_SAID = 2000
"""Characters of a failed child's last words that are kept."""


class Child:
    """A child that has started, and loads what it imports while its job is made. Made by ``started``."""

    def __init__(self, process: "subprocess.Popen[str]", words: IO[bytes]) -> None:
        self._process, self._words = process, words

    def run(self, job: Mapping[str, Any], report: "Report", what: str) -> None:
        """Have ``job`` done. Raises ``ToolFailed``: ``what`` failed, and the child's last words."""
        code, said = self.attempt(job, report)
        if code != 0:
            raise ToolFailed(f"{what} failed with {code}:\n{said}")

    def attempt(self, job: Mapping[str, Any], report: "Report") -> tuple[int, str]:
        """The same for callers to whom exit codes mean something: the code, and the child's last words."""
        process = self._process
        if process.stdin is None or process.stdout is None:
            raise ToolFailed("a child without pipes")
        try:
            process.stdin.write(json.dumps(job))
            process.stdin.close()
            for line in process.stdout:
                part, _, note = line.strip().partition(" ")
                report(float(part), note)
        except BrokenPipeError:
            pass  # it ended before it had read its job: the exit code says how
        code = process.wait()
        self._words.seek(0)
        return code, self._words.read().decode("utf-8", "replace")[-_SAID:]


@contextmanager
def started(module: str) -> Iterator[Child]:
    """``python -m module``, killed when the block fails."""
    # A file for stderr: a pipe that nobody reads would stop a child that has much to say.
    with (
        tempfile.TemporaryFile() as words,
        subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        try:
            yield Child(process, words)
        except BaseException:
            process.kill()
            raise


def run_job(module: str, job: Mapping[str, Any], report: "Report", what: str) -> None:
    """Run ``python -m module`` on ``job``. Raises ``ToolFailed``: ``what`` failed, and its last words."""
    with started(module) as child:
        child.run(job, report, what)


def main(work: Callable[[dict[str, Any]], int | None]) -> None:
    """The body of a child: do the job on stdin; exit with what ``work`` returns.

    An error that was raised on purpose is the child's last word. Whatever ends its parent ends the child.
    """
    die_with_parent()
    try:
        sys.exit(work(json.load(sys.stdin)) or 0)
    except (CompileError, ModelsError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def die_with_parent() -> None:
    """Be killed by the kernel when the thread that started this process ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def say(part: float, note: str) -> None:
    """How far the child is, 0 to 1, for whoever started it."""
    sys.stdout.write(f"{min(1.0, part):.3f} {note}\n")
    sys.stdout.flush()
