"""What a device tells a monitoring system, by a real engine in its own process."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from os import kill
from pathlib import Path

import httpx
import pytest
from edge_app import catalog_of, edge_app
from gguf_models import Shape, write_llama
from http_server import running

from edge_agent.catalog import Served
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.text_process import EngineProcess
from edge_agent.metrics import FAMILIES

DOCS = Path(__file__).parents[2] / "docs"
SAMPLE = re.compile(r"^([a-z0-9_]+?)(_bucket|_sum|_count)?(\{[^}]*\})? ([0-9.e+-]+)$")
ROW = re.compile(r"^\| `outpost_(\w+)` \|[^|]*\|[^|]*\| (?:`(?:vllm:)?(\w+)`)? \|", re.MULTILINE)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EngineProcess]:
    path = write_llama(tmp_path / "tiny.gguf", Shape(layers=8))
    engine = await EngineProcess.start(path, EngineSettings(threads=1, max_sequences=2))
    yield engine
    await engine.close()


def served(engine: EngineProcess, model_id: str = "tiny") -> Served:
    return Served(model_id, engine, None, None, engine.facts.context_tokens)


def values(text: str, name: str) -> dict[str, float]:
    """Samples of a metric by what its labels say besides the model."""
    found = re.findall(rf'^{name}\{{model_name="tiny"(?:,kind="(\w+)")?\}} (\S+)$', text, re.MULTILINE)
    return {kind: float(value) for kind, value in found}


async def until(client: httpx.AsyncClient, name: str, value: float) -> str:
    """The metrics as soon as the only sample of ``name`` is ``value``."""
    async with asyncio.timeout(10):
        while values(text := (await client.get("/metrics")).text, name) != {"": value}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return text


async def test_sequences_and_cells_are_given_back_by_those_who_leave(engine: EngineProcess) -> None:
    endless = {"model": "tiny", "prompt": "the cat sat on", "max_tokens": 240, "ignore_eos": True}
    app = edge_app(catalog_of(served(engine), served(engine, "tiny:adapter")))
    async with running(app) as url, httpx.AsyncClient(base_url=url) as client:
        idle = (await client.get("/metrics")).text
        assert values(idle, "outpost_kv_cache_usage_perc") == {"": 0}
        assert values(idle, "outpost_kv_cells") == {"all": 512, "filled": 0}
        async with client.stream("POST", "/v1/completions", json=endless | {"stream": True}) as told:
            lines = told.aiter_lines()
            await anext(lines)
            assert engine.pid is not None
            kill(engine.pid, signal.SIGSTOP)  # or it might have ended before anybody looks
            busy = (await client.get("/metrics")).text
            assert values(busy, "outpost_num_requests_running") == {"": 1}
            assert 0.4 < values(busy, "outpost_kv_cache_usage_perc")[""] <= 1
        kill(engine.pid, signal.SIGCONT)
        after = await until(client, "outpost_num_requests_running", 0)
        assert values(after, "outpost_kv_cache_usage_perc") == {"": 0}
        assert values(after, "outpost_kv_cells")["filled"] > 0  # what was read is kept for the next
        assert values(after, "outpost_num_requests_waiting") == {"": 0}
        assert "outpost_requests_in_flight 0\n" in after


async def test_a_crash_is_seen(engine: EngineProcess) -> None:
    async with (
        running(edge_app(catalog_of(served(engine)))) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        assert values((await client.get("/metrics")).text, "outpost_engine_loads_total") == {"": 1}
        assert engine.pid is not None
        kill(engine.pid, signal.SIGKILL)
        text = await until(client, "outpost_engine_restarts_total", 1)
        await until(client, "outpost_engine_loaded", 1)
        assert values(text, "outpost_engine_loads_total") == {"": 2}


async def test_every_metric_is_well_formed_and_documented(engine: EngineProcess) -> None:
    async with (
        running(edge_app(catalog_of(served(engine)))) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        asked = {"model": "tiny", "prompt": "the cat", "max_tokens": 6, "ignore_eos": True}
        assert (await client.post("/v1/completions", json=asked)).status_code == 200
        text = (await client.get("/metrics")).text
    samples = [SAMPLE.match(line) for line in text.splitlines() if not line.startswith("#")]
    assert all(samples)
    assert all((family.kind == "counter") == family.name.endswith("_total") for family in FAMILIES)
    assert all(f"# TYPE {family.name} {family.kind}\n" in text for family in FAMILIES)
    assert values(text, "outpost_generation_tokens_total") == {"": 6}
    assert values(text, "outpost_prompt_tokens_total")[""] > 0
    assert values(text, "outpost_prompt_tokens_cached_total") == {"": 0}
    names = {found[1] for found in samples if found}
    assert names <= {family.name for family in FAMILIES}
    assert {"outpost_time_to_first_token_seconds", "outpost_inter_token_latency_seconds"} < names
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert all(f"| `{family.name}` | {family.kind} |" in page for family in FAMILIES)
    rows = ROW.findall(page)
    assert len(rows) == len(FAMILIES) and all(theirs in ("", ours) for ours, theirs in rows)
