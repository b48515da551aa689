"""Devices, releases, rollouts and upstreams as rows: the only SQL over those tables.

Every function takes the connection of its caller's transaction. Refuses to decide: it stores what
``cloud_hub.rollout`` decided and what devices said.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import Connection, RowMapping, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from cloud_hub.database import DEVICE_KEYS, DEVICES, RELEASES, ROLLOUT_MEMBERS, ROLLOUTS, UPSTREAMS
from cloud_hub.errors import NotFound, Refused, WrongUse
from cloud_hub.rollout import Rollout, RolloutState, Step
from cloud_hub.routing import Upstream
from models.digest import Digest
from models.manifest import Manifest
from sync.errors import InvalidMessage
from sync.protocol import Assignment, Desired, Message, ProbationTerms, Reported, Status

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device as the hub knows it. Times are seconds since the epoch by the hub's clock.

    ``unreadable`` names the stored messages that this program cannot read; they stand as None.
    """

    id: str
    group: str
    public_key: Ed25519PublicKey
    enrolled_at: float
    revoked_at: float | None
    desired: Desired | None
    reported: Reported | None
    status: Status | None
    heard_at: float | None
    unreadable: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ReleaseRow:
    """A release in the hub's repository."""

    digest: Digest
    manifest: Manifest
    published_at: float

    @property
    def assignment(self) -> Assignment:
        """The release as a device is told of it."""
        return Assignment.of(self.digest, self.manifest)


def add_device(connection: Connection, device: str, group: str, public_key: bytes, now: float) -> int:
    """Register a device and return the epoch in which its audit trail begins: one that its id never had.

    A known id gets its new key only after it was revoked. Raises ``Refused`` for an id that another device
    holds.
    """
    row = connection.execute(select(DEVICES).where(DEVICES.c.id == device)).mappings().first()
    values = {"group_name": group, "public_key": public_key, "enrolled_at": now, "revoked_at": None}
    if row is None:
        connection.execute(insert(DEVICES).values(id=device, desired_version=0, **values))
    elif row["revoked_at"] is not None or row["public_key"] == public_key:
        connection.execute(update(DEVICES).where(DEVICES.c.id == device).values(**values))
    else:
        raise Refused(f"device: the id {device!r} is taken by a device with another key; revoke it first")
    epoch = 1 + last_epoch(connection, device)
    connection.execute(
        insert(DEVICE_KEYS).values(device=device, epoch=epoch, public_key=public_key, enrolled_at=now)
    )
    return epoch


def last_epoch(connection: Connection, device: str) -> int:
    """The epoch that was given to the last device of this id, 0 when there was none."""
    query = select(func.max(DEVICE_KEYS.c.epoch)).where(DEVICE_KEYS.c.device == device)
    return connection.execute(query).scalar() or 0


def key_of_epoch(connection: Connection, device: str, epoch: int) -> Ed25519PublicKey | None:
    """The key that signs a device's trail in an epoch; None for an epoch that was never given out."""
    query = select(DEVICE_KEYS.c.public_key).where(
        DEVICE_KEYS.c.device == device, DEVICE_KEYS.c.epoch == epoch
    )
    found = connection.execute(query).scalar()
    return None if found is None else Ed25519PublicKey.from_public_bytes(found)


def keys_of(connection: Connection, device: str) -> dict[int, Ed25519PublicKey]:
    """Every key that signed a trail of this id, by epoch; those of revoked devices too."""
    query = select(DEVICE_KEYS).where(DEVICE_KEYS.c.device == device).order_by(DEVICE_KEYS.c.epoch)
    return {
        row["epoch"]: Ed25519PublicKey.from_public_bytes(row["public_key"])
        for row in connection.execute(query).mappings()
    }


def revoke_device(connection: Connection, device: str, now: float) -> None:
    """Refuse this device from now on. Raises ``NotFound``."""
    query = update(DEVICES).where(DEVICES.c.id == device).values(revoked_at=now)
    if connection.execute(query).rowcount == 0:
        raise NotFound(f"no device {device!r}")


def devices(connection: Connection) -> list[DeviceRow]:
    """Every device, by id."""
    rows = connection.execute(select(DEVICES).order_by(DEVICES.c.id)).mappings()
    return [_device(row) for row in rows]


def device(connection: Connection, device: str) -> DeviceRow:
    """One device that is not revoked. Raises ``NotFound``."""
    query = select(DEVICES).where(DEVICES.c.id == device, DEVICES.c.revoked_at.is_(None))
    row = connection.execute(query).mappings().first()
    if row is None:
        raise NotFound(f"no device {device!r}, or it is revoked")
    return _device(row)


def set_desired(connection: Connection, desired: Desired) -> None:
    """Store what a device is told to run. The version never goes back."""
    query = (
        update(DEVICES)
        .where(DEVICES.c.id == desired.device, DEVICES.c.desired_version < desired.version)
        .values(desired=desired.to_bytes(), desired_version=desired.version)
    )
    if connection.execute(query).rowcount != 1:
        raise Refused(f"desired version {desired.version} of {desired.device} is not a new one")


def set_reported(connection: Connection, reported: Reported, now: float | None) -> None:
    """Store what a device says it runs. ``now`` is None for a retained message: it proves no life.

    Raises ``InvalidMessage`` for what could not be read again.
    """
    _heard(connection, reported.device, now, reported=_readable(reported))


def set_status(connection: Connection, status: Status, now: float | None) -> None:
    """Store a birth or a will. ``now`` is None for a retained message. Raises ``InvalidMessage``."""
    _heard(connection, status.device, now, status=_readable(status))


def add_release(connection: Connection, digest: Digest, data: bytes, now: float) -> None:
    """List a published release. Doing it again changes nothing.

    Raises ``Refused`` when the same kind, name and version exists with another digest.
    """
    manifest = Manifest.parse(data)
    known = connection.execute(select(RELEASES.c.digest).where(RELEASES.c.digest == digest)).first()
    if known is not None:
        return
    try:
        connection.execute(
            insert(RELEASES).values(
                digest=digest,
                kind=manifest.kind,
                name=manifest.name,
                version=manifest.version,
                target_path=manifest.target_path,
                manifest=data,
                published_at=now,
            )
        )
    except IntegrityError as error:
        raise Refused(
            f"{manifest.kind} {manifest.name} {manifest.version} exists with another digest;"
            " a published version never changes"
        ) from error


def releases(connection: Connection) -> list[ReleaseRow]:
    """Every published release, newest first."""
    query = select(RELEASES).order_by(RELEASES.c.published_at.desc(), RELEASES.c.digest)
    return [_release(row) for row in connection.execute(query).mappings()]


def find_release(connection: Connection, reference: str) -> ReleaseRow:
    """A release by digest (or at least 8 of its hex digits), ``NAME@VERSION`` or ``KIND/NAME@VERSION``.

    Raises ``NotFound``, and ``WrongUse`` when several fit.
    """
    wanted = reference.removeprefix("sha256:")
    found = []
    for row in releases(connection):
        manifest = row.manifest
        names = (f"{manifest.name}@{manifest.version}", f"{manifest.slot}@{manifest.version}")
        if reference in names or (len(wanted) >= 8 and row.digest.hex.startswith(wanted)):
            found.append(row)
    if not found:
        raise NotFound(f"no published release {reference!r}")
    if len(found) > 1:
        fitting = ", ".join(f"{row.manifest.slot}@{row.manifest.version}" for row in found)
        raise WrongUse(f"--release: {reference!r} fits several: {fitting}")
    return found[0]


def add_rollout(
    connection: Connection,
    release: ReleaseRow,
    group: str,
    waves: tuple[float, ...],
    probation: ProbationTerms,
    now: float,
) -> Rollout:
    """Store a new, running rollout."""
    values = {
        "release_digest": release.digest,
        "group_name": group,
        "waves": json.dumps(waves),
        "probation": probation.model_dump_json(),
        "state": RolloutState.RUNNING,
        "open_waves": 0,
        "excused": "[]",
        "created_at": now,
        "updated_at": now,
    }
    number = connection.execute(insert(ROLLOUTS).values(**values).returning(ROLLOUTS.c.id)).scalar_one()
    return Rollout(number, release.assignment, group, waves, RolloutState.RUNNING, probation=probation)


def rollouts(connection: Connection) -> list[Rollout]:
    """Every rollout, oldest first."""
    members: dict[int, dict[str, int]] = {}
    for row in connection.execute(select(ROLLOUT_MEMBERS)).mappings():
        members.setdefault(row["rollout"], {})[row["device"]] = row["wave"]
    joined = select(ROLLOUTS, RELEASES.c.manifest).join(
        RELEASES, RELEASES.c.digest == ROLLOUTS.c.release_digest
    )
    return [
        _rollout(row, members.get(row["id"], {}))
        for row in connection.execute(joined.order_by(ROLLOUTS.c.id)).mappings()
    ]


def rollout(connection: Connection, number: int) -> Rollout:
    """One rollout. Raises ``NotFound``."""
    for each in rollouts(connection):
        if each.id == number:
            return each
    raise NotFound(f"no rollout {number}")


def set_rollout(connection: Connection, changed: Rollout, now: float) -> None:
    """Store the state, excuses and reason of a rollout."""
    connection.execute(
        update(ROLLOUTS)
        .where(ROLLOUTS.c.id == changed.id)
        .values(
            state=changed.state,
            excused=json.dumps(sorted(changed.excused)),
            reason=changed.reason,
            updated_at=now,
        )
    )


def apply_step(connection: Connection, number: int, step: Step, now: float) -> None:
    """Store one decided step of a rollout."""
    connection.execute(
        update(ROLLOUTS)
        .where(ROLLOUTS.c.id == number)
        .values(state=step.state, open_waves=step.open_waves, reason=step.reason, updated_at=now)
    )
    if step.admit:
        rows = [{"rollout": number, "device": name, "wave": wave} for name, wave in step.admit.items()]
        connection.execute(insert(ROLLOUT_MEMBERS), rows)


def add_upstream(connection: Connection, upstream: Upstream) -> None:
    """Add an upstream, or replace the one of that name."""
    connection.execute(delete(UPSTREAMS).where(UPSTREAMS.c.name == upstream.name))
    connection.execute(
        insert(UPSTREAMS).values(
            name=upstream.name,
            url=upstream.url,
            model=upstream.model,
            accepts=json.dumps(upstream.accepts),
            key_file=upstream.key_file,
        )
    )


def remove_upstream(connection: Connection, name: str) -> None:
    """Forget an upstream. Raises ``NotFound``."""
    if connection.execute(delete(UPSTREAMS).where(UPSTREAMS.c.name == name)).rowcount == 0:
        raise NotFound(f"no upstream {name!r}")


def upstreams(connection: Connection) -> list[Upstream]:
    """Every upstream, by name."""
    rows = connection.execute(select(UPSTREAMS).order_by(UPSTREAMS.c.name)).mappings()
    return [
        Upstream(row["name"], row["url"], row["model"], tuple(json.loads(row["accepts"])), row["key_file"])
        for row in rows
    ]


def revoked(rows: Iterable[DeviceRow]) -> frozenset[str]:
    """The ids of revoked devices."""
    return frozenset(row.id for row in rows if row.revoked_at is not None)


def _heard(connection: Connection, device: str, now: float | None, **values: bytes) -> None:
    heard = {} if now is None else {"heard_at": now}
    connection.execute(update(DEVICES).where(DEVICES.c.id == device).values(**values, **heard))


def _readable(message: Message) -> bytes:
    """Canonical bytes, which can be longer than what arrived (``1e20`` has 21 digits): still a message."""
    data = message.to_bytes()
    type(message).from_bytes(data)
    return data


def _device(row: RowMapping) -> DeviceRow:
    unreadable: set[str] = set()

    def stored(kind: type[M]) -> M | None:
        column = kind.__name__.lower()
        try:
            return kind.from_bytes(row[column]) if row[column] else None
        except InvalidMessage:  # one row must not keep the hub from all the others
            unreadable.add(column)
            return None

    desired, reported, status = stored(Desired), stored(Reported), stored(Status)
    return DeviceRow(
        id=row["id"],
        group=row["group_name"],
        public_key=Ed25519PublicKey.from_public_bytes(row["public_key"]),
        enrolled_at=row["enrolled_at"],
        revoked_at=row["revoked_at"],
        desired=desired,
        reported=reported,
        status=status,
        heard_at=row["heard_at"],
        unreadable=frozenset(unreadable),
    )


def _release(row: RowMapping) -> ReleaseRow:
    return ReleaseRow(Digest(row["digest"]), Manifest.parse(row["manifest"]), row["published_at"])


def _rollout(row: RowMapping, members: dict[str, int]) -> Rollout:
    return Rollout(
        id=row["id"],
        assignment=Assignment.of(Digest(row["release_digest"]), Manifest.parse(row["manifest"])),
        group=row["group_name"],
        waves=tuple(json.loads(row["waves"])),
        state=RolloutState(row["state"]),
        open_waves=row["open_waves"],
        members=members,
        excused=frozenset(json.loads(row["excused"])),
        reason=row["reason"],
        probation=ProbationTerms.model_validate_json(row["probation"]),
    )
