"""Laws of the prefixes that wait outside of the cells."""

from hypothesis import given
from hypothesis import strategies as st

from models.engines.llama_cpp.parked import Parked, ParkedPrefixes
from models.engines.prefixes import common_prefix

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)
PUTS = st.lists(st.tuples(st.sampled_from("ab"), TOKENS, st.integers(1, 9)), max_size=12)


@given(PUTS, TOKENS)
def test_what_is_kept_is_found_fits_and_begins_nothing_else(
    puts: list[tuple[str, list[int], int]], asked: list[int]
) -> None:
    parked = ParkedPrefixes(20)
    for owner, tokens, size in puts:
        if not parked.covers(owner, tokens, 0):
            parked.put(owner, Parked(tokens, bytearray(size), 0))
            assert parked.covers(owner, tokens, 0), "what came last is there"
    for owner in "ab":
        held = parked.of(owner)
        lists = [one.tokens for one in held]
        assert not any(common_prefix(a, b) == len(a) for a in lists for b in lists if a is not b)
        most = max((common_prefix(tokens, asked) for tokens in lists), default=0)
        found, size = parked.longest(owner, asked)
        assert size == most and (found in held if most else found is None)
    assert sum(len(one.state) for owner in "ab" for one in parked.of(owner)) == parked.bytes <= 20
    parked.drop("a")
    assert not parked.of("a")
    for one in parked.of("b"):
        parked.drop("b", one.tokens)
    assert parked.bytes == 0


def test_the_one_used_longest_ago_goes_first_and_one_too_large_never_comes() -> None:
    parked = ParkedPrefixes(3)
    for token in (1, 2, 3):
        parked.put("a", Parked([token, token], bytearray(b"x"), 0))
    assert parked.longest("a", [1, 9]) == (Parked([1, 1], bytearray(b"x"), 0), 1)
    parked.put("a", Parked([4], bytearray(b"xx"), 0))
    assert [one.tokens for one in parked.of("a")] == [[4], [1, 1]]
    parked.put("a", Parked([1, 1, 1], bytearray(b"xxxx"), 0))
    assert [one.tokens for one in parked.of("a")] == [[4], [1, 1]], "what is too large displaces nothing"


def test_what_is_shared_is_remembered() -> None:
    parked = ParkedPrefixes(9)
    parked.put("a", Parked([1, 2, 3], bytearray(b"x"), 1))
    assert parked.covers("a", [1, 2], 2)
    assert [one.shared for one in parked.of("a")] == [2]
