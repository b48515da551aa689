"""The device's audit trail: durable when ``append`` returns, kept until the hub's receipt comes.

Owns: the tables of records and data keys, numbering, segments and what may be deleted. Refuses: sending
(the agent does), verifying signatures (the caller opens the hub's envelope), and dropping a record.

Data keys live in memory only, one per subject, period and run of the process; what is stored of them is
sealed to the auditor. So even this device cannot read back a body once its process has ended.
Bodies of ``restricted`` calls stay here: their records are pushed as leaf hashes alone. A body too large
for a segment stays too, and its leaf says so.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from sync.audit import TOMBSTONE, Checkpoint, Frontier, Leaf, commitment, leaf_hash, origin_of
from sync.database import Connection, Database, Migration
from sync.errors import AuditBroken, InvalidMessage
from sync.protocol import MAX_PAYLOAD, AuditRecord, AuditReport, AuditSegment, IngestReceipt
from sync.sealing import DataKey, RandomBytes, SealedBody, context, seal_body, seal_key

SEGMENT_BYTES = MAX_PAYLOAD * 3 // 4 - 1024
"""The largest segment whose signed envelope (base64) is still one MQTT payload."""

_BODY_BYTES = 96 * 1024
"""Bytes of ciphertext that travel with a record; in base64 they fit a segment with their leaf."""

_LEAF_BYTES = 16 * 1024
"""Bytes of a leaf, which no segment may be too small for."""

_RECORD_BYTES, _ENTRY_BYTES = 256, 256
"""What a record, and a ring entry, take in a segment besides leaf and body."""

_RESTRICTED = "restricted"
_SENT, _LEAF_ONLY, _HASH_ONLY = 0, 1, 2

MIGRATIONS = (
    Migration(
        "trail 1: logs, records, data keys",
        lambda db: (
            db.table("trail_logs").create(
                {"epoch": int, "size": int, "acknowledged": int, "frontier": str},
                pk="epoch",
                not_null={"size", "acknowledged", "frontier"},
            ),
            db.table("trail_records").create(
                {
                    "epoch": int,
                    "seq": int,
                    "pushed": int,
                    "leaf": bytes,
                    "leaf_hash": bytes,
                    "salt": bytes,
                    "ciphertext": bytes,
                },
                pk=("epoch", "seq"),
                not_null={"pushed", "leaf", "leaf_hash"},
            ),
            db.table("trail_keys")
            .create(
                {
                    "key_id": str,
                    "subject": str,
                    "epoch": int,
                    "first_seq": int,
                    "local": int,
                    "sealed": str,
                },
                pk="key_id",
                not_null={"subject", "epoch", "first_seq", "local", "sealed"},
            )
            .create_index(["subject"]),
        ),
    ),
)
"""``pushed``: 0 leaf and body, 1 leaf alone, 2 leaf hash alone. ``local`` keys never leave."""


@dataclass(frozen=True, slots=True)
class TrailIdentity:
    """Who writes the trail, with which key, for which auditor."""

    device: str
    key: Ed25519PrivateKey
    auditor: X25519PublicKey
    epoch: int = 1


class Trail:
    """The trail of one device and epoch over a ``Database`` opened with ``MIGRATIONS``.

    Law: what ``append`` returned is in every later segment until a receipt covers it.
    """

    def __init__(
        self,
        database: Database,
        identity: TrailIdentity,
        *,
        now: Callable[[], float],
        random_bytes: RandomBytes,
        period_s: float = 86_400.0,
    ) -> None:
        self._database = database
        self._identity = identity
        self._now = now
        self._random_bytes = random_bytes
        self._period_s = period_s
        self._period = 0
        self._keys: dict[tuple[str, bool], DataKey] = {}
        self._stored: set[str] = set()

    async def append(
        self, kind: str, request_id: str, data_class: str, subject: str, facts: dict[str, Any], body: bytes
    ) -> int:
        """Commit one record and return its number. ``facts`` hold no content and no subject.

        ``body`` is sealed under the subject's data key. Raises ``StoreFull`` when there is no room,
        ``StoreUnusable``, or ``InvalidMessage`` for facts over 16 KiB; then no record was made.
        """
        identity, at = self._identity, self._now()
        restricted = data_class == _RESTRICTED
        key = self._key_of(subject, restricted, at)
        sealed = seal_body(
            key, body, context(identity.device, identity.epoch, kind, request_id), self._random_bytes
        )
        fits = len(sealed.ciphertext) <= _BODY_BYTES
        pushed = _HASH_ONLY if restricted else _SENT if fits else _LEAF_ONLY
        # The leaf is finished inside the transaction, which alone knows the record's number.
        leaf = Leaf(
            device=identity.device,
            epoch=identity.epoch,
            seq=0,
            kind=kind,
            request_id=request_id,
            at=at,
            data_class=data_class,
            facts=facts,
            body="sent" if pushed == _SENT else "kept",
            key_id=key.key_id,
            commitment=commitment(sealed.salt, sealed.ciphertext),
        )
        entry = None if key.key_id in self._stored else seal_key(key, identity.auditor)

        def store(conn: Connection) -> int:
            seq = self._store(conn, leaf, pushed, sealed)
            if entry is not None:
                conn.execute(
                    "INSERT OR IGNORE INTO trail_keys VALUES (?, ?, ?, ?, ?, ?)",
                    (key.key_id, subject, identity.epoch, seq, int(restricted), entry),
                )
            return seq

        seq = await self._database.write(store)
        self._stored.add(key.key_id)
        return seq

    async def next_segment(self, max_bytes: int = SEGMENT_BYTES) -> AuditSegment | None:
        """The oldest records without a receipt, as many as fit in ``max_bytes``; None when there are none.

        Asking again before a receipt gives the same records again. At least one record is given.
        """
        epoch = self._identity.epoch
        rows, entries, frontier = await self._database.read(lambda conn: self._unsent(conn, max_bytes))
        if not rows:
            return None
        after = frontier.extend([row[3] for row in rows])
        checkpoint = Checkpoint(origin_of(self._identity.device, epoch), after.size, after.root)
        return AuditSegment(
            device=self._identity.device,
            epoch=epoch,
            first_seq=frontier.size,
            records=tuple(_record(*row) for row in rows),
            checkpoint=checkpoint.sign(self._identity.key),
            ring=tuple({"key_id": key_id, "sealed": sealed} for key_id, sealed in entries),
        )

    async def acknowledge(self, receipt: IngestReceipt) -> None:
        """Note that the hub has committed the records below ``receipt.size``, and delete them here.

        The caller has verified the hub's signature. Records whose bodies stay on the device are kept.
        An old receipt changes nothing. Raises ``AuditBroken`` when the hub's root is not ours: then
        nothing is deleted.
        """
        identity = self._identity
        if (receipt.device, receipt.epoch) != (identity.device, identity.epoch):
            raise AuditBroken(
                f"a receipt for {receipt.device} epoch {receipt.epoch} came to {identity.device}"
            )
        await self._database.write(lambda conn: self._acknowledge(conn, receipt))

    async def report(self) -> AuditReport:
        """How far the trail and its receipts have come."""
        size, acknowledged, _ = await self._database.read(self._log)
        return AuditReport(epoch=self._identity.epoch, size=size, acknowledged=acknowledged)

    async def erase(self, subject: str) -> int:
        """Destroy this device's data keys of ``subject`` and append the tombstone; its number.

        The tombstone names the keys, so that the hub destroys its ring entries too. Every proof still
        verifies. The freed bytes are overwritten on disk before this returns.
        """
        self._keys = {name: key for name, key in self._keys.items() if name[0] != subject}
        at = self._now()

        def destroy(conn: Connection) -> int:
            found = conn.execute("DELETE FROM trail_keys WHERE subject = ? RETURNING key_id", (subject,))
            key_ids = sorted(key_id for (key_id,) in found.fetchall())
            tombstone = Leaf(
                device=self._identity.device,
                epoch=self._identity.epoch,
                seq=0,
                kind=TOMBSTONE,
                request_id="",
                at=at,
                data_class="internal",
                facts={"key_ids": key_ids},
                body="none",
                key_id=None,
                commitment=None,
            )
            return self._store(conn, tombstone, _SENT, None)

        seq = await self._database.write(destroy)
        await self._database.checkpoint()
        return seq

    def _key_of(self, subject: str, local: bool, at: float) -> DataKey:
        period = int(at // self._period_s)
        if period != self._period:
            self._period, self._keys, self._stored = period, {}, set()
        name = (subject, local)
        if name not in self._keys:
            self._keys[name] = DataKey.generate(self._random_bytes)
        return self._keys[name]

    def _log(self, conn: Connection) -> tuple[int, int, Frontier]:
        row = conn.execute(
            "SELECT size, acknowledged, frontier FROM trail_logs WHERE epoch = ?", (self._identity.epoch,)
        ).fetchone()
        return (row[0], row[1], Frontier.decode(row[2])) if row else (0, 0, Frontier())

    def _store(self, conn: Connection, leaf: Leaf, pushed: int, sealed: SealedBody | None) -> int:
        """Give the leaf its number and store the record; runs inside the writer's transaction."""
        epoch = self._identity.epoch
        row = conn.execute(
            "INSERT INTO trail_logs VALUES (?, 1, 0, ?) "
            "ON CONFLICT (epoch) DO UPDATE SET size = size + 1 RETURNING size - 1",
            (epoch, Frontier().encode()),
        ).fetchone()
        seq: int = row[0]
        data = leaf.model_copy(update={"seq": seq}).to_bytes()
        if len(data) > _LEAF_BYTES:
            raise InvalidMessage(f"a leaf of {len(data)} bytes; the most is {_LEAF_BYTES}")
        salt, ciphertext = (sealed.salt, sealed.ciphertext) if sealed else (None, None)
        conn.execute(
            "INSERT INTO trail_records VALUES (?, ?, ?, ?, ?, ?, ?)",
            (epoch, seq, pushed, data, leaf_hash(data), salt, ciphertext),
        )
        return seq

    def _unsent(
        self, conn: Connection, max_bytes: int
    ) -> tuple[list[tuple[Any, ...]], list[tuple[str, str]], Frontier]:
        epoch = self._identity.epoch
        _, _, frontier = self._log(conn)
        rows: list[tuple[Any, ...]] = []
        room = max_bytes - 1024  # the checkpoint and the names of the fields
        for row in conn.execute(
            "SELECT seq, pushed, leaf, leaf_hash, salt, ciphertext FROM trail_records "
            "WHERE epoch = ? AND seq >= ? ORDER BY seq",
            (epoch, frontier.size),
        ):
            room -= _size(*row)
            if rows and room < 0:
                break
            rows.append(row)
        entries = conn.execute(
            "SELECT key_id, sealed FROM trail_keys WHERE epoch = ? AND NOT local "
            "AND first_seq >= ? AND first_seq < ? ORDER BY first_seq",
            (epoch, frontier.size, frontier.size + len(rows)),
        ).fetchall()
        return rows, entries, frontier

    def _acknowledge(self, conn: Connection, receipt: IngestReceipt) -> None:
        epoch = self._identity.epoch
        size, acknowledged, frontier = self._log(conn)
        if receipt.size <= acknowledged:
            return
        where = f"records {epoch}/{acknowledged} to {epoch}/{receipt.size - 1} of {self._identity.device}"
        if receipt.size > size:
            raise AuditBroken(f"{where}: the hub acknowledges more than the {size} that were written")
        rows = conn.execute(
            "SELECT leaf_hash FROM trail_records WHERE epoch = ? AND seq >= ? AND seq < ? ORDER BY seq",
            (epoch, acknowledged, receipt.size),
        )
        after = frontier.extend([row[0] for row in rows])
        if after.size != receipt.size or after.root.hex() != receipt.root:
            raise AuditBroken(f"{where}: the hub acknowledges another root than ours")
        conn.execute(
            "UPDATE trail_logs SET acknowledged = ?, frontier = ? WHERE epoch = ?",
            (after.size, after.encode(), epoch),
        )
        conn.execute(
            "DELETE FROM trail_records WHERE epoch = ? AND seq < ? AND pushed = ?",
            (epoch, after.size, _SENT),
        )


def _size(
    seq: int, pushed: int, leaf: bytes, stated: bytes, salt: bytes | None, ciphertext: bytes | None
) -> int:
    """Bytes that a record takes in a segment, rounded up; its leaf is JSON inside JSON."""
    if pushed == _HASH_ONLY:
        return _RECORD_BYTES
    escaped = len(leaf) + leaf.count(b'"') + leaf.count(b"\\")
    body = (len(ciphertext) + 2) // 3 * 4 if ciphertext and pushed == _SENT else 0
    return _RECORD_BYTES + _ENTRY_BYTES + escaped + body


def _record(
    seq: int, pushed: int, leaf: bytes, stated: bytes, salt: bytes | None, ciphertext: bytes | None
) -> AuditRecord:
    with_body = pushed == _SENT and salt is not None and ciphertext is not None
    return AuditRecord(
        seq=seq,
        leaf_hash=stated.hex(),
        leaf=leaf.decode() if pushed != _HASH_ONLY else None,
        salt=base64.b64encode(salt).decode() if with_body and salt else None,
        ciphertext=base64.b64encode(ciphertext).decode() if with_body and ciphertext else None,
    )
