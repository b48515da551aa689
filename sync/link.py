"""The MQTT 5 link between a device and its hub: the only module that speaks MQTT.

Owns: the connection (TLS, reconnecting with jittered back-off, birth and will), publishing and
dispatching by the table of channels, and blobs over MQTT. Refuses: reading what it carries, believing
the broker (a PUBACK is not durability, a topic proves no sender), and queueing what cannot be sent now.
"""

import asyncio
import contextlib
import itertools
import logging
import random
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from models.digest import Digest
from sync import protocol
from sync.errors import BlobMissing, InvalidMessage, InvalidTopic, LinkDown
from sync.protocol import (
    BLOB_PIECE,
    BLOB_PIECE_CHANNEL,
    BLOB_REQUEST,
    CHANNELS,
    HUB,
    MAX_PAYLOAD,
    STATUS,
    BlobRequest,
    Channel,
    Direction,
)

log = logging.getLogger("outpost.link")

_WAITING = 10_000
"""Messages of one channel that may wait for their handler; more are dropped and counted."""

_PIECES_AT_ONCE = 4
"""Blob pieces asked for at once: hides the round trip, holds half a MiB."""


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """Where the broker is and who we are. ``client`` is a device id or ``protocol.HUB``."""

    host: str
    port: int
    tls: ssl.SSLContext
    client: str
    keepalive: int = 30  # seconds; silence of one and a half of these ends the connection
    timeout: float = 10.0  # seconds to wait for an acknowledgement
    first_delay: float = 0.5  # seconds before the first reconnect
    longest_delay: float = 30.0  # seconds; the back-off stops growing here


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message as it came. ``device`` is what the topic says; only a signature proves it."""

    channel: Channel
    device: str
    payload: bytes
    retained: bool
    response_topic: str | None = None
    correlation: bytes | None = None


Handler = Callable[[Incoming], Awaitable[None]]


@dataclass(slots=True)
class _Route:
    handler: Handler
    waiting: "asyncio.Queue[Incoming]" = field(default_factory=lambda: asyncio.Queue(_WAITING))


class Link:
    """A connection that keeps itself up. Register handlers, then use it as an async context manager.

    Each connection has its own session name, made by ``sessions``; the birth and the will that ``status``
    makes for it (a signed ``Status`` for a session and online or not) carry that name, so that the will
    of an older connection is recognised as stale. The hub passes no ``status``.

    ``report`` hears what handlers raise, connection failures and dropped messages: the link goes on.
    """

    def __init__(
        self,
        settings: LinkSettings,
        *,
        sessions: Callable[[], str],
        status: Callable[[str, bool], bytes] | None = None,
        jitter: Callable[[], float] = random.random,
        report: Callable[[str, Exception], None] | None = None,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._status = status
        self._jitter = jitter
        self._report = report or _log
        self._routes: dict[str, _Route] = {}
        self._when_up: list[Callable[[], Awaitable[None]]] = []
        self._client: aiomqtt.Client | None = None
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._down.set()
        self._tasks: list[asyncio.Task[None]] = []
        self.session = ""
        """The name of the current connection, or of the last one."""
        self.connections = 0
        """How many times the link came up."""
        self.tls_version = ""
        """What was negotiated for the current connection, or for the last one, e.g. ``TLSv1.3``."""

    @property
    def connected(self) -> bool:
        """Whether a session with the broker is up, as far as is known now."""
        return self._client is not None

    def handle(self, channel: Channel, handler: Handler) -> None:
        """Subscribe to ``channel``. Its messages reach ``handler`` one at a time, in order."""
        if self._tasks:
            raise RuntimeError("handlers are registered before the link is entered")
        self._routes[channel.name] = _Route(handler)

    def when_up(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Run ``callback`` each time the link has come up (it may have lost what was sent before)."""
        self._when_up.append(callback)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._keep_up())]
        self._tasks += [asyncio.create_task(self._work(route)) for route in self._routes.values()]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None and self._client is not None:
            with contextlib.suppress(LinkDown):
                await self.publish(STATUS, self._settings.client, self._status(self.session, False))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def wait_up(self) -> None:
        """Return once the link is up."""
        await self._up.wait()

    async def publish(
        self,
        channel: Channel,
        device: str,
        payload: bytes,
        *,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        expires_s: int | None = None,
    ) -> None:
        """Send now; returns at the broker's acknowledgement, which promises nothing more than that.

        Raises ``LinkDown`` when the link is not up or breaks meanwhile, ``InvalidMessage`` for a payload
        over ``MAX_PAYLOAD`` bytes.
        """
        if len(payload) > MAX_PAYLOAD:
            raise InvalidMessage(f"{channel.name}: {len(payload)} bytes are more than {MAX_PAYLOAD}")
        client = self._client
        if client is None:
            raise LinkDown(f"not connected to {self._settings.host}:{self._settings.port}")
        topic = channel.topic(device)
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if response_topic is not None:
            properties.ResponseTopic = response_topic
        if correlation is not None:
            properties.CorrelationData = correlation
        if expires_s is not None:
            properties.MessageExpiryInterval = expires_s
        sending = asyncio.create_task(
            client.publish(topic, payload, qos=channel.qos, retain=channel.retain, properties=properties)
        )
        await self._unless_down(sending, f"publishing to {topic}")

    async def until(self, answer: "asyncio.Future[bytes]", seconds: float, what: str) -> bytes:
        """The answer; raises ``LinkDown`` when the link breaks or ``seconds`` pass first."""
        waiting = asyncio.create_task(_with_timeout(answer, seconds, what))
        result: bytes = await self._unless_down(waiting, what)
        return result

    async def _unless_down(self, task: "asyncio.Task[Any]", what: str) -> Any:
        """The task's result, or ``LinkDown`` as soon as the connection it relies on is gone."""
        down = asyncio.create_task(self._down.wait())
        try:
            await asyncio.wait((task, down), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise LinkDown(f"the link broke while {what}")
            return task.result()
        except aiomqtt.MqttError as error:
            raise LinkDown(f"{what}: {error}") from error
        finally:
            task.cancel()
            down.cancel()

    async def _keep_up(self) -> None:
        settings = self._settings
        clock = asyncio.get_running_loop().time
        delay = settings.first_delay
        while True:
            began = clock()
            try:
                await self._connect_and_read()
            except Exception as error:  # noqa: BLE001 - the edge of a loop: reported, and tried again
                self._report("connection", LinkDown(f"{settings.host}:{settings.port}: {error}"))
            # A broker that accepts and at once hangs up must not be hammered.
            delay = settings.first_delay if clock() - began > 2 * delay else delay
            await asyncio.sleep(delay * (0.5 + self._jitter()))
            delay = min(2 * delay, settings.longest_delay)

    async def _connect_and_read(self) -> None:
        settings = self._settings
        session = self._sessions()
        will = None
        if self._status is not None:
            topic = STATUS.topic(settings.client)
            will = aiomqtt.Will(topic, self._status(session, False), STATUS.qos, STATUS.retain)
        client = aiomqtt.Client(
            settings.host,
            settings.port,
            identifier=settings.client,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=True,
            keepalive=settings.keepalive,
            timeout=settings.timeout,
            tls_context=settings.tls,
            # A receipt must not wait for the delayed acknowledgement of what came before it.
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            will=will,
            logger=log,
        )
        client.pending_calls_threshold = _WAITING
        async with client:
            try:
                await self._greet(client, session)
                async for message in client.messages:
                    self._dispatch(message)
            finally:
                self._client = None
                self._up.clear()
                self._down.set()

    async def _greet(self, client: aiomqtt.Client, session: str) -> None:
        """Subscribe, say that we are here, and open the link for senders."""
        settings = self._settings
        filters = [
            (self._filter(channel), SubscribeOptions(qos=channel.qos))
            for channel in CHANNELS
            if channel.name in self._routes
        ]
        if filters:
            for (topic, _), code in zip(filters, await client.subscribe(filters), strict=True):
                if isinstance(code, ReasonCode) and code.is_failure:
                    raise InvalidTopic(f"the broker refuses a subscription to {topic}: {code}")
        self.session = session
        self.connections += 1
        connection = client._client.socket()  # aiomqtt shows the connection's TLS state in no other way
        self.tls_version = (connection.version() or "") if isinstance(connection, ssl.SSLSocket) else ""
        self._client = client
        self._down.clear()
        if self._status is not None:
            await client.publish(
                STATUS.topic(settings.client),
                self._status(session, True),
                qos=STATUS.qos,
                retain=STATUS.retain,
            )
        self._up.set()
        # Callbacks publish and wait for acknowledgements, which this task has to go on reading.
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks += [asyncio.create_task(self._run_callback(callback)) for callback in self._when_up]

    def _filter(self, channel: Channel) -> str:
        if self._settings.client == HUB:
            return channel.wildcard
        return channel.topic(self._settings.client)

    async def _run_callback(self, callback: Callable[[], Awaitable[None]]) -> None:
        try:
            await callback()
        except Exception as error:  # noqa: BLE001 - the edge of a loop: reported, and the link goes on
            self._report("after connecting", error)

    def _dispatch(self, message: aiomqtt.Message) -> None:
        try:
            incoming = self._incoming(message)
            route = self._routes[incoming.channel.name]
            route.waiting.put_nowait(incoming)
        except (InvalidTopic, InvalidMessage, KeyError) as error:
            self._report(f"message on {message.topic}", InvalidMessage(f"refused: {error}"))
        except asyncio.QueueFull:
            self._report(f"message on {message.topic}", LinkDown(f"dropped: {_WAITING} are waiting"))

    def _incoming(self, message: aiomqtt.Message) -> Incoming:
        channel, device = protocol.parse_topic(str(message.topic))
        expected = Direction.TO_HUB if self._settings.client == HUB else Direction.TO_DEVICE
        if channel.direction is not expected or (
            self._settings.client != HUB and device != self._settings.client
        ):
            raise InvalidTopic("not addressed to this client")
        payload = message.payload
        if not isinstance(payload, bytes) or len(payload) > MAX_PAYLOAD:
            raise InvalidMessage(f"a payload of no more than {MAX_PAYLOAD} bytes is expected")
        properties = message.properties
        return Incoming(
            channel=channel,
            device=device,
            payload=payload,
            retained=message.retain,
            response_topic=getattr(properties, "ResponseTopic", None),
            correlation=getattr(properties, "CorrelationData", None),
        )

    async def _work(self, route: _Route) -> None:
        while True:
            incoming = await route.waiting.get()
            try:
                await route.handler(incoming)
            except Exception as error:  # noqa: BLE001 - the edge of a loop: reported, and the link goes on
                self._report(f"{incoming.channel.name} of {incoming.device}", error)


class MqttBlobSource:
    """Reads parts of blobs over MQTT, on the device. Construct it before the link is entered.

    Implements ``BlobSource``: nothing that it returns is verified; the caller checks digests.
    """

    def __init__(self, link: Link, device: str, *, timeout: float = 10.0) -> None:
        self._link = link
        self._device = device
        self._timeout = timeout
        self._numbers = itertools.count()
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self._slots = asyncio.Semaphore(_PIECES_AT_ONCE)
        link.handle(BLOB_PIECE_CHANNEL, self._arrived)

    async def read(self, digest: Digest, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``. Raises ``LinkDown`` or ``BlobMissing``."""
        end = offset + length
        pieces = [
            asyncio.create_task(self._piece(digest, start, min(BLOB_PIECE, end - start)))
            for start in range(offset, end, BLOB_PIECE)
        ]
        try:
            return b"".join(await asyncio.gather(*pieces))
        finally:
            for piece in pieces:
                piece.cancel()

    async def _piece(self, digest: Digest, offset: int, length: int) -> bytes:
        async with self._slots:
            correlation = next(self._numbers).to_bytes(8, "big")
            answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            self._waiting[correlation] = answer
            try:
                await self._link.publish(
                    BLOB_REQUEST,
                    self._device,
                    BlobRequest(digest=digest, offset=offset, length=length).to_bytes(),
                    response_topic=BLOB_PIECE_CHANNEL.topic(self._device),
                    correlation=correlation,
                    expires_s=int(self._timeout) + 1,
                )
                piece = await self._link.until(answer, self._timeout, f"waiting for {digest} at {offset}")
            finally:
                del self._waiting[correlation]
        if len(piece) != length:
            raise BlobMissing(f"{digest}: asked for {length} bytes at {offset}, got {len(piece)}")
        return piece

    async def _arrived(self, incoming: Incoming) -> None:
        answer = self._waiting.get(incoming.correlation or b"")
        if answer is not None and not answer.done():
            answer.set_result(incoming.payload)


ReadBlob = Callable[[str, Digest, int, int], Awaitable[bytes]]
"""(device, digest, offset, length) to at most that many bytes; raises ``BlobMissing``."""


def serve_blobs(link: Link, read: ReadBlob) -> None:
    """Answer blob requests on the hub. Call it before the link is entered.

    An answer goes to the channel of the device whose topic the request came on, and nowhere else; an
    empty one says that the blob is not here.
    """

    async def answer(incoming: Incoming) -> None:
        request = BlobRequest.from_bytes(incoming.payload)
        if incoming.response_topic != BLOB_PIECE_CHANNEL.topic(incoming.device):
            raise InvalidMessage(f"an answer to {incoming.response_topic!r} was asked for")
        try:
            piece = await read(incoming.device, request.digest, request.offset, request.length)
        except BlobMissing:
            piece = b""
        await link.publish(
            BLOB_PIECE_CHANNEL, incoming.device, piece, correlation=incoming.correlation, expires_s=60
        )

    link.handle(BLOB_REQUEST, answer)


async def _with_timeout(answer: "asyncio.Future[bytes]", seconds: float, what: str) -> bytes:
    try:
        return await asyncio.wait_for(answer, seconds)
    except TimeoutError as error:
        raise LinkDown(f"no answer in {seconds:g} s while {what}") from error


def _log(what: str, error: Exception) -> None:
    log.warning("%s: %s", what, error or type(error).__name__)
