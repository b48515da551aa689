"""The life of a release on a device, as a pure state machine, and the judgement of its probation.

::

    offered -> fetching -> verified -> staged -> probed -> active -> committed -> superseded
       any of these but superseded -> rolled_back(reason)
       rolled_back, superseded -> offered       wanted (again)
       superseded -> committed                  its successor was rolled back at the device

The shell (``edge_agent.updates.activation``) makes each state durable before it does what the state
announces. An attempt is counted when a release is verified, because from there on it touches the engine: a
release that kills the device while it is staged uses up its attempts, a download that is cut does not. A
verdict (it does not fit, a probe failed, probation went badly, a person said so) puts the release on hold
until it is released at the device; an accident (the engine crashed, the memory was full) is tried again, at
most ``MAX_ATTEMPTS`` times. No clock and no I/O.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import comb

from sync.errors import IllegalTransition
from sync.protocol import Assignment, ProbationTerms, State

MAX_ATTEMPTS = 3
WINDOW = 500
"""Answers remembered of a release. More would weigh old days against today."""

_NEXT = {
    State.OFFERED: {State.FETCHING, State.ROLLED_BACK},
    State.FETCHING: {State.VERIFIED, State.ROLLED_BACK},
    State.VERIFIED: {State.STAGED, State.ROLLED_BACK},
    State.STAGED: {State.PROBED, State.ROLLED_BACK},
    State.PROBED: {State.ACTIVE, State.ROLLED_BACK},
    State.ACTIVE: {State.COMMITTED, State.ROLLED_BACK, State.SUPERSEDED},
    State.COMMITTED: {State.SUPERSEDED, State.ROLLED_BACK},
    State.ROLLED_BACK: {State.OFFERED},
    State.SUPERSEDED: {State.OFFERED, State.COMMITTED},
}
UNDERWAY = frozenset({State.OFFERED, State.FETCHING, State.VERIFIED, State.STAGED, State.PROBED})
SERVING = frozenset({State.ACTIVE, State.COMMITTED})


@dataclass(frozen=True, slots=True)
class Progress:
    """Where one release stands. ``at`` says when each state was last reached, in seconds since the epoch.

    ``hold`` forbids another attempt until it is released at the device. Law: ``attempts <= MAX_ATTEMPTS``.
    """

    assignment: Assignment
    state: State
    attempts: int = 0
    hold: bool = False
    reason: str | None = None
    at: dict[State, float] = field(default_factory=dict)

    @property
    def slot(self) -> str:
        """What the release replaces: one release per kind and name serves at a time."""
        return f"{self.assignment.kind}/{self.assignment.name}"


def offer(assignment: Assignment, now: float) -> Progress:
    """A release that was never here before."""
    return Progress(assignment, State.OFFERED, at={State.OFFERED: now})


def advance(progress: Progress, to: State, now: float) -> Progress:
    """The next state on the way. Raises ``IllegalTransition`` for any other."""
    if to in (State.ROLLED_BACK, State.OFFERED) or to not in _NEXT[progress.state]:
        raise IllegalTransition(f"{progress.slot}: no way from {progress.state} to {to}")
    attempts = progress.attempts + (to is State.VERIFIED)
    if attempts > MAX_ATTEMPTS:
        raise IllegalTransition(f"{progress.slot}: all {MAX_ATTEMPTS} attempts are used up")
    return replace(progress, state=to, attempts=attempts, reason=None, at={**progress.at, to: now})


def roll_back(progress: Progress, reason: str, hold: bool, now: float) -> Progress:
    """Give up. With ``hold`` it is not tried again until the hold is released at the device."""
    if State.ROLLED_BACK not in _NEXT[progress.state]:
        raise IllegalTransition(f"{progress.slot}: nothing to roll back in {progress.state}")
    at = {**progress.at, State.ROLLED_BACK: now}
    return replace(progress, state=State.ROLLED_BACK, reason=reason, hold=hold, at=at)


def may_retry(progress: Progress) -> bool:
    """Whether a release that is wanted but does not serve may be offered again."""
    if progress.state is State.SUPERSEDED:
        return True
    return progress.state is State.ROLLED_BACK and not progress.hold and progress.attempts < MAX_ATTEMPTS


def offer_again(progress: Progress, now: float) -> Progress:
    """Start over. A release that did its duty and was superseded has all its attempts again."""
    if not may_retry(progress):
        raise IllegalTransition(f"{progress.slot}: not to be tried again ({progress.reason})")
    attempts = 0 if progress.state is State.SUPERSEDED else progress.attempts
    at = {**progress.at, State.OFFERED: now}
    return replace(progress, state=State.OFFERED, attempts=attempts, reason=None, at=at)


def stall(progress: Progress, reason: str) -> Progress:
    """Note why a release does not move on for now: the link, the disk, metadata that does not verify."""
    return replace(progress, reason=reason)


def release_hold(progress: Progress) -> Progress:
    """A person at the device allows a held release to be tried again, from the first attempt."""
    return replace(progress, hold=False, attempts=0)


def interrupted(progress: Progress, now: float) -> Progress:
    """What a restart makes of a release that was underway: it starts over, or has used up its attempts."""
    if progress.state not in UNDERWAY:
        return progress
    if progress.attempts >= MAX_ATTEMPTS:
        return roll_back(
            progress, f"interrupted in {progress.state}, {MAX_ATTEMPTS} times in all", False, now
        )
    return replace(progress, state=State.OFFERED, at={**progress.at, State.OFFERED: now})


def backoff(attempts: int) -> float:
    """Seconds to wait before the next attempt."""
    return float(5 * 4 ** max(attempts - 1, 0))


@dataclass(frozen=True, slots=True)
class Observation:
    """One answer: did it fail, did it break the output schema, seconds per token (None without tokens)."""

    failed: bool = False
    violated_schema: bool = False
    seconds_per_token: float | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """The latest answers of one release, oldest first, at most ``WINDOW``."""

    observations: tuple[Observation, ...] = ()

    def add(self, new: Sequence[Observation]) -> "Window":
        """The window with newer answers at its end."""
        return Window((*self.observations, *new)[-WINDOW:])

    @property
    def requests(self) -> int:
        """How many answers are in the window."""
        return len(self.observations)

    @property
    def failures(self) -> int:
        """Answers that ended in an error."""
        return sum(item.failed for item in self.observations)

    @property
    def violations(self) -> int:
        """Complete answers that broke the output schema."""
        return sum(item.violated_schema for item in self.observations)

    @property
    def pace(self) -> float | None:
        """Seconds per token in the quickest quarter of answers, or None without any.

        The quickest quarter, because a busy device slows the median of any release; one that is slow even in
        its best moments is slow itself.
        """
        paces = sorted(o.seconds_per_token for o in self.observations if o.seconds_per_token is not None)
        return paces[len(paces) // 4] if paces else None


class Verdict(StrEnum):
    """What probation says now."""

    CONTINUE = "continue"
    COMMIT = "commit"
    ROLL_BACK = "roll_back"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and for a rollback the reason in words with the figures."""

    verdict: Verdict
    reason: str | None = None


def judge_probation(previous: Window, current: Window, terms: ProbationTerms, elapsed: float) -> Judgement:
    """Compare a release in probation with the one before it. ``elapsed`` is in seconds.

    Errors and schema violations are each held against the previous release by Fisher's exact test, one-sided.
    It is asked after every answer, so the significance is shared out (Bonferroni): half of ``alpha`` over the
    looks before ``min_requests``, half for the last look, and each half over the two counts. The release is
    committed at ``min_requests`` answers, or at ``max_seconds`` with fewer, when nothing speaks against it.

    Where the release before gave fewer than ``min_requests`` answers, a comparison may be blind. Then harm in
    significantly more than half of the answers speaks against a release by itself, and while more than half
    are harmed but too few to be sure, it is watched on.
    """
    last = current.requests >= terms.min_requests or elapsed >= terms.max_seconds
    level = terms.alpha / 4 if last else terms.alpha / (4 * terms.min_requests)
    counts = (
        ("failed", current.failures, previous.failures),
        ("broke the output schema", current.violations, previous.violations),
    )
    blind = previous.requests < terms.min_requests
    for what, now, before in counts:
        p = fisher_greater(now, current.requests, before, previous.requests)
        if p < level:
            return Judgement(
                Verdict.ROLL_BACK,
                f"{now} of {current.requests} answers {what}, "
                f"{before} of {previous.requests} before (p={p:.2g})",
            )
        p = mostly(now, current.requests)
        if blind and p < level:
            return Judgement(
                Verdict.ROLL_BACK,
                f"{now} of {current.requests} answers {what}, "
                f"and only {previous.requests} before to compare with (p={p:.2g})",
            )
    if not last or (blind and 2 * max(current.failures, current.violations) > current.requests):
        return Judgement(Verdict.CONTINUE)
    slower = _slower(previous, current, terms)
    return Judgement(Verdict.ROLL_BACK, slower) if slower else Judgement(Verdict.COMMIT)


def fisher_greater(hits: int, size: int, hits_before: int, size_before: int) -> float:
    """One-sided p of Fisher's exact test: the chance of ``hits`` or more of ``size`` if nothing had changed.

    R. A. Fisher, Statistical Methods for Research Workers, section 21.02: the hypergeometric tail with all
    margins fixed. 1.0 when either side saw nothing.
    """
    if not size or not size_before:
        return 1.0
    total_hits, total = hits + hits_before, size + size_before
    tail = sum(
        comb(size, k) * comb(size_before, total_hits - k) for k in range(hits, min(size, total_hits) + 1)
    )
    return tail / comb(total, total_hits)


def mostly(hits: int, size: int) -> float:
    """One-sided p of the exact binomial test: the chance of ``hits`` or more of ``size`` at even odds."""
    return sum(comb(size, k) for k in range(hits, size + 1)) / (1 << size)


def _slower(previous: Window, current: Window, terms: ProbationTerms) -> str | None:
    if min(previous.requests, current.requests) < terms.min_requests:
        return None
    before, now = previous.pace, current.pace
    if before is None or now is None or now <= terms.latency_factor * before:
        return None
    return f"{now * 1000:.1f} ms a token at its quickest quarter, {before * 1000:.1f} ms before"
