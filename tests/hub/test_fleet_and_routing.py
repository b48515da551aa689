"""Verdicts on devices, and the choice of an upstream."""

import pytest

from cloud_hub import fleet
from cloud_hub.errors import NotFound, NoUpstream
from cloud_hub.fleet import Presence, presence
from cloud_hub.routing import Health, Upstream, choose
from sync.protocol import Reported, Status


def status(session: str, online: bool, at: float = 10.0) -> Status:
    return Status(device="a", session=session, online=online, at=at)


def reported(session: str, at: float = 11.0) -> Reported:
    return Reported(device="a", session=session, sequence=1, desired_version=0, releases=(), at=at)


@pytest.mark.parametrize(
    ("said", "report", "heard_at", "verdict"),
    [
        (None, None, None, Presence.UNSEEN),
        (status("s1", True), reported("s1"), 100.0, Presence.ONLINE),
        (status("s1", False), reported("s1"), 100.0, Presence.OFFLINE),
        (status("s1", True), reported("s1"), 5.0, Presence.STALE),
        # A will of an older session says nothing of the present one, and is not believed.
        (status("s0", False, at=5.0), reported("s1"), 100.0, Presence.STALE),
        # A will of a later session does count; a birth alone proves no working device.
        (status("s2", False, at=20.0), reported("s1"), 100.0, Presence.OFFLINE),
        (status("s2", True, at=20.0), reported("s1"), 100.0, Presence.STALE),
        (status("s1", False), None, 100.0, Presence.OFFLINE),
    ],
)
def test_presence(
    said: Status | None, report: Reported | None, heard_at: float | None, verdict: Presence
) -> None:
    assert presence(said, report, heard_at, 101.0, 60.0).presence is verdict
    assert presence(said, report, heard_at, 101.0, 60.0, revoked=True).presence is Presence.REVOKED


def test_only_what_is_newer_is_a_sign_of_life() -> None:
    birth, will = status("s1", True, at=10.0), status("s1", False, at=9.0)
    assert fleet.status_is_newer(will, birth)
    for repeated in (birth, will):
        assert not fleet.status_is_newer(repeated, will)
    assert not fleet.status_is_newer(birth, birth)
    assert fleet.status_is_newer(status("s2", True, at=20.0), will)
    assert not fleet.status_is_newer(will, status("s2", True, at=20.0))

    first, second = reported("s1"), reported("s1").model_copy(update={"sequence": 2})
    assert fleet.report_is_newer(second, first)
    for repeated in (first, second):
        assert not fleet.report_is_newer(repeated, second)
    assert fleet.report_is_newer(reported("s2", at=12.0), second)
    assert not fleet.report_is_newer(second, reported("s2", at=12.0))


EXACT = Upstream("exact", "http://a", "big")
ALIAS = Upstream("alias", "http://b", "other", ("big",))
ANY = Upstream("any", "http://c", "third", ("*",))


def test_the_closest_name_wins_then_the_least_busy() -> None:
    assert choose("big", [ANY, ALIAS, EXACT], {}, 0.0) == (EXACT, ALIAS, ANY)
    assert choose("unheard-of", [ANY, ALIAS, EXACT], {}, 0.0) == (ANY,)
    twin = Upstream("twin", "http://d", "big")
    busy = {"exact": Health(in_flight=2), "twin": Health(in_flight=1)}
    assert choose("big", [EXACT, twin], busy, 0.0) == (twin, EXACT)


def test_a_failed_upstream_rests_longer_each_time_and_an_answer_forgives() -> None:
    health = Health()
    rests = []
    for _ in range(9):
        health = health.after_failure(100.0)
        rests.append(health.rest_until - 100.0)
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    with pytest.raises(NoUpstream):
        choose("big", [EXACT], {"exact": health}, 159.0)
    assert choose("big", [EXACT], {"exact": health}, 160.0) == (EXACT,)
    assert health.after_answer() == Health()
    with pytest.raises(NotFound):
        choose("nothing", [EXACT], {}, 0.0)
