"""Publishing is a pointer change: requests in flight finish where they started."""

import asyncio

import pytest
from edge_app import catalog_of, served
from scripted_engine import ScriptedEngine

from edge_agent.errors import UnknownModel


async def test_a_lease_keeps_the_old_release_until_its_request_ends() -> None:
    old, new = served(ScriptedEngine("old")), served(ScriptedEngine("new"))
    catalog = catalog_of(old)
    with catalog.lease("smol") as leased:
        assert catalog.publish(new) is old
        assert leased is old
        assert catalog.resolve("smol") is new
        drained = asyncio.create_task(catalog.drained(old))
        await asyncio.sleep(0)
        assert not drained.done()
    await asyncio.wait_for(drained, 1)
    await asyncio.wait_for(catalog.drained(new), 1)


async def test_what_is_withdrawn_is_unknown() -> None:
    catalog = catalog_of(served(ScriptedEngine()))
    catalog.withdraw("smol")
    with pytest.raises(UnknownModel, match="smol"):
        catalog.resolve("smol")
