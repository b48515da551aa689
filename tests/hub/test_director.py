"""The director against a broker that repeats and invents, and a device that was revoked."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloud_hub import registry
from cloud_hub.database import Database
from cloud_hub.director import Director
from cloud_hub.errors import NotFound
from models.digest import Digest
from sync.link import Incoming, Link
from sync.protocol import (
    BLOB_PIECE_CHANNEL,
    BLOB_REQUEST,
    REPORTED,
    STATUS,
    BlobRequest,
    Channel,
    Reported,
    Status,
)
from sync.repository import Repository
from sync.signing import sign

KEY = Ed25519PrivateKey.generate()
BLOB = b"weights"


class Broker:
    """Stands where the link is: ``says`` delivers a message, ``sent`` holds what was published."""

    connected = True

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self._handlers: dict[Channel, Callable[[Incoming], Awaitable[None]]] = {}

    def handle(self, channel: Channel, handler: Callable[[Incoming], Awaitable[None]]) -> None:
        self._handlers[channel] = handler

    def when_up(self, callback: object) -> None:
        """It never comes up again."""

    async def publish(self, channel: Channel, device: str, payload: bytes, **_: object) -> None:
        self.sent.append(payload)

    async def says(self, channel: Channel, payload: bytes) -> None:
        topic = BLOB_PIECE_CHANNEL.topic("a") if channel is BLOB_REQUEST else None
        await self._handlers[channel](Incoming(channel, "a", payload, False, topic, b"1"))


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    """A broker, a database in which device ``a`` has enrolled, and the hub's clock."""
    database = Database.open(f"sqlite:///{tmp_path}/hub.db")
    database.migrate()
    with database.write() as connection:
        registry.add_device(connection, "a", "g", KEY.public_key().public_bytes_raw(), 1.0)
    repository = Repository(tmp_path / "repository")
    blob = repository.blob(Digest.of(BLOB))
    blob.parent.mkdir(parents=True)
    blob.write_bytes(BLOB)
    broker, clock = Broker(), [100.0]
    Director(database, cast(Link, broker), KEY, repository, lambda: clock[0])
    yield broker, database, clock
    database.close()


async def test_what_the_broker_repeats_keeps_no_device_alive(hub: Any) -> None:
    broker, database, clock = hub
    birth = Status(device="a", session="s", online=True, at=10.0)
    report = Reported(device="a", session="s", sequence=1, desired_version=0, releases=(), at=11.0)
    messages = [
        (STATUS, sign(KEY, "status", birth.to_bytes())),
        (REPORTED, sign(KEY, "reported", report.to_bytes())),
    ]

    def heard_at() -> float | None:
        with database.read() as connection:
            return registry.device(connection, "a").heard_at

    for message in messages:
        await broker.says(*message)
    assert heard_at() == 100.0
    clock[0] = 5000.0
    for message in messages:
        await broker.says(*message)
    assert heard_at() == 100.0
    news = report.model_copy(update={"sequence": 2})
    await broker.says(REPORTED, sign(KEY, "reported", news.to_bytes()))
    assert heard_at() == 5000.0


async def test_a_revoked_device_gets_no_blobs(hub: Any) -> None:
    broker, database, _ = hub
    request = BlobRequest(digest=Digest.of(BLOB), offset=0, length=len(BLOB)).to_bytes()
    await broker.says(BLOB_REQUEST, request)
    assert broker.sent == [BLOB]
    with database.write() as connection:
        registry.revoke_device(connection, "a", 2.0)
    with pytest.raises(NotFound):
        await broker.says(BLOB_REQUEST, request)
    assert broker.sent == [BLOB]
