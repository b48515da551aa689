"""What comes next for the releases of a device. Pure: from how things stand to how they shall stand.

Owns which way leads to what is wanted, what a failure means, and which rows change together when a release
becomes active, is committed or is left again. ``sync.update`` knows the states of one release; here are all
of a device, and the adapters that ride on a base. Refuses: carrying it out
(``edge_agent.updates.activation``).
"""

from dataclasses import dataclass, replace
from enum import Enum, auto

from edge_agent.errors import ReleaseRefused
from edge_agent.updates.releases import NotYet, Releases
from edge_agent.updates.state import Release, verified
from models.digest import Digest
from models.errors import DigestMismatch, EngineError, InvalidManifest, UnsafeFile
from models.manifest import Kind
from sync import update
from sync.errors import BlobMissing, LinkDown, StoreFull, UntrustedRelease
from sync.protocol import Assignment, State


class Way(Enum):
    """How a slot comes to the release that is wanted in it."""

    WAIT = auto()  # not now, or not again
    THERE = auto()  # it serves
    BACK = auto()  # it is what the one that serves would fall back to
    ON = auto()  # fetch, load, probe, activate


def way_to(assignment: Assignment, releases: Releases, *, paused: bool, now: float) -> tuple[Way, Release]:
    """The way to what is assigned, and the row of it from now on. ``paused``: it is not to be tried yet."""
    release = releases.get(assignment.release)
    if release is None:
        return Way.ON, Release(update.offer(assignment, now))
    if release.progress.state in update.SERVING:
        is_current = releases.current(release.progress.slot) is release
        return (Way.THERE if is_current else Way.BACK), release
    if paused:
        return Way.WAIT, release
    if update.may_retry(release.progress):
        release = replace(release, progress=update.offer_again(release.progress, now))
    elif release.progress.state not in (State.OFFERED, State.FETCHING):
        release = replace(release, progress=update.interrupted(release.progress, now))
    return (Way.ON if release.progress.state in update.UNDERWAY else Way.WAIT), release


class Setback(Enum):
    """What happens to a release on its way that does not get on."""

    STALLED = auto()  # it stays where it is and goes on later
    GIVEN_UP = auto()  # it starts over, as often as ``sync.update`` allows
    HELD = auto()  # it is given up until a person lets it be tried again


_FOR_NOW = (NotYet, LinkDown, BlobMissing, StoreFull, UntrustedRelease, DigestMismatch)
_FOR_GOOD = (ReleaseRefused, UnsafeFile, InvalidManifest)
SETBACKS = (*_FOR_NOW, *_FOR_GOOD, EngineError)
"""Failures that say something of the release; any other says something of the device."""


def setback_of(error: Exception) -> tuple[Setback, str]:
    """What one of ``SETBACKS`` means for a release, and how it is reported."""
    if isinstance(error, NotYet):
        return Setback.STALLED, str(error)
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, _FOR_GOOD):
        return Setback.HELD, reason
    return (Setback.STALLED if isinstance(error, _FOR_NOW) else Setback.GIVEN_UP), reason


def activated(release: Release, base: Digest | None, releases: Releases, now: float) -> list[Release]:
    """The rows that change when a probed release becomes active; ``base``: what an adapter rides on."""
    current = releases.current(release.progress.slot)
    active = update.advance(release.progress, State.ACTIVE, now)
    if current is None:
        # Nothing to be compared with and nothing to go back to: its probes were its probation.
        active = update.advance(active, State.COMMITTED, now)
    changes = [replace(release, progress=active, base=base)]
    if current is not None:
        if current.progress.state is State.ACTIVE:
            current = _moved(current, State.SUPERSEDED, now)
        changes.append(current)  # with its latest answers: the new release is held against them
    if base is None:
        changes += [replace(rider, base=release.digest) for rider in releases.riders(release)]
    return changes


def committed(release: Release, before: Release, now: float) -> list[Release]:
    """The rows that change when probation went well."""
    return [_moved(release, State.COMMITTED, now), _moved(before, State.SUPERSEDED, now)]


@dataclass(frozen=True, slots=True)
class WayBack:
    """``changes`` are to be stored once ``before`` is loaded, and the adapters ``riders`` upon it."""

    before: Release | None
    riders: tuple[Release, ...]
    changes: tuple[Release, ...]


def way_back(release: Release, reason: str, releases: Releases, *, hold: bool, now: float) -> WayBack:
    """From ``release``, which serves, to the one before it; to nothing when there is none."""
    left = replace(release, progress=update.roll_back(release.progress, reason, hold, now))
    before = releases.before(release)
    if before is None:
        return WayBack(None, (), (left,))
    if before.progress.state is State.SUPERSEDED:
        before = _moved(before, State.COMMITTED, now)
    riders: tuple[Release, ...] = ()
    if verified(before).kind is Kind.MODEL:
        riders = tuple(rider for rider in releases.riders(before) if rider.base == release.digest)
    moved = (replace(rider, base=before.digest) for rider in riders)
    return WayBack(before, riders, (left, before, *moved))


def withdrawn(release: Release, now: float) -> Release:
    """A release that serves, when the director assigns nothing to its slot any more."""
    gone = update.advance(release.progress, State.SUPERSEDED, now)
    return replace(release, progress=update.stall(gone, "withdrawn by the hub"))


def _moved(release: Release, to: State, now: float) -> Release:
    return replace(release, progress=update.advance(release.progress, to, now))
