"""Laws of the text stream and of the schedule."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from models.engines.schedule import Pending, SlotView, fill, place
from models.engines.stream import TextStream


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(index % (len(data) + 1) for index in at)})
    return [data[a:b] for a, b in pairwise(edges)]


def expected(text: str, stops: list[str]) -> str:
    """The definition: stop where the first stop string is completed, the longest if several are."""
    for end in range(1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            return text[: end - len(max(done, key=len))]
    return text


few = st.text("abé😀 ", max_size=30)


@given(few, st.lists(st.text("abé", min_size=1, max_size=4), max_size=3), st.lists(st.integers(0, 200)))
def test_text_up_to_the_first_stop_however_it_is_cut(text: str, stops: list[str], at: list[int]) -> None:
    stream = TextStream(stops)
    shown = [stream.push(piece) for piece in cut(text.encode(), at)]
    assert "".join([*shown, stream.flush()]) == expected(text, stops)
    assert stream.stopped == (expected(text, stops) != text)


@given(st.binary(max_size=40), st.lists(st.integers(0, 40)))
def test_any_bytes_become_the_text_that_replacing_decodes(data: bytes, at: list[int]) -> None:
    stream = TextStream()
    assert "".join([*map(stream.push, cut(data, at)), stream.flush()]) == data.decode("utf-8", "replace")


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=8), st.booleans()), min_size=1, max_size=5),
    st.lists(st.integers(0, 2), min_size=1, max_size=8),
    st.integers(1, 8),
)
def test_a_placement_never_promises_more_than_there_is(
    slots: list[tuple[list[int], bool]], prompt: list[int], answer: int
) -> None:
    cache = 40
    views = [
        SlotView(index, tokens, len(tokens) + 2 if running else 0, index)
        for index, (tokens, running) in enumerate(slots)
    ]
    reserve = len(prompt) + answer
    placed = place(views, prompt, reserve, cache)
    promised = sum(view.reserved for view in views)
    if placed is None:
        assert promised + reserve > cache or all(view.reserved for view in views)
        return
    assert not views[placed.target].reserved, "a running request keeps its slot"
    assert list(views[placed.source].tokens[: placed.reuse]) == prompt[: placed.reuse]
    assert placed.reuse < len(prompt), "the last token is computed, for its logits"
    assert all(not views[index].reserved and index != placed.target for index in placed.evict)
    kept = [v for v in views if not v.reserved and v.index not in (placed.target, *placed.evict)]
    assert promised + reserve + sum(len(view.tokens) for view in kept) <= cache


@given(st.lists(st.integers(1, 50), max_size=8), st.integers(8, 64))
def test_a_batch_is_full_and_answers_go_before_prompts(sizes: list[int], batch: int) -> None:
    chunks = fill([Pending(index, size, index) for index, size in enumerate(sizes)], batch)
    assert sum(chunk.size for chunk in chunks) == min(batch, sum(sizes))
    assert {chunk.slot for chunk in chunks} >= {index for index, size in enumerate(sizes) if size == 1}
    assert all(chunk.last == (chunk.size == sizes[chunk.slot]) for chunk in chunks)
