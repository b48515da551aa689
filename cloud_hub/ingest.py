"""Audit trails at the hub: committing what devices push, keeping contradictions, exporting files.

Owns the audit tables. A segment is committed whole or not at all, keyed (device, epoch, seq), and a
receipt exists only for what is committed. Refuses to read contents: they are sealed to the auditor.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from cloud_hub import registry
from cloud_hub.database import AUDIT_EPOCHS, AUDIT_EVIDENCE, AUDIT_RECORDS, AUDIT_RING
from cloud_hub.errors import NotFound
from cloud_hub.view import AuditRow, EvidenceRow
from sync.audit import Frontier, Leaf, check_segment, erased_keys
from sync.errors import AuditBroken
from sync.protocol import AUDIT_SEGMENT, AuditRecord, AuditSegment, IngestReceipt
from sync.signing import open_envelope
from sync.verify import checkpoint_line, header_line, record_line, ring_line


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A segment that its device signed and that cannot be true; kept, and not committed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Records from further on than what is here: nothing contradicts, and nothing can be committed.

    An honest device sends them to a hub that lost what it had committed, to a restored backup for example.
    """

    reason: str


def ingest(
    connection: Connection, device: str, key: Ed25519PublicKey, envelope: bytes, now: float
) -> IngestReceipt | Contradiction | Gap:
    """Commit a segment, or keep it as evidence; neither, after a gap. A receipt is good once committed.

    ``key`` is the one on file for the device. An epoch belongs to the key that enrolled for it: the trail of
    a device that came back under its id is another one. Records that are here already are compared, not
    stored again, so a device that missed a receipt just sends again. Raises ``BadSignature`` or
    ``InvalidMessage`` for what the device did not sign.
    """
    segment = AuditSegment.from_bytes(open_envelope(envelope, AUDIT_SEGMENT.kind, key))
    kept = _epoch(connection, device, segment.epoch)
    before = Frontier.decode(kept["frontier"]) if kept else Frontier()
    try:
        if segment.device != device:
            raise AuditBroken(f"{device} sent a segment of {segment.device}")
        if registry.key_of_epoch(connection, device, segment.epoch) != key:
            raise AuditBroken(f"{device}: epoch {segment.epoch} was not given to the key that signs for it")
        if segment.first_seq > before.size:
            return Gap(f"record {segment.epoch}/{before.size} is next, and {segment.first_seq} came")
        fresh = _unseen(connection, segment, before.size)
        if fresh is None:
            return _receipt(device, segment.epoch, before, now)
        after, leaves = check_segment(fresh, before, key)
    except AuditBroken as error:
        note = kept["checkpoint"] if kept else None
        _keep_evidence(connection, device, segment, str(error), note, envelope, now)
        return Contradiction(str(error))
    _store(connection, fresh, after, leaves, kept is None, now)
    return _receipt(device, segment.epoch, after, now)


def audit_rows(connection: Connection) -> list[AuditRow]:
    """How far each epoch of each device is committed."""
    rows = connection.execute(select(AUDIT_EPOCHS).order_by(AUDIT_EPOCHS.c.device, AUDIT_EPOCHS.c.epoch))
    return [
        AuditRow(row["device"], row["epoch"], row["size"], row["root"], row["updated_at"])
        for row in rows.mappings()
    ]


def evidence_rows(connection: Connection) -> list[EvidenceRow]:
    """Every contradiction that was kept, oldest first."""
    rows = connection.execute(select(AUDIT_EVIDENCE).order_by(AUDIT_EVIDENCE.c.id))
    return [
        EvidenceRow(row["device"], row["epoch"], row["seq"], row["reason"], row["found_at"])
        for row in rows.mappings()
    ]


def export_trail(connection: Connection, device: str, epoch: int) -> Iterator[bytes]:
    """The lines of a trail file (``sync.verify``), ended by the last checkpoint. Raises ``NotFound``."""
    kept = _epoch(connection, device, epoch)
    if kept is None:
        raise NotFound(f"no audit trail of {device} in epoch {epoch}")
    yield header_line(device, epoch)
    query = select(AUDIT_RECORDS).where(AUDIT_RECORDS.c.device == device, AUDIT_RECORDS.c.epoch == epoch)
    # Not more than the checkpoint covers: records may arrive while this runs.
    query = query.where(AUDIT_RECORDS.c.seq < kept["size"]).order_by(AUDIT_RECORDS.c.seq)
    for row in connection.execute(query.execution_options(yield_per=500)).mappings():
        yield record_line(
            AuditRecord(
                seq=row["seq"],
                leaf_hash=row["leaf_hash"],
                leaf=row["leaf"],
                salt=row["salt"],
                ciphertext=row["ciphertext"],
            )
        )
    yield checkpoint_line(kept["checkpoint"])


def export_ring(connection: Connection, device: str) -> Iterator[bytes]:
    """The lines of a key ring file: the sealed data keys of a device that were not erased."""
    query = select(AUDIT_RING).where(AUDIT_RING.c.device == device).order_by(AUDIT_RING.c.key_id)
    for row in connection.execute(query).mappings():
        yield ring_line(row["key_id"], json.loads(row["entry"])["sealed"])


def _epoch(connection: Connection, device: str, epoch: int) -> RowMapping | None:
    query = select(AUDIT_EPOCHS).where(AUDIT_EPOCHS.c.device == device, AUDIT_EPOCHS.c.epoch == epoch)
    return connection.execute(query.with_for_update()).mappings().first()


def _unseen(connection: Connection, segment: AuditSegment, size: int) -> AuditSegment | None:
    """The part of a segment from record ``size`` on; None when all of it is here.

    Raises ``AuditBroken`` when a record that is here comes with another hash.
    """
    known = segment.records[: max(0, size - segment.first_seq)]
    if not known:
        return segment
    query = select(AUDIT_RECORDS.c.seq, AUDIT_RECORDS.c.leaf_hash).where(
        AUDIT_RECORDS.c.device == segment.device,
        AUDIT_RECORDS.c.epoch == segment.epoch,
        AUDIT_RECORDS.c.seq >= segment.first_seq,
        AUDIT_RECORDS.c.seq < segment.first_seq + len(known),
    )
    stored = {row["seq"]: row["leaf_hash"] for row in connection.execute(query).mappings()}
    for place, record in enumerate(known):
        seq = segment.first_seq + place
        if record.seq != seq or stored.get(seq) != record.leaf_hash:
            raise AuditBroken(
                f"record {segment.epoch}/{seq} of {segment.device}: came again with another hash"
            )
    if len(known) == len(segment.records):
        return None
    rest = segment.records[len(known) :]
    return segment.model_copy(update={"first_seq": size, "records": rest})


def _store(
    connection: Connection,
    segment: AuditSegment,
    after: Frontier,
    leaves: Sequence[Leaf | None],
    first: bool,
    now: float,
) -> None:
    at = {"device": segment.device, "epoch": segment.epoch}
    connection.execute(
        insert(AUDIT_RECORDS), [{**at, **record.model_dump(mode="json")} for record in segment.records]
    )
    values = {
        "size": after.size,
        "root": after.root.hex(),
        "checkpoint": segment.checkpoint,
        "frontier": after.encode(),
        "updated_at": now,
    }
    if first:
        connection.execute(insert(AUDIT_EPOCHS).values(**at, **values))
    else:
        connection.execute(
            update(AUDIT_EPOCHS)
            .where(AUDIT_EPOCHS.c.device == segment.device, AUDIT_EPOCHS.c.epoch == segment.epoch)
            .values(**values)
        )
    _store_ring(connection, segment)
    erased = {key_id for leaf in leaves if leaf is not None for key_id in erased_keys(leaf)}
    if erased:
        connection.execute(
            delete(AUDIT_RING).where(
                AUDIT_RING.c.device == segment.device, AUDIT_RING.c.key_id.in_(sorted(erased))
            )
        )


def _store_ring(connection: Connection, segment: AuditSegment) -> None:
    """Ring entries come with the records that first name their keys. Only a segment with new records
    reaches this, so that replaying an old one cannot bring an erased key back."""
    offered = {entry["key_id"]: entry for entry in segment.ring if "key_id" in entry and "sealed" in entry}
    query = select(AUDIT_RING.c.key_id).where(
        AUDIT_RING.c.device == segment.device, AUDIT_RING.c.key_id.in_(sorted(offered))
    )
    known = set(connection.execute(query).scalars()) if offered else set()
    rows = [
        {"device": segment.device, "key_id": key_id, "entry": json.dumps(entry)}
        for key_id, entry in offered.items()
        if key_id not in known
    ]
    if rows:
        connection.execute(insert(AUDIT_RING), rows)


def _keep_evidence(
    connection: Connection,
    device: str,
    segment: AuditSegment,
    reason: str,
    kept: str | None,
    envelope: bytes,
    now: float,
) -> None:
    """One row for each contradiction, however often the device repeats it."""
    same = select(AUDIT_EVIDENCE.c.id).where(
        AUDIT_EVIDENCE.c.device == device,
        AUDIT_EVIDENCE.c.epoch == segment.epoch,
        AUDIT_EVIDENCE.c.seq == segment.first_seq,
        AUDIT_EVIDENCE.c.reason == reason,
    )
    if connection.execute(same).first() is None:
        connection.execute(
            insert(AUDIT_EVIDENCE).values(
                device=device,
                epoch=segment.epoch,
                seq=segment.first_seq,
                reason=reason,
                kept=kept,
                offered=envelope,
                found_at=now,
            )
        )


def _receipt(device: str, epoch: int, tree: Frontier, now: float) -> IngestReceipt:
    return IngestReceipt(device=device, epoch=epoch, size=tree.size, root=tree.root.hex(), at=now)
