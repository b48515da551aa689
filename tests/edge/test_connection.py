"""What one client's connection carries: in how many pieces, and that all of it comes."""

import asyncio
import json

import httpx
import pytest
from edge_app import catalog_of, edge_app, served
from http_server import running
from scripted_engine import ScriptedEngine

from edge_agent.connection import Gathering

ASKED = json.dumps({"model": "smol", "stream": True, "messages": [{"role": "user", "content": "hello"}]})
REQUEST = f"""POST /v1/chat/completions HTTP/1.1\r
host: localhost\r
content-length: {len(ASKED)}\r
\r
{ASKED}"""


class Recording(asyncio.Transport):
    """A transport that remembers what was done with it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[bytes | str] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.done.append(bytes(data))

    def close(self) -> None:
        self.done.append("closed")

    def abort(self) -> None:
        self.done.append("aborted")


async def test_what_is_written_in_a_turn_is_sent_together() -> None:
    inner = Recording()
    transport = Gathering(inner, asyncio.get_running_loop())
    transport.write(b"head")
    transport.write(b"text")
    assert inner.done == []
    await asyncio.sleep(0)
    transport.write(b"more")
    await asyncio.sleep(0)
    assert inner.done == [b"headtext", b"more"]
    large = bytes(1 << 17)
    transport.write(large)
    assert inner.done[2:] == [large]  # its transport is to say when that is too much
    await asyncio.sleep(0)
    transport.write(b"the rest")
    transport.close()
    assert inner.done[3:] == [b"the rest", "closed"]
    await asyncio.sleep(0)
    assert inner.done[5:] == []


async def test_what_was_not_sent_yet_is_dropped_with_its_client() -> None:
    inner = Recording()
    transport = Gathering(inner, asyncio.get_running_loop())
    transport.write(b"text")
    transport.abort()
    await asyncio.sleep(0)
    assert inner.done == ["aborted"]


async def test_the_head_of_a_stream_comes_with_its_first_text() -> None:
    async with running(edge_app(catalog_of(served(ScriptedEngine("one two three"))))) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(REQUEST.encode())
        async with asyncio.timeout(30):
            piece = await reader.read(1 << 16)
            assert piece.startswith(b"HTTP/1.1 200") and b'"content":"one ' in piece
            rest = await reader.readuntil(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert b"three" in rest
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("text", ["one two three", f"{'word' * 20_000} " * 40])
async def test_an_answer_comes_whole_before_its_connection_is_closed(text: str) -> None:
    async with (
        running(edge_app(catalog_of(served(ScriptedEngine(text))))) as url,
        httpx.AsyncClient() as client,
    ):
        asked = {**json.loads(ASKED), "stream": False}
        answer = await client.post(
            f"{url}/v1/chat/completions", json=asked, headers={"connection": "close"}, timeout=60
        )
        assert answer.json()["choices"][0]["message"]["content"] == text
        assert answer.headers["connection"] == "close"
