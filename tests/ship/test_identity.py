"""Enrolment, mutual TLS, the repository and ranges over real sockets; and the signing ceremony."""

import ssl
import threading
import time
from contextlib import contextmanager
from datetime import timedelta

import httpx
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from ship_world import NOW, World
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from models.digest import Digest
from models.store import BlobStore
from sync import identity
from sync.errors import BadSignature, EnrolmentRefused, InvalidMessage, UntrustedRelease, WrongKeys
from sync.repository import Repository, keys_init, sign_release
from sync.transfer import HttpBlobSource, fetch_blob
from sync.trust import auditor_key
from sync.tuf_client import HttpFetcher, TufClient

hexes = st.text("0123456789abcdef", min_size=64, max_size=64).map(Digest.from_hex)


@given(st.text(max_size=30), hexes, hexes)
def test_an_enrolment_token_survives_copying(secret, ca, root):
    token = identity.EnrolmentToken(hub_url="https://hub:8443/", secret=secret, ca=ca, root=root)
    assert identity.EnrolmentToken.decode(f"  {token.encode()}\n") == token
    with pytest.raises(InvalidMessage):
        identity.EnrolmentToken.decode(token.encode()[:-7])
    with pytest.raises(InvalidMessage):
        identity.EnrolmentToken.decode("hello")


class Hub:
    """The hub's two listeners, as thin as they can be, over the real parts."""

    def __init__(self, folder) -> None:
        self.world = World(folder / "world")
        now = NOW.now(NOW.tzinfo)
        self.ca = identity.create_ca("Outpost hub", now)
        self.now = now
        self.seen: list[bytes] = []
        server = identity.issue_server(self.ca, ["localhost", "127.0.0.1"], now)
        self.key, self.certificate = folder / "server.key", folder / "server.pem"
        server.write(self.key, self.certificate)
        self.spent: set[str] = set()

    async def anchor(self, request: Request) -> Response:
        body = identity.Anchor(ca=self.ca.certificate_pem.decode(), root=self.world.repository.root.decode())
        return Response(body.to_bytes())

    async def enroll(self, request: Request) -> Response:
        body = await request.body()
        self.seen.append(body)
        asked = identity.EnrolRequest.from_bytes(body)
        if asked.secret != "once" or asked.secret in self.spent:
            return Response('{"error": "unknown or spent secret"}', 403)
        self.spent.add(asked.secret)
        certificate = identity.issue_device(self.ca, asked.csr.encode(), asked.device, self.now)
        return Response(
            identity.EnrolReply(
                certificate=certificate.decode(),
                director=identity.encode_public(self.world.director.public_key()),
                device_url="https://localhost:8444",
                broker_host="localhost",
                broker_port=8883,
            ).to_bytes()
        )

    @contextmanager
    def listen(self, require_client: bool):
        repository = self.world.repository
        app = Starlette(
            routes=[
                Route("/api/v1/anchor", self.anchor),
                Route("/api/v1/enroll", self.enroll, methods=["POST"]),
                Mount("/tuf/metadata", StaticFiles(directory=repository.metadata)),
                Mount("/tuf/targets", StaticFiles(directory=repository.targets)),
            ]
        )
        config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off")
        config.load()
        config.ssl = identity.server_tls_context(
            self.certificate, self.key, self.ca.certificate_pem, require_client
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        deadline = time.monotonic() + 10
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
        server.should_exit = True
        thread.join(10)


def connect(context: ssl.SSLContext) -> httpx.Client:
    return httpx.Client(verify=context, trust_env=False, timeout=5)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return Hub(tmp_path_factory.mktemp("hub"))


def token(hub, port, **changes):
    known = {"ca": hub.ca.digest, "root": Digest.of(hub.world.repository.root), "secret": "once"}
    return identity.EnrolmentToken(hub_url=f"https://localhost:{port}", **(known | changes))


def test_the_secret_is_shown_to_the_tokens_hub_alone(hub):
    key = Ed25519PrivateKey.generate()
    with hub.listen(require_client=False) as port:
        for change in ({"ca": Digest.of(b"other")}, {"root": Digest.of(b"other")}):
            with pytest.raises(BadSignature):
                identity.enroll(token(hub, port, **change), "press-4", key, connect)
        assert hub.seen == []
        with pytest.raises(EnrolmentRefused, match="spent"):
            identity.enroll(token(hub, port, secret="guess"), "press-4", key, connect)


async def test_an_enrolled_device_reads_the_repository_over_mutual_tls(hub, tmp_path):
    key = Ed25519PrivateKey.generate()
    with hub.listen(require_client=False) as port:
        joined = identity.enroll(token(hub, port), "press-4", key, connect)
        with pytest.raises(EnrolmentRefused):
            identity.enroll(token(hub, port), "press-4", key, connect)
    assert joined.director == hub.world.director.public_key()
    assert identity.certificate_name(joined.certificate_pem) == "press-4"
    assert len(auditor_key(joined.root)) == 32
    credentials = identity.Credentials(identity.private_pem(key), joined.certificate_pem)
    credentials.write(tmp_path / "device.key", tmp_path / "device.pem")
    assert (tmp_path / "device.key").stat().st_mode & 0o777 == 0o600
    context = identity.device_tls_context(joined.ca_pem, tmp_path / "device.pem", tmp_path / "device.key")
    release = hub.world.release("tiny", "1.0.0", {"says": "hello"}, padding=2_500_000)
    with hub.listen(require_client=True) as port:
        url = f"https://localhost:{port}/tuf"
        with pytest.raises(httpx.TransportError), connect(identity.anchor_tls_context(joined.ca_pem)) as bare:
            bare.get(f"{url}/metadata/timestamp.json")
        with connect(context) as client:
            tuf = TufClient(tmp_path / "tuf", url, joined.root, HttpFetcher(client, time.monotonic))
            assert tuf.vouch(release.target_path, NOW).release == release.release
        async with httpx.AsyncClient(verify=context, trust_env=False) as client:
            source = HttpBlobSource(client, f"{url}/targets/blobs")
            (file,) = release.manifest.files
            path = await fetch_blob(file, BlobStore(tmp_path / "store"), source)
            assert Digest.of(path.read_bytes()) == file.sha256


def test_a_server_certificate_opens_no_door_as_a_client(hub):
    context = identity.anchor_tls_context(hub.ca.certificate_pem)
    context.load_cert_chain(hub.certificate, hub.key)
    with (
        hub.listen(require_client=True) as port,
        pytest.raises(httpx.TransportError),
        connect(context) as client,
    ):
        client.get(f"https://localhost:{port}/tuf/metadata/timestamp.json")


def test_certificate_requests_that_are_refused(hub):
    key = Ed25519PrivateKey.generate()
    with pytest.raises(InvalidMessage, match="reserved"):
        identity.issue_device(hub.ca, identity.make_csr(key, "hub"), "hub", NOW)
    with pytest.raises(InvalidMessage, match="not for press-5"):
        identity.issue_device(hub.ca, identity.make_csr(key, "press-4"), "press-5", NOW)
    with pytest.raises(InvalidMessage):
        identity.issue_device(hub.ca, b"-----BEGIN CERTIFICATE REQUEST-----", "press-4", NOW)


def test_two_holders_sign_one_release_in_turn(tmp_path):
    offline, world = tmp_path / "two", World(tmp_path / "world")
    keys_init(offline, 2, NOW)
    with pytest.raises(UntrustedRelease, match="already"):
        keys_init(offline, 2, NOW)
    repository = Repository(tmp_path / "repository")
    repository.create(offline / "hub", NOW)
    world.release("tiny", "1.0.0", {"says": "one"})
    folder, targets = world.folder / "releases" / "tiny-1.0.0", offline / "targets.json"
    with pytest.raises(UntrustedRelease, match="not signed"):
        repository.publish(folder, targets, NOW)
    sign_release(folder, targets, [offline / "targets-1.pem"], NOW)
    with pytest.raises(WrongKeys):
        repository.publish(folder, targets, NOW)
    assert sign_release(folder, targets, [offline / "targets-3.pem"], NOW).targets_version == 2
    old = targets.read_bytes()
    first = repository.publish(folder, targets, NOW)
    assert repository.publish(folder, targets, NOW) == first
    (folder / "release.json").write_bytes((folder / "release.json").read_bytes().replace(b"q8_0", b"q4_0"))
    with pytest.raises(UntrustedRelease, match="choose a new one"):
        sign_release(folder, targets, [offline / "targets-1.pem"], NOW)
    world.release("tiny", "2.0.0", {"says": "two"})
    newer = world.folder / "releases" / "tiny-2.0.0"
    sign_release(newer, targets, [offline / "targets-1.pem", offline / "targets-2.pem"], NOW)
    repository.publish(newer, targets, NOW)
    (tmp_path / "old.json").write_bytes(old)
    with pytest.raises(UntrustedRelease):
        repository.publish(newer, tmp_path / "old.json", NOW)
    assert not repository.refresh_timestamp(NOW + timedelta(hours=1))
    assert repository.refresh_timestamp(NOW + timedelta(hours=13))
