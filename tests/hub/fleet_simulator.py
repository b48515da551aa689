"""A hub as a process and devices that speak the real protocol to it: enrolment, MQTT, signed reports, trails.

What a device reports is what its test says; everything on the wire is real.
"""

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from models.manifest import Manifest
from models.store import describe_file, write_release
from sync.database import Database
from sync.identity import EnrolmentToken, device_tls_context, enroll, private_pem
from sync.link import Incoming, Link, LinkSettings
from sync.protocol import (
    AUDIT_RECEIPT,
    AUDIT_SEGMENT,
    DESIRED,
    REPORTED,
    Desired,
    IngestReceipt,
    Message,
    ReleaseReport,
    Reported,
    State,
    Status,
)
from sync.signing import open_envelope, sign
from sync.trail import MIGRATIONS, Trail, TrailIdentity
from sync.trust import auditor_key

HUB = Path(sys.executable).parent / "outpost-hub"


def free_ports(count: int) -> list[int]:
    """TCP ports on loopback that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@dataclass
class RunningHub:
    """A hub's home, its command line, and its process while ``serving``."""

    root: Path
    people: int
    devices: int
    broker: int
    token: str = ""

    def cli(self, *arguments: str | Path, expect: int = 0, home: bool = True) -> Any:
        """A verb with ``--json``, parsed; or its stderr when it is expected to fail."""
        command = [str(HUB), *map(str, arguments), "--json"]
        command += ["--home", str(self.root / "home")] if home else []
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == expect, done.stderr + done.stdout
        return json.loads(done.stdout) if expect == 0 else done.stderr

    @property
    def url(self) -> str:
        return f"https://localhost:{self.people}"

    @property
    def ca(self) -> bytes:
        return (self.root / "home" / "tls" / "ca.pem").read_bytes()

    def get(self, path: str) -> Any:
        """What the REST API says at ``/api/v1/`` + path."""
        with self.client() as client:
            answer = client.get(f"/api/v1/{path}")
            answer.raise_for_status()
            return answer.json()

    def client(self, token: str | None = None) -> httpx.Client:
        """A verified HTTPS client of the people's listener."""
        from sync.identity import anchor_tls_context

        return httpx.Client(
            base_url=self.url,
            verify=anchor_tls_context(self.ca),
            headers={"authorization": f"Bearer {token or self.token}"},
            trust_env=False,
        )

    @contextmanager
    def serving(self) -> Iterator[subprocess.Popen[str]]:
        """The hub as a process, with its broker, from the moment it listens."""
        process = subprocess.Popen(
            [str(HUB), "serve", "--home", str(self.root / "home"), "--tap", str(self.root / "tap"), "--json"],
            stdout=subprocess.PIPE,
            stderr=(self.root / "hub.log").open("ab"),
            text=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (self.root / "hub.log").read_text()
            yield process
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()
            process.wait()

    def publish(self, manifest: Manifest, files: dict[str, Path]) -> str:
        """Sign a release with the offline key and publish it; returns its digest."""
        folder = self.root / "releases" / f"{manifest.name}-{manifest.version}"
        write_release(folder, manifest, files)
        return self.publish_folder(folder)

    def publish_folder(self, folder: Path) -> str:
        """The same of a release that is written already."""
        offline = self.root / "offline"
        self.cli(
            "release",
            "sign",
            folder,
            "--targets",
            offline / "targets.json",
            "--key",
            offline / "targets-1.pem",
            home=False,
        )
        return str(self.cli("release", "publish", folder)["release"])

    def release(self, name: str, version: str, size: int = 3000, **fields: Any) -> str:
        """Publish a release of random bytes."""
        path = self.root / f"{name}-{version}.bin"
        path.write_bytes(os.urandom(size))
        adapter = {
            "base_name": "smollm2",
            "trained_on": "sha256:" + "1" * 64,
            "checked_against": [],
            "rank": 8,
            "targets": ["q_proj"],
        }
        values: dict[str, Any] = {
            "kind": "adapter",
            "adapter": adapter if fields.get("kind", "adapter") == "adapter" else None,
            "name": name,
            "version": version,
            "format": "gguf",
            "precision": "f16",
            "license": "Apache-2.0",
            "files": [describe_file(path, "weights.gguf").model_dump(mode="json")],
            **fields,
        }
        return self.publish(Manifest.model_validate(values), {"weights.gguf": path})


def make_hub(root: Path, *options: str) -> RunningHub:
    """Offline keys and a hub's home under ``root``."""
    people, devices, broker = free_ports(3)
    hub = RunningHub(root, people, devices, broker)
    hub.cli("keys", "init", "--offline", root / "offline", "--threshold", "1", home=False)
    ports = ("--people-port", people, "--device-port", devices, "--broker-port", broker)
    carried = root / "offline" / "hub" / "root.json"
    hub.token = hub.cli("init", "--root", carried, *map(str, ports), *options)["token"]
    return hub


@dataclass
class SimulatedDevice:
    """One enrolled device. ``reports`` is what it says of each release."""

    id: str
    root: Path
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    reports: dict[str, ReleaseReport] = field(default_factory=dict)
    desired: Desired | None = None
    receipts: list[IngestReceipt] = field(default_factory=list)
    sequence: int = 0

    def enroll(self, hub: RunningHub, group: str) -> None:
        """Join with a fresh one-time token."""
        token = hub.cli("device", "token", "--group", group)["token"]
        self.enrolment = enroll(
            EnrolmentToken.decode(token),
            self.id,
            self.key,
            lambda context: httpx.Client(verify=context, trust_env=False),
        )
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "key.pem").write_bytes(private_pem(self.key))
        (self.root / "cert.pem").write_bytes(self.enrolment.certificate_pem)

    @property
    def tls(self) -> Any:
        return device_tls_context(self.enrolment.ca_pem, self.root / "cert.pem", self.root / "key.pem")

    async def __aenter__(self) -> "SimulatedDevice":
        self.news = asyncio.Event()
        self._database = Database.open(self.root / "trail.db", MIGRATIONS)
        auditor = X25519PublicKey.from_public_bytes(auditor_key(self.enrolment.root))
        identity = TrailIdentity(self.id, self.key, auditor, self.enrolment.epoch)
        self.trail = Trail(self._database, identity, now=time.time, random_bytes=os.urandom)
        self.link = Link(
            LinkSettings(self.enrolment.broker_host, self.enrolment.broker_port, self.tls, self.id),
            sessions=lambda: secrets.token_hex(4),
            status=self._status,
        )
        self.link.handle(DESIRED, self._take_desired)
        self.link.handle(AUDIT_RECEIPT, self._take_receipt)
        await self.link.__aenter__()
        await asyncio.wait_for(self.link.wait_up(), 10)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.link.__aexit__(None, None, None)
        await self._database.close()

    def _status(self, session: str, online: bool) -> bytes:
        status = Status(device=self.id, session=session, online=online, at=time.time())
        return sign(self.key, "status", status.to_bytes())

    async def _take_desired(self, incoming: Incoming) -> None:
        payload = open_envelope(incoming.payload, "desired", self.enrolment.director)
        self.desired = Desired.from_bytes(payload)
        self.news.set()

    async def _take_receipt(self, incoming: Incoming) -> None:
        payload = open_envelope(incoming.payload, "audit-receipt", self.enrolment.director)
        self.receipts.append(IngestReceipt.from_bytes(payload))
        await self.trail.acknowledge(self.receipts[-1])
        self.news.set()

    async def say(self, release: str, state: State, reason: str | None = None) -> None:
        """Report a state of a release that the hub desires."""
        assert self.desired is not None
        wanted = next(each for each in self.desired.assignments if each.release == release)
        fields = wanted.model_dump(exclude={"target_path"})
        self.reports[release] = ReleaseReport(**fields, state=state, reason=reason, at={state: time.time()})
        await self.report()

    async def report(self) -> None:
        """Publish what this device runs."""
        self.sequence += 1
        message = Reported(
            device=self.id,
            session=self.link.session,
            sequence=self.sequence,
            desired_version=self.desired.version if self.desired else 0,
            releases=tuple(self.reports.values()),
            audit=await self.trail.report(),
            at=time.time(),
        )
        await self.link.publish(REPORTED, self.id, self.signed("reported", message))

    async def push(self) -> None:
        """Send the oldest records that have no receipt."""
        segment = await self.trail.next_segment()
        assert segment is not None
        await self.link.publish(AUDIT_SEGMENT, self.id, self.signed("audit-segment", segment))

    def signed(self, kind: str, message: Message) -> bytes:
        return sign(self.key, kind, message.to_bytes())

    async def until(self, what: Any, seconds: float = 10) -> None:
        """Wait until ``what()`` is true, looking again at every arrival."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, "waited in vain"
            with suppress(TimeoutError):
                await asyncio.wait_for(self.news.wait(), 0.1)
            self.news.clear()

    async def told(self, *releases: str) -> None:
        """Wait until the hub desires exactly these releases."""
        await self.until(
            lambda: (
                self.desired is not None
                and {each.release for each in self.desired.assignments} == set(releases)
            )
        )
