"""An ASGI application on a socket, until a signal asks it to end.

The socket is bound before a model is loaded, so that a taken port is known at once. Refuses to be
reachable from other machines without TLS and API keys. Clients that stall are cut off
(``edge_agent.connection``).
"""

import asyncio
import contextlib
import ipaddress
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from cryptography import x509
from starlette.types import ASGIApp

from edge_agent.connection import PatientConfig
from edge_agent.errors import CannotListen, NotLoopback, WrongUse
from edge_agent.keys import Keys
from edge_agent.rest.guard import LOOPBACK_HOSTS

KEEP_ALIVE = 65
"""Seconds; longer than clients keep idle connections, so that none is closed under a request."""

GRACE = 10
"""Seconds that running answers get when the server is asked to end."""

PATIENCE = 30.0
"""Seconds that a client may bring nothing of its request, or take nothing of its answer."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where this device is called, and by whom. ``certificate`` and ``private_key`` are PEM files for TLS;
    ``keys`` is a file of API keys, which every call must then present. ``patience``: seconds until a client
    is cut off that stalls.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    certificate: Path | None = None
    private_key: Path | None = None
    keys: Path | None = None
    patience: float = PATIENCE

    def hosts(self) -> frozenset[str]:
        """The names that callers may call this server by: those of the loopback and of the certificate.

        Raises ``WrongUse`` for a certificate that cannot be read.
        """
        if self.certificate is None:
            return LOOPBACK_HOSTS
        try:
            certificate = x509.load_pem_x509_certificate(self.certificate.read_bytes())
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, x509.ExtensionNotFound) as error:
            raise WrongUse(
                f"--tls-cert {self.certificate}: no certificate that names hosts: {error}"
            ) from error
        addresses = map(str, names.get_values_for_type(x509.IPAddress))
        return LOOPBACK_HOSTS | {
            name.lower() for name in (*names.get_values_for_type(x509.DNSName), *addresses)
        }

    def key_ring(self, monotonic: Callable[[], float]) -> Keys | None:
        """The API keys; None when calls need none. Raises ``WrongUse``."""
        return None if self.keys is None else Keys(self.keys, monotonic)

    def tls(self) -> ssl.SSLContext | None:
        """TLS 1.2 or newer; None for plain HTTP. Raises ``WrongUse`` that names the flag."""
        if self.certificate is None and self.private_key is None:
            return None
        if self.certificate is None or self.private_key is None:
            raise WrongUse("--tls-cert and --tls-key go together")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.private_key)
        except OSError as error:  # of which ssl.SSLError is one
            raise WrongUse(f"--tls-cert {self.certificate}, --tls-key {self.private_key}: {error}") from error
        return context


def listen(door: Door) -> socket.socket:
    """A listening socket. Raises ``NotLoopback``, or ``CannotListen`` when the port cannot be had."""
    host, port = door.host, door.port
    address = "127.0.0.1" if host == "localhost" else host
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    except ValueError as error:
        raise NotLoopback(f"--host {host!r} is not an address; 127.0.0.1 is the default") from error
    if not ipaddress.ip_address(address).is_loopback and (door.certificate is None or door.keys is None):
        raise NotLoopback(
            f"--host {host} is reachable from outside, which needs TLS and API keys: "
            "--tls-cert, --tls-key and --keys (outpost-edge key create)"
        )
    # asyncio sets TCP_NODELAY only where the protocol is named; without it an answer waits 40 ms for an ACK.
    server = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Of every connection: one of which nothing is taken for so long is lost (tcp(7)).
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(door.patience * 1000))
        server.bind((address, port))
        server.listen(1024)
    except (OSError, OverflowError) as error:
        server.close()
        raise CannotListen(f"cannot listen on {host}:{port}: {error}") from error
    return server


def url_of(server: socket.socket, tls: bool = False) -> str:
    """The base URL of a listening socket."""
    host, port = server.getsockname()[:2]
    shown = f"[{host}]" if server.family == socket.AF_INET6 else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"


def http_config(app: ASGIApp, patience: float, grace: int = GRACE) -> uvicorn.Config:
    """How ``app`` is served; running answers get ``grace`` seconds at the end."""
    return PatientConfig(
        app,
        patience,
        access_log=False,
        log_config=None,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=grace,
    )


async def serve_until_signal(
    app: ASGIApp, server: socket.socket, tls: ssl.SSLContext | None, patience: float
) -> None:
    """Serve until SIGINT or SIGTERM; running answers get ``GRACE`` seconds."""
    config = http_config(app, patience)
    config.load()
    config.ssl = tls
    http = _Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, http.stop)
    try:
        await http.serve(sockets=[server])
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn raises them again at the end, before engines could be closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """End gracefully; a second time, at once."""
        self.force_exit = self.should_exit
        self.should_exit = True
