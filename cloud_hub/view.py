"""The fleet as people see it: one picture for the command line, the REST API and the console.

Pure: rows and the time come in, plain JSON values go out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cloud_hub import fleet
from cloud_hub.control import decision_devices, rollout_facts
from cloud_hub.figures import FigureRow, figure_facts, measured
from cloud_hub.registry import DeviceRow, ReleaseRow
from cloud_hub.rollout import UNFINISHED, Device, Rollout, RolloutState, settled
from sync.protocol import ReleaseReport, State


@dataclass(frozen=True, slots=True)
class AuditRow:
    """How far the hub has committed one epoch of a device's trail."""

    device: str
    epoch: int
    size: int
    root: str
    updated_at: float


@dataclass(frozen=True, slots=True)
class EvidenceRow:
    """A signed contradiction in a device's trail."""

    device: str
    epoch: int
    seq: int
    reason: str
    found_at: float


@dataclass(frozen=True, slots=True)
class Rows:
    """Everything that the picture is made of, read in one transaction."""

    devices: Sequence[DeviceRow]
    releases: Sequence[ReleaseRow]
    rollouts: Sequence[Rollout]
    audits: Sequence[AuditRow]
    evidence: Sequence[EvidenceRow]
    figures: Sequence[FigureRow] = ()


def picture(rows: Rows, now: float, stale_after: float) -> dict[str, Any]:
    """``{"devices", "releases", "rollouts", "audit", "summary"}``. Times: seconds since the epoch."""
    figures = _figures(rows)
    devices = [
        {**device_facts(row, rows.audits, now, stale_after), "figures": figures.get(row.id, [])}
        for row in rows.devices
    ]
    known = {each.id: each for each in decision_devices(rows.devices)}
    audit = [_audit(row, rows) for row in rows.devices]
    return {
        "devices": devices,
        "releases": [_release(row, devices) for row in rows.releases],
        "rollouts": [_progress(each, known, devices) for each in reversed(rows.rollouts)],
        "audit": audit,
        "evidence": [
            {
                "device": each.device,
                "epoch": each.epoch,
                "seq": each.seq,
                "reason": each.reason,
                "found_at": each.found_at,
            }
            for each in rows.evidence
        ],
        "summary": {
            "devices": len(devices),
            "presence": {
                each.value: sum(device["presence"] == each for device in devices) for each in fleet.Presence
            },
            "rollbacks": sum(len(device["rollbacks"]) for device in devices),
            "moving": sum(bool(device["moving"]) for device in devices),
            "active_rollouts": sum(each.state in UNFINISHED for each in rows.rollouts),
            "halted": sum(each.state is RolloutState.HALTED for each in rows.rollouts),
            "audit_waiting": sum(each["written"] - each["committed"] for each in audit),
            "audit_records": sum(each.size for each in rows.audits),
            "evidence": len(rows.evidence),
        },
    }


def device_facts(
    row: DeviceRow, audits: Sequence[AuditRow], now: float, stale_after: float
) -> dict[str, Any]:
    """One device: presence with its evidence, what runs, what moves, what was rolled back and why."""
    verdict = fleet.presence(
        row.status, row.reported, row.heard_at, now, stale_after, revoked=row.revoked_at is not None
    )
    reported = row.reported
    wanted = row.desired.version if row.desired else 0
    return {
        "id": row.id,
        "group": row.group,
        "presence": verdict.presence.value,
        "why": f"stored but unreadable: {', '.join(sorted(row.unreadable))}"
        if row.unreadable
        else verdict.why,
        "enrolled_at": row.enrolled_at,
        "heard_at": row.heard_at,
        "desired_version": wanted,
        "reported_version": reported.desired_version if reported else 0,
        "in_sync": wanted == (reported.desired_version if reported else 0),
        "running": [_report(each) for each in fleet.running(reported)],
        "moving": [_report(each) for each in fleet.moving(reported)],
        "rollbacks": [_report(each) for each in fleet.rollbacks(reported)],
        "audit": reported.audit.model_dump() if reported and reported.audit else None,
        "audit_committed": sum(each.size for each in audits if each.device == row.id),
        "facts": dict(reported.facts) if reported else {},
        "machine": asdict(reported.machine) if reported and reported.machine else None,
    }


def _report(each: ReleaseReport) -> dict[str, Any]:
    return {
        "kind": each.kind.value,
        "name": each.name,
        "version": each.version,
        "release": each.release,
        "state": each.state.value,
        "reason": each.reason,
        "attempts": each.attempts,
        "since": each.at.get(each.state),
    }


def _figures(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """What each device measured, by device; ``measured`` says it in words."""
    manifests = {row.digest: row.manifest for row in rows.releases}
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows.figures:
        facts = figure_facts(row, manifests[row.release])
        found.setdefault(row.device, []).append({**facts, "measured": measured(facts)})
    return found


def _release(row: ReleaseRow, devices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    manifest = row.manifest

    def count(key: str) -> int:
        return sum(any(each["release"] == row.digest for each in device[key]) for device in devices)

    return {
        "release": row.digest,
        "kind": manifest.kind.value,
        "name": manifest.name,
        "version": manifest.version,
        "format": manifest.format,
        "precision": manifest.precision,
        "bytes": sum(file.size for file in manifest.files),
        "license": manifest.license,
        "published_at": row.published_at,
        "quality": [each.model_dump() for each in manifest.quality],
        "running_on": count("running"),
        "rolled_back_on": count("rollbacks"),
    }


def _progress(
    each: Rollout,
    known: Mapping[str, Device],
    devices: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    facts = rollout_facts(each)
    group = sum(device["group"] == each.group and device["presence"] != "revoked" for device in devices)
    states: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for member in sorted(each.members):
        report = known[member].releases.get(each.assignment.release) if member in known else None
        states[member] = report.state.value if report else "told"
        if report is not None and report.state is State.ROLLED_BACK:
            reasons[member] = report.reason or "no reason given"
    done = sum(settled(each, known[member]) for member in known.keys() & states.keys() - reasons.keys())
    rolled_back = len(reasons)
    return {
        **facts,
        "states": states,
        "reasons": reasons,
        "open": each.state in UNFINISHED,
        "group_size": max(group, len(states)),
        "settled": done,
        "rolled_back": rolled_back,
        "under_way": len(states) - done - rolled_back,
    }


def _audit(row: DeviceRow, rows: Rows) -> dict[str, Any]:
    mine = [each for each in rows.audits if each.device == row.id]
    latest = max(mine, key=lambda each: each.epoch, default=None)
    said = row.reported.audit if row.reported else None
    if said and latest and said.epoch > latest.epoch:
        latest = None  # it came back under its id, and nothing of its new trail is here yet
    committed = latest.size if latest else 0
    # The device holds receipts for what is not here: this database is older than they are.
    receipted = said.acknowledged if said and (latest is None or said.epoch == latest.epoch) else committed
    written = said.size if said and (latest is None or said.epoch >= latest.epoch) else committed
    return {
        "device": row.id,
        "epoch": latest.epoch if latest else (said.epoch if said else None),
        "committed": committed,
        "written": max(written, committed),
        "missing": max(0, receipted - committed),
        "root": latest.root if latest else None,
        "updated_at": latest.updated_at if latest else None,
        "contradictions": sum(each.device == row.id for each in rows.evidence),
    }
