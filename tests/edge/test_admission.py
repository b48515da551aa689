"""Admission never takes more than fits, and always says when to come back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.admission import Admission, Bodies, Limits
from edge_agent.errors import Overloaded


@given(st.integers(1, 4), st.integers(0, 4), st.lists(st.none() | st.floats(0, 1e4), max_size=40))
def test_never_more_inside_than_there_is_room(running: int, waiting: int, steps: list[float | None]) -> None:
    admission = Admission(Limits(running=running, waiting=waiting))
    for seconds in steps:
        if seconds is None:
            try:
                admission.enter()
            except Overloaded as busy:
                assert admission.remaining == 0
                assert 1 <= busy.retry_after <= 60
        elif admission.inside:
            admission.leave(seconds)
        assert 0 <= admission.inside <= running + waiting


@given(st.lists(st.integers(-30, 30), max_size=60))
def test_bodies_never_hold_more_than_there_is_room_and_what_fits_is_taken(steps: list[int]) -> None:
    bodies = Bodies(Limits(max_body_bytes=10, max_picture_bytes=20, max_bodies_bytes=50))
    taken: list[int] = []
    for size in steps:
        if size < 0 and taken:
            bodies.give_back(taken.pop())
        elif size >= 0 and sum(taken) + size <= 50:
            bodies.take(size, 1)
            taken.append(size)
        elif size >= 0:
            with pytest.raises(Overloaded) as busy:
                bodies.take(size, 7)
            assert busy.value.retry_after == 7
        assert bodies.held == sum(taken) <= 50


@pytest.mark.parametrize(
    "impossible",
    [{"running": 0}, {"waiting": -1}, {"max_body_bytes": 0}, {"max_bodies_bytes": (32 << 20) - 1}],
)
def test_limits_that_admit_nothing_are_refused(impossible: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="limits"):
        Limits(**impossible)


def test_a_full_house_refuses_and_a_place_given_back_admits() -> None:
    admission = Admission(Limits(running=1, waiting=0))
    admission.enter()
    with pytest.raises(Overloaded, match="busy"):
        admission.enter()
    admission.leave(0.5)
    admission.enter()
