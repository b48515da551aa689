"""An ASGI application on a socket, until a signal asks it to end.

The socket is bound before a model is loaded, so that a taken port is known at once. Refuses to be
reachable from other machines: that needs TLS and API keys, which this server does not have.
"""

import asyncio
import contextlib
import ipaddress
import signal
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from edge_agent.errors import CannotListen, NotLoopback

KEEP_ALIVE = 65
"""Seconds; longer than clients keep idle connections, so that none is closed under a request."""

GRACE = 10
"""Seconds that running answers get when the server is asked to end."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ``NotLoopback``, or ``CannotListen`` when the port cannot be had."""
    address = "127.0.0.1" if host == "localhost" else host
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        if not ipaddress.ip_address(address).is_loopback:
            raise NotLoopback(f"--host {host} is reachable from outside, which needs TLS and API keys")
    except ValueError as error:
        raise NotLoopback(f"--host {host!r} is not an address of this machine's loopback") from error
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(1024)
    except (OSError, OverflowError) as error:
        server.close()
        raise CannotListen(f"cannot listen on {host}:{port}: {error}") from error
    return server


def url_of(server: socket.socket) -> str:
    """The base URL of a listening socket."""
    host, port = server.getsockname()[:2]
    return f"http://[{host}]:{port}" if server.family == socket.AF_INET6 else f"http://{host}:{port}"


async def serve_until_signal(app: ASGIApp, server: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; running answers get ``GRACE`` seconds."""
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
    )
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
