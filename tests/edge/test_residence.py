"""Models that come into memory when they are asked, and leave it: the law, and real processes."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from edge_app import catalog_of
from gguf_encoders import write_bert
from hypothesis import given
from hypothesis import strategies as st
from onnx_releases import EMBED, write_onnx_release

from edge_agent.catalog import Served
from edge_agent.cli import main
from edge_agent.engines.encoder_calls import EncoderCall
from edge_agent.engines.encoder_process import EncoderProcess
from edge_agent.engines.files import EngineFiles, of_path, of_release
from edge_agent.engines.residence import Residence, Resident, make_room, memory_of
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.sizes import forecast_bytes, settled
from edge_agent.errors import NoRoom
from edge_agent.rest.readiness import Condition, Readiness
from models.errors import EngineError, ModelsError

RESIDENTS = st.lists(st.tuples(st.integers(1, 100), st.none() | st.floats(0, 100)), max_size=6).map(
    lambda found: [Resident(key, size, since) for key, (size, since) in enumerate(found)]
)
TEXT = EncoderCall(("The pump leaks.",))


@given(RESIDENTS, st.integers(1, 200), st.integers(1, 400))
def test_room_is_made_by_the_idle_alone_and_by_no_more_than_it_takes(
    residents: list[Resident[int]], needed: int, budget: int
) -> None:
    leaving = make_room(residents, needed, budget)
    idle = [one for one in residents if one.idle_since is not None]
    used = sum(one.bytes for one in residents)
    if leaving is None:
        assert used - sum(one.bytes for one in idle) + needed > budget
        return
    gone = [one for one in residents if one.key in leaving]
    assert all(one in idle for one in gone)
    assert used - sum(one.bytes for one in gone) + needed <= budget
    if gone:  # without the last of them it would not have fitted
        latest = next(one for one in gone if one.key == leaving[-1])
        assert used - sum(one.bytes for one in gone) + latest.bytes + needed > budget
        stay = [one.idle_since for one in idle if one not in gone]
        assert all((latest.idle_since or 0.0) <= (since or 0.0) for since in stay)


@asynccontextmanager
async def engines(
    folder: Path, residence: Residence, *names: str
) -> AsyncIterator[dict[str, EncoderProcess]]:
    """The same embedder under several names."""
    manifest = write_onnx_release(folder, EMBED)
    settings = EngineSettings(threads=1)
    async with AsyncExitStack() as stack:
        made = {}
        for name in names:
            made[name] = await EncoderProcess.start(of_release(folder, manifest), settings, residence)
            stack.push_async_callback(made[name].close)
        yield made


async def test_what_does_not_fit_together_takes_turns(tmp_path: Path) -> None:
    files = of_release(tmp_path, write_onnx_release(tmp_path, EMBED))
    residence = Residence(int(forecast_bytes(files) * 1.5), None, lambda: 0)
    async with engines(tmp_path, residence, "a", "b") as made:
        a, b = made["a"], made["b"]
        assert a.pid is None  # it made room for b
        assert b.pid is not None
        before = await b.ask(TEXT)
        assert await a.ask(TEXT) == before
        assert a.pid is not None
        assert b.pid is None
        assert memory_of(a.pid) > 0

        # Nobody is sent away under a call: b waits until a's answers are there.
        both = await asyncio.gather(a.ask(EncoderCall(TEXT.texts * 400)), b.ask(TEXT), a.ask(TEXT))
        assert [len(one.rows) for one in both] == [400, 1, 1]
        assert a.restarts == b.restarts == 0


async def test_models_that_are_asked_at_once_are_all_answered(tmp_path: Path) -> None:
    files = of_release(tmp_path, write_onnx_release(tmp_path, EMBED))
    residence = Residence(int(forecast_bytes(files) * 1.5), None, lambda: 0)
    async with engines(tmp_path, residence, "a", "b", "c") as made, asyncio.timeout(60):
        await made["c"].rest()
        answers = await asyncio.gather(*(one.ask(TEXT) for one in made.values()))
        assert answers[0] == answers[1] == answers[2]
        assert [one.loads for one in made.values()] == [
            2,
            2,
            2,
        ]  # nobody was sent away before it had answered


async def test_a_crashed_model_asks_for_room_again(tmp_path: Path) -> None:
    files = of_release(tmp_path, write_onnx_release(tmp_path, EMBED))
    residence = Residence(int(forecast_bytes(files) * 1.5), None, lambda: 0)
    async with engines(tmp_path, residence, "a", "b") as made:
        a, b = made["a"], made["b"]
        await a.ask(TEXT)
        assert a.pid is not None
        os.kill(a.pid, signal.SIGKILL)
        await b.ask(TEXT)  # takes the room that the crash left, or waits for it
        await a.ask(TEXT)
        assert b.pid is None


async def test_a_model_larger_than_the_budget_is_refused_with_numbers(tmp_path: Path) -> None:
    residence = Residence(50_000_000, None, lambda: 0)
    with pytest.raises(
        NoRoom,
        match=r"model\.onnx needs about \d+ MB of 50 MB; loaded now: nothing; raise --memory to at least \d+",
    ):
        async with engines(tmp_path, residence, "a"):
            pass
    residence = Residence(None, None, lambda: 10_000_000)
    with pytest.raises(NoRoom, match="of 10 MB; loaded now: nothing; free memory"):
        async with engines(tmp_path, residence, "a"):
            pass


async def test_an_idle_model_leaves_and_comes_back(tmp_path: Path) -> None:
    residence = Residence(None, 0.4, lambda: 1 << 40)
    async with engines(tmp_path, residence, "a") as made:
        watch = asyncio.create_task(residence.watch())
        try:
            first = await made["a"].ask(TEXT)
            deadline = time.monotonic() + 20
            while made["a"].pid is not None:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            # Callers who come together share one load.
            answers = await asyncio.gather(*(made["a"].ask(TEXT) for _ in range(3)))
            assert answers == [first] * 3
            assert made["a"].loads == 2
        finally:
            watch.cancel()


async def test_a_model_that_rests_is_ready_unless_it_cannot_wake(tmp_path: Path) -> None:
    free = 1 << 40
    residence = Residence(None, None, lambda: free)
    async with engines(tmp_path, residence, "a") as made:
        a = made["a"]
        readiness = Readiness(catalog_of(Served("a", a, None, None, 0, task="embed")))
        assert (await readiness.check())["a"] == Condition("loaded")
        assert await a.rest()
        assert (await readiness.check())["a"] == Condition("unloaded")
        assert a.pid is None  # nobody woke it to find out
        free = 10_000_000
        with pytest.raises(NoRoom):
            await a.ask(TEXT)
        refused = (await readiness.check())["a"]
        assert not refused.ready
        assert "MB of 10 MB" in str(refused.reason)
        free = 1 << 40
        assert (await readiness.check())["a"] == Condition("loaded")


async def test_a_model_whose_files_were_damaged_while_it_rested_is_not_ready(tmp_path: Path) -> None:
    residence = Residence(None, None, lambda: 1 << 40)
    async with engines(tmp_path, residence, "a") as made:
        readiness = Readiness(catalog_of(Served("a", made["a"], None, None, 0, task="embed")))
        assert await made["a"].rest()
        graph = tmp_path / "model.onnx"
        graph.write_bytes(graph.read_bytes()[:100])
        with pytest.raises(ModelsError):
            await made["a"].ask(TEXT)
        found = (await readiness.check())["a"]
        assert (found.ready, found.state) == (False, "failing")
        assert "model.onnx" in str(found.reason)


async def test_a_model_whose_file_is_away_says_so_and_comes_back_with_it(
    tmp_path: Path,
) -> None:
    file, away = write_bert(tmp_path / "a.gguf"), tmp_path / "away"
    engine = await EncoderProcess.start(of_path(file), EngineSettings(threads=1))
    try:
        assert await engine.rest()
        file.rename(away)
        with pytest.raises(EngineError, match=r"a\.gguf cannot be loaded again: No such file") as raised:
            await engine.ask(EncoderCall(("pump",)))
        assert str(tmp_path) not in str(raised.value)  # a caller is not told where files lie
        assert str(file) in str(engine.trouble)
        away.rename(file)
        assert len((await engine.ask(EncoderCall(("pump",)))).rows) == 1
    finally:
        await engine.close()


async def test_closing_while_it_wakes_tells_those_who_wait(tmp_path: Path) -> None:
    residence = Residence(None, None, lambda: 1 << 40)
    async with engines(tmp_path, residence, "a") as made:
        assert await made["a"].rest()
        waiting = asyncio.create_task(made["a"].ask(TEXT))
        await asyncio.sleep(0.05)
        await made["a"].close()
        with pytest.raises(EngineError, match="closed"):
            await waiting


async def test_a_model_that_is_asked_does_not_rest(tmp_path: Path) -> None:
    async with engines(tmp_path, Residence(None, None, lambda: 1 << 40), "a") as made:
        engine = made["a"]
        assert await engine.rest()
        assert await engine.rest()  # again: it rests already
        asked = asyncio.create_task(engine.ask(EncoderCall(TEXT.texts * 400)))
        await asyncio.sleep(0)
        assert not await engine.rest()  # it wakes
        while engine.pid is None:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
        assert not await engine.rest()  # it is being asked
        assert (len((await asked).rows), engine.loads) == (400, 2)
        assert await engine.rest()


def headers_of_a_gguf(path: Path) -> EngineFiles:
    """Made for 32,768 tokens; a token's cell holds two layers' keys and values of 64 numbers."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32768)
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_head_count(2)
    writer.add_token_list(["a", "b", "c"])
    writer.add_tensor("token_embd.weight", np.zeros((32, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return of_path(path)


def test_the_forecast_of_a_gguf_counts_the_cache_that_its_settings_ask_for(tmp_path: Path) -> None:
    files = headers_of_a_gguf(tmp_path / "m.gguf")

    def forecast(context: int, parallel: int, contexts: int = 1) -> int:
        settings = EngineSettings(context_tokens=context, max_sequences=parallel, contexts=contexts)
        return forecast_bytes(files, settings)

    token = 2 * 64 * 2 * 2  # a key and a value of 64 numbers of two bytes, in two layers
    assert forecast(2048, 16) == forecast(3000, 16) == forecast(8192, 16)  # what calls share
    assert forecast(2048, 16) - forecast(2048, 1) == (8192 - 2048) * token
    assert forecast(16384, 16) - forecast(8192, 16) == 8192 * token
    assert forecast(1 << 20, 16) == forecast(32768, 16)  # no more than the model was made for
    logits = (256 + 48) * 3 * 4  # of a batch, and of each sequence id, over a vocabulary of three
    assert forecast(2048, 16, contexts=3) - forecast(2048, 16) == 2 * (8192 * token + logits)


def test_cells_are_apart_where_four_times_as_much_memory_is_free(tmp_path: Path) -> None:
    files = headers_of_a_gguf(tmp_path / "m.gguf")
    settings = EngineSettings(max_sequences=16, contexts=1)
    need = forecast_bytes(files, replace(settings, kv="apart"))
    cells = (2048 * (16 + 2) - 8192) * 2 * 64 * 2 * 2
    assert need == forecast_bytes(files, settings) + cells
    assert settled(files, settings, 4 * need) == replace(settings, kv="apart")
    assert settled(files, settings, 4 * need - 1) == replace(settings, kv="unified")
    for kv in ("unified", "apart"):
        assert settled(files, chosen := replace(settings, kv=kv), 0) == chosen


class Asleep:
    """An engine without a process."""

    pid = None
    idle_since = None

    def __init__(self, files: EngineFiles, asked: EngineSettings) -> None:
        self.files = files
        self.asked = self.settings = asked

    async def rest(self) -> bool:
        return True


async def test_whoever_wakes_gets_the_cells_that_memory_has_room_for_then(tmp_path: Path) -> None:
    engine = Asleep(headers_of_a_gguf(tmp_path / "m.gguf"), EngineSettings(max_sequences=16, contexts=1))
    apart, unified = (replace(engine.asked, kv=kv) for kv in ("apart", "unified"))
    free = 4 * forecast_bytes(engine.files, apart)
    residence = Residence(None, None, lambda: free)
    async with residence.admit(engine) as engine.settings:
        assert engine.settings == apart
    free = forecast_bytes(engine.files, unified)  # others have come
    async with residence.admit(engine) as engine.settings:
        assert engine.settings == unified
    free -= 1
    with pytest.raises(NoRoom):
        async with residence.admit(engine):
            pass


def test_what_memory_has_no_room_for_is_refused_at_the_start(tmp_path: Path) -> None:
    write_onnx_release(tmp_path, EMBED)
    asked = ["serve", "--port", "0", "--memory", "50", "--model", f"minilm={tmp_path}"]
    refused = CliRunner().invoke(main, asked)
    assert refused.exit_code == 3
    assert "raise --memory to at least" in refused.stderr
