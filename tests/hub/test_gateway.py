"""The gateway against upstreams that answer, stream, break off, or are not there."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fake_upstream import CHUNKS, upstream
from fastapi import FastAPI

from cloud_hub.gateway import Gateway
from cloud_hub.routing import Upstream
from cloud_hub.web import answer_errors
from models.openai import sse
from models.openai.errors import ApiError


@asynccontextmanager
async def gateway(*known: Upstream) -> AsyncIterator[Gateway]:
    async def upstreams() -> list[Upstream]:
        return list(known)

    async def key(path: str) -> str:
        return f"secret of {path}"

    async with httpx.AsyncClient(trust_env=False) as client:
        yield Gateway(client, upstreams, key, asyncio.get_running_loop().time)


BODY = json.dumps({"model": "alias", "messages": [], "unknown_option": 1}).encode()


async def body_of(gate: Gateway, headers: dict[str, str] | None = None) -> bytes:
    answer = await gate.forward("/v1/chat/completions", BODY, headers or {})
    return b"".join([block async for block in answer.body])


async def test_a_dead_upstream_is_passed_over_and_the_model_gets_its_own_name() -> None:
    async with upstream() as (url, received):
        dead = Upstream("a-dead", "http://127.0.0.1:1", "big", ("alias",))
        alive = Upstream("b-alive", url, "big", ("alias",), "key.txt")
        async with gateway(dead, alive) as gate:
            assert b"chat.completion" in await body_of(
                gate, {"x-outpost-data-class": "internal", "cookie": "c"}
            )
            head, _, sent = received[0].partition(b"\r\n\r\n")
            assert json.loads(sent) == {"model": "big", "messages": [], "unknown_option": 1}
            assert b"authorization: Bearer secret of key.txt" in head
            assert b"x-outpost-data-class: internal" in head and b"cookie" not in head
            assert await gate.models() == ["alias", "big"]


async def test_a_stream_is_passed_on_and_a_broken_one_ends_in_an_error() -> None:
    async with upstream(streams=True) as (url, _), gateway(Upstream("u", url, "alias")) as gate:
        assert await body_of(gate) == b"".join(CHUNKS)
    async with upstream(streams=True, breaks=True) as (url, _), gateway(Upstream("u", url, "alias")) as gate:
        broken = await body_of(gate)
        assert b"[DONE]" not in broken and b'"code":"upstream_failed"' in broken


THEIRS = {"served_by": "edge", "release": "sha256:" + "1" * 64}


async def test_the_hub_says_that_it_served_and_nests_what_the_upstream_says() -> None:
    own = {"served_by": "hub"}
    for theirs, expected in ((THEIRS, own | {"upstream": THEIRS}), (None, own)):
        body = json.dumps({"object": "chat.completion", "outpost": theirs} if theirs else {"object": "x"})
        async with upstream(body=body.encode()) as (url, _), gateway(Upstream("u", url, "alias")) as gate:
            assert json.loads(await body_of(gate))["outpost"] == expected


async def test_a_stream_ends_with_the_hubs_receipt_wherever_it_is_cut() -> None:
    first = b'data: {"choices":[{"delta":{"content":"\xc3\xbc"},"finish_reason":null}]}\n\n'
    finish = sse.event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    usage = sse.event({"choices": [], "outpost": THEIRS})
    whole = first + finish + usage + sse.DONE
    pieces = [whole[at : at + 7] for at in range(0, len(whole), 7)]
    async with (
        upstream(streams=True, chunks=pieces) as (url, _),
        gateway(Upstream("u", url, "alias")) as gate,
    ):
        answer = await body_of(gate)
    assert answer.startswith(first) and answer.endswith(sse.DONE)
    receipts = [json.loads(event[6:]).get("outpost") for event in answer.split(b"\n\n")[:-2]]
    assert receipts == [None, {"served_by": "hub"}, {"served_by": "hub", "upstream": THEIRS}]


async def test_what_nobody_expected_comes_out_in_the_shape_of_an_error() -> None:
    app = FastAPI()
    answer_errors(app)

    @app.get("/")
    async def defect() -> None:
        raise RuntimeError("of this hub alone")

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://hub") as client:
        response = await client.get("/")
    assert response.status_code == 500 and "hub failed" in response.json()["error"]["message"]
    assert "alone" not in response.text


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (BODY, {"x-outpost-data-class": "restricted"}, 403, "data_class_restricted"),
        (BODY, {"x-outpost-data-class": " Restricted"}, 403, "data_class_restricted"),
        (BODY, {"x-outpost-data-class": "top secret"}, 403, "data_class_restricted"),
        (BODY, {"x-outpost-data-class": ""}, 403, "data_class_restricted"),
        (b"{", {}, 400, "invalid_json"),
        (b'{"model":"alias","x":"\\ud800"}', {}, 400, "invalid_json"),
        (b'{"messages":[]}', {}, 400, "missing_required_parameter"),
        (b'{"model":"other"}', {}, 404, "model_not_found"),
        (BODY, {}, 503, "no_upstream"),
    ],
)
async def test_refusals(body: bytes, headers: dict[str, str], status: int, code: str | None) -> None:
    async with gateway(Upstream("dead", "http://127.0.0.1:1", "alias")) as gate:
        with pytest.raises(ApiError) as refusal:
            await gate.forward("/v1/chat/completions", body, headers)
        assert (refusal.value.status, refusal.value.code) == (status, code)
