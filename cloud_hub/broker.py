"""The embedded MQTT 5 broker: its own process, for a laptop or a small site.

``python -m cloud_hub.broker CONFIG.json [--tap FILE]``

Owns: a TLS 1.3 front that demands a client certificate and applies ``mqtt_packets.Gate`` to each
connection, and rumqttd (by ``iotcore``) behind it on loopback, which lets in nobody without the secret
that only the front knows. Refuses: durability. It forgets everything at a restart, retained messages
included, which is why the hub publishes its desired states anew on every connection.

``--tap FILE`` appends every byte that clients send, as received after TLS: an instrument for showing
what did and what did not leave the devices.
"""

import asyncio
import contextlib
import ctypes
import json
import logging
import secrets
import signal
import socket
import sys
import tempfile
from asyncio.trsock import TransportSocket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
from pydantic import BaseModel, ConfigDict, ValidationError

from cloud_hub import mqtt_packets
from cloud_hub.mqtt_packets import Gate
from sync.errors import InvalidMessage
from sync.identity import server_tls_context

if TYPE_CHECKING:
    import iotcore

log = logging.getLogger("outpost.broker")

_USER = "front"
_HELLO_SECONDS = 10.0
"""How long a client may take for its TLS handshake, and again for its CONNECT."""

_READ = 256 * 1024


class BrokerConfig(BaseModel):
    """The file CONFIG.json. Paths are absolute or relative to that file; port 0 takes a free one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int
    certificate: Path
    key: Path
    client_ca: Path

    @classmethod
    def read(cls, path: Path) -> "BrokerConfig":
        """Raises ``click.UsageError`` naming the key that is wrong."""
        try:
            config = cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise click.UsageError(f"{path}: {error}") from error
        folder = path.resolve().parent
        return config.model_copy(
            update={name: folder / getattr(config, name) for name in ("certificate", "key", "client_ca")}
        )


@contextlib.contextmanager
def rumqttd(port: int, secret: str) -> Iterator["iotcore.Broker"]:
    """rumqttd in a child of this process on loopback; it ends when this process does."""
    import iotcore

    with tempfile.TemporaryDirectory(prefix="outpost-broker-") as folder:
        path = Path(folder) / "broker.toml"
        path.touch(mode=0o600)
        path.write_text(_toml(port, secret))
        broker = iotcore.Broker(config_path=str(path)).start()
    # It has read its secret; nothing of that stays on disk, even if this process is killed.
    try:
        yield broker
    finally:
        broker.stop()


def _toml(port: int, secret: str) -> str:
    return f"""
id = 0
[router]
id = 0
max_connections = 10000
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
[v5.1]
name = "v5-1"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 0
[v5.1.connections]
connection_timeout_ms = 10000
max_payload_size = {mqtt_packets.MAX_PACKET}
max_inflight_count = 100
dynamic_filters = true
[v5.1.connections.auth]
{_USER} = "{secret}"
"""


class Front:
    """Accepts TLS clients and carries each one's packets to the broker behind, by the rules."""

    def __init__(self, backend_port: int, secret: str, tap: BinaryIO | None) -> None:
        self._backend_port = backend_port
        self._secret = secret
        self._tap = tap

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until either side ends."""
        with contextlib.suppress(OSError):  # a peer that vanishes is no event
            async with _closing(writer):
                name = _common_name(writer)
                if name is not None:
                    await self._serve(name, reader, writer)

    async def _serve(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_behind = await asyncio.open_connection("127.0.0.1", self._backend_port, limit=_READ)
        async with _closing(to_behind):
            up = asyncio.create_task(self._carry_up(name, reader, writer, to_behind))
            down = asyncio.create_task(_carry_down(behind, to_behind.get_extra_info("socket"), writer))
            try:
                await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            finally:
                # Ending one side ends the other: the broker sends the will when its socket closes.
                up.cancel()
                down.cancel()
                results = await asyncio.gather(up, down, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception) and not isinstance(result, OSError):
                    raise result

    async def _carry_up(
        self,
        name: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        to_behind: asyncio.StreamWriter,
    ) -> None:
        gate = Gate(name, (_USER, self._secret))
        buffer = bytearray()
        deadline: float | None = _HELLO_SECONDS
        while data := await _read(reader, deadline):
            if self._tap is not None:
                self._tap.write(data)
            buffer += data
            try:
                packets = mqtt_packets.split(buffer)
            except InvalidMessage as error:
                log.warning("%s: %s", name, error)
                return
            for packet in packets:
                deadline = None
                verdict = gate.receive(packet)
                if verdict.forward is not None:
                    to_behind.write(verdict.forward)
                else:
                    log.warning("%s: refused a packet of type %d", name, packet[0] >> 4)
                if verdict.answer is not None:
                    writer.write(verdict.answer)
                    await writer.drain()
                if verdict.close:
                    return
            await to_behind.drain()


async def _read(reader: asyncio.StreamReader, deadline: float | None) -> bytes:
    """The next bytes; none when the client ended or stayed silent past its deadline."""
    try:
        return await asyncio.wait_for(reader.read(_READ), deadline)
    except TimeoutError:
        return b""


async def _carry_down(
    behind: asyncio.StreamReader, connection: TransportSocket, writer: asyncio.StreamWriter
) -> None:
    """Broker to client, whole packets only, so that the front's own answers never split one."""
    buffer = bytearray()
    while True:
        # rumqttd leaves Nagle's algorithm on: it holds a second small packet until the first one is
        # acknowledged, which Linux would put off by 40 ms. The option lasts for the next read only.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        data = await behind.read(_READ)
        if not data:
            return
        buffer += data
        writer.write(b"".join(mqtt_packets.split(buffer)))
        await writer.drain()


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        yield
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), 2.0)


def _common_name(writer: asyncio.StreamWriter) -> str | None:
    """The one common name of the certificate that TLS has verified."""
    certificate = writer.get_extra_info("peercert") or {}
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return names[0] if len(names) == 1 else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def serve(config: BrokerConfig, tap: BinaryIO | None) -> None:
    """Run until SIGTERM or SIGINT. Prints ``{"host", "port"}`` on stdout once clients can come.

    Raises OSError when the port is taken, RuntimeError when rumqttd does not start or dies.
    """
    secret, backend_port = secrets.token_hex(32), _free_port()
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    with rumqttd(backend_port, secret) as behind:
        front = Front(backend_port, secret, tap)
        server = await asyncio.start_server(
            front.accept,
            config.host,
            config.port,
            ssl=server_tls_context(
                config.certificate, config.key, config.client_ca.read_bytes(), require_client=True
            ),
            ssl_handshake_timeout=_HELLO_SECONDS,
            limit=_READ,
        )
        host, port = server.sockets[0].getsockname()[:2]
        click.echo(json.dumps({"host": host, "port": port}))
        sys.stdout.flush()
        while not stop.is_set():
            if not behind.is_running:
                raise RuntimeError("rumqttd ended by itself")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1.0)
        server.close()


def die_with_parent() -> None:
    """Ask Linux to end this process when the one that started it is gone."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tap", type=click.Path(dir_okay=False, path_type=Path), help="Append what clients send here.")
@click.option("--follow-parent", is_flag=True, help="End when the process that started this one ends.")
def main(config: Path, tap: Path | None, follow_parent: bool) -> None:
    """Run the embedded MQTT 5 broker described by CONFIG (JSON)."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("iotcore").setLevel(logging.WARNING)  # where rumqttd listens is nobody's business
    if follow_parent:
        die_with_parent()
    settings = BrokerConfig.read(config)
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(tap.open("ab", buffering=0)) if tap else None
        try:
            asyncio.run(serve(settings, sink))
        except (OSError, RuntimeError) as error:
            raise click.ClickException(f"the broker cannot run: {error}") from error


if __name__ == "__main__":
    main()
