"""What the demo found out: checks, events on a time line, and the table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from processes import StepFailed


@dataclass(frozen=True)
class Check:
    """One thing that must hold, and what was seen."""

    claim: str
    holds: bool
    seen: str


@dataclass
class Step:
    """One step of the walk: its sentence, its checks, when it began and ended (seconds since start)."""

    number: int
    title: str
    sentence: str
    began: float
    ended: float = 0.0
    checks: list[Check] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """``ok``, ``FAILED``, or ``not built`` when nothing was checked."""
        if not self.checks:
            return "not built"
        return "ok" if all(check.holds for check in self.checks) else "FAILED"


@dataclass
class Story:
    """All steps in order, told on stderr as they happen."""

    started: float = field(default_factory=time.time)
    steps: list[Step] = field(default_factory=list)

    def now(self) -> float:
        """Seconds since the demo began."""
        return time.time() - self.started

    @contextmanager
    def step(self, number: int, title: str, sentence: str) -> Iterator[Step]:
        """Run one step; whatever goes wrong inside becomes a failed check and a ``StepFailed``."""
        step = Step(number, title, sentence, self.now())
        self.steps.append(step)
        say(f"\n\033[1mStep {number} of 8. {title}\033[0m\n  {sentence}")
        try:
            yield step
        except Exception as failure:  # whatever a client library raises ends the step, and is told
            self.check("the step runs to its end", False, f"{type(failure).__name__}: {failure}")
            raise StepFailed(f"step {number} stopped: {failure}") from failure
        finally:
            step.ended = self.now()

    def check(self, claim: str, holds: bool, seen: str = "") -> bool:
        """Record one claim of the current step."""
        self.steps[-1].checks.append(Check(claim, bool(holds), seen))
        mark = "\033[32m✓\033[0m" if holds else "\033[31m✗\033[0m"
        say(f"  {mark} {claim}" + (f": {seen}" if seen else ""))
        return bool(holds)

    def event(self, what: str) -> None:
        """Put something that happened on the time line."""
        self.steps[-1].events.append((self.now(), what))
        say(f"  · {what}")

    @property
    def held(self) -> bool:
        """Whether all eight steps were built and every check held."""
        return len(self.steps) == 8 and all(step.verdict == "ok" for step in self.steps)

    def table(self) -> str:
        """The table at the end, for a terminal."""
        lines = [f"{'step':<34} {'verdict':<10} {'checks':>7} {'seconds':>8}"]
        for step in self.steps:
            held = sum(check.holds for check in step.checks)
            lines.append(
                f"{step.number}. {step.title:<31} {step.verdict:<10} "
                f"{f'{held}/{len(step.checks)}':>7} {step.ended - step.began:>8.1f}"
            )
        for number in range(len(self.steps) + 1, 9):
            lines.append(f"{number}. {'(not reached)':<31} {'not run':<10}")
        return "\n".join(lines)


def say(text: str) -> None:
    """Progress goes to stderr, as everywhere in Outpost."""
    print(text, file=sys.stderr, flush=True)


def attempt(action: Callable[[], object]) -> str | None:
    """The words of the failure of ``action``, or None when it succeeded."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - whatever a client library raises is the answer here
        return f"{type(error).__name__}: {error}"
    return None
