"""The running hub: which parts there are and how they are joined.

Owns the life of database, listeners, broker, link and loops: all of them run, or the process ends.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import httpx
from sqlalchemy import Connection

from cloud_hub import console, devices, people, registry, view
from cloud_hub.broker_child import broker, write_config
from cloud_hub.database import Database
from cloud_hub.director import BEAT, Director
from cloud_hub.enrolment import Enroller, anchor, public_director
from cloud_hub.errors import HubError
from cloud_hub.gateway import Gateway
from cloud_hub.home import Home, Settings
from cloud_hub.listeners import Listener, listen
from cloud_hub.live import Fragments, Live
from cloud_hub.snapshot import read_rows
from sync.errors import SyncError
from sync.identity import EnrolReply, EnrolRequest, device_tls_context, server_tls_context
from sync.link import Link, LinkSettings
from sync.protocol import HUB

log = logging.getLogger("outpost.hub")

REFRESH_SECONDS = 600.0
"""How often the online metadata's age is looked at."""
RETRY_SECONDS = 5.0
"""How long to wait after that failed."""

UPSTREAM_TIMEOUT = httpx.Timeout(connect=5.0, read=600.0, write=30.0, pool=30.0)


@dataclass(frozen=True, slots=True)
class Clocks:
    """``now``: seconds since the epoch; ``monotonic``: seconds that never go back."""

    now: Callable[[], float]
    monotonic: Callable[[], float]


class _Enroller(Enroller):
    """Sends devices to the broker of the settings, which may be another machine's."""

    def enroll(self, connection: Connection, request: EnrolRequest, now: float) -> EnrolReply:
        host, port = self._settings.broker
        reply = super().enroll(connection, request, now)
        return reply.model_copy(update={"broker_host": host, "broker_port": port})


async def run(
    home: Home,
    clocks: Clocks,
    session: Callable[[], str],
    external_broker: tuple[str, int] | None,
    tap: Path | None,
    ready: Callable[[dict[str, Any]], None],
) -> None:
    """Run the hub until SIGTERM or SIGINT; ``ready`` hears the addresses once it listens.

    Raises ``StorageFailed`` when the database cannot be used, ``OSError`` when a port is taken.
    """
    settings = home.settings()
    stop = asyncio.Event()

    def end(name: signal.Signals) -> None:
        log.info("%s: ending", name.name)
        stop.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, end, name)
    async with contextlib.AsyncExitStack() as stack:
        database = Database.open(home.database_url(settings))
        stack.callback(database.close)
        await asyncio.to_thread(database.migrate)
        if external_broker is None:
            await stack.enter_async_context(
                broker(write_config(home, settings), tap / "broker.bytes" if tap else None)
            )
        link = _link(home, settings, external_broker, session)
        director = Director(database, link, home.director(), home.repository, clocks.now)
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=UPSTREAM_TIMEOUT, trust_env=False))
        gateway = Gateway(client, lambda: database.reading(registry.upstreams), _read_key, clocks.monotonic)
        hub_url = f"https://{settings.hosts[0]}:{settings.people_port}"
        pages = console.Pages(hub_url)
        live = Live(lambda: _fragments(database, pages, link, settings, clocks), BEAT)
        people_app = people.create_app(
            database,
            gateway,
            _Enroller(home.authority(), public_director(home), settings),
            anchor(home),
            console.create_router(database, pages, live, clocks.now, settings.hosts[0]),
            lambda: {**director.counts, "link_connections": link.connections},
            settings.stale_after_seconds,
            clocks.now,
        )
        device_app = devices.create_app(database, home.repository, gateway, clocks.now)
        await stack.enter_async_context(
            _listening(home, settings, {"people": people_app, "devices": device_app}, tap, stack)
        )
        await stack.enter_async_context(link)
        await stack.enter_async_context(_looping(stop, director.run(), live.run(), refresh(home, clocks.now)))
        ready(
            {
                "console": f"{hub_url}/console",
                "people": hub_url,
                "devices": f"https://{settings.hosts[0]}:{settings.device_port}",
                "broker": "{}:{}".format(*(external_broker or (settings.hosts[0], settings.broker_port))),
            }
        )
        await stop.wait()


def _link(
    home: Home, settings: Settings, external: tuple[str, int] | None, session: Callable[[], str]
) -> Link:
    tls = device_tls_context(home.ca_certificate.read_bytes(), home.link_certificate, home.link_key)
    host, port = external or (settings.hosts[0], settings.broker_port)
    return Link(LinkSettings(host=host, port=port, tls=tls, client=HUB, longest_delay=5.0), sessions=session)


async def _fragments(
    database: Database, pages: console.Pages, link: Link, settings: Settings, clocks: Clocks
) -> Fragments:
    rows = await database.reading(read_rows)
    picture = view.picture(rows, clocks.now(), settings.stale_after_seconds)
    return pages.fragments(picture, link.connected)


@contextlib.asynccontextmanager
async def _listening(
    home: Home, settings: Settings, apps: dict[str, Any], tap: Path | None, stack: contextlib.AsyncExitStack
) -> AsyncIterator[None]:
    """Both listeners, accepting before this is entered and closed after it is left."""
    authority = home.ca_certificate.read_bytes()
    servers: list[Listener] = []
    for name, app in apps.items():
        port = settings.device_port if name == "devices" else settings.people_port
        tls = server_tls_context(
            home.server_certificate, home.server_key, authority, require_client=name == "devices"
        )
        sink: BinaryIO | None = None
        if tap is not None:
            sink = stack.enter_context((tap / f"{name}.bytes").open("ab", buffering=0))
        servers.append(Listener(app, listen(settings.bind, port), tls, sink))
    tasks = [asyncio.create_task(server.run_until_stopped()) for server in servers]
    try:
        while not all(server.started for server in servers):
            for task in tasks:
                if task.done():
                    await task
            await asyncio.sleep(0.01)
        yield
    finally:
        for server in servers:
            server.stop()
        await asyncio.gather(*tasks)


@contextlib.asynccontextmanager
async def _looping(stop: asyncio.Event, *loops: Any) -> AsyncIterator[None]:
    """Loops beside the block; one that ends is a defect, stops the hub and is raised."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    for task in tasks:
        task.add_done_callback(lambda _task: stop.set())
    try:
        yield
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def refresh(home: Home, now: Callable[[], float], retry: float = RETRY_SECONDS) -> None:
    """Keep the online metadata fresh, so that devices can tell a sleeping hub from a frozen one.

    A failure is logged and tried again after ``retry`` seconds: metadata outlives a fault of the disk.
    """

    def sign() -> bool:
        with home.repository_lock():
            return home.repository.refresh_timestamp(datetime.fromtimestamp(now(), UTC))

    while True:
        wait = REFRESH_SECONDS
        try:
            if await asyncio.to_thread(sign):
                log.info("the repository's timestamp is signed anew")
        except (HubError, SyncError, OSError) as error:
            log.warning("refresh of the repository's timestamp: %s", error)
            wait = retry
        await asyncio.sleep(wait)


async def _read_key(path: str) -> str:
    return (await asyncio.to_thread(Path(path).read_text, "ascii")).strip()
