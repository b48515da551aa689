"""The embedded broker as a supervised child: started again, with growing pauses, when it dies."""

import asyncio
import contextlib
import json
import logging
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from cloud_hub.home import Home, Settings
from models.store import write_durably

log = logging.getLogger("outpost.hub")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between a death and the next start
GRACE = 5.0  # seconds to end by itself


def write_config(home: Home, settings: Settings) -> Path:
    """The broker's configuration file, in the home."""
    path = home.root / "broker.json"
    config = {
        "host": settings.bind,
        "port": settings.broker_port,
        "certificate": str(home.server_certificate),
        "key": str(home.server_key),
        "client_ca": str(home.ca_certificate),
    }
    write_durably(path, json.dumps(config, indent=2).encode())
    return path


@contextlib.asynccontextmanager
async def broker(config: Path, tap: Path | None) -> AsyncIterator[None]:
    """Keep a broker running for as long as the block lasts; entered once it listens, or died trying."""
    up = asyncio.Event()
    keeper = asyncio.create_task(_keep(config, tap, up))
    try:
        await up.wait()
        yield
    finally:
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper


async def _keep(config: Path, tap: Path | None, up: asyncio.Event) -> None:
    arguments = [sys.executable, "-m", "cloud_hub.broker", str(config), "--follow-parent"]
    arguments += ["--tap", str(tap)] if tap else []
    clock = asyncio.get_running_loop().time
    pause = FIRST_PAUSE
    while True:
        started = clock()
        process = await asyncio.create_subprocess_exec(*arguments, stdout=asyncio.subprocess.PIPE)
        try:
            if process.stdout is not None:
                await process.stdout.readline()  # its address, or nothing when it died
            up.set()
            code = await process.wait()
        finally:
            await _end(process)
        pause = FIRST_PAUSE if clock() - started > LONGEST_PAUSE else min(2 * pause, LONGEST_PAUSE)
        log.error("the broker ended with %s; starting it again in %.1f s", code, pause)
        await asyncio.sleep(pause)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), GRACE)
    except TimeoutError:
        process.kill()
        await process.wait()
