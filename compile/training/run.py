"""What every training run works with, beside model, data and settings."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from compile.steps import Report


@dataclass(frozen=True)
class TrainingRun:
    """Where the result goes, where checkpoints are kept, and with what is worked.

    ``target`` is a folder that is there. A run that was killed goes on from what it left in ``scratch``.
    ``now`` is a monotonic clock in seconds.
    """

    target: Path
    scratch: Path
    threads: int
    now: Callable[[], float] = field(repr=False)
    report: Report = field(repr=False)

    def part(self, name: str) -> "TrainingRun":
        """A run within this one that keeps its checkpoints apart."""
        return replace(self, scratch=self.scratch / name)
