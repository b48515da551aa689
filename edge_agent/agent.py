"""A member of a fleet: everything that runs when ``outpost-edge serve --home DIR`` runs.

Owns: which parts there are and how they are joined (database, trail, engines, activation, link, egress, the
local API), and the three errands that keep device and hub in step: taking desired state, reporting, and
sending the trail until the hub's receipt covers it. Refuses: deciding anything itself. Serving begins before
the link is up and does not end when it goes down.
"""

import asyncio
import logging
import os
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from edge_agent.admission import Limits
from edge_agent.calls.questions import Rules
from edge_agent.catalog import Catalog
from edge_agent.egress import Egress
from edge_agent.engines.files import EngineFiles
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.sizes import forecast_bytes
from edge_agent.engines.start import start_engine
from edge_agent.engines.supervised import SupervisedEngine
from edge_agent.home import Home, Membership
from edge_agent.rest.api import create_app
from edge_agent.server import Door, listen, serve_until_signal, url_of
from edge_agent.updates.activation import Activator
from edge_agent.updates.figures import weigher
from edge_agent.updates.staging import Engine, Stage, StartEngine
from edge_agent.updates.state import MIGRATIONS as RELEASE_MIGRATIONS
from edge_agent.updates.state import ReleaseTable
from models.digest import Digest
from models.machine import free_memory, this_machine
from models.manifest import File
from models.profiles import Machine
from models.store import BlobStore
from sync.database import Database
from sync.errors import LinkDown
from sync.identity import device_tls_context
from sync.link import Incoming, Link, LinkSettings, MqttBlobSource
from sync.protocol import (
    AUDIT_RECEIPT,
    AUDIT_SEGMENT,
    DESIRED,
    REPORTED,
    STATUS,
    Channel,
    IngestReceipt,
    Message,
    Reported,
    Status,
)
from sync.signing import open_envelope, sign
from sync.trail import MIGRATIONS as TRAIL_MIGRATIONS
from sync.trail import Trail, TrailIdentity
from sync.transfer import BlobSource, HttpBlobSource
from sync.trust import Vouched, auditor_key
from sync.tuf_client import HttpFetcher, TufClient

_log = logging.getLogger(__name__)

SCHEMA = (TRAIL_MIGRATIONS[0], RELEASE_MIGRATIONS[0], RELEASE_MIGRATIONS[1])
"""The device's database, step by step in the order in which steps were ever added."""

MQTT_BLOB_LIMIT = 32 << 20
"""Bytes up to which a blob comes over MQTT: a factory often opens one outbound port. Larger ones by HTTPS."""

ERRAND_SECONDS = 5.0
"""Seconds before an errand that failed is begun again."""

REPORT_SECONDS = 15.0
"""The longest time between two reports while the link is up."""

RECEIPT_SECONDS = 10.0
"""How long to wait for a receipt before a segment is sent again: whatever carried it may have lost it."""


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """How a member runs. ``heavy_tokens``: prompt and answer together from which the hub is asked."""

    door: Door = field(default=Door())
    engine: EngineSettings = field(default=EngineSettings())
    heavy_tokens: int | None = None


class Courier:
    """Keeps device and hub in step over the link. ``facts`` are told with every report."""

    def __init__(
        self,
        membership: Membership,
        machine: Machine,
        home: Home,
        link: Link,
        trail: Trail,
        *,
        now: Callable[[], float],
    ) -> None:
        self._membership = membership
        self._machine = machine
        self._key = home.key()
        self._link = link
        self._trail = trail
        self._now = now
        self._sequence = 0
        self._changed = asyncio.Event()
        self._receipt = asyncio.Event()
        link.handle(AUDIT_RECEIPT, self._take_receipt)
        link.when_up(self._wake)

    def changed(self) -> None:
        """Something worth reporting has happened."""
        self._changed.set()

    def listen(self, activator: Activator) -> None:
        """Take desired state from the link."""

        async def take(incoming: Incoming) -> None:
            await activator.desire(incoming.payload)

        self._link.handle(DESIRED, take)

    async def report(self, activator: Activator, facts: Callable[[], dict[str, Any]]) -> None:
        """Report for ever: when something changed, and every so often."""
        while True:
            await self._link.wait_up()
            try:
                async with asyncio.timeout(REPORT_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                pass
            self._changed.clear()
            self._sequence += 1
            message = Reported(
                device=self._membership.device,
                session=self._link.session,
                sequence=self._sequence,
                desired_version=activator.desired_version,
                releases=activator.report(),
                audit=await self._trail.report(),
                facts=facts(),
                at=self._now(),
                machine=self._machine,
            )
            await self._send(REPORTED, message)

    async def drain(self) -> None:
        """Send the trail for ever, one segment at a time, each until a receipt covers it."""
        while True:
            await self._link.wait_up()
            self._receipt.clear()
            segment = await self._trail.next_segment()
            if segment is None:
                await asyncio.sleep(1.0)
                continue
            await self._send(AUDIT_SEGMENT, segment)
            try:
                async with asyncio.timeout(RECEIPT_SECONDS):
                    await self._receipt.wait()
            except TimeoutError:
                _log.info("no receipt for records from %d yet; sending them again", segment.first_seq)

    async def _take_receipt(self, incoming: Incoming) -> None:
        payload = open_envelope(incoming.payload, AUDIT_RECEIPT.kind, self._membership.director_key)
        await self._trail.acknowledge(IngestReceipt.from_bytes(payload))
        self._receipt.set()
        self._changed.set()

    async def _send(self, channel: Channel, message: Message) -> None:
        try:
            envelope = sign(self._key, channel.kind, message.to_bytes())
            await self._link.publish(channel, self._membership.device, envelope)
        except LinkDown as error:
            _log.info("%s waits: %s", channel.name, error)
            await asyncio.sleep(0.5)

    async def _wake(self) -> None:
        self._changed.set()


@asynccontextmanager
async def member(home: Home, settings: AgentSettings) -> AsyncIterator[tuple[Any, Activator]]:
    """Everything of a member but its HTTP server: the ASGI application and the activator.

    Raises ``NotEnrolled``, ``StoreUnusable``.
    """
    membership = home.membership()
    tls = device_tls_context(home.ca(), home.certificate_file, home.key_file)
    root = home.trusted_root()
    async with AsyncExitStack() as stack:
        database = Database.open(home.database, SCHEMA)
        stack.push_async_callback(database.close)
        trail = Trail(
            database,
            TrailIdentity(
                membership.device,
                home.key(),
                X25519PublicKey.from_public_bytes(auditor_key(root)),
                membership.epoch,
            ),
            now=time.time,
            random_bytes=os.urandom,
        )
        web = await stack.enter_async_context(httpx.AsyncClient(verify=tls, timeout=60, trust_env=False))
        blocking = stack.enter_context(httpx.Client(verify=tls, timeout=30, trust_env=False))
        link = _link(membership, home, tls)
        machine = this_machine()
        courier = Courier(membership, machine, home, link, trail, now=time.time)
        carried: dict[str, str] = {}
        blobs_url = f"{membership.device_url}/tuf/targets/blobs"
        over_mqtt = _Noted(MqttBlobSource(link, membership.device), "mqtt", carried)
        over_https = _Noted(HttpBlobSource(web, blobs_url), "https", carried)

        def source(file: File) -> BlobSource:
            return over_mqtt if file.size <= MQTT_BLOB_LIMIT else over_https

        tuf = TufClient(home.tuf, f"{membership.device_url}/tuf", root, HttpFetcher(blocking, time.monotonic))
        catalog = Catalog()
        store = BlobStore(home.blobs)
        threads = settings.engine.threads or max(1, machine.cores - 1)
        engine = replace(settings.engine, prefixes=str(home.prefixes), engine_cache=str(home.engine_cache))
        # A context for an adapter is made when that is asked.
        needs = partial(forecast_bytes, settings=replace(engine, contexts=1))
        stage = Stage(store, catalog, _starter(engine), needs, free_memory, weigher(threads))
        activator = Activator(
            device=membership.device,
            machine=machine,
            director=membership.director_key,
            table=ReleaseTable(database),
            store=store,
            catalog=catalog,
            stage=stage,
            vouch=lambda path: _vouch(tuf, path),
            source=source,
            now=time.time,
            monotonic=time.monotonic,
            changed=courier.changed,
        )
        courier.listen(activator)
        stack.push_async_callback(activator.close)
        await activator.resume()
        app = create_app(
            catalog,
            journal=trail,
            egress=Egress(membership.device_url, membership.device, home.key(), web, time.time),
            now=time.time,
            monotonic=time.monotonic,
            new_id=lambda: secrets.token_hex(12),
            limits=Limits(running=settings.engine.max_sequences),
            rules=Rules(heavy_tokens=settings.heavy_tokens),
            hosts=settings.door.hosts(),
            keys=settings.door.key_ring(time.monotonic),
        )

        def facts() -> dict[str, Any]:
            return _facts(activator, link, carried)

        await stack.enter_async_context(link)
        errands = [
            asyncio.create_task(_for_ever(activator.run)),
            asyncio.create_task(_for_ever(lambda: courier.report(activator, facts))),
            asyncio.create_task(_for_ever(courier.drain)),
        ]
        try:
            yield app, activator
        finally:
            for errand in errands:
                errand.cancel()
            await asyncio.gather(*errands, return_exceptions=True)


async def run(home: Home, settings: AgentSettings, say: Callable[[str], None]) -> None:
    """Serve as a member of a fleet until a signal."""
    tls = settings.door.tls()
    with listen(settings.door) as server:
        async with member(home, settings) as (app, _):
            url = url_of(server, tls is not None)
            say(f"{home.membership().device} serves at {url}/v1 (Ctrl-C ends)")
            await serve_until_signal(app, server, tls, settings.door.patience)


class _Noted:
    """A source of blobs that notes, when bytes have come, which way they came."""

    def __init__(self, source: BlobSource, way: str, ways: dict[str, str]) -> None:
        self._source = source
        self._way = way
        self._ways = ways

    async def read(self, digest: Digest, offset: int, length: int) -> bytes:
        """See ``BlobSource``."""
        piece = await self._source.read(digest, offset, length)
        self._ways[digest] = self._way
        return piece


async def _for_ever(errand: Callable[[], Awaitable[None]]) -> None:
    """Run an errand; one that fails is reported and begun again: serving must not depend on it."""
    while True:
        try:
            await errand()
        except Exception:  # noqa: BLE001 - the edge of a loop: said, and begun again
            _log.exception("an errand failed; it begins again in %g s", ERRAND_SECONDS)
            await asyncio.sleep(ERRAND_SECONDS)


def _starter(settings: EngineSettings) -> StartEngine:
    async def start(files: EngineFiles) -> Engine:
        return await start_engine(files, settings)

    return start


async def _vouch(tuf: TufClient, target_path: str) -> Vouched:
    return await asyncio.to_thread(tuf.vouch, target_path, datetime.now(UTC))


def _link(membership: Membership, home: Home, tls: ssl.SSLContext) -> Link:
    key = home.key()

    def status(session: str, online: bool) -> bytes:
        message = Status(device=membership.device, session=session, online=online, at=time.time())
        return sign(key, STATUS.kind, message.to_bytes())

    settings = LinkSettings(membership.broker_host, membership.broker_port, tls, membership.device)
    return Link(settings, sessions=lambda: secrets.token_hex(8), status=status)


def _facts(activator: Activator, link: Link, carried: dict[str, str]) -> dict[str, Any]:
    """What a report says besides releases: which engines run, and how the latest files came."""
    return {
        "engines": [
            {"release": release, "pid": engine.pid, "loads": engine.loads, "restarts": engine.restarts}
            for release, engine in activator.engines.items()
            if isinstance(engine, SupervisedEngine)
        ],
        "carried": carried,
        "link": {"protocol": "MQTT 5", "tls": link.tls_version, "connections": link.connections},
    }
