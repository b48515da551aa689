"""The gateway against upstreams that answer, stream, break off, or are not there."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fake_upstream import CHUNKS, upstream

from cloud_hub.gateway import Gateway
from cloud_hub.routing import Upstream
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


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (BODY, {"x-outpost-data-class": "restricted"}, 403, "data_class_restricted"),
        (BODY, {"x-outpost-data-class": " Restricted"}, 403, "data_class_restricted"),
        (BODY, {"x-outpost-data-class": "top secret"}, 403, "data_class_restricted"),
        (BODY, {"x-outpost-data-class": ""}, 403, "data_class_restricted"),
        (b"{", {}, 400, "invalid_json"),
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
