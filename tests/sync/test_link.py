"""The link against real brokers over mutual TLS 1.3: one contract, every broker."""

import asyncio
import itertools
import ssl

import aiomqtt
import pytest
from brokers import KINDS, Cable, Certificates, RunningBroker, free_port
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models.digest import Digest
from sync import signing
from sync.errors import BlobMissing, InvalidMessage, LinkDown
from sync.link import Link, LinkSettings, MqttBlobSource, serve_blobs
from sync.protocol import DESIRED, HUB, REPORTED, STATUS, Status

KEY = Ed25519PrivateKey.generate()
BLOB = bytes(range(256)) * 4096 * 3 + b"tail"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    made = Certificates(tmp_path_factory.mktemp("tls"))
    made.device("dev-a")
    made.device("dev-b")
    return made


@pytest.fixture(params=KINDS)
def broker(request, certificates, tmp_path):
    running = RunningBroker(request.param, certificates, free_port(), tmp_path / "tap")
    running.start()
    yield running
    running.kill()


def make_link(certificates, port, client, reports=None):
    counter = itertools.count(1)

    def status(session, online):
        return signing.sign(
            KEY, "status", Status(device=client, session=session, online=online, at=1.0).to_bytes()
        )

    return Link(
        LinkSettings(
            "127.0.0.1",
            port,
            certificates.context(client),
            client,
            keepalive=5,
            first_delay=0.05,
            longest_delay=0.3,
        ),
        sessions=lambda: f"{client}-{next(counter)}",
        status=None if client == HUB else status,
        report=lambda what, error: reports.append((what, error)) if reports is not None else None,
    )


def collector(link, channel):
    seen = asyncio.Queue()
    link.handle(channel, seen.put)
    return seen


async def soon(awaitable, seconds=10):
    return await asyncio.wait_for(awaitable, seconds)


def said(incoming):
    status = Status.from_bytes(signing.open_envelope(incoming.payload, "status", KEY.public_key()))
    return status.session, status.online


async def test_twin_presence_and_blobs(broker, certificates):
    hub = make_link(certificates, broker.port, HUB)
    statuses, reported = collector(hub, STATUS), collector(hub, REPORTED)

    async def read(device, digest, offset, length):
        assert device == "dev-a"
        if digest != Digest.of(BLOB):
            raise BlobMissing(str(digest))
        return BLOB[offset : offset + length]

    serve_blobs(hub, read)
    device = make_link(certificates, broker.port, "dev-a")
    desired = collector(device, DESIRED)
    source = MqttBlobSource(device, "dev-a")
    async with hub:
        await soon(hub.wait_up())
        await hub.publish(DESIRED, "dev-a", b"before the device came")
        async with device:
            await soon(device.wait_up())
            assert device.tls_version == "TLSv1.3"
            first = await soon(desired.get())
            assert (first.payload, first.device, first.retained) == (b"before the device came", "dev-a", True)
            assert said(await soon(statuses.get())) == ("dev-a-1", True)
            await device.publish(REPORTED, "dev-a", b"r" * 262_144)
            assert len((await soon(reported.get())).payload) == 262_144
            with pytest.raises(InvalidMessage):
                await device.publish(REPORTED, "dev-a", b"r" * 262_145)
            assert await soon(source.read(Digest.of(BLOB), 0, len(BLOB))) == BLOB
            assert await soon(source.read(Digest.of(BLOB), len(BLOB) - 5, 5)) == BLOB[-5:]
            with pytest.raises(BlobMissing):
                await source.read(Digest.of(b"other"), 0, 10)
        assert said(await soon(statuses.get())) == ("dev-a-1", False)


async def test_a_cut_is_noticed_healed_and_told_from_an_older_one(broker, certificates):
    hub = make_link(certificates, broker.port, HUB)
    statuses = collector(hub, STATUS)
    cable = Cable(broker.port)
    await cable.mend()
    reports = []
    device = make_link(certificates, cable.port, "dev-a", reports)
    desired = collector(device, DESIRED)
    source = MqttBlobSource(device, "dev-a")
    ups = []
    device.when_up(lambda: asyncio.sleep(0, ups.append(device.session)))
    async with hub, device:
        await soon(hub.wait_up())
        await soon(device.wait_up())
        assert said(await soon(statuses.get())) == ("dev-a-1", True)
        waiting = asyncio.create_task(source.read(Digest.of(b"nobody answers"), 0, 10))
        await asyncio.sleep(0.1)
        await cable.cut()
        with pytest.raises(LinkDown):
            await soon(waiting, 3)
        with pytest.raises(LinkDown):
            await device.publish(REPORTED, "dev-a", b"x")
        assert said(await soon(statuses.get())) == ("dev-a-1", False)  # the will
        await hub.publish(DESIRED, "dev-a", b"while away")
        await cable.mend()
        await soon(device.wait_up())
        assert said(await soon(statuses.get())) == ("dev-a-2", True)
        assert (await soon(desired.get())).payload == b"while away"
        assert device.connections == 2
        assert ups == ["dev-a-1", "dev-a-2"]
        assert any(isinstance(error, LinkDown) for _, error in reports)


async def test_a_broker_that_dies_comes_back_and_is_told_everything_again(broker, certificates):
    hub = make_link(certificates, broker.port, HUB)
    hub.when_up(lambda: hub.publish(DESIRED, "dev-a", b"said at every start"))
    device = make_link(certificates, broker.port, "dev-a")
    desired = collector(device, DESIRED)
    async with hub, device:
        assert (await soon(desired.get())).payload == b"said at every start"
        broker.kill()
        while not desired.empty():  # before the start: both links may be back before start returns
            desired.get_nowait()
        await asyncio.to_thread(broker.start)
        assert (await soon(desired.get(), 20)).payload == b"said at every start"


async def test_a_device_reaches_its_own_topics_only(broker, certificates):
    hub = make_link(certificates, broker.port, HUB)
    reported, statuses = collector(hub, REPORTED), collector(hub, STATUS)
    async with (
        hub,
        aiomqtt.Client(
            "127.0.0.1",
            broker.port,
            identifier="dev-b",
            protocol=aiomqtt.ProtocolVersion.V5,
            tls_context=certificates.context("dev-b"),
        ) as rogue,
    ):
        await soon(hub.wait_up())
        await rogue.subscribe("outpost/v1/+/desired", qos=1)
        await rogue.subscribe("outpost/v1/dev-a/desired", qos=1)
        await rogue.publish(STATUS.topic("dev-a"), b"forged", qos=1)
        await rogue.publish(DESIRED.topic("dev-b"), b"forged", qos=1, retain=True)
        await hub.publish(DESIRED, "dev-a", b"not for b")
        await rogue.publish(REPORTED.topic("dev-b"), b"mine", qos=1)
        assert (await soon(reported.get())).payload == b"mine"
        assert statuses.empty()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(rogue.messages), 0.5)


async def test_no_certificate_no_connection(broker, certificates):
    bare = ssl.create_default_context(cadata=certificates.ca.certificate_pem.decode())
    client = aiomqtt.Client(
        "127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5, tls_context=bare, timeout=3
    )
    with pytest.raises(aiomqtt.MqttError):
        async with client:
            pass


@pytest.mark.parametrize("broker", ["embedded"], indirect=True)
async def test_the_embedded_broker_binds_the_client_id_and_the_will_and_taps_what_it_receives(
    broker, certificates
):
    def client(identifier, will=None):
        return aiomqtt.Client(
            "127.0.0.1",
            broker.port,
            identifier=identifier,
            protocol=aiomqtt.ProtocolVersion.V5,
            tls_context=certificates.context("dev-b"),
            will=will,
        )

    with pytest.raises(aiomqtt.MqttError, match=r"[Ii]dentifier"):
        async with client("dev-a"):
            pass
    with pytest.raises(aiomqtt.MqttError, match=r"[Aa]uthorized"):
        async with client("dev-b", aiomqtt.Will(STATUS.topic("dev-a"), b"gone", 1, True)):
            pass
    async with client("dev-b") as allowed:
        await allowed.publish(REPORTED.topic("dev-b"), b"a canary in the mine", qos=1)
    assert b"a canary in the mine" in broker.tap.read_bytes()
