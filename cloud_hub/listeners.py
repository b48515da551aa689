"""An HTTPS listener: uvicorn with our TLS 1.3 context, without its signal handlers, with an optional tap.

A tap appends every byte that clients sent, as received after TLS: an instrument for showing what did
and what did not reach the hub.
"""

import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any, BinaryIO

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

GRACE = 3
"""Seconds that open requests, event streams included, get at the end."""


class Listener(uvicorn.Server):
    """One ASGI application on one socket."""

    def __init__(
        self, app: Any, listening: socket.socket, tls: ssl.SSLContext, tap: BinaryIO | None = None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_tapped(tap) if tap is not None else H11Protocol,
                ssl_context_factory=lambda _config, _default: tls,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                lifespan="off",
                timeout_graceful_shutdown=GRACE,
            )
        )
        self._listening = listening

    async def run_until_stopped(self) -> None:
        """Serve until ``stop``."""
        await self.serve(sockets=[self._listening])

    def stop(self) -> None:
        """Refuse new connections and end within ``GRACE`` seconds."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the composition root, which runs more than this listener."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """A bound TCP socket; port 0 takes a free one. Raises ``OSError``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=512)


def _tapped(tap: BinaryIO) -> type[H11Protocol]:
    class Tapped(H11Protocol):
        def data_received(self, data: bytes) -> None:
            tap.write(data)
            super().data_received(data)

    return Tapped
