"""One client's connection, cut off when the client neither brings its request nor takes its answer.

Owns the deadline for a request, which HTTP libraries leave to a proxy, and the log lines of both. The kernel
sees when nothing is taken of an answer (``TCP_USER_TIMEOUT`` in ``edge_agent.server.listen``). Whoever is cut
off has left: its call is cancelled and its places are given back as for any client that leaves.

What is written in one turn of the event loop is sent in one piece: each piece wakes the client, which on a
small device takes the core on which the next piece is being made.
"""

import asyncio
import logging
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

PACE = 1 << 14
"""Bytes: the least of a request, or all that is left of it, that a client brings while we are patient. So a
head has to come at once (a longer one is refused), and a body at a pace that every network has."""

_GATHERED = 1 << 16
"""Bytes of an answer that wait at most for the end of a turn; their transport is to tell when it is full."""

_log = logging.getLogger(__name__)


class PatientConfig(uvicorn.Config):
    """``patience``: seconds that a client may bring less than ``PACE`` of a request."""

    def __init__(self, app: Any, patience: float, **options: Any) -> None:
        super().__init__(app, http=Connection, **options)
        self.patience = patience


class Connection(H11Protocol):
    """HTTP/1.1 with one client."""

    def __init__(
        self,
        config: PatientConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._patience = config.patience
        self._brought = 0
        self._look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there; it has something to ask."""
        super().connection_made(Gathering(transport, self.loop))
        self._expect_more()

    def data_received(self, data: bytes) -> None:
        """Some of a request, or the rest of it."""
        self._brought += len(data)
        super().data_received(data)
        if not self._is_asking:
            self._expect_nothing()
        elif self._look is None:
            self._expect_more()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, or was cut off."""
        self._expect_nothing()
        if isinstance(exc, TimeoutError):
            _log.warning("%s: the client took nothing of its answer and was cut off", self._shown)
        super().connection_lost(exc)

    @property
    def _is_asking(self) -> bool:
        """Whether a request is not whole yet."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    @property
    def _shown(self) -> str:
        """The request that a log line is about."""
        scope = self.cycle.scope if self.cycle else None
        if scope is None:
            return f"request of {self.client}"
        return f"request {scope['state'].get('request_id')} ({scope['method']} {scope['path']})"

    def _expect_more(self) -> None:
        self._brought = 0
        self._look = self.loop.call_later(self._patience, self._cut_off_unless_it_came)

    def _expect_nothing(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def _cut_off_unless_it_came(self) -> None:
        self._look = None
        if not self._is_asking or self.transport.is_closing():
            return
        # What was answered before it had been read, as too large for example, need not come any more.
        done = self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete
        if not done and (self._brought >= PACE or self.flow.read_paused):
            self._expect_more()
            return
        if self.conn.their_state is h11.SEND_BODY and not done:
            _log.warning("%s: the client did not bring its body and was cut off", self._shown)
        self.transport.abort()


class Gathering(asyncio.Transport):
    """``transport``, but what is written in one turn of ``loop`` is written to it together."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport, self._loop = transport, loop
        self._gathered = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send it at the end of this turn."""
        if not self._gathered:
            self._loop.call_soon(self._send)
        self._gathered += data
        if len(self._gathered) > _GATHERED:
            self._send()

    def close(self) -> None:
        """Close the connection when all has been sent."""
        self._send()
        self._transport.close()

    def abort(self) -> None:
        """Close the connection now."""
        self._gathered.clear()
        self._transport.abort()

    def _send(self) -> None:
        if self._gathered:
            gathered, self._gathered = self._gathered, bytearray()
            self._transport.write(gathered)

    # As they are

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See ``asyncio.BaseTransport``."""
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """See ``asyncio.BaseTransport``."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """See ``asyncio.ReadTransport``."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """See ``asyncio.ReadTransport``."""
        self._transport.resume_reading()
