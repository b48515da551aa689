"""Clients that stop reading, writing or asking, on real sockets: they are cut off, and nobody else is."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from edge_app import catalog_of, edge_app, served
from http_server import running
from scripted_engine import ScriptedEngine

from edge_agent.admission import Limits
from edge_agent.keys import Keys, create_key

PATIENCE = 0.5
CHAT = "/v1/chat/completions"


@asynccontextmanager
async def connected(url: str, receive_buffer: int = 0) -> AsyncIterator[socket.socket]:
    """A bare connection to ``url``."""
    place = urlsplit(url)
    assert place.port is not None
    with socket.socket() as client:
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, (place.hostname, place.port))
        yield client


def asking(body: bytes, length: int | None = None, key: str = "none") -> bytes:
    """A request with ``body``, or with its beginning when more is announced."""
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n"
    return f"{head}content-length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def chat(model: str, stream: bool = False, text: str = "hello") -> bytes:
    asked = {"model": model, "stream": stream, "messages": [{"role": "user", "content": text}]}
    return json.dumps(asked).encode()


async def until_gone(client: socket.socket) -> bytes:
    """What the server still says, until it ends the connection."""
    said = b""
    async with asyncio.timeout(30):
        try:
            while part := await asyncio.get_running_loop().sock_recv(client, 4096):
                said += part
        except ConnectionResetError:
            pass
    return said


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not happened():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.05)


async def test_a_stream_that_nobody_reads_gives_its_place_back(caplog: pytest.LogCaptureFixture) -> None:
    long = ScriptedEngine(f"{'word' * 1000} " * 2000, context_tokens=5000)  # more than fits in between
    short = ScriptedEngine("one two three")
    app = edge_app(
        catalog_of(served(long, "long"), served(short, "short")), limits=Limits(running=2, waiting=0)
    )
    async with (
        running(app, PATIENCE) as url,
        httpx.AsyncClient(base_url=url) as healthy,
        connected(url, receive_buffer=4096) as deaf,
    ):

        async def ask() -> int:
            answer = await healthy.post(CHAT, content=chat("short"))
            assert answer.json()["choices"][0]["message"]["content"] == "one two three"
            return int(answer.headers["x-ratelimit-remaining-requests"])

        await asyncio.get_running_loop().sock_sendall(deaf, asking(chat("long", stream=True)))
        await until(lambda: bool(long.requests))
        assert await ask() == 1
        await until(lambda: bool(long.cancelled))
        assert await ask() == 2
        assert "outpost_requests_in_flight 0" in (await healthy.get("/metrics")).text
    assert long.cancelled == ["r1"]
    told = [line.getMessage() for line in caplog.records if line.levelno == logging.WARNING]
    assert told == [f"request r1 (POST {CHAT}): the client took nothing of its answer and was cut off"]


async def test_an_answer_in_one_piece_that_nobody_takes_leaves_no_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = ScriptedEngine(f"{'word' * 20_000} " * 100)
    async with (
        running(edge_app(catalog_of(served(engine, "long"))), PATIENCE) as url,
        connected(url, receive_buffer=4096) as deaf,
    ):
        await asyncio.get_running_loop().sock_sendall(deaf, asking(chat("long")))
        await until(lambda: "the client took nothing of its answer and was cut off" in caplog.text)


@pytest.mark.parametrize(
    "begun", [b"", b"GET /healthz HTTP/1.1\r\nhost: localh", b"POST / HTTP/1.1\r\nhost: localhost\r\nx: "]
)
async def test_a_request_that_is_never_made_ends_its_connection(begun: bytes) -> None:
    async with running(edge_app(catalog_of()), PATIENCE) as url, connected(url) as idle:
        await asyncio.get_running_loop().sock_sendall(idle, begun)
        assert await until_gone(idle) == b""


@pytest.mark.parametrize("dripping", [False, True])
async def test_a_body_that_does_not_come_holds_no_place_of_its_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, dripping: bool
) -> None:
    loop = asyncio.get_running_loop()
    secret = create_key(tmp_path / "keys.json", "scada", None, 1)
    app = edge_app(catalog_of(served(ScriptedEngine())), keys=Keys(tmp_path / "keys.json", loop.time))
    async with (
        running(app, PATIENCE) as url,
        connected(url) as slow,
        httpx.AsyncClient(base_url=url) as next_one,
    ):
        next_one.headers["authorization"] = f"Bearer {secret}"
        await loop.sock_sendall(slow, asking(b"{", length=1000, key=secret))

        async def drip() -> None:
            while True:
                await loop.sock_sendall(slow, b" ")
                await asyncio.sleep(0.05)

        drops = asyncio.create_task(drip()) if dripping else None
        assert await until_gone(slow) == b""
        if drops is not None:
            drops.cancel()
            await asyncio.wait([drops])
        answer = await next_one.post(CHAT, content=chat("smol"))
        assert answer.status_code == 200
    told = [line.getMessage() for line in caplog.records if line.levelno >= logging.WARNING]
    assert told == [f"request r1 (POST {CHAT}): the client did not bring its body and was cut off"]


async def test_a_body_that_comes_slowly_but_steadily_is_waited_for() -> None:
    loop = asyncio.get_running_loop()
    body = chat("smol", text="x" * 150_000)
    engine = ScriptedEngine()
    async with running(edge_app(catalog_of(served(engine))), PATIENCE) as url, connected(url) as steady:
        await loop.sock_sendall(steady, asking(b"", length=len(body)))
        for start in range(0, len(body), 20_000):
            await asyncio.sleep(0.1)
            await loop.sock_sendall(steady, body[start : start + 20_000])
        async with asyncio.timeout(30):
            assert (await loop.sock_recv(steady, 4096)).startswith(b"HTTP/1.1 200")


async def send_until_cut_off(client: socket.socket, data: bytes) -> None:
    """Send ``data`` over and over; the server's turn is in between."""
    async with asyncio.timeout(30):
        with pytest.raises(ConnectionError):
            while True:
                await asyncio.get_running_loop().sock_sendall(client, data)
                await asyncio.sleep(0.01)


async def test_heads_and_bodies_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    async with running(edge_app(catalog_of(), limits=Limits(max_body_bytes=1000)), PATIENCE) as url:
        async with connected(url) as flood:
            await loop.sock_sendall(flood, b"GET /healthz HTTP/1.1\r\n")
            await send_until_cut_off(flood, b"x-more: of it\r\n" * 100)
        async with connected(url) as huge:
            await loop.sock_sendall(huge, asking(b"x" * 1001, length=1 << 40))
            async with asyncio.timeout(30):
                assert (await loop.sock_recv(huge, 4096)).startswith(b"HTTP/1.1 413")
            await send_until_cut_off(huge, b"x" * 65536)  # answered; the rest is not read for ever
    assert "did not bring its body" not in caplog.text  # it need not have come
