"""Which release each device should run: waves, and the desired state that follows from them.

Owns the decision. Pure: rows come in, decisions go out; ``cloud_hub.control`` reads, writes and
publishes. A device that was admitted to a rollout stays admitted, so a wave never shrinks when the
fleet grows, and the first wave of the smallest fleet still has one canary.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from cloud_hub.errors import WrongUse
from models.digest import Digest
from models.manifest import Kind
from sync.protocol import Assignment, Desired, ProbationTerms, ReleaseReport, State


class RolloutState(StrEnum):
    """Where a rollout stands."""

    RUNNING = "running"
    PAUSED = "paused"  # by an operator
    HALTED = "halted"  # by a device that rolled the release back
    COMPLETED = "completed"
    SUPERSEDED = "superseded"  # a later rollout of the same slot and group took over
    ABORTED = "aborted"  # its devices go back to what they had


UNFINISHED = (RolloutState.RUNNING, RolloutState.PAUSED, RolloutState.HALTED)
"""States of a rollout that somebody may still have to look at."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A release on its way to a group. ``members`` maps each admitted device to its wave, from 1.

    ``waves`` are fractions of the group, growing, the last is 1. ``excused`` devices rolled the
    release back and an operator went on regardless.
    """

    id: int
    assignment: Assignment
    group: str
    waves: tuple[float, ...]
    state: RolloutState
    open_waves: int = 0
    members: Mapping[str, int] = field(default_factory=dict)
    excused: frozenset[str] = frozenset()
    reason: str | None = None
    probation: ProbationTerms = field(default=ProbationTerms())

    @property
    def slot(self) -> tuple[Kind, str]:
        """What the release replaces on a device."""
        return self.assignment.kind, self.assignment.name


@dataclass(frozen=True, slots=True)
class Device:
    """What a decision needs to know of one device: its group, its last report by release, the desired
    state that it was given last, and the version of the one that its report answers."""

    id: str
    group: str
    releases: Mapping[Digest, ReleaseReport] = field(default_factory=dict)
    desired: Desired | None = None
    reported_version: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """How a rollout changes now. ``admit`` maps newly admitted devices to their wave."""

    state: RolloutState
    open_waves: int
    admit: Mapping[str, int] = field(default_factory=dict)
    reason: str | None = None


def parse_waves(text: str) -> tuple[float, ...]:
    """``"5%,25%,100%"`` as fractions. Raises ``WrongUse`` unless they grow and end at 100 %."""
    try:
        waves = tuple(float(part.strip().removesuffix("%")) / 100 for part in text.split(","))
    except ValueError as error:
        raise WrongUse(f"--waves: expected percentages such as 5%,25%,100%, not {text!r}") from error
    if not all(math.isfinite(wave) and wave > 0 for wave in waves) or list(waves) != sorted(set(waves)):
        raise WrongUse(f"--waves: percentages must be above 0 and grow, not {text!r}")
    if waves[-1] != 1:
        raise WrongUse(f"--waves: the last wave is 100%, not {text!r}")
    return waves


def position(release: Digest, device: str) -> bytes:
    """The stable order in which a release reaches devices; another release, another order."""
    return hashlib.sha256(f"{release}\0{device}".encode()).digest()


def advance(rollout: Rollout, devices: Iterable[Device]) -> Step | None:
    """What changes in a rollout now, or None.

    One call opens at most one wave. A wave opens only when every admitted device has settled; a
    rollback that nobody excused halts the rollout with the device's own reason.
    """
    group = {device.id: device for device in devices if device.group == rollout.group}
    if rollout.state is RolloutState.COMPLETED:
        late = _admit(rollout, group, len(rollout.waves))
        return Step(rollout.state, rollout.open_waves, late, rollout.reason) if late else None
    if rollout.state is not RolloutState.RUNNING or not group:
        return None
    failure = _failure(rollout, group)
    if failure is not None:
        return Step(RolloutState.HALTED, rollout.open_waves, reason=failure)
    if all(settled(rollout, group[member]) for member in rollout.members if member in group):
        if rollout.open_waves == len(rollout.waves) and rollout.members:
            late = _admit(rollout, group, rollout.open_waves)
            state = RolloutState.RUNNING if late else RolloutState.COMPLETED
            return Step(state, rollout.open_waves, late)
        opened = min(rollout.open_waves + 1, len(rollout.waves))
        return Step(rollout.state, opened, _admit(rollout, group, opened))
    late = _admit(rollout, group, rollout.open_waves)
    return Step(rollout.state, rollout.open_waves, late) if late else None


def resume(rollout: Rollout, devices: Iterable[Device]) -> Rollout:
    """The rollout running again; devices that rolled back so far are excused.

    Raises ``WrongUse`` for a rollout that has ended.
    """
    if rollout.state in (RolloutState.ABORTED, RolloutState.COMPLETED):
        raise WrongUse(f"rollout {rollout.id} is {rollout.state}; create a new one")
    failed = {device.id for device in devices if _rolled_back(rollout, device) is not None}
    return _with_state(rollout, RolloutState.RUNNING, rollout.excused | (failed & set(rollout.members)))


def pause(rollout: Rollout) -> Rollout:
    """The rollout paused: no further wave opens, admitted devices go on. Raises ``WrongUse``."""
    if rollout.state is not RolloutState.RUNNING:
        raise WrongUse(f"rollout {rollout.id} is {rollout.state}, not running")
    return _with_state(rollout, RolloutState.PAUSED, rollout.excused)


def abort(rollout: Rollout) -> Rollout:
    """The rollout withdrawn: its devices go back to what they had. Raises ``WrongUse``."""
    if rollout.state is RolloutState.ABORTED:
        raise WrongUse(f"rollout {rollout.id} is already aborted")
    return _with_state(rollout, RolloutState.ABORTED, rollout.excused)


def superseded_by(new: Rollout, rollouts: Iterable[Rollout]) -> tuple[int, ...]:
    """The unfinished rollouts that stop advancing because ``new`` fills the same slot of its group."""
    return tuple(
        old.id
        for old in rollouts
        if old.id != new.id and (old.slot, old.group) == (new.slot, new.group) and old.state in UNFINISHED
    )


def desired(device: str, rollouts: Sequence[Rollout], previous: Desired | None, now: float) -> Desired | None:
    """The device's next desired state, or None when ``previous`` already says the same.

    For each slot the latest rollout that admitted the device counts, unless it was aborted.
    Models come before what needs them. ``now``: seconds since the epoch.
    """
    chosen: dict[tuple[Kind, str], Rollout] = {}
    for rollout in sorted(rollouts, key=lambda each: each.id):
        if device in rollout.members and rollout.state is not RolloutState.ABORTED:
            chosen[rollout.slot] = rollout
    ordered = sorted(chosen.values(), key=lambda each: (each.slot[0] is not Kind.MODEL, each.slot))
    assignments = tuple(rollout.assignment for rollout in ordered)
    latest = max(chosen.values(), key=lambda each: each.id, default=None)
    probation = latest.probation if latest else ProbationTerms()
    if previous is None:
        if not assignments:
            return None
    elif (previous.assignments, previous.probation) == (assignments, probation):
        return None
    return Desired(
        device=device,
        version=previous.version + 1 if previous else 1,
        issued_at=now,
        assignments=assignments,
        probation=probation,
    )


def settled(rollout: Rollout, device: Device) -> bool:
    """Whether a member no longer holds its wave back.

    Of an older release a device may still say how it once ended. So while a rollout is unfinished, only a
    commit counts that is reported under the desired state in which the device was given the release.
    """
    if device.id in rollout.excused:
        return True
    report = device.releases.get(rollout.assignment.release)
    if report is None:
        return False
    if rollout.state not in UNFINISHED:
        return report.state in (State.COMMITTED, State.SUPERSEDED)
    told = device.desired
    return (
        report.state is State.COMMITTED
        and told is not None
        and rollout.assignment in told.assignments
        and device.reported_version >= told.version
    )


def _admit(rollout: Rollout, group: Mapping[str, Device], opened: int) -> dict[str, int]:
    """Devices to admit so that the members fill the opened waves, in the release's stable order."""
    if opened == 0:
        return {}
    room = math.ceil(rollout.waves[opened - 1] * len(group)) - len(rollout.members.keys() & group.keys())
    waiting = sorted(
        group.keys() - rollout.members.keys(),
        key=lambda device: position(rollout.assignment.release, device),
    )
    return dict.fromkeys(waiting[: max(0, room)], opened)


def _failure(rollout: Rollout, group: Mapping[str, Device]) -> str | None:
    for member in sorted(rollout.members.keys() & group.keys()):
        reason = _rolled_back(rollout, group[member])
        if reason is not None and member not in rollout.excused:
            return f"{member}: {reason}"
    return None


def _rolled_back(rollout: Rollout, device: Device) -> str | None:
    report = device.releases.get(rollout.assignment.release)
    if report is None or report.state is not State.ROLLED_BACK:
        return None
    return report.reason or "rolled back, without a reason"


def _with_state(rollout: Rollout, state: RolloutState, excused: frozenset[str]) -> Rollout:
    return replace(rollout, state=state, excused=excused, reason=None)
