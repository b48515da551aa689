"""Laws of the text stream and of the schedule."""

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from models.engines.schedule import Chunk, Pending, batches, fill, is_coming
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


@given(st.lists(st.integers(1, 50), max_size=8), st.integers(8, 64), st.integers(1, 64))
def test_a_batch_is_full_and_answers_go_before_prompts(sizes: list[int], batch: int, beside: int) -> None:
    chunks = fill([Pending(index, size, index) for index, size in enumerate(sizes)], batch, beside)
    answers = sizes.count(1)
    prompts = sum(sizes) - answers
    room = min(batch - answers, beside) if answers else batch
    assert sum(chunk.size for chunk in chunks) == answers + min(prompts, room)
    assert {chunk.id for chunk in chunks} >= {index for index, size in enumerate(sizes) if size == 1}
    assert all(chunk.last == (chunk.size == sizes[chunk.id]) for chunk in chunks)
    first = next((index for index, size in enumerate(sizes) if size > 1), None)
    if first is not None:
        given = next((chunk.size for chunk in chunks if chunk.id == first), 0)
        assert given >= min(sizes[first], room // 2), "half of it at least is the first one's"
    assert len({chunk.id for chunk in chunks}) == len(chunks)


@given(st.lists(st.builds(Chunk, st.integers(0, 99), st.integers(1, 9), st.booleans())))
def test_answers_are_computed_apart_from_prompts_or_all_at_once(chunks: list[Chunk]) -> None:
    assert batches(chunks, mixed=True) == ([tuple(chunks)] if chunks else [])
    apart = batches(chunks, mixed=False)
    assert Counter(chunk for batch in apart for chunk in batch) == Counter(chunks)
    kinds = [{chunk.last and chunk.size == 1 for chunk in batch} for batch in apart]
    assert kinds in ([{True}, {False}], [{True}], [{False}], []), "answers first, none empty, none mixed"


def test_prompts_are_read_in_order_of_arrival_and_much_shorter_ones_beside_them() -> None:
    prompts = [Pending(7, 2000, 1), Pending(3, 1900, 2), Pending(5, 20, 3), Pending(4, 1, 0)]
    assert fill(prompts[:2], 64, 64) == (Chunk(7, 64, False),)
    assert fill(prompts, 256, 64) == (Chunk(4, 1, True), Chunk(7, 44, False), Chunk(5, 20, True))


def test_a_prefix_that_is_being_computed_is_waited_for_when_it_is_long_enough() -> None:
    system = list(range(100))
    prompt, other = [*system, 500, 501], [*system, 600, 601]
    assert is_coming(prompt, 0, [(other, 0)])
    assert is_coming(prompt, 92, [(other, 92)])
    assert not is_coming(prompt, 93, [(other, 93)]), "little of it is left"
    assert not is_coming(prompt, 0, [(other, 100)]), "it is there"
    assert not is_coming(prompt, 0, [([*range(7), 999, *other], 0)]), "little of it is the same"
    assert not is_coming(prompt, 101, [(prompt, 101)]), "the last token is computed in any case"
    assert not is_coming(prompt, 0, [])
