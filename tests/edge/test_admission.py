"""Admission never takes more than fits, and always says when to come back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.admission import Admission, Limits
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


def test_a_full_house_refuses_and_a_place_given_back_admits() -> None:
    admission = Admission(Limits(running=1, waiting=0))
    admission.enter()
    with pytest.raises(Overloaded, match="busy"):
        admission.enter()
    admission.leave(0.5)
    admission.enter()
