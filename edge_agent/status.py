"""``outpost-edge status``: what runs on this device and why, read from its home, running or not."""

import os
import time
from dataclasses import asdict
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from edge_agent.agent import SCHEMA
from edge_agent.home import Home
from edge_agent.updates.state import ReleaseTable
from models.machine import this_machine
from sync.database import Database
from sync.trail import Trail, TrailIdentity
from sync.trust import auditor_key


async def read_status(home: Home) -> dict[str, Any]:
    """The stored state of a device as JSON. Raises ``NotEnrolled``, ``StoreUnusable``."""
    membership = home.membership()
    identity = TrailIdentity(
        membership.device,
        home.key(),
        X25519PublicKey.from_public_bytes(auditor_key(home.trusted_root())),
        membership.epoch,
    )
    database = Database.open(home.database, SCHEMA)
    try:
        table = ReleaseTable(database)
        desired = await table.desired()
        releases = await table.all()
        audit = await Trail(database, identity, now=time.time, random_bytes=os.urandom).report()
    finally:
        await database.close()
    return {
        "device": membership.device,
        "machine": asdict(this_machine()),
        "hub": membership.hub_url,
        "desired_version": desired[0].version if desired else 0,
        "releases": [
            {
                "kind": release.progress.assignment.kind,
                "name": release.progress.assignment.name,
                "version": release.progress.assignment.version,
                "release": release.digest,
                "state": release.progress.state,
                "reason": release.progress.reason,
                "attempts": release.progress.attempts,
                "hold": release.progress.hold,
                "figures": release.figures.model_dump(mode="json") if release.figures else None,
            }
            for release in releases
        ],
        "audit": audit.model_dump(mode="json"),
    }


def as_text(status: dict[str, Any]) -> str:
    """The same for a person."""
    lines = [f"{status['device']}, member of {status['hub']}, desired state {status['desired_version']}"]
    machine = status["machine"]
    lines.append(
        f"  machine  {machine['profile'] or 'of no profile'}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 1e9:.1f} GB"
    )
    for release in status["releases"]:
        why = f"  ({release['reason']})" if release["reason"] else ""
        held = "  on hold" if release["hold"] else ""
        lines.append(
            f"  {release['kind']:<8} {release['name']} {release['version']:<10} {release['state']}{why}{held}"
        )
        if release["figures"]:
            lines.append(f"           {_measured(release['figures'])}")
    audit = status["audit"]
    waiting = audit["size"] - audit["acknowledged"]
    lines.append(f"  audit    {audit['size']} records, {waiting} wait for the hub's receipt")
    return "\n".join(lines)


def _measured(figures: dict[str, Any]) -> str:
    parts = [
        f"{figures[key]:.1f} {words}"
        for key, words in (
            ("decode_per_second", "tokens/s"),
            ("prefill_per_second", "tokens/s of prompt"),
            ("items_per_second", "inputs/s"),
            ("load_seconds", "s to load"),
        )
        if figures[key]
    ]
    if figures["peak_ram_bytes"]:
        parts.append(f"{figures['peak_ram_bytes'] / 1e6:.0f} MB at most")
    threads = figures["threads"]
    return ", ".join([*parts, f"on {threads} thread{'' if threads == 1 else 's'}"])
