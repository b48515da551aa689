"""Load for servers of OpenAI's API: clients that stream answers, and when each piece of them came.

Lean on purpose, bare HTTP/1.1 over asyncio's streams: the clients share the cores with the server that they
measure. ``Load.cost`` says what they took. Refuses nothing: what goes wrong is a failure in the result.
"""

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

TIMEOUT = 300.0
"""Seconds that a call may take."""

Message = Mapping[str, str]


class Failed(Exception):
    """A call was not answered as it should have been."""


@dataclass(frozen=True, slots=True)
class Call:
    """One streamed answer: seconds from sending the request to each piece of text, and what was counted."""

    arrivals: tuple[float, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""


class Client:
    """One connection, kept alive over calls as client libraries do, opened again when it was closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.drop()

    def drop(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def post(self, path: str, body: bytes, content_type: str = "application/json") -> bytes:
        """The body of a whole answer. Raises ``Failed``."""
        return b"".join([part async for part in self.stream(path, body, content_type)])

    async def stream(
        self, path: str, body: bytes, content_type: str = "application/json"
    ) -> AsyncIterator[bytes]:
        """The body of an answer as it comes. Raises ``Failed`` for another status than 200."""
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{self._port}\r\ncontent-type: {content_type}\r\n"
        request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
        try:
            reader, found = await self._send(request)
            status, headers = _parse_head(found)
            parts = _body(reader, headers)
            if status != 200:
                text = b"".join([part async for part in parts])
                raise Failed(f"{status}: {text.decode(errors='replace')[:300]}")
            async for part in parts:
                yield part
        except (asyncio.IncompleteReadError, ConnectionError, ValueError, IndexError) as error:
            self.drop()
            raise Failed(f"the connection broke: {error!r}") from error
        if headers.get("connection", "").lower() == "close":
            self.drop()

    async def _send(self, request: bytes) -> tuple[asyncio.StreamReader, bytes]:
        """The head of the answer. A kept connection that the server had closed is opened again, once."""
        if self._streams is not None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                return await self._exchange(*self._streams, request)
            self.drop()
        self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        return await self._exchange(*self._streams, request)

    @staticmethod
    async def _exchange(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> tuple[asyncio.StreamReader, bytes]:
        writer.write(request)
        return reader, await reader.readuntil(b"\r\n\r\n")


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return int(first.split()[1]), {name.lower(): value.strip() for name, value in pairs}


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    """RFC 9112, section 6: in chunks, of a known length, or until the connection ends."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while part := await reader.read(65536):
            yield part


async def events(parts: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The ``data`` of server-sent events, wherever the parts are cut."""
    rest = b""
    async for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip().decode()


async def chat(client: Client, model: str, messages: Sequence[Message], max_tokens: int) -> Call:
    """Stream one greedy answer."""
    asked = {"model": model, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
    asked |= {"stream": True, "stream_options": {"include_usage": True}}
    body = json.dumps(asked).encode()
    arrivals: list[float] = []
    usage: dict[str, int] = {}
    done = False
    began = time.perf_counter()
    try:
        async with asyncio.timeout(TIMEOUT):
            async for data in events(client.stream("/v1/chat/completions", body)):
                if data == "[DONE]":
                    done = True
                    continue
                chunk: dict[str, Any] = json.loads(data)
                if "error" in chunk:
                    raise Failed(str(chunk["error"])[:300])
                usage = chunk.get("usage") or usage
                if any(choice["delta"].get("content") for choice in chunk["choices"]):
                    arrivals.append(time.perf_counter() - began)
        if not (done and arrivals):
            raise Failed("the stream ended without an answer")
    except (Failed, OSError, TimeoutError, ValueError, KeyError) as error:
        client.drop()
        return Call(error=f"{type(error).__name__}: {error}")
    # A server that does not count in streams sends a token in each piece.
    return Call(tuple(arrivals), usage.get("prompt_tokens", 0), usage.get("completion_tokens", len(arrivals)))


@dataclass(frozen=True, slots=True)
class Load:
    """What came of some calls: ``wall`` seconds, and ``cost``, the processor seconds that asking took."""

    calls: tuple[Call, ...]
    wall: float
    cost: float

    @classmethod
    def of(cls, several: "Sequence[Load]") -> "Load":
        """Runs that followed each other, as one."""
        calls = tuple(call for one in several for call in one.calls)
        return cls(calls, sum(one.wall for one in several), sum(one.cost for one in several))

    def figures(self) -> dict[str, float]:
        """The figures of a run, times in milliseconds."""
        good = [call for call in self.calls if not call.error]
        first = [call.arrivals[0] * 1e3 for call in good]
        between = [
            (b - a) * 1e3 for call in good for a, b in zip(call.arrivals, call.arrivals[1:], strict=False)
        ]
        return {
            "tokens_per_second": sum(call.completion_tokens for call in good) / self.wall,
            "ttft_p50_ms": percentile(first, 0.5),
            "ttft_p99_ms": percentile(first, 0.99),
            "itl_p50_ms": percentile(between, 0.5),
            "itl_p99_ms": percentile(between, 0.99),
            "calls": len(self.calls),
            "failures": len(self.calls) - len(good),
            "prompt_tokens": sum(call.prompt_tokens for call in good),
            "completion_tokens": sum(call.completion_tokens for call in good),
            "load_cores": self.cost / self.wall,
        }


async def converse(
    port: int, model: str, conversations: Sequence[Sequence[Sequence[Message]]], max_tokens: int
) -> Load:
    """One client for each conversation, each asking its calls one after the other; all begin at once."""

    async def one(calls: Sequence[Sequence[Message]]) -> list[Call]:
        async with Client(port) as client:
            return [await chat(client, model, messages, max_tokens) for messages in calls]

    wall, cost = time.perf_counter(), time.process_time()
    answered = await asyncio.gather(*(one(calls) for calls in conversations))
    return Load(
        tuple(call for calls in answered for call in calls),
        time.perf_counter() - wall,
        time.process_time() - cost,
    )


async def drain(
    port: int, clients: int, count: int, ask: Callable[[Client, int], Awaitable[object]]
) -> float:
    """Calls a second: ``clients`` connections share ``count`` calls; ``ask`` gets the number of each."""
    numbers = iter(range(count))

    async def one() -> None:
        async with Client(port) as client:
            for number in numbers:
                await ask(client, number)

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return count / (time.perf_counter() - began)


def percentile(values: Sequence[float], share: float) -> float:
    """By nearest rank: the smallest value that ``share`` of them do not exceed. NaN for none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
