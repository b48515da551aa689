"""The engine's process: crashes, restarts, cancellation, and what it never loads."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_bytes import build

from edge_agent.engines.files import of_path
from edge_agent.engines.residence import memory_of
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.sizes import forecast_bytes
from edge_agent.engines.text_process import EngineProcess
from edge_agent.errors import EngineCrashed
from models.digest import Digest
from models.engines.base import Finish, GenerateRequest
from models.errors import AnswerTooLong, ContextLengthExceeded, EngineError, UnknownAdapter, UnsafeFile
from models.gguf import read_header

pytestmark = pytest.mark.model

SMALL = EngineSettings(threads=1, context_tokens=512, max_sequences=4, batch_tokens=64)
FRANCE = "What is the capital of France?"


@pytest.fixture
async def engine(model_path: Path) -> AsyncIterator[EngineProcess]:
    engine = await EngineProcess.start(model_path, SMALL)
    yield engine
    await engine.close()


async def answer(engine: EngineProcess, request: GenerateRequest) -> tuple[str, Finish | None]:
    text, finish = "", None
    async for event in engine.generate(request):
        assert event.id == request.id
        text, finish = text + event.text, event.finish
    return text, finish


def children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def mapped(pid: int | None) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def test_it_answers_many_at_once_and_errors_keep_their_names(
    engine: EngineProcess, chat: Callable[..., GenerateRequest]
) -> None:
    same_id = [chat("id", FRANCE) for _ in range(6)]
    answers = await asyncio.gather(*(answer(engine, request) for request in same_id))
    assert {finish for _, finish in answers} == {Finish.STOP}
    assert all("Paris" in text for text, _ in answers)
    with pytest.raises(ContextLengthExceeded, match="512 tokens"):
        await answer(engine, chat("long", "word " * 600))
    with pytest.raises(AnswerTooLong, match="512 tokens"):
        await answer(engine, chat("far", "Hi", max_tokens=512))
    with pytest.raises(UnknownAdapter):
        await answer(engine, chat("x", "Hi", adapter="ghost"))
    assert (engine.facts.architecture, engine.facts.context_tokens) == ("llama", 512)
    assert (engine.loads, engine.restarts) == (1, 0)


async def test_a_killed_child_costs_its_requests_an_error_and_comes_back_whole(
    engine: EngineProcess, chat: Callable[..., GenerateRequest], make_adapter: Callable[..., Path]
) -> None:
    await engine.attach("one", make_adapter(1))
    with_adapter = chat("a", "Write one sentence about bearings.", adapter="one")
    before = await answer(engine, with_adapter)
    stream = engine.generate(chat("story", "Tell a long story.", max_tokens=400))
    await anext(stream)
    first = engine.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    with pytest.raises(EngineCrashed, match="signal 9"):
        async for _ in stream:
            pass
    assert "Paris" in (await answer(engine, chat("after", FRANCE)))[0]
    assert await answer(engine, with_adapter) == before
    assert (engine.loads, engine.restarts) == (2, 1)
    assert engine.pid != first and not alive(first)


async def test_a_child_that_hangs_is_replaced_and_one_that_works_is_not(
    model_path: Path, chat: Callable[..., GenerateRequest], make_adapter: Callable[..., Path]
) -> None:
    # Small steps: reading the long prompt takes longer than the patience, each step of it does not.
    settings = replace(SMALL, batch_tokens=8, silence_seconds=1.5)
    engine = await EngineProcess.start(model_path, settings)
    try:
        assert (await answer(engine, chat("long", "word " * 480, max_tokens=4)))[1] is not None
        async with aclosing(engine.generate(chat("read slowly", FRANCE, max_tokens=2))) as unread:
            await anext(unread)
            await asyncio.sleep(2.5)  # it has said all that it owes
            assert (engine.restarts, len([event async for event in unread])) == (0, 1)
        told = [engine.generate(chat(str(number), "Tell a long story.", max_tokens=400)) for number in (1, 2)]
        for stream in told:
            await anext(stream)
        hung = engine.pid
        assert hung is not None
        os.kill(hung, signal.SIGSTOP)
        attaching = asyncio.create_task(engine.attach("one", make_adapter(1)))
        async with asyncio.timeout(10):
            for stream in told:
                with pytest.raises(EngineCrashed, match=r"said nothing for 1\.5 s"):
                    async for _ in stream:
                        pass
            with pytest.raises(EngineCrashed):
                await attaching
        assert "Paris" in (await answer(engine, chat("after", FRANCE)))[0]
        assert (engine.loads, engine.restarts) == (2, 1)
        assert engine.pid != hung and not alive(hung)
    finally:
        await engine.close()


async def test_a_child_that_hangs_while_it_loads_is_killed(tmp_path: Path) -> None:
    small = tmp_path / "small.gguf"
    small.write_bytes(build({"general.architecture": "llama"}))
    before = children()
    starting = asyncio.create_task(EngineProcess.start(small, replace(SMALL, load_seconds=1.0)))
    async with asyncio.timeout(10):
        while children() == before:  # noqa: ASYNC110 - nothing tells of a new process
            await asyncio.sleep(0.005)
        (hung,) = set(children().split()) - set(before.split())
        os.kill(int(hung), signal.SIGSTOP)
        with pytest.raises(EngineCrashed, match=r"had not loaded small\.gguf after 1 s"):
            await starting
    assert not alive(int(hung))


async def test_leaving_the_iterator_cancels(
    engine: EngineProcess, chat: Callable[..., GenerateRequest]
) -> None:
    for number in range(4):  # as many as there are slots
        async with aclosing(engine.generate(chat(str(number), "Tell a long story.", max_tokens=480))) as told:
            await anext(told)
    async with asyncio.timeout(5):  # four stories of 480 tokens would take far longer
        assert "Paris" in (await answer(engine, chat("next", FRANCE)))[0]


async def test_adapters_come_and_go_without_a_reload(
    engine: EngineProcess, chat: Callable[..., GenerateRequest], make_adapter: Callable[..., Path]
) -> None:
    running = asyncio.create_task(answer(engine, chat("base", "Count from 1 to 20.", max_tokens=60)))
    await engine.attach("one", make_adapter(1))
    with pytest.raises(EngineError, match="already attached"):
        await engine.attach("one", make_adapter(2))
    with pytest.raises(UnsafeFile):
        await engine.attach("bad", Path(__file__))
    assert (await answer(engine, chat("x", FRANCE, adapter="one")))[1] is not None
    await engine.detach("one")
    with pytest.raises(UnknownAdapter):
        await answer(engine, chat("y", FRANCE, adapter="one"))
    assert (await running)[1] is not None
    assert engine.loads == 1


async def test_closing_is_clean_and_final(
    engine: EngineProcess, chat: Callable[..., GenerateRequest]
) -> None:
    stream = engine.generate(chat("story", "Tell a long story.", max_tokens=400))
    await anext(stream)
    pid = engine.pid
    await engine.close()
    assert pid is not None and not alive(pid)
    with pytest.raises(EngineError, match="closed"):
        await anext(stream)
    with pytest.raises(EngineError, match="closed"):
        await answer(engine, chat("late", FRANCE))


async def test_a_damaged_model_is_refused_and_leaves_no_process(model_path: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    with model_path.open("rb") as source:
        damaged.write_bytes(source.read(4 << 20))
    before = children()
    with pytest.raises(UnsafeFile, match=r"damaged\.gguf: tensor .* past the end"):
        await EngineProcess.start(damaged, SMALL)
    with pytest.raises(UnsafeFile, match=r"nothing\.gguf"):
        await EngineProcess.start(tmp_path / "nothing.gguf", SMALL)
    with pytest.raises(EngineError, match="at least 1"):
        await EngineProcess.start(model_path, EngineSettings(threads=1, max_sequences=0))
    assert children() == before


async def test_a_child_holds_no_torch(engine: EngineProcess) -> None:
    libraries = mapped(engine.pid)
    assert "libllama" in libraries
    assert "torch" not in libraries


PARENT = """
import asyncio, sys
from pathlib import Path
from edge_agent.engines.files import of_path
from edge_agent.engines.residence import memory_of
from edge_agent.engines.sizes import forecast_bytes
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.text_process import EngineProcess

async def main():
    engine = await EngineProcess.start(Path(sys.argv[1]), EngineSettings(threads=1, context_tokens=256))
    print(engine.pid, "llama_cpp" in sys.modules, "torch" in sys.modules, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_the_child_dies_with_a_killed_parent_that_never_loaded_native_code(model_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(model_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid, native, torch = parent.stdout.readline().split()
        assert (native, torch) == ("False", "False")
        assert alive(int(pid))
        parent.kill()
    deadline = time.monotonic() + 5
    while alive(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(pid))


async def test_a_prompt_that_many_share_is_there_when_the_process_starts_again(
    tmp_path: Path, model_path: Path, chat: Callable[..., GenerateRequest]
) -> None:
    files = replace(of_path(model_path), weights=Digest.of(b"as the release says"))
    settings = replace(SMALL, prefixes=str(tmp_path / "prefixes"))
    cached = []
    for _ in range(2):
        engine = await EngineProcess.start(files, settings)
        for text in (FRANCE, "What is the weather like?"):
            async for event in engine.generate(chat(text, f"{'Answer shortly. ' * 8}{text}", max_tokens=2)):
                last = event
            cached.append(last.usage.cached_tokens)
        await engine.close()
    assert cached[0] == 0
    assert cached[2] >= cached[1] > 20
    assert [file.stat().st_mode & 0o777 for file in (tmp_path / "prefixes").iterdir()] == [0o600]


async def test_adapters_take_the_memory_that_is_forecast_for_them(
    model_path: Path, make_adapter: Callable[..., Path], chat: Callable[..., GenerateRequest]
) -> None:
    settings = replace(SMALL, contexts=3)
    adapters = {name: make_adapter(seed) for seed, name in enumerate(("a", "b", "c"))}
    engine = await EngineProcess.start(model_path, settings, adapters)
    try:
        await answer(engine, chat("base", FRANCE))
        before = memory_of(engine.pid)
        for name in ("a", "b"):
            await answer(engine, chat(name, FRANCE, adapter=name))
        after = memory_of(engine.pid)
        await answer(engine, chat("c", FRANCE, adapter="c"))  # instead of the base
        files = of_path(model_path)
        forecast = forecast_bytes(files, settings) - forecast_bytes(files, replace(settings, contexts=1))
        cells = 2 * 2048 * read_header(model_path).kv_bytes_per_token
        assert cells * 0.9 < after - before <= forecast
        assert memory_of(engine.pid) - after < cells / 4
    finally:
        await engine.close()
