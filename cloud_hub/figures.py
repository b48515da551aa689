"""What devices measured of releases, as rows: the last figures of each device and release.

Owns the table and its words for people and files. Refuses what no published release stands behind: a device
cannot fill the table. Every function takes the connection of its caller's transaction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from cloud_hub.database import FIGURES, RELEASES
from models.digest import Digest
from models.manifest import Manifest
from sync.protocol import Figures, Reported


@dataclass(frozen=True, slots=True)
class FigureRow:
    """What one device measured of one release. ``reported_at``: seconds since the epoch, by the device."""

    device: str
    profile: str | None
    release: Digest
    figures: Figures
    reported_at: float


def keep(connection: Connection, reported: Reported) -> None:
    """Store the figures of a report that are new, in place of those that the device gave before."""
    told = {each.release: each.figures for each in reported.releases if each.figures is not None}
    published = select(RELEASES.c.digest).where(RELEASES.c.digest.in_(list(told)))
    known = {row.release: row for row in _rows(connection, reported.device)}
    profile = reported.machine.profile if reported.machine is not None else None
    for digest in map(Digest, connection.execute(published).scalars()):
        new, old = told[digest], known.get(digest)
        if old is not None and (old.figures, old.profile) == (new, profile):
            continue
        connection.execute(
            delete(FIGURES).where(FIGURES.c.device == reported.device, FIGURES.c.release_digest == digest)
        )
        connection.execute(
            insert(FIGURES).values(
                device=reported.device,
                release_digest=digest,
                profile=profile,
                figures=new.to_bytes(),
                reported_at=reported.at,
            )
        )


def figure_rows(connection: Connection) -> list[FigureRow]:
    """All figures, by device and release."""
    return _rows(connection)


def figure_facts(row: FigureRow, manifest: Manifest) -> dict[str, Any]:
    """One row in JSON's types: what ``outpost-compile --figures`` reads, and people see."""
    return {
        "device": row.device,
        "profile": row.profile,
        "release": row.release,
        "kind": manifest.kind.value,
        "name": manifest.name,
        "version": manifest.version,
        **row.figures.model_dump(mode="json"),
        "reported_at": row.reported_at,
    }


def measured(figures: Mapping[str, Any]) -> str:
    """The same in words."""
    rates = (
        ("decode_per_second", "tokens/s"),
        ("prefill_per_second", "tokens/s of prompt"),
        ("items_per_second", "inputs/s"),
    )
    parts = [f"{figures[key]:.1f} {words}" for key, words in rates if figures[key] is not None]
    if figures["peak_ram_bytes"] is not None:
        parts.append(f"{figures['peak_ram_bytes'] / 1e6:.0f} MB")
    if figures["load_seconds"] is not None:
        parts.append(f"{figures['load_seconds']:.1f} s to load")
    return ", ".join(parts) or "nothing"


def _rows(connection: Connection, device: str | None = None) -> list[FigureRow]:
    query = select(FIGURES).order_by(FIGURES.c.device, FIGURES.c.release_digest)
    if device is not None:
        query = query.where(FIGURES.c.device == device)
    return [
        FigureRow(
            row["device"],
            row["profile"],
            Digest(row["release_digest"]),
            Figures.from_bytes(row["figures"]),
            row["reported_at"],
        )
        for row in connection.execute(query).mappings()
    ]
