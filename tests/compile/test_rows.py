"""Picking rows at even distances."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from compile.data.rows import spread


@given(st.integers(0, 300), st.one_of(st.none(), st.integers(0, 400)))
def test_what_is_spread_keeps_its_order_and_even_distances(count, wanted):
    picked = spread(range(count), wanted)
    assert len(picked) == (count if wanted is None else min(count, wanted))
    gaps = {after - before for before, after in pairwise(picked)}
    assert not picked or picked[0] == 0
    assert all(gap > 0 for gap in gaps) and (not gaps or max(gaps) - min(gaps) <= 1)
