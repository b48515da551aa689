"""The hub's loops outlive a fault of the disk or the database: they log it and try again."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloud_hub.errors import StorageFailed
from cloud_hub.home import Home
from cloud_hub.hub import refresh
from cloud_hub.live import Live
from sync.repository import keys_init


@pytest.mark.parametrize("fault", [StorageFailed("the database is locked"), OSError("no space left")])
async def test_viewers_are_told_again_after_a_fault(fault: Exception) -> None:
    pictures: list[dict[str, str] | Exception] = [{"fleet": "one"}, fault, {"fleet": "two"}]

    async def render() -> dict[str, str]:
        picture = pictures.pop(0) if len(pictures) > 1 else pictures[0]
        if isinstance(picture, Exception):
            raise picture
        return picture

    live = Live(render, beat=0.01)
    events = live.watch()
    assert b"data: one" in await anext(events)
    loop = asyncio.create_task(live.run())
    assert b"data: two" in await asyncio.wait_for(anext(events), 5)
    assert not loop.done()
    loop.cancel()
    await events.aclose()  # type: ignore[attr-defined]


async def test_the_timestamp_is_refreshed_once_the_disk_is_back(tmp_path: Path) -> None:
    begun = datetime(2030, 1, 1, tzinfo=UTC)
    keys_init(tmp_path / "offline", 1, begun)
    home = Home(tmp_path / "home")
    home.repository.create(tmp_path / "offline" / "hub", begun)
    timestamp = home.repository.metadata / "timestamp.json"
    away = timestamp.rename(tmp_path / "away.json")
    loop = asyncio.create_task(refresh(home, lambda: begun.timestamp() + 86_000, retry=0.01))
    await asyncio.sleep(0.1)
    assert not loop.done()
    before = away.read_bytes()
    away.rename(timestamp)
    for _ in range(500):
        if timestamp.read_bytes() != before:
            break
        await asyncio.sleep(0.01)
    assert timestamp.read_bytes() != before and not loop.done()
    loop.cancel()
