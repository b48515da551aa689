"""The load generator reads what servers send, however it is cut, and counts what failed."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.serve_load import Client, Failed, converse, drain, events, percentile

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
Reply = Callable[[bytes], bytes]


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def piece(text: str | None, **more: object) -> bytes:
    choices = [] if text is None else [{"delta": {"content": text}}]
    return b"data: " + json.dumps({"choices": choices} | more).encode() + b"\r\n\r\n"


async def with_server(reply: Reply, use: Callable[[int], Awaitable[object]], keep: bool = True) -> object:
    """Run ``use`` with the port of a server that answers each request's body with ``reply``."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                writer.write(reply(await reader.readexactly(length)))
                await writer.drain()
                if not keep:
                    break
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        return await use(server.sockets[0].getsockname()[1])


@given(st.data())
def test_events_do_not_depend_on_where_the_bytes_are_cut(data: st.DataObject) -> None:
    texts = ["", "a", "düse", '{"x": "data: y"}', "[DONE]"]
    whole = b": a comment\n\n" + b"".join(f"event: x\r\ndata: {text}\r\n\r\n".encode() for text in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))

    async def parts() -> AsyncIterator[bytes]:
        for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            yield whole[start:end]

    async def read() -> list[str]:
        return [text async for text in events(parts())]

    assert asyncio.run(read()) == texts


@given(st.lists(st.floats(-1e9, 1e9), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(one <= found for one in values) >= share * len(values) - 1e-9
    assert sum(one < found for one in values) < share * len(values) + 1e-9


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("told", [True, False])
async def test_answers_are_counted_by_the_servers_usage_and_connections_used_again(
    keep: bool, told: bool
) -> None:
    usage = {"usage": {"prompt_tokens": 7, "completion_tokens": 5}}
    body = chunk(piece("")) + chunk(piece("two tokens")) + chunk(piece("three tokens") + piece(None, **usage))
    answer = CHUNKED + body + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    if told and not keep:
        answer = answer.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
    prompts = [[[{"role": "user", "content": "x"}]] * 3] * 2

    load = await with_server(lambda _: answer, lambda port: converse(port, "m", prompts, 5), keep)

    figures = load.figures()
    assert (figures["calls"], figures["failures"]) == (6, 0)
    assert (figures["prompt_tokens"], figures["completion_tokens"]) == (42, 30)
    assert all(len(call.arrivals) == 2 for call in load.calls)


@pytest.mark.parametrize(
    "answer",
    [
        CHUNKED + chunk(piece("a")) + b"0\r\n\r\n",  # no [DONE]
        CHUNKED + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n",  # no text
        CHUNKED + chunk(piece("a")) + chunk(b'data: {"error": {"message": "broke"}}\n\n') + b"0\r\n\r\n",
        CHUNKED + b"ff\r\nhalf",
        b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\n{}",
        b"garbage\r\n\r\n",
    ],
)
async def test_whatever_is_no_whole_answer_is_a_failure(answer: bytes) -> None:
    prompts = [[[{"role": "user", "content": "x"}]]]
    load = await with_server(lambda _: answer, lambda port: converse(port, "m", prompts, 5), keep=False)
    assert load.figures()["failures"] == 1
    assert load.figures()["tokens_per_second"] == 0


async def test_clients_share_the_calls_of_a_drain() -> None:
    asked: list[bytes] = []

    def reply(body: bytes) -> bytes:
        asked.append(body)
        return OK + b"content-length: 2\r\n\r\nok"

    async def ask(client: Client, number: int) -> None:
        assert await client.post("/x", str(number).encode()) == b"ok"

    rate = await with_server(reply, lambda port: drain(port, 4, 30, ask))
    assert rate > 0
    assert sorted(map(int, asked)) == list(range(30))


async def test_a_refused_call_says_what_the_server_said() -> None:
    answer = b"HTTP/1.1 503 No\r\ncontent-length: 4\r\n\r\nbusy"

    async def use(port: int) -> None:
        async with Client(port) as client:
            with pytest.raises(Failed, match="503: busy"):
                await client.post("/x", b"")

    await with_server(lambda _: answer, use)
