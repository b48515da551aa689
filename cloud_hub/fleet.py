"""What the hub can honestly say of a device: online, stale or offline, and what went wrong on it.

Pure: stored messages and the time come in, a verdict with its reason goes out.
"""

from dataclasses import dataclass
from enum import StrEnum

from sync.protocol import ReleaseReport, Reported, State, Status


class Presence(StrEnum):
    """Whether a device can be reached, as far as the hub knows."""

    ONLINE = "online"
    STALE = "stale"
    OFFLINE = "offline"
    UNSEEN = "unseen"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A presence, and the evidence for it in a few words."""

    presence: Presence
    why: str


def presence(
    status: Status | None,
    reported: Reported | None,
    heard_at: float | None,
    now: float,
    stale_after: float,
    revoked: bool = False,
) -> Verdict:
    """The verdict on one device. Times are seconds; ``heard_at`` and ``now`` are the hub's clock.

    A birth or will of the session that reported last counts; so does one of a later session, by the
    device's own clock. A will of an older session says nothing of the present one.
    """
    if revoked:
        return Verdict(Presence.REVOKED, "its certificate was revoked")
    if heard_at is None or (status is None and reported is None):
        return Verdict(Presence.UNSEEN, "enrolled, not heard of yet")
    same = status is not None and reported is not None and status.session == reported.session
    later = status is not None and (reported is None or status.at > reported.at)
    if status is not None and not status.online and (same or later):
        return Verdict(Presence.OFFLINE, "its connection ended")
    if now - heard_at > stale_after:
        return Verdict(Presence.STALE, f"nothing heard for more than {stale_after:.0f} s")
    if not same and later:
        return Verdict(Presence.STALE, "connected, no report in this session yet")
    if not same:
        return Verdict(Presence.STALE, "its status belongs to an older session than its last report")
    return Verdict(Presence.ONLINE, "connected and reporting")


def report_is_newer(message: Reported, known: Reported) -> bool:
    """Whether a report says more than a repetition: what a broker repeats is no sign of life.

    Within a session the sequence grows; across sessions the device's own time decides.
    """
    if message.session == known.session:
        return message.sequence > known.sequence
    return message.at > known.at


def status_is_newer(message: Status, known: Status) -> bool:
    """The same of a birth or a will. A session is one connection: it begins once, and then it ends.

    Its will is signed before its birth, so the time decides only across sessions.
    """
    if message.session == known.session:
        return known.online and not message.online
    return message.at > known.at


def rollbacks(reported: Reported | None) -> tuple[ReleaseReport, ...]:
    """The releases that a device refused or took back, in its own order; the reason is the device's."""
    if reported is None:
        return ()
    return tuple(each for each in reported.releases if each.state is State.ROLLED_BACK)


def running(reported: Reported | None) -> tuple[ReleaseReport, ...]:
    """The releases that answer requests on a device now, models first."""
    if reported is None:
        return ()
    serving = (each for each in reported.releases if each.state in (State.ACTIVE, State.COMMITTED))
    return tuple(sorted(serving, key=lambda each: (each.kind != "model", each.kind, each.name)))


def moving(reported: Reported | None) -> tuple[ReleaseReport, ...]:
    """The releases on their way to becoming active."""
    if reported is None:
        return ()
    still = (State.ACTIVE, State.COMMITTED, State.ROLLED_BACK, State.SUPERSEDED)
    return tuple(each for each in reported.releases if each.state not in still)
