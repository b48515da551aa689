"""The two records of a call, whatever becomes of who waits for them."""

import asyncio

import httpx
import pytest
from edge_app import catalog_of, edge_app, served
from http_server import running
from memory_journal import MemoryJournal
from scripted_engine import ScriptedEngine

from edge_agent.journal import Entry
from sync.errors import StoreFull


async def test_a_result_is_written_once_though_its_caller_is_cancelled_while_it_is() -> None:
    journal = MemoryJournal(delay=0.02)
    entry = Entry(journal, "r1", "internal", "shift-3")
    entry.begin({}, b"question")
    for step in ("intent", "result"):
        waiting = asyncio.create_task(entry.result({"finish": "stop"}, b"answer"))
        await asyncio.sleep(0)
        assert (step == "result") == (journal.kinds == ["intent"])
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await entry.intent()
    assert await entry.result({"finish": None}, b"") == 2
    assert journal.kinds == ["intent", "result"]
    assert (journal.records[1].facts, journal.records[1].body) == ({"finish": "stop"}, b"answer")


async def test_a_result_without_its_intent_is_none() -> None:
    journal = MemoryJournal(full=frozenset({"intent"}))
    entry = Entry(journal, "r1", "internal", "shift-3")
    entry.begin({}, b"question")
    with pytest.raises(StoreFull):
        await entry.result({}, b"answer")
    assert journal.kinds == []


@pytest.mark.parametrize("words", [0, 1])
async def test_the_leaf_of_a_failed_answer_names_a_release_only_if_that_has_spoken(words: int) -> None:
    journal = MemoryJournal()
    engine = ScriptedEngine(fail_after=words)
    asked = {"model": "smol", "messages": [{"role": "user", "content": "hello"}]}
    async with (
        running(edge_app(catalog_of(served(engine)), journal=journal)) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        response = await client.post("/v1/chat/completions", json=asked)
    assert response.status_code == 503
    _, result = journal.records
    release = served(engine).release if words else None
    assert (result.facts["error"], result.facts["release"]) == ("EngineError", release)
