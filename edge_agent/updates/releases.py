"""Which release stands where on a device: what serves a slot, what did before, what rides on what. Pure."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from edge_agent.errors import UnfitRelease
from edge_agent.updates.state import Release
from models.digest import Digest
from models.manifest import Kind, Manifest
from sync import update
from sync.protocol import ReleaseReport, State

REPORTED_PER_SLOT = 6
"""Releases of one slot that are reported, what serves and then the latest: a report must fit one message."""


class NotYet(Exception):
    """An adapter whose base is not here yet."""


@dataclass(frozen=True, slots=True)
class Need:
    """Something that must stay loaded: a base release, and an adapter release on it or None."""

    base: Digest
    adapter: Digest | None = None


@dataclass(frozen=True, slots=True)
class Releases:
    """All releases of a device as they stand now."""

    rows: Mapping[Digest, Release] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Release]:
        return iter(self.rows.values())

    def get(self, digest: Digest | None) -> Release | None:
        """The release of that digest, if it is known."""
        return None if digest is None else self.rows.get(digest)

    def with_changed(self, *rows: Release) -> "Releases":
        """As they stand once ``rows`` are."""
        return Releases({**self.rows, **{row.digest: row for row in rows}})

    def slots(self) -> list[str]:
        """Bases before adapters."""
        slots = {release.progress.slot for release in self}
        return sorted(slots, key=lambda slot: (not slot.startswith(f"{Kind.MODEL}/"), slot))

    def in_slot(self, slot: str) -> list[Release]:
        """The releases that can take one place."""
        return [release for release in self if release.progress.slot == slot]

    def in_states(self, states: Collection[State]) -> list[Release]:
        """The releases that are in one of ``states``."""
        return [release for release in self if release.progress.state in states]

    def current(self, slot: str) -> Release | None:
        """What serves a slot: a release in probation, else the committed one."""
        for state in (State.ACTIVE, State.COMMITTED):
            for release in self.in_slot(slot):
                if release.progress.state is state:
                    return release
        return None

    def before(self, release: Release) -> Release | None:
        """What to go back to: the committed release under one in probation, else the last superseded one."""
        others = [other for other in self.in_slot(release.progress.slot) if other.digest != release.digest]
        committed = [other for other in others if other.progress.state is State.COMMITTED]
        superseded = [other for other in others if other.progress.state is State.SUPERSEDED]
        return max(committed or superseded, key=_latest, default=None)

    def riders(self, base: Release) -> list[Release]:
        """The adapters that serve now and may ride on ``base``."""
        name, riders = base.progress.assignment.name, []
        for slot in self.slots():
            current = self.current(slot)
            facts = current.manifest.adapter if current is not None and current.manifest is not None else None
            if current is None or facts is None or facts.base_name != name:
                continue
            if base.digest in facts.checked_against:
                riders.append(current)
        return riders

    def base_for(self, manifest: Manifest, wanted: Collection[Digest]) -> Release:
        """The base that an adapter will ride on. Raises ``UnfitRelease``; ``NotYet`` if ``wanted`` has it."""
        facts = manifest.adapter
        if facts is None:
            raise UnfitRelease(f"{manifest.name} is no adapter")
        base = self.current(f"{Kind.MODEL}/{facts.base_name}")
        if base is not None and base.digest in facts.checked_against:
            return base
        if base is None or set(wanted) & set(facts.checked_against):
            raise NotYet(f"waits for a base {facts.base_name} that it was checked against")
        raise UnfitRelease(
            f"adapter {manifest.name} {manifest.version} was not checked against {facts.base_name} "
            f"{base.progress.assignment.version}"
        )

    def needs(self) -> set[Need]:
        """What must stay loaded: all that serves, and what a release in probation would fall back to."""
        return {
            Need(release.digest) if release.base is None else Need(release.base, release.digest)
            for release in self.in_states(update.SERVING)
        }

    def kept(self, wanted: Collection[Digest]) -> list[Release]:
        """Whose files stay: what serves and would be fallen back to, is underway or will be tried again, and
        their bases.
        """
        kept: list[Release] = []
        for release in self:
            progress = release.progress
            if progress.state in update.SERVING:
                before = self.before(release)
                kept += [release] if before is None else [release, before]
            elif progress.state in update.UNDERWAY or (
                release.digest in wanted and update.may_retry(progress)
            ):
                kept.append(release)
        bases = [self.get(release.base) for release in kept]
        return kept + [base for base in bases if base is not None]

    def report(self) -> tuple[ReleaseReport, ...]:
        """Where they stand, slot by slot, latest first."""
        reports: list[ReleaseReport] = []
        for slot in self.slots():
            first = sorted(self.in_slot(slot), key=_serving_then_latest)[:REPORTED_PER_SLOT]
            reports += [_report(release) for release in sorted(first, key=_latest, reverse=True)]
        return tuple(reports)


def _latest(release: Release) -> float:
    return max(release.progress.at.values())


def _serving_then_latest(release: Release) -> tuple[bool, float]:
    return release.progress.state not in update.SERVING, -_latest(release)


def _report(release: Release) -> ReleaseReport:
    progress = release.progress
    assignment = progress.assignment
    return ReleaseReport(
        kind=assignment.kind,
        name=assignment.name,
        version=assignment.version,
        release=assignment.release,
        state=progress.state,
        reason=progress.reason,
        attempts=progress.attempts,
        at=progress.at,
        figures=release.figures,
    )
