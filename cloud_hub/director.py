"""The hub's side of the link: tells devices what to run, takes in what they say, serves small blobs.

Owns the loop that joins the database with the broker. Nothing that arrives is believed before its
signature is verified against the key on file for the device that the topic names.
"""

import asyncio
import logging
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import Connection

from cloud_hub import control, figures, fleet, registry
from cloud_hub.database import Database
from cloud_hub.errors import HubError
from cloud_hub.ingest import Contradiction, Gap, ingest
from models.digest import Digest
from sync.errors import BlobMissing, InvalidMessage, SyncError
from sync.link import Incoming, Link, serve_blobs
from sync.protocol import (
    AUDIT_RECEIPT,
    AUDIT_SEGMENT,
    DESIRED,
    REPORTED,
    STATUS,
    Channel,
    Desired,
    IngestReceipt,
    Reported,
    Status,
)
from sync.repository import Repository
from sync.signing import open_envelope, sign

log = logging.getLogger("outpost.director")

BEAT = 0.5
"""Seconds between looks at the database, which the command line changes too."""


class Director:
    """Joins database and link. Construct it before the link is entered, then ``run``."""

    def __init__(
        self,
        database: Database,
        link: Link,
        key: Ed25519PrivateKey,
        repository: Repository,
        now: Callable[[], float],
    ) -> None:
        self._database = database
        self._link = link
        self._key = key
        self._repository = repository
        self._now = now
        self._published: dict[str, int] = {}
        self.counts = {"reported": 0, "segments": 0, "contradictions": 0, "gaps": 0, "desired": 0}
        """What this process has done since it started."""
        link.handle(REPORTED, self._reported)
        link.handle(STATUS, self._status)
        link.handle(AUDIT_SEGMENT, self._segment)
        link.when_up(self._forget_published)
        serve_blobs(link, self._read_blob)

    async def run(self) -> None:
        """Decide and publish until cancelled. A failure is logged and the next beat tries again."""
        while True:
            try:
                await self._database.writing(lambda connection: control.tick(connection, self._now()))
                await self._publish()
            except (HubError, SyncError, OSError) as error:
                log.warning("director: %s", error)
            await asyncio.sleep(BEAT)

    async def _publish(self) -> None:
        """Publish what the broker was not given by this connection."""
        if not self._link.connected:
            return
        rows = await self._database.reading(registry.devices)
        for row in rows:
            desired = row.desired
            if desired is None or row.revoked_at is not None:
                continue
            if self._published.get(row.id) != desired.version:
                await self._link.publish(DESIRED, row.id, self._signed(DESIRED, desired))
                self._published[row.id] = desired.version
                self.counts["desired"] += 1

    async def _forget_published(self) -> None:
        """The broker may have lost what it was given: all of it is published again."""
        self._published.clear()

    async def _reported(self, incoming: Incoming) -> None:
        row = await self._sender(incoming)
        message = Reported.from_bytes(open_envelope(incoming.payload, REPORTED.kind, row.public_key))
        _same_device(message.device, incoming)
        if row.reported and not fleet.report_is_newer(message, row.reported):
            return  # a broker that repeats what it kept
        heard = None if incoming.retained else self._now()

        def store(connection: Connection) -> None:
            registry.set_reported(connection, message, heard)
            figures.keep(connection, message)

        await self._database.writing(store)
        self.counts["reported"] += 1

    async def _status(self, incoming: Incoming) -> None:
        row = await self._sender(incoming)
        message = Status.from_bytes(open_envelope(incoming.payload, STATUS.kind, row.public_key))
        _same_device(message.device, incoming)
        if row.status and not fleet.status_is_newer(message, row.status):
            return
        heard = None if incoming.retained else self._now()
        await self._database.writing(lambda connection: registry.set_status(connection, message, heard))

    async def _segment(self, incoming: Incoming) -> None:
        row = await self._sender(incoming)
        outcome = await self._database.writing(
            lambda connection: ingest(connection, row.id, row.public_key, incoming.payload, self._now())
        )
        if isinstance(outcome, Contradiction):
            self.counts["contradictions"] += 1
            log.error("audit trail of %s: %s; kept as evidence", row.id, outcome.reason)
            return
        if isinstance(outcome, Gap):
            self.counts["gaps"] += 1
            log.warning("audit trail of %s: a gap: %s", row.id, outcome.reason)
            return
        self.counts["segments"] += 1
        await self._link.publish(AUDIT_RECEIPT, row.id, self._signed(AUDIT_RECEIPT, outcome))

    async def _read_blob(self, device: str, digest: Digest, offset: int, length: int) -> bytes:
        # Raises NotFound for a revoked device: its certificate still opens the broker.
        await self._database.reading(lambda connection: registry.device(connection, device))
        path = self._repository.blob(digest)

        def read() -> bytes:
            try:
                with path.open("rb") as file:
                    file.seek(offset)
                    return file.read(length)
            except FileNotFoundError as error:
                raise BlobMissing(f"{digest} is not in the repository") from error

        return await asyncio.to_thread(read)

    async def _sender(self, incoming: Incoming) -> registry.DeviceRow:
        """The device that the topic names. Raises ``NotFound`` for one unknown or revoked."""
        return await self._database.reading(lambda connection: registry.device(connection, incoming.device))

    def _signed(self, channel: Channel, message: Desired | IngestReceipt) -> bytes:
        return sign(self._key, channel.kind, message.to_bytes())


def _same_device(device: str, incoming: Incoming) -> None:
    if device != incoming.device:
        raise InvalidMessage(f"{incoming.device} sent a message of {device}")
