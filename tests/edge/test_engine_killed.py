"""``kill -9`` of an engine under load: its callers get errors, it comes back ever later, others go on."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from edge_app import catalog_of, edge_app
from gguf_models import Shape, write_llama
from http_server import running

from edge_agent.catalog import Served
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.supervised import FIRST_PAUSE
from edge_agent.engines.text_process import EngineProcess

ENDLESS = {"prompt": "the cat sat on", "max_tokens": 240, "ignore_eos": True}
SHORT = {"prompt": "the cat sat on", "max_tokens": 4, "ignore_eos": True}
SHAPES = {
    "hit": Shape(layers=4, width=512, inner=1024),
    "spared": Shape(width=64, inner=64, heads=2, kv_heads=1),
}
"""The one that is killed writes ``ENDLESS`` for a second or more, so that it is in the midst of it."""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: write_llama(folder / f"{name}.gguf", shape) for name, shape in SHAPES.items()}


@pytest.fixture
async def engines(paths: dict[str, Path]) -> AsyncIterator[dict[str, EngineProcess]]:
    made = {name: await EngineProcess.start(path, EngineSettings(threads=1)) for name, path in paths.items()}
    yield made
    for engine in made.values():
        await engine.close()


async def streamed(client: httpx.AsyncClient, model: str, begun: asyncio.Queue[str]) -> list[str]:
    """The events of a long stream; tells ``begun`` of the first."""
    events: list[str] = []
    body = {**ENDLESS, "model": model, "stream": True}
    async with client.stream("POST", "/v1/completions", json=body) as told:
        async for line in told.aiter_lines():
            if line:
                events.append(line.removeprefix("data: "))
                if len(events) == 1:
                    begun.put_nowait(model)
    return events


async def test_its_streams_end_in_errors_and_others_in_done(
    engines: dict[str, EngineProcess],
) -> None:
    catalog = catalog_of(*(Served(name, one, None, None, 256) for name, one in engines.items()))
    begun: asyncio.Queue[str] = asyncio.Queue()
    async with running(edge_app(catalog)) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        models = ["hit", "spared"] * 4
        streams = [asyncio.create_task(streamed(client, model, begun)) for model in models]
        for _ in streams:
            await begun.get()
        whole = asyncio.create_task(client.post("/v1/completions", json={**ENDLESS, "model": "hit"}))
        pid = engines["hit"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        cut = 0
        for model, events in zip(models, await asyncio.gather(*streams), strict=True):
            if model == "spared":
                assert events[-1] == "[DONE]"
            elif events[-1] != "[DONE]":  # it may have ended before, where this process had to wait
                assert json.loads(events[-1])["error"]["code"] == "engine_failed"
                assert "text" in json.loads(events[0])["choices"][0] and "[DONE]" not in events
                cut += 1
        assert cut
        assert (await whole).status_code in (200, 503)
        again = await client.post("/v1/completions", json={**SHORT, "model": "hit"})
        assert (again.status_code, engines["hit"].restarts, engines["spared"].restarts) == (200, 1, 0)


async def test_it_is_not_ready_until_it_is_back(engines: dict[str, EngineProcess]) -> None:
    catalog = catalog_of(*(Served(name, one, None, None, 256) for name, one in engines.items()))
    async with running(edge_app(catalog)) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        assert (await client.get("/readyz")).status_code == 200
        pid = engines["hit"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while (said := await client.get("/readyz")).status_code == 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            models = said.json()["models"]
            assert (models["hit"]["ready"], models["hit"]["state"]) == (False, "restarting")
            assert models["spared"] == {"ready": True, "state": "loaded"}
            while (said := await client.get("/readyz")).status_code == 503:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert said.json()["models"]["hit"] == {"ready": True, "state": "loaded"}


async def test_the_pause_before_it_comes_back_grows(engines: dict[str, EngineProcess]) -> None:
    engine, clock = engines["hit"], asyncio.get_running_loop().time
    for crashes in range(3):
        pid, killed = engine.pid, clock()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while engine.pid in (pid, None):  # noqa: ASYNC110 - nothing tells of a new process
                await asyncio.sleep(0.02)
        assert clock() - killed >= FIRST_PAUSE * 2**crashes
        assert engine.restarts == crashes + 1
