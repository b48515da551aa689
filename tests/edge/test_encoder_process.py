"""An encoder's process: batches over many calls, errors to whom they belong, crashes, what it never loads."""

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_graphs import WORDS, write_anomaly, write_embedder, write_text_classifier, write_tokenizer
from pictures import plain

from edge_agent.engines.child import Channel, serve
from edge_agent.engines.desks import Told
from edge_agent.engines.encoder_calls import EncoderAnswer, EncoderCall, Inspected, floats
from edge_agent.engines.encoder_desk import STEP_CHARACTERS, EncoderDesk, share
from edge_agent.engines.encoder_process import EncoderProcess
from edge_agent.engines.encoder_wire import answer_from_wire, answer_to_wire, call_from_wire, call_to_wire
from edge_agent.engines.files import EngineFiles, of_encoder
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.wire import HEAD, frame, unframe
from edge_agent.errors import EngineCrashed
from models.engines.base import Reading, TextBatch
from models.engines.onnx_encoder import open_encoder
from models.engines.onnx_files import EncoderFiles
from models.engines.onnx_text import OnnxText
from models.errors import ContextLengthExceeded, EngineError, InvalidImage, UnsafeFile
from models.manifest import AnomalyFacts, Engine, ImageInput, TextInput

SMALL = EngineSettings(threads=1, encoder_batch=4)
EMBED = Engine(task="embed", text=TextInput(max_tokens=8, pooling="mean"))
INSPECT = Engine(
    task="inspect",
    image=ImageInput(width=8, height=8),
    anomaly=AnomalyFacts(threshold=0.5, false_reject_rate=0.01, calibrated_on=100),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    write_embedder(folder / "embed.onnx")
    write_text_classifier(folder / "classify.onnx")
    write_anomaly(folder / "inspect.onnx")
    write_tokenizer(folder / "tokenizer.json")
    return folder


def children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def mapped(pid: int | None) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def files(folder: Path, graph: str, needs: Engine) -> EngineFiles:
    tokenizer = folder / "tokenizer.json" if needs.text else None
    return of_encoder(EncoderFiles(folder / graph, needs, tokenizer, "tiny 1.0.0"))


@pytest.fixture
async def embedder(folder: Path) -> AsyncIterator[EncoderProcess]:
    engine = await EncoderProcess.start(files(folder, "embed.onnx", EMBED), SMALL)
    yield engine
    await engine.close()


async def test_many_calls_at_once_get_each_their_own_answers(embedder: EncoderProcess, folder: Path) -> None:
    table = np.random.default_rng(0).normal(size=(len(WORDS), 8)).astype(np.float32)
    calls = [[WORDS[4 + (first + step) % 7] for step in range(first % 6 + 1)] for first in range(20)]
    answers = await asyncio.gather(*(embedder.ask(EncoderCall(tuple(texts))) for texts in calls))
    for texts, answer in zip(calls, answers, strict=True):
        expected = [table[[2, WORDS.index(text), 3]].mean(axis=0) for text in texts]
        np.testing.assert_allclose([floats(row) for row in answer.rows], expected, rtol=1e-5)
        assert answer.tokens == 3 * len(texts)
    assert (embedder.facts.width, embedder.facts.name) == (8, "tiny 1.0.0")
    assert await embedder.ask(EncoderCall()) == EncoderAnswer()


async def test_an_error_is_that_of_the_call_that_caused_it(embedder: EncoderProcess) -> None:
    good, long, picture = await asyncio.gather(
        embedder.ask(EncoderCall(("pump", "leaks"))),
        embedder.ask(EncoderCall(("pump " * 20,))),
        embedder.ask(EncoderCall(images=(plain("red"),))),
        return_exceptions=True,
    )
    assert len(good.rows) == 2
    assert isinstance(long, ContextLengthExceeded) and "the model reads 8" in str(long)
    assert isinstance(picture, EngineError) and "something else" in str(picture)


async def test_pictures_go_in_and_heat_maps_come_out(folder: Path) -> None:
    engine = await EncoderProcess.start(files(folder, "inspect.onnx", INSPECT), SMALL)
    try:
        answer = await engine.ask(EncoderCall(images=(plain("white"), plain("black")), heat_maps=True))
        good, bad = answer.inspections
        assert (good.is_defect, bad.is_defect, round(bad.score, 3)) == (False, True, 1.0)
        assert bad.heat_map is not None and bad.heat_map.startswith(b"\x89PNG")
        (found,) = (await engine.ask(EncoderCall(images=(plain("white"),)))).inspections
        assert found.heat_map is None
        with pytest.raises(InvalidImage):
            await engine.ask(EncoderCall(images=(b"no picture",)))
    finally:
        await engine.close()


async def test_a_killed_child_costs_a_clean_error_and_others_are_undisturbed(
    embedder: EncoderProcess, folder: Path
) -> None:
    needs = Engine(task="classify", labels=("good", "bad"), text=TextInput(max_tokens=8))
    other = await EncoderProcess.start(files(folder, "classify.onnx", needs), SMALL)
    try:
        first = embedder.pid
        assert first is not None
        many = EncoderCall(("pump leaks", "hot") * 2000)
        waiting = [asyncio.create_task(embedder.ask(many)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting)
        os.kill(first, signal.SIGKILL)
        undisturbed = await other.ask(EncoderCall(("bad",)))
        assert floats(undisturbed.rows[0])[1] > 0.9 and other.restarts == 0
        for task in waiting:
            with pytest.raises(EngineCrashed, match="killed by signal 9"):
                await task
        assert len((await embedder.ask(EncoderCall(("pump",)))).rows) == 1
        assert (embedder.loads, embedder.restarts) == (2, 1)
        assert embedder.pid != first
    finally:
        await other.close()


async def test_long_texts_are_computed_in_more_steps(embedder: EncoderProcess) -> None:
    words = " " * 20_000 + "pump"
    long, short = await asyncio.gather(
        embedder.ask(EncoderCall((words, words, "hot", words))), embedder.ask(EncoderCall(("leaks",)))
    )
    assert (len(long.rows), len(short.rows), long.tokens) == (4, 1, 12)
    assert long.rows[0] == long.rows[3] != long.rows[2]


async def test_a_caller_who_leaves_costs_no_more_work(embedder: EncoderProcess) -> None:
    leaving = asyncio.create_task(embedder.ask(EncoderCall(("pump leaks",) * 50_000)))
    await asyncio.sleep(0.1)
    leaving.cancel()
    async with asyncio.timeout(5):
        assert len((await embedder.ask(EncoderCall(("hot",)))).rows) == 1


async def test_what_is_unsafe_is_refused_before_there_is_a_process(folder: Path, tmp_path: Path) -> None:
    before = children()
    damaged = tmp_path / "model.onnx"
    damaged.write_bytes((folder / "embed.onnx").read_bytes()[:-40])
    with pytest.raises(UnsafeFile, match=r"model\.onnx"):
        await EncoderProcess.start(of_encoder(EncoderFiles(damaged, EMBED, folder / "tokenizer.json")), SMALL)
    with pytest.raises(EngineError, match="none of its outputs"):
        await EncoderProcess.start(
            files(
                folder,
                "classify.onnx",
                EMBED.model_copy(update={"text": TextInput(max_tokens=8, pooling="cls")}),
            ),
            SMALL,
        )
    assert children() == before


async def test_an_encoders_process_holds_no_torch_and_a_closed_one_says_so(embedder: EncoderProcess) -> None:
    libraries = mapped(embedder.pid)
    assert "onnxruntime" in libraries and "torch" not in libraries and "libllama" not in libraries
    await embedder.close()
    with pytest.raises(EngineError, match="closed"):
        await embedder.ask(EncoderCall(("late",)))


@given(st.dictionaries(st.integers(), st.integers(1, 50), max_size=12), st.integers(1, 40))
def test_shares_are_fair(waiting: dict[int, int], most: int) -> None:
    shares = share(waiting, most)
    assert sum(shares.values()) == min(most, sum(waiting.values()))
    assert all(0 < count <= waiting[number] for number, count in shares.items())
    assert list(shares) == list(waiting)[:most]
    for number, count in shares.items():
        assert count == waiting[number] or count >= max(shares.values()) - 1


@pytest.mark.parametrize(("text", "batch"), [("pump", 1), ("pump" + " " * (STEP_CHARACTERS - 10), 4)])
def test_a_large_call_is_done_in_time_though_small_ones_never_stop_coming(
    folder: Path, text: str, batch: int
) -> None:
    desk = EncoderDesk(open_encoder(files(folder, "embed.onnx", EMBED).encoder), batch)
    told = Told()
    try:
        desk.obey("ask", [0, call_to_wire(EncoderCall((text,) * 3))], told)
        for number in range(1, 9):
            desk.obey("ask", [number, call_to_wire(EncoderCall((text,)))], told)
            desk.step(told)
        assert 0 in [number for number, _, _ in told.replies]
    finally:
        desk.close()


class Recorded(OnnxText):
    """An embedder that keeps what it was given in each run."""

    def __init__(self, files: EncoderFiles) -> None:
        super().__init__(files)
        self.runs: list[list[Reading]] = []

    def answer(self, texts: Sequence[Reading]) -> TextBatch:
        """See ``OnnxText``."""
        self.runs.append(list(texts))
        return super().answer(texts)


@pytest.mark.parametrize(("batch", "sizes"), [(32, [14]), (8, [8, 6])])
def test_calls_that_wait_are_computed_together(folder: Path, batch: int, sizes: list[int]) -> None:
    """What came while the engine was busy: each call in a frame of its own."""
    engine = Recorded(files(folder, "embed.onnx", EMBED).encoder)
    ours, its = socket.socketpair()
    ours.settimeout(10)
    agent, words = Channel(ours), WORDS[4:]
    for number, word in enumerate(words):
        agent.send({"do": [["ask", number, call_to_wire(EncoderCall((word, f"{word} is")))]]})
    child = threading.Thread(target=serve, args=(Channel(its), EncoderDesk(engine, batch)))
    child.start()
    try:
        replies: list[list[object]] = []
        while len(replies) < len(words):
            told = agent.receive()
            assert told is not None
            replies += told["replies"]
    finally:
        ours.shutdown(socket.SHUT_RDWR)
        child.join(10)
        engine.close()
    assert [len(run) for run in engine.runs] == sizes
    assert sorted(text for run in engine.runs for text in run) == sorted(
        text for word in words for text in (word, f"{word} is")
    )
    assert {number: error for number, error, _ in replies} == dict.fromkeys(range(len(words)))


inspected = st.builds(
    Inspected,
    score=st.floats(allow_nan=False, allow_infinity=False),
    is_defect=st.booleans(),
    threshold=st.floats(0, 9),
    region=st.tuples(*[st.floats(0, 9)] * 4),
    heat_map=st.none() | st.binary(min_size=1),
)


@settings(deadline=None)
@given(st.lists(st.binary()), st.integers(0, 99), st.lists(inspected), st.lists(st.text()), st.booleans())
def test_what_goes_over_the_wire_arrives(rows, tokens, inspections, texts, wanted) -> None:
    answer = EncoderAnswer(tuple(rows), tokens, tuple(inspections))
    call = EncoderCall(tuple(texts), tuple(rows), wanted)
    sent = frame({"answer": answer_to_wire(answer), "call": call_to_wire(call)})
    arrived = unframe(sent[: HEAD.size], sent[HEAD.size :])
    assert answer_from_wire(arrived["answer"]) == answer
    assert call_from_wire(arrived["call"]) == call


def test_files_of_an_encoder_arrive_as_they_were(folder: Path) -> None:
    for one in (files(folder, "embed.onnx", EMBED), files(folder, "inspect.onnx", INSPECT)):
        assert EngineFiles.from_wire(json.loads(json.dumps(one.to_wire()))) == one
    assert one.bytes_on_disk() == (folder / "inspect.onnx").stat().st_size
