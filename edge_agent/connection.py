"""One client's connection, cut off when the client neither brings its request nor takes its answer.

Owns the deadline for a request, which HTTP libraries leave to a proxy, and the log lines of both. The kernel
sees when nothing is taken of an answer (``TCP_USER_TIMEOUT`` in ``edge_agent.server.listen``). Whoever is cut
off has left: its call is cancelled and its places are given back as for any client that leaves.
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
        super().connection_made(transport)
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
