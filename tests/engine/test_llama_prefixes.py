"""Prefixes and contexts over a real model: computed once, kept, closed, saved and found again."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from models.engines.base import Event, Finish, GenerateRequest, Sampling
from models.engines.llama_cpp import LlamaEngine, LlamaSettings, SavedPrefixes
from models.engines.llama_cpp.saved import decode, encode

pytestmark = pytest.mark.model

SYSTEM = "You are the assistant of a factory floor. " + "Answer in one short sentence. " * 12
SIZES = LlamaSettings(threads=1, context_tokens=256, max_sequences=4, batch_tokens=64, cache_tokens=768)
WEIGHTS = "sha256:" + "0" * 64


@pytest.fixture(params=(True, False), ids=("one pool of cells", "cells apart"))
def sizes(request: pytest.FixtureRequest) -> LlamaSettings:
    return replace(SIZES, kv_unified=request.param)


@pytest.fixture
def fresh(model_path: Path, sizes: LlamaSettings) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(model_path, sizes)
    yield engine
    engine.close()


def ask(chat: Callable[..., GenerateRequest], id: str, text: str, **options: object) -> GenerateRequest:
    """A request with the shared system prompt."""
    request = chat(id, text, **{"max_tokens": 8, **options})
    return replace(request, prompt=f"<|im_start|>system\n{SYSTEM}<|im_end|>\n{request.prompt}")


def computed(last: Event) -> int:
    """Tokens of the prompt that were computed for this request."""
    return last.usage.prompt_tokens - last.usage.cached_tokens


def test_a_wave_of_requests_computes_its_system_prompt_once(
    fresh: LlamaEngine, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    for number in range(8):
        fresh.submit(ask(chat, str(number), f"Say {number}."))
    answers = run(fresh)
    first, *rest = (answers.last[str(number)] for number in range(8))
    assert computed(first) == first.usage.prompt_tokens > 80
    assert all(0 < computed(last) < 20 for last in rest)
    alone = {}
    for number in (1, 6):
        fresh.submit(ask(chat, "x", f"Say {number}."))
        alone[str(number)] = run(fresh).text["x"]
    assert {id: answers.text[id] for id in alone} == alone


def test_who_waits_for_a_prefix_computes_it_when_the_other_is_cancelled(
    fresh: LlamaEngine, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    fresh.submit(ask(chat, "first", "Say 1."))
    fresh.submit(ask(chat, "second", "Say 2."))
    fresh.submit(ask(chat, "third", "Say 3."))
    fresh.step()
    fresh.cancel("first")
    answers = run(fresh)
    assert answers.last["first"].finish is Finish.CANCELLED
    assert computed(answers.last["second"]) > 30, "one batch of it had been computed"
    assert computed(answers.last["third"]) < 20
    assert all(answers.last[id].finish for id in ("second", "third"))


def test_who_waits_for_a_prefix_holds_nobody_up(
    fresh: LlamaEngine, chat: Callable[..., GenerateRequest]
) -> None:
    fresh.submit(ask(chat, "first", "Say 1."))
    fresh.submit(ask(chat, "waits", "Say 2."))
    fresh.submit(chat("passes", "Say 3.", max_tokens=8))
    seen = {event.id for event in (*fresh.step(), *fresh.step())}
    assert {"first", "passes"} <= seen and "waits" not in seen


def test_a_long_prompt_does_not_stop_the_answers_of_others(
    fresh: LlamaEngine, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    fresh.submit(chat("talks", "Count: 1, 2, 3,", max_tokens=60, ignore_eos=True))
    while not any(event.usage.completion_tokens for event in fresh.step()):
        pass
    fresh.submit(ask(chat, "long", "Say 1.", max_tokens=1))
    steps, reading = 0, True
    while reading:
        events = {event.id: event for event in fresh.step()}
        assert "talks" in events, "a token in every step"
        steps, reading = steps + 1, not events["long"].done
    assert steps > 1
    run(fresh)


def test_a_conversation_goes_on_from_its_own_answer(
    fresh: LlamaEngine, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    first = ask(chat, "1", "Say yes.")
    fresh.submit(first)
    answer = run(fresh).text["1"]
    second = replace(first, id="2", prompt=f"{first.prompt}{answer}<|im_end|>\n<|im_start|>user\nWhy?")
    fresh.submit(second)
    usage = run(fresh).last["2"].usage
    assert usage.cached_tokens >= len(fresh.prompt_tokens(first.prompt)) + 2


def test_what_was_answered_leaves_the_cells_and_comes_back(
    model_path: Path,
    sizes: LlamaSettings,
    run: Callable,
    chat: Callable[..., GenerateRequest],
    make_adapter: Callable[..., Path],
) -> None:
    def texts(engine: LlamaEngine, adapter: str | None = None) -> list[str]:
        said = []
        for text in ("Say 1.", "Say 2."):
            engine.submit(ask(chat, text, text, adapter=adapter))
            answer = run(engine)
            said.append(answer.text[text])
            lasts.append(answer.last[text])
        return said

    lasts: list[Event] = []
    engine = LlamaEngine(model_path, replace(sizes, kept_tokens=20))
    try:
        engine.attach("one", make_adapter(1))
        first = texts(engine)
        assert computed(lasts[0]) > 80 > 20 > computed(lasts[1])
        engine.submit(chat("other", "Tell me of the sea."))
        run(engine)
        parked = engine._parked.bytes
        assert parked > 0
        assert engine.load.filled < 80, "attention does not pass over what nobody needs"
        assert texts(engine) == first and all(computed(last) < 20 for last in lasts[2:])
        assert engine._parked.bytes <= 2 * parked, "what comes and goes is not copied again"
        anew = texts(engine, "one")
        assert computed(lasts[4]) > 80, "an adapter's answer never comes from the base's state"
        engine.detach("one")
        engine.attach("one", make_adapter(1))
        assert texts(engine, "one") == anew and computed(lasts[6]) > 80
    finally:
        engine.close()


def test_a_closed_context_leaves_its_prefixes_to_the_next(
    model_path: Path,
    sizes: LlamaSettings,
    run: Callable,
    chat: Callable[..., GenerateRequest],
    make_adapter: Callable[..., Path],
) -> None:
    engine = LlamaEngine(model_path, replace(sizes, contexts=1))
    try:
        engine.attach("one", make_adapter(1))
        found = {}
        for turn in range(2):
            for name in (None, "one"):
                engine.submit(ask(chat, "x", "Say 1.", adapter=name))
                answer = run(engine)
                found[name, turn] = answer.text["x"], computed(answer.last["x"])
                assert engine.contexts == (name,)
        for name in (None, "one"):
            assert found[name, 0][0] == found[name, 1][0]
            assert found[name, 0][1] > 80 > 20 > found[name, 1][1]
    finally:
        engine.close()


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_everybody_hears_of_cells_that_are_not_what_the_books_say(
    fresh: LlamaEngine, run: Callable, chat: Callable[..., GenerateRequest], steps: int
) -> None:
    fresh.submit(ask(chat, "before", "Say 1."))
    text = run(fresh).text["before"]
    other = [chat(f"other {number}", "Count the bolts. " * 20 + str(number)) for number in range(2)]
    known = [ask(chat, f"known {number}", f"Say {number}.") for number in range(4)]
    for request in (*other, *known):  # one is read, one waits for its prefix, and some copy what is known
        fresh.submit(request)
    early = [event for _ in range(steps) for event in fresh.step()]
    lane = fresh._lanes[None]
    assert lane.cells is not None
    lane.cells.context.clear()  # as a fault in native code would
    last = {event.id: event for event in early if event.done} | run(fresh).last
    assert last.keys() == {request.id for request in (*other, *known)}
    assert any(event.error for event in last.values())
    fresh.submit(ask(chat, "after", "Say 1."))
    assert run(fresh).text["after"] == text


def test_contexts_are_made_when_asked_and_idle_ones_make_room(
    model_path: Path, run: Callable, chat: Callable[..., GenerateRequest], make_adapter: Callable[..., Path]
) -> None:
    engine = LlamaEngine(model_path, replace(SIZES, contexts=2))
    try:
        for name in ("one", "two"):
            engine.attach(name, make_adapter(1 if name == "one" else 2))
        assert engine.contexts == (None,)
        texts = {}
        for name in ("one", "two", None, "one"):
            engine.submit(chat("x", "Write a word.", adapter=name))
            texts.setdefault(name, run(engine).text["x"])
            assert name in engine.contexts and len(engine.contexts) <= 2
        assert engine.contexts == (None, "one"), "the one used longest ago was closed"
        # Three at once take turns: who has no context waits until another is idle, and late comers behind it.
        for turn in range(2):
            for name in ("one", "two", None):
                engine.submit(chat(f"{name}{turn}", "Write a word.", adapter=name))
        answers = run(engine)
        assert all(answers.text[f"{name}{turn}"] == texts[name] for name in texts for turn in range(2))
    finally:
        engine.close()


def test_shared_prefixes_are_there_after_a_restart(
    tmp_path: Path,
    model_path: Path,
    sizes: LlamaSettings,
    run: Callable,
    chat: Callable[..., GenerateRequest],
    make_adapter: Callable[..., Path],
) -> None:
    adapter = make_adapter(1)

    def ask_anew(weights: str, name: str | None, kept: int = SIZES.kept_tokens) -> Event:
        engine = LlamaEngine(
            model_path, replace(sizes, kept_tokens=kept), saved=SavedPrefixes(tmp_path, weights)
        )
        try:
            engine.attach("one", adapter)
            last = None
            for text in ("Say 1.", "Speak of 2."):
                engine.submit(ask(chat, text, text, adapter=name))
                answers = run(engine)
                engine.submit(chat("other", "Tell me of the sea.", adapter=name, max_tokens=1))
                run(engine)
                last = last or answers.last[text]
                texts.append(answers.text[text])
            assert last is not None
            return last
        finally:
            engine.close()

    texts: list[str] = []
    for name in (None, "one"):
        assert ask_anew(WEIGHTS, name).usage.cached_tokens == 0
        assert computed(ask_anew(WEIGHTS, name)) < 20, "restored"
        assert computed(ask_anew(WEIGHTS, name)) < 20, "and saved again"
    assert computed(ask_anew(WEIGHTS, None, kept=1)) < 20
    assert computed(ask_anew(WEIGHTS, None, kept=1)) < 20, "saved, though it was parked"
    assert texts[0:2] == texts[2:4] == texts[4:6] and texts[6:8] == texts[8:10]
    assert ask_anew(WEIGHTS.replace("0", "1"), None).usage.cached_tokens == 0, "other weights"
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert ask_anew(WEIGHTS, None).usage.cached_tokens == 0, "a damaged file"


def test_every_shared_prefix_is_saved_however_few_ids_there_are(
    tmp_path: Path, model_path: Path, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    sizes = replace(SIZES, max_sequences=1, kv_unified=False)
    engine = LlamaEngine(model_path, sizes, saved=SavedPrefixes(tmp_path, WEIGHTS))
    openings = [f"{number} is your number. {'Be brief. ' * 8}" for number in range(5)]
    for opening in openings:
        for question in ("Why?", "Where?"):
            engine.submit(chat(opening + question, opening + question, max_tokens=2))
            run(engine)
    made_for = engine.saved_for(None)
    engine.close()
    saved = SavedPrefixes(tmp_path, WEIGHTS).load(made_for)
    assert saved is not None and len(saved) == 5
    engine = LlamaEngine(model_path, sizes, saved=SavedPrefixes(tmp_path, WEIGHTS))
    try:
        for opening in openings:
            engine.submit(chat(opening, f"{opening}Who?", max_tokens=2))
            assert computed(run(engine).last[opening]) < 20
    finally:
        engine.close()


def test_an_answer_goes_on_where_its_cells_have_moved(
    model_path: Path, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    engine = LlamaEngine(model_path, replace(SIZES, kv_unified=False))
    lane = engine._lanes[None]
    options = {"max_tokens": 24, "ignore_eos": True}
    counts = [ask(chat, str(number), f"Count from {number} on.", **options) for number in range(4)]
    try:
        alone = {}
        for request in counts:
            engine.submit(request)
            alone |= run(engine).text
        for request in (replace(counts[0], sampling=Sampling(max_tokens=2, temperature=0.0)), *counts[1:]):
            engine.submit(request)
        said = dict.fromkeys(alone, "")
        ranks = set()
        while events := engine.step():
            for event in events:
                said[event.id] += event.text
            ranks.add(tuple(sorted(lane._running)))
        assert any(one != tuple(range(len(one))) for one in ranks), "a gap came about"
        assert {(0, 1, 2, 3), (0, 1, 2)} <= ranks, "and was closed"
        assert {id: said[id] for id in "123"} == {id: alone[id] for id in "123"}
    finally:
        engine.close()


def test_a_file_that_is_whole_but_holds_no_state_does_no_harm(
    tmp_path: Path, model_path: Path, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    store = SavedPrefixes(tmp_path, WEIGHTS)
    engine = LlamaEngine(model_path, SIZES, saved=store)
    made_for = engine.saved_for(None)
    engine.close()
    store.save(made_for, [([1, 2, 3], bytearray(b"nonsense" * 100)), (list(range(9)), bytearray())])
    assert store.load(made_for)
    engine = LlamaEngine(model_path, SIZES, saved=store)
    try:
        engine.submit(chat("x", "What is the capital of France?"))
        assert "Paris" in run(engine).text["x"]
    finally:
        engine.close()


def test_saved_prefixes_are_read_only_as_they_were_written() -> None:
    prefixes = [([1, 2], bytearray(b"abc")), ([3], bytearray())]
    data = encode({"weights": "a"}, prefixes)
    assert decode({"weights": "a"}, data) == prefixes
    assert decode({"weights": "b"}, data) is None
    for place in range(len(data)):
        assert decode({"weights": "a"}, data[:place]) is None
        damaged = bytes([*data[:place], data[place] ^ 1, *data[place + 1 :]])
        assert decode({"weights": "a"}, damaged) is None


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[",
        b"[" * 100_000,
        b"\xff",
        b"null",
        b'{"made_for": {}}',
        b'{"prefixes": []}',
        b'{"made_for": {}, "prefixes": 1}',
        b'{"made_for": {}, "prefixes": [1]}',
        b'{"made_for": {}, "prefixes": [{"tokens": [1]}]}',
        b'{"made_for": {}, "prefixes": [{"tokens": 1, "bytes": 0}]}',
        b'{"made_for": {}, "prefixes": [{"tokens": [], "bytes": 0}]}',
        b'{"made_for": {}, "prefixes": [{"tokens": [-1], "bytes": 0}]}',
        b'{"made_for": {}, "prefixes": [{"tokens": ["1"], "bytes": 0}]}',
        b'{"made_for": {}, "prefixes": [{"tokens": [1], "bytes": "0"}]}',
        b'{"made_for": {}, "prefixes": [{"tokens": [1], "bytes": -1}]}',
        b'{"made_for": {}, "prefixes": [{"tokens": [1], "bytes": 1}]}',
    ],
)
def test_a_header_that_nobody_wrote_is_as_good_as_no_file(header: bytes) -> None:
    def file(header: bytes) -> bytes:
        body = len(header).to_bytes(4, "big") + header
        return b"outpost prefixes 1\n" + hashlib.sha256(body).digest() + body

    assert decode({}, file(b'{"made_for": {}, "prefixes": [{"tokens": [1], "bytes": 0}]}')) == [([1], b"")]
    assert decode({}, file(header)) is None
    assert decode({}, b"outpost prefixes 1\n" + hashlib.sha256(b"").digest()) is None


def test_the_tree_knows_what_llama_cpp_holds_whatever_comes_and_goes(
    model_path: Path, sizes: LlamaSettings, chat: Callable[..., GenerateRequest]
) -> None:
    """Too few cells and ids for what is asked: prefixes are given up all the time."""
    engine = LlamaEngine(model_path, replace(sizes, context_tokens=96, cache_tokens=192, kept_tokens=90))
    lane = engine._lanes[None]
    assert lane.cells is not None
    context = lane.cells.context
    chance = Random(3)
    openings = ["Be brief. " * 4, "Be kind. " * 6, ""]
    alive: set[str] = set()
    asked = 0
    try:
        while asked < 60 or alive:
            for _ in range(chance.randrange(3) if asked < 60 else 0):
                asked += 1
                text = chance.choice(openings) + chance.choice(["Hi.", "Why so?", "Count to nine."])
                engine.submit(chat(str(asked), text, max_tokens=chance.randrange(1, 12)))
                alive.add(str(asked))
            if alive and chance.random() < 0.2:
                engine.cancel(chance.choice(sorted(alive)))
            for event in engine.step():
                assert event.error is None
                if event.done:
                    alive.remove(event.id)
            tree = lane.cells.tree
            held = {id: tree.length(id) for id in tree.held if tree.length(id)}
            assert held == {id: size for id in range(sizes.ids) if (size := context.length(id))}
            assert not sizes.kv_unified or tree.used <= 192
        assert not lane.busy and held
        assert engine.step() == []
    finally:
        engine.close()
