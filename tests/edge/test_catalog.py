"""Publishing is a pointer change: requests in flight finish where they started."""

import pytest
from edge_app import catalog_of, served
from scripted_engine import ScriptedEngine

from edge_agent.errors import UnknownModel


def test_a_lease_keeps_the_old_release_until_its_request_ends() -> None:
    old, new = served(ScriptedEngine("old")), served(ScriptedEngine("new"))
    catalog = catalog_of(old)
    with catalog.lease("smol") as leased:
        assert catalog.publish(new) is old
        assert leased is old
        assert catalog.resolve("smol") is new
        assert (catalog.in_flight(old), catalog.in_flight(new)) == (1, 0)
    assert catalog.in_flight(old) == 0


def test_what_is_withdrawn_is_unknown() -> None:
    catalog = catalog_of(served(ScriptedEngine()))
    catalog.withdraw("smol")
    with pytest.raises(UnknownModel, match="smol"):
        catalog.resolve("smol")
