"""What one client's connection carries, on real sockets: in how many pieces, and that all of it comes."""

import asyncio
import json

import httpx
from edge_app import catalog_of, edge_app, served
from http_server import running
from scripted_engine import ScriptedEngine

ASKED = json.dumps({"model": "smol", "stream": True, "messages": [{"role": "user", "content": "hello"}]})
REQUEST = f"""POST /v1/chat/completions HTTP/1.1\r
host: localhost\r
content-length: {len(ASKED)}\r
\r
{ASKED}"""


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


async def test_an_answer_larger_than_any_buffer_comes_whole_and_closes_its_connection() -> None:
    text = f"{'word' * 20_000} " * 40
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
