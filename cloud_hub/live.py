"""Live pictures of the fleet: read once per beat for all viewers, sent only when something changed."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from cloud_hub.errors import HubError

log = logging.getLogger("outpost.live")

Fragments = Mapping[str, str]
"""HTML by the name of the event that replaces it."""


_ALIVE = 10.0
"""Seconds of silence after which a viewer is told that the hub is still there."""


class _Viewer:
    """What one viewer has not been told yet; a slow one gets the latest of each fragment, not all."""

    def __init__(self) -> None:
        self.pending: dict[str, str] = {}
        self.wake = asyncio.Event()

    def tell(self, changed: Fragments) -> None:
        self.pending.update(changed)
        self.wake.set()

    async def take(self, seconds: float) -> Fragments:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wake.wait(), seconds)
        self.wake.clear()
        taken, self.pending = self.pending, {}
        return taken


class Live:
    """Renders at most once per ``beat`` seconds while someone watches; nobody watching costs nothing."""

    def __init__(self, render: Callable[[], Awaitable[Fragments]], beat: float) -> None:
        self._render = render
        self._beat = beat
        self._viewers: set[_Viewer] = set()
        self._latest: dict[str, str] = {}
        self._wake = asyncio.Event()

    def nudge(self) -> None:
        """Look again now: something was changed."""
        self._wake.set()

    async def snapshot(self) -> Fragments:
        """The picture now, for a page that is being opened."""
        return await self._render()

    async def run(self) -> None:
        """Render and tell viewers until cancelled. A failure is logged and the next beat tries again."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._beat)
            self._wake.clear()
            if not self._viewers:
                self._latest = {}
                continue
            try:
                fragments = await self._render()
            except (HubError, OSError) as error:
                log.warning("live: %s", error)
                continue
            changed = {name: html for name, html in fragments.items() if self._latest.get(name) != html}
            self._latest = dict(fragments)
            for viewer in self._viewers if changed else ():
                viewer.tell(changed)

    async def watch(self) -> AsyncIterator[bytes]:
        """Server-sent events for one viewer: the whole picture, then what changes, and signs of life."""
        viewer = _Viewer()
        self._viewers.add(viewer)
        try:
            yield _encode(await self._render())
            while True:
                yield _encode(await viewer.take(_ALIVE)) or b"event: alive\ndata:\n\n"
        finally:
            self._viewers.discard(viewer)


def _encode(fragments: Fragments) -> bytes:
    """Server-sent events (WHATWG HTML, 9.2): one event for each fragment, a ``data:`` line for each line."""
    events = (
        f"event: {name}\n" + "".join(f"data: {line}\n" for line in html.splitlines()) + "\n"
        for name, html in fragments.items()
    )
    return "".join(events).encode()
