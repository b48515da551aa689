"""What a device remembers about releases: where each one stands, and the last desired state.

Owns: the table of releases and the one row of desired state, over ``sync.database``. When a method returns,
the change is durable. Refuses: deciding anything (``sync.update``) and doing anything
(``edge_agent.updates.activation``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlite_utils

from edge_agent.errors import UnfitRelease
from models import canonical
from models.digest import Digest
from models.manifest import Manifest
from sync.database import Connection, Database, Migration
from sync.protocol import Assignment, Figures, State
from sync.trust import Accepted
from sync.update import Observation, Progress, Window


@dataclass(frozen=True, slots=True)
class Release:
    """One release on this device.

    ``manifest`` is there as soon as both keys vouch for it, before its files are fetched. ``base`` is, for an
    adapter that serves or served, the digest of the base release that it rides on. ``window`` holds its
    latest answers.
    """

    progress: Progress
    manifest: Manifest | None = None
    base: Digest | None = None
    window: Window = field(default=Window())
    figures: Figures | None = None

    @property
    def digest(self) -> Digest:
        """The identity of the release."""
        return self.progress.assignment.release


def verified(release: Release) -> Manifest:
    """The manifest of a release that was vouched for here. Raises ``UnfitRelease`` before that."""
    if release.manifest is None:
        raise UnfitRelease(f"{release.progress.slot} was never verified on this device")
    return release.manifest


def _create(schema: sqlite_utils.Database) -> None:
    schema.table("releases").create(
        {
            "release": str,
            "assignment": str,
            "state": str,
            "attempts": int,
            "hold": int,
            "reason": str,
            "at": str,
            "manifest": str,
            "base": str,
            "window": str,
        },
        pk="release",
        not_null={"assignment", "state", "attempts", "hold", "at", "window"},
    )
    schema.table("desired").create(
        {"id": int, "version": int, "payload": str, "envelope": bytes},
        pk="id",
        not_null={"version", "payload", "envelope"},
    )


def _add_figures(schema: sqlite_utils.Database) -> None:
    schema.table("releases").add_column("figures", str)


MIGRATIONS: tuple[Migration, ...] = (
    Migration("releases and desired state", _create),
    Migration("figures of releases", _add_figures),
)


class ReleaseTable:
    """Releases by digest, and the desired state last accepted. Raises what ``Database`` raises."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> tuple[Release, ...]:
        """Every release that was ever offered here and not forgotten."""
        rows = await self._database.read(
            lambda connection: connection.execute(
                "SELECT assignment, state, attempts, hold, reason, at, manifest, base, window, figures "
                "FROM releases"
            ).fetchall()
        )
        return tuple(_from_row(row) for row in rows)

    async def save(self, *releases: Release) -> None:
        """Store all of them, or none."""
        rows = [_to_row(release) for release in releases]

        def store(connection: Connection) -> None:
            connection.executemany(
                "INSERT OR REPLACE INTO releases "
                "(release, assignment, state, attempts, hold, reason, at, manifest, base, window, figures) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )

        await self._database.write(store)

    async def desired(self) -> tuple[Accepted, bytes] | None:
        """The desired state last accepted, with its signed envelope."""
        row = await self._database.read(
            lambda connection: connection.execute("SELECT version, payload, envelope FROM desired").fetchone()
        )
        return None if row is None else (Accepted(row[0], Digest(row[1])), bytes(row[2]))

    async def accept(self, accepted: Accepted, envelope: bytes) -> None:
        """Remember a desired state, so that an older one is recognised after a restart too."""

        def store(connection: Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO desired (id, version, payload, envelope) VALUES (1, ?, ?, ?)",
                (accepted.version, accepted.payload, envelope),
            )

        await self._database.write(store)


def _to_row(release: Release) -> Sequence[Any]:
    progress = release.progress
    window = [[o.failed, o.violated_schema, o.seconds_per_token] for o in release.window.observations]
    return (
        release.digest,
        progress.assignment.to_bytes().decode(),
        progress.state.value,
        progress.attempts,
        int(progress.hold),
        progress.reason,
        canonical.encode({state.value: moment for state, moment in progress.at.items()}).decode(),
        None if release.manifest is None else release.manifest.to_bytes().decode(),
        release.base,
        canonical.encode(window).decode(),
        None if release.figures is None else release.figures.to_bytes().decode(),
    )


def _from_row(row: Sequence[Any]) -> Release:
    assignment, state, attempts, hold, reason, at, manifest, base, window, figures = row
    progress = Progress(
        assignment=Assignment.from_bytes(assignment.encode()),
        state=State(state),
        attempts=attempts,
        hold=bool(hold),
        reason=reason,
        at={State(name): moment for name, moment in canonical.decode(at.encode()).items()},
    )
    observations = tuple(Observation(*item) for item in canonical.decode(window.encode()))
    return Release(
        progress,
        None if manifest is None else Manifest.parse(manifest.encode()),
        None if base is None else Digest(base),
        Window(observations),
        None if figures is None else Figures.from_bytes(figures.encode()),
    )
