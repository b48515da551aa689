"""The director's shell: reads rows, lets ``cloud_hub.rollout`` decide, stores what it decided.

Owns the transactions around a decision. Refuses to talk to devices: what is to be said is returned.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from cloud_hub import registry, rollout
from cloud_hub.errors import WrongUse
from cloud_hub.registry import DeviceRow
from cloud_hub.rollout import Rollout, RolloutState
from models.digest import Digest
from models.forecast import unfit
from sync.protocol import Desired, ProbationTerms


def start_rollout(
    connection: Connection,
    reference: str,
    group: str,
    waves: tuple[float, ...],
    probation: ProbationTerms,
    now: float,
) -> Rollout:
    """Create a rollout of a published release; an unfinished one of the same slot and group ends.

    Raises ``NotFound`` for an unknown release, ``WrongUse`` for an empty group name.
    """
    if not group:
        raise WrongUse("--group: must not be empty")
    release = registry.find_release(connection, reference)
    made = registry.add_rollout(connection, release, group, waves, probation, now)
    existing = registry.rollouts(connection)
    superseded = set(rollout.superseded_by(made, existing))
    for old in existing:
        if old.id in superseded:
            ended = replace(old, state=RolloutState.SUPERSEDED, reason=f"rollout {made.id} took over")
            registry.set_rollout(connection, ended, now)
    return made


def unfit_devices(connection: Connection, release: Digest, group: str) -> dict[str, str]:
    """The devices of a group that will refuse a release, and why, as far as they said what they are."""
    manifest = registry.find_release(connection, release).manifest
    found = {}
    for row in registry.devices(connection):
        machine = row.reported.machine if row.reported is not None else None
        if row.group == group and row.revoked_at is None and machine is not None:
            why = unfit(manifest, machine)
            if why is not None:
                found[row.id] = why
    return found


def steer_rollout(connection: Connection, number: int, verb: str, now: float) -> Rollout:
    """``pause``, ``resume`` or ``abort`` a rollout. Raises ``NotFound``, ``WrongUse``."""
    current = registry.rollout(connection, number)
    if verb == "pause":
        changed = rollout.pause(current)
    elif verb == "resume":
        changed = rollout.resume(current, decision_devices(registry.devices(connection)))
    elif verb == "abort":
        changed = rollout.abort(current)
    else:
        raise WrongUse(f"a rollout can be paused, resumed or aborted, not {verb!r:.40}")
    registry.set_rollout(connection, changed, now)
    return changed


def rollout_facts(each: Rollout) -> dict[str, Any]:
    """A rollout in JSON's types."""
    return {
        "id": each.id,
        "release": f"{each.assignment.kind}/{each.assignment.name}@{each.assignment.version}",
        "digest": each.assignment.release,
        "group": each.group,
        "waves": list(each.waves),
        "open_waves": each.open_waves,
        "state": each.state.value,
        "reason": each.reason,
        "members": dict(each.members),
        "excused": sorted(each.excused),
    }


def tick(connection: Connection, now: float) -> list[Desired]:
    """Advance every rollout by what the reports allow; returns the desired states that are new."""
    rows = [row for row in registry.devices(connection) if row.revoked_at is None]
    devices = decision_devices(rows)
    rollouts = registry.rollouts(connection)
    for position, each in enumerate(rollouts):
        step = rollout.advance(each, devices)
        if step is not None:
            registry.apply_step(connection, each.id, step, now)
            rollouts[position] = replace(
                each,
                state=step.state,
                open_waves=step.open_waves,
                reason=step.reason,
                members={**each.members, **step.admit},
            )
    changed = []
    for row in rows:
        if "desired" in row.unreadable:
            continue  # its next version has to follow the one that cannot be read
        here = [each for each in rollouts if each.group == row.group]
        wanted = rollout.desired(row.id, here, row.desired, now)
        if wanted is not None:
            registry.set_desired(connection, wanted)
            changed.append(wanted)
    return changed


def decision_devices(rows: Sequence[DeviceRow]) -> list[rollout.Device]:
    """What the decision needs of each row."""
    return [
        rollout.Device(
            row.id,
            row.group,
            {each.release: each for each in row.reported.releases} if row.reported else {},
            row.desired,
            row.reported.desired_version if row.reported else 0,
        )
        for row in rows
    ]
