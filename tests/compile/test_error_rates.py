"""Error rates of texts that were read: edits by their laws, rates by hand, intervals that admit ignorance."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.errors import BadData
from compile.evaluate.error_rates import character_errors, characters, compared, edits, word_errors

TEXTS = st.text("ab 泵", max_size=12)


def slow(one: str, other: str) -> int:
    """Edits by their definition."""
    if not one or not other:
        return len(one) + len(other)
    if one[0] == other[0]:
        return slow(one[1:], other[1:])
    return 1 + min(slow(one[1:], other), slow(one, other[1:]), slow(one[1:], other[1:]))


@given(st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_edits_are_the_fewest(one: str, other: str) -> None:
    assert edits(one, other) == slow(one, other) == edits(other, one)


@given(TEXTS, TEXTS, TEXTS)
def test_edits_are_a_distance(one: str, other: str, third: str) -> None:
    assert (edits(one, other) == 0) == (one == other)
    assert abs(len(one) - len(other)) <= edits(one, other) <= max(len(one), len(other))
    assert edits(one, third) <= edits(one, other) + edits(other, third)


def test_rates_are_of_all_words_and_not_means_of_rates() -> None:
    wanted = ["Stop the line, now!", "Pump 3 leaks oil at the seal of line four.", "泵漏油"]
    rate = word_errors(["stop the line now", "pump 3 leeks oil at seal of line for", "泵漏水"], wanted)
    assert rate.sums.tolist() == [[0, 4], [3, 10], [1, 3]]
    assert rate.value == pytest.approx(4 / 17)
    assert word_errors(["a b c d"], ["e"]).value == 4.0  # what nobody said counts
    assert characters("Ｐump 3\n\u3000leaks") == "Pump3leaks"
    assert character_errors(["1580.82"], ["¥580.82"]).sums.tolist() == [[1, 7]]
    with pytest.raises(BadData, match="no error rate"):
        word_errors(["word"], ["..."])


def test_no_error_seen_is_no_proof_that_there_is_none() -> None:
    wanted = ["one two three four five"] * 8
    right, once = list(wanted), ["one two three four", *wanted[1:]]
    same = compared(word_errors(right, wanted), word_errors(right, wanted), 200, 7)
    unseen = 1 - 0.025 ** (1 / 40)
    assert same.value == 0.0 and same.ci95 == pytest.approx((-unseen, unseen))
    assert same.interval == pytest.approx((0.0, unseen))
    worse = compared(word_errors(once, wanted), word_errors(right, wanted), 200, 7)
    assert worse.value == pytest.approx(1 / 40) and worse.reference == 0.0
    assert worse.ci95 is not None and worse.ci95[0] == pytest.approx(-unseen) and worse.ci95[1] > 0.05
