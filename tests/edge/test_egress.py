"""What leaves the device, what never does, and what happens when the hub is not what it should be."""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from edge_app import catalog_of, edge_app, served
from http_server import running
from memory_journal import MemoryJournal
from scripted_engine import ScriptedEngine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge_agent.calls.questions import Rules
from edge_agent.catalog import Catalog
from edge_agent.egress import Egress
from edge_agent.errors import PolicyViolation
from edge_agent.policy import PolicyInput, decide
from models.data_class import DataClass
from models.digest import Digest
from models.engines.base import Usage
from models.openai import sse
from models.openai.errors import ApiError
from models.openai.parts import Piece
from models.openai.writers import ChatWriter
from sync.requests import HEADER, open_request

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CHAT = "/v1/chat/completions"
RELEASE = Digest.of(b"the release above")
RECEIPT = {"served_by": "edge", "model": "big", "release": RELEASE, "adapter": "what the caller asked"}


class Hub:
    """A device listener: verifies who speaks, keeps what it received, answers ``texts`` or as told."""

    def __init__(self, *texts: str, answer: Callable[[bytes], Response] | None = None) -> None:
        self.received: list[bytes] = []
        self._texts = texts
        self._answer = answer or self._well

    def app(self) -> Starlette:
        return Starlette(routes=[Route(CHAT, self._serve, methods=["POST"])])

    async def _serve(self, request: Request) -> Response:
        body = await request.body()
        claim = open_request(request.headers[HEADER], body, time.time(), {"press-07": KEY.public_key()}.get)
        assert claim.device == "press-07"
        self.received.append(body)
        return self._answer(body)

    def _well(self, body: bytes) -> Response:
        return Response(stream_of(*self._texts), media_type="text/event-stream")


def stream_of(*texts: str, done: bool = True, receipt: dict[str, Any] = RECEIPT) -> bytes:
    writer = ChatWriter("chatcmpl-hub", 0, "big", include_usage=True)
    pieces = b"".join(writer.piece(Piece(text=text)) for text in texts)
    stream = writer.opening(receipt) + pieces + writer.closing(["stop"], Usage(7, 3), receipt)
    return stream if done else stream.removesuffix(sse.DONE)


@asynccontextmanager
async def device(
    catalog: Catalog, hub: Hub | None, *, journal: MemoryJournal | None = None, rules: Rules = Rules()
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an edge; without a hub, its hub cannot be reached."""
    async with AsyncExitStack() as stack:
        hub_url = await stack.enter_async_context(running(hub.app())) if hub else "http://127.0.0.1:1"
        to_hub = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        egress = Egress(hub_url, "press-07", KEY, to_hub, time.time)
        app = edge_app(catalog, journal=journal, egress=egress, rules=rules)
        url = await stack.enter_async_context(running(app))
        yield await stack.enter_async_context(httpx.AsyncClient(base_url=url))


def chat(**changes: Any) -> dict[str, Any]:
    return {"model": "smol", "messages": [{"role": "user", "content": "canary-4711"}]} | changes


HEAVY = Rules(heavy_tokens=1)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_heavy_request_runs_at_the_hub_and_says_so(stream: bool) -> None:
    hub, journal = Hub("from ", "above"), MemoryJournal()
    async with device(catalog_of(served(ScriptedEngine())), hub, journal=journal, rules=HEAVY) as client:
        response = await client.post(CHAT, json=chat(stream=stream, user="bob"))
    assert response.headers["x-outpost-served-by"] == "hub"
    assert "from " in response.text and "above" in response.text
    final = json.loads(response.text.split("data: ")[-2]) if stream else response.json()
    assert final["outpost"]["upstream"] == RECEIPT
    assert final["outpost"]["audit"] == {"intent": 1, "result": 2}
    assert b"canary-4711" in hub.received[0]
    assert b"bob" not in hub.received[0]


async def test_a_model_that_is_only_at_the_hub_is_asked_there_and_the_leaf_says_what_answered() -> None:
    hub, journal = Hub("hi"), MemoryJournal()
    async with device(catalog_of(), hub, journal=journal) as client:
        response = await client.post(CHAT, json=chat(model="big"))
    assert response.json()["usage"]["prompt_tokens"] == 7
    assert response.json()["model"] == "big"
    intent, result = journal.records
    assert (intent.facts["model"], intent.facts["reason"]) == ("unknown", "not-here")
    assert (result.facts["served_by"], result.facts["release"]) == ("hub", None)
    # Only digests of another's receipt get into a leaf: the rest could be anything.
    assert result.facts["upstream"] == {"release": RELEASE, "adapter": None, "prompt": None}


async def test_the_leaf_finds_the_release_inside_the_hubs_own_receipt() -> None:
    nested = stream_of("hi", receipt={"served_by": "hub", "upstream": RECEIPT})
    hub, journal = Hub(answer=lambda _: Response(nested, media_type="text/event-stream")), MemoryJournal()
    async with device(catalog_of(), hub, journal=journal) as client:
        response = await client.post(CHAT, json=chat(model="big"))
    assert response.json()["outpost"]["upstream"]["upstream"] == RECEIPT
    assert journal.records[1].facts["upstream"] == {"release": RELEASE, "adapter": None, "prompt": None}


@pytest.mark.parametrize("declared", ["restricted", "RESTRICTED", "top secret"])
async def test_restricted_content_never_reaches_the_hub(declared: str) -> None:
    hub, headers, journal = Hub("hi"), {"x-outpost-data-class": declared}, MemoryJournal()
    catalog = catalog_of(served(ScriptedEngine()))
    async with device(catalog, hub, journal=journal, rules=HEAVY) as client:
        here = await client.post(CHAT, json=chat(), headers=headers)
        elsewhere = await client.post(CHAT, json=chat(model="big"), headers=headers)
    assert here.headers["x-outpost-served-by"] == "edge"
    assert (elsewhere.status_code, elsewhere.json()["error"]["code"]) == (403, "restricted")
    assert hub.received == []
    assert [record.facts.get("error") for record in journal.records] == [None, None, None, "PolicyViolation"]
    assert {record.data_class for record in journal.records} == {"restricted"}


async def test_without_an_intent_on_record_nothing_leaves() -> None:
    hub, journal = Hub("hi"), MemoryJournal(full=frozenset({"intent"}), delay=0.05)
    async with device(catalog_of(), hub, journal=journal) as client:
        response = await client.post(CHAT, json=chat(model="big"))
    assert response.status_code == 503
    assert hub.received == []


async def test_an_unreachable_hub_means_a_provisional_answer_from_here_or_a_503() -> None:
    journal = MemoryJournal()
    catalog = catalog_of(served(ScriptedEngine("from here")))
    async with device(catalog, None, journal=journal, rules=HEAVY) as client:
        local = await client.post(CHAT, json=chat())
        nowhere = await client.post(CHAT, json=chat(model="big"))
    assert local.json()["choices"][0]["message"]["content"] == "from here"
    assert local.json()["outpost"]["provisional"] is True
    assert local.json()["outpost"]["served_by"] == "edge"
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (503, "hub_unreachable")
    assert journal.kinds == ["intent", "result"] * 2


@pytest.mark.parametrize(
    "answer",
    [
        JSONResponse({"error": "down"}, 502),
        JSONResponse(ApiError(503, "No upstream can be reached.", code="no_upstream").body(), 503),
        JSONResponse(ApiError(404, "No upstream serves it.", code="model_not_found").body(), 404),
    ],
    ids=["down", "no upstream", "no model"],
)
async def test_a_hub_that_has_no_answer_means_a_provisional_one_from_here(answer: Response) -> None:
    hub = Hub(answer=lambda body: answer)
    async with device(catalog_of(served(ScriptedEngine())), hub, rules=HEAVY) as client:
        response = await client.post(CHAT, json=chat())
    assert response.json()["outpost"]["provisional"] is True
    assert response.headers["x-outpost-served-by"] == "edge"


async def test_what_the_hub_refuses_of_a_heavy_request_is_not_answered_here() -> None:
    refusal = JSONResponse(ApiError(400, "Too long.", code="context_length_exceeded").body(), 400)
    engine, hub = ScriptedEngine(), Hub(answer=lambda body: refusal)
    async with device(catalog_of(served(engine)), hub, rules=HEAVY) as client:
        response = await client.post(CHAT, json=chat())
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert engine.requests == []


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (
            JSONResponse(ApiError(400, "Too long.", code="context_length_exceeded").body(), 400),
            400,
            "context_length_exceeded",
        ),
        (JSONResponse(ApiError(403, "Revoked.").body(), 403), 502, "hub_refused"),
        (JSONResponse(ApiError(404, "None.", code="model_not_found").body(), 404), 404, "model_not_found"),
        (JSONResponse({"nothing": "useful"}, 404), 502, "hub_broke"),
        (Response("<html>", media_type="text/html"), 502, "hub_broke"),
        (Response(b"data: {}\n\n", media_type="text/event-stream"), 502, "hub_broke"),
        (Response(b"data: [DONE]\n\n", media_type="text/event-stream"), 502, "hub_broke"),
        (Response(b"x" * (2 << 20), media_type="text/event-stream"), 502, "hub_broke"),
    ],
)
async def test_what_is_no_answer_is_a_named_error(answer: Response, status: int, code: str) -> None:
    hub = Hub(answer=lambda body: answer)
    async with device(catalog_of(), hub) as client:
        response = await client.post(CHAT, json=chat(model="big"))
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


async def test_a_hub_that_breaks_off_ends_the_stream_with_an_error() -> None:
    body = stream_of("half an ", done=False)
    hub = Hub(answer=lambda _: Response(body, media_type="text/event-stream"))
    async with device(catalog_of(), hub) as client:
        response = await client.post(CHAT, json=chat(model="big", stream=True))
    assert "half an " in response.text
    assert '"code":"hub_broke"' in response.text
    assert "[DONE]" not in response.text


async def test_egress_sends_nothing_under_a_decision_that_does_not_cover_it() -> None:
    def decision(declared: str | None, body: bytes) -> Any:
        return decide(PolicyInput(declared, DataClass.PUBLIC, Digest.of(body), 1, 1, False, True))

    hub = Hub("hi")
    async with running(hub.app()) as hub_url, httpx.AsyncClient() as to_hub:
        egress = Egress(hub_url, "press-07", KEY, to_hub, time.time)
        for made, body in [
            (decision("restricted", b"{}"), b"{}"),
            (decision(None, b"{}"), b'{"other": 1}'),
            ("let it pass", b"{}"),
        ]:
            with pytest.raises(PolicyViolation):
                await anext(egress.send(made, body, "r1"))
    assert hub.received == []
