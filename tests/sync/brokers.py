"""Real MQTT brokers with real certificates for the tests of the link, and a cable that can be cut."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sync import identity
from sync.protocol import CHANNELS, ROOT, Direction

MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
KINDS = ["embedded", *(["mosquitto"] if MOSQUITTO else [])]


class Certificates:
    """An authority, the broker's server certificate, and client contexts by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = datetime.now(UTC)
        self.ca = identity.create_ca("test", self.now)
        (folder / "ca.pem").write_bytes(self.ca.certificate_pem)
        identity.issue_server(self.ca, ["127.0.0.1", "localhost"], self.now).write(
            folder / "server.key", folder / "server.pem"
        )
        identity.issue_hub_client(self.ca, self.now).write(folder / "hub.key", folder / "hub.pem")

    def device(self, name: str):
        key = Ed25519PrivateKey.generate()
        certificate = identity.issue_device(self.ca, identity.make_csr(key, name), name, self.now)
        identity.Credentials(identity.private_pem(key), certificate).write(
            self.folder / f"{name}.key", self.folder / f"{name}.pem"
        )
        return self.context(name)

    def context(self, name: str):
        return identity.device_tls_context(
            self.ca.certificate_pem, self.folder / f"{name}.pem", self.folder / f"{name}.key"
        )


@dataclass
class RunningBroker:
    """A broker process that can be killed and started again on the same port."""

    kind: str
    certificates: Certificates
    port: int
    tap: Path
    process: subprocess.Popen = field(init=False)

    def start(self) -> None:
        folder = self.certificates.folder
        if self.kind == "embedded":
            config = folder / "broker.json"
            config.write_text(
                json.dumps(
                    {
                        "port": self.port,
                        "certificate": "server.pem",
                        "key": "server.key",
                        "client_ca": "ca.pem",
                    }
                )
            )
            command = [sys.executable, "-m", "cloud_hub.broker", str(config), "--tap", str(self.tap)]
        else:
            rules = "".join(
                f"pattern {'write' if c.direction is Direction.TO_HUB else 'read'} {ROOT}/%u/{c.suffix}\n"
                for c in CHANNELS
            )
            (folder / "acl").write_text(f"{rules}user hub\ntopic readwrite {ROOT}/#\n")
            config = folder / "mosquitto.conf"
            config.write_text(
                f"user root\nlistener {self.port} 127.0.0.1\ncafile {folder}/ca.pem\n"
                f"certfile {folder}/server.pem\nkeyfile {folder}/server.key\ntls_version tlsv1.3\n"
                f"require_certificate true\nuse_identity_as_username true\nallow_anonymous false\n"
                f"acl_file {folder}/acl\nset_tcp_nodelay true\nlog_dest stderr\nlog_type error\n"
            )
            command = [MOSQUITTO, "-c", str(config)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.2):
                return
            assert self.process.poll() is None, "the broker ended"
            time.sleep(0.05)
        raise AssertionError("the broker does not listen")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cable:
    """A TCP path to a port that can be cut and mended."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = free_port()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server = None

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)

    async def cut(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _carry(self, reader, writer) -> None:
        behind, to_behind = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers |= {writer, to_behind}

        async def pump(source, sink):
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, to_behind), pump(behind, writer))
        self._writers -= {writer, to_behind}
