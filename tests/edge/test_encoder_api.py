"""Embeddings, classification and inspection over HTTP: shapes, refusals, records, failures."""

import asyncio
import base64
import json
import struct
from typing import Any

import httpx
import openai
import pytest
from edge_app import catalog_of, edge_app, served
from http_server import running
from memory_journal import MemoryJournal
from scripted_encoder import ScriptedEncoder
from scripted_engine import ScriptedEngine
from starlette.responses import Response

from edge_agent.admission import Limits
from edge_agent.catalog import Catalog, Outcome, Served
from edge_agent.errors import NoRoom
from edge_agent.rest.answers import Later
from edge_agent.rest.errors import Named
from edge_agent.rest.multipart import Part, read_form
from models.digest import Digest
from models.errors import ContextLengthExceeded, EngineError, InvalidImage, UnsafeFile
from models.openai.errors import ApiError

PNG = base64.b64encode(b"a picture").decode()


def encoder(engine: ScriptedEncoder, model_id: str) -> Served:
    return Served(
        model_id=model_id,
        engine=engine,
        adapter_key=None,
        template=None,
        context_tokens=8,
        release=Digest.of(model_id.encode()),
        task=engine.facts.task,
    )


def everything(**changes: Any) -> Catalog:
    return catalog_of(
        served(ScriptedEngine()),
        encoder(ScriptedEncoder("embed", **changes), "minilm"),
        encoder(ScriptedEncoder("classify", **changes), "reviews"),
        encoder(ScriptedEncoder("classify-image", **changes), "parts"),
        encoder(ScriptedEncoder("inspect", **changes), "welds"),
    )


CALLS = [
    ("/v1/embeddings", {"model": "minilm", "input": "pump"}),
    ("/v1/classify", {"model": "reviews", "input": ["pump"]}),
    ("/v1/classify", {"model": "parts", "image": PNG}),
    ("/v1/inspect", {"model": "welds", "image": [PNG]}),
]


async def test_the_openai_client_gets_vectors_in_both_encodings() -> None:
    async with (
        running(edge_app(everything())) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        plain = await client.embeddings.create(model="minilm", input=["ab", "c"], encoding_format="float")
        coded = await client.embeddings.create(model="minilm", input=["ab", "c"])  # base64 on the wire
        raw = await client.embeddings.create(model="minilm", input="ab", encoding_format="base64")
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="nothing", input="x")
        with pytest.raises(openai.BadRequestError, match="token ids"):
            await client.embeddings.create(model="minilm", input=[[1, 2, 3]])
        with pytest.raises(openai.BadRequestError, match="dimensions"):
            await client.embeddings.create(model="minilm", input="x", dimensions=8)
    assert (
        [one.embedding for one in plain.data] == [one.embedding for one in coded.data] == [[2, 0.5], [1, 0.5]]
    )
    assert struct.unpack("<2f", base64.b64decode(raw.data[0].embedding)) == (2.0, 0.5)
    assert (plain.usage.prompt_tokens, plain.usage.total_tokens) == (6, 6)
    assert [one.index for one in plain.data] == [0, 1]
    assert plain.outpost["release"] == Digest.of(b"minilm")


async def test_classes_and_verdicts_have_their_shape() -> None:
    async with running(edge_app(everything())) as url, httpx.AsyncClient(base_url=url) as client:
        texts = (await client.post("/v1/classify", json={"model": "reviews", "input": ["a", "b"]})).json()
        pictures = (await client.post("/v1/classify", json={"model": "parts", "image": PNG})).json()
        found = await client.post(
            "/v1/inspect",
            json={"model": "welds", "image": f"data:image/png;base64,{PNG}", "heat_map": True},
        )
    assert [one["label"] for one in texts["data"]] == ["bad", "bad"]
    assert texts["data"][0]["labels"] == [{"label": "bad", "score": 0.75}, {"label": "good", "score": 0.25}]
    assert pictures["data"][0]["score"] == 0.75
    (verdict,) = found.json()["data"]
    assert (verdict["score"], verdict["verdict"], verdict["threshold"]) == (9.0, "defect", 4.0)
    assert base64.b64decode(verdict["heat_map"]) == b"\x89PNG"
    assert (
        found.headers["x-outpost-served-by"] == "edge" and "x-ratelimit-remaining-requests" in found.headers
    )


async def test_pictures_come_as_files_of_a_form_too() -> None:
    catalog = everything()
    files = [
        ("image", ("a.png", b"abc", "image/png")),
        ("image", ("b.png", b"\r\n--x\r\ndefgh", "image/png")),
    ]
    async with running(edge_app(catalog)) as url, httpx.AsyncClient(base_url=url) as client:
        found = await client.post("/v1/inspect", data={"model": "welds", "heat_map": "true"}, files=files)
        assert [one["verdict"] for one in found.json()["data"]] == ["good", "defect"]
        for data, why in [
            ({}, "model"),
            ({"model": "welds", "heatmap": "true"}, "heatmap"),
            ({"model": "welds", "heat_map": "yes"}, "heat_map"),
            ({"model": ["welds", "parts"]}, "model"),
        ]:
            refused = await client.post("/v1/inspect", data=data, files=files)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, why)
        head = {"content-type": "multipart/form-data; boundary=x"}
        cut = await client.post("/v1/inspect", content=b"--x\r\nno end", headers=head)
        assert cut.json()["error"]["code"] == "invalid_form"
    engine = catalog.resolve("welds").engine
    assert isinstance(engine, ScriptedEncoder) and engine.calls[0].images == (b"abc", b"\r\n--x\r\ndefgh")


def test_forms_are_read_as_clients_write_them() -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwelds\r\n'
        b'--x\r\ncontent-disposition: form-data; name="image"; filename="a;b.png"\r\n'
        b"Content-Type: image/png\r\n\r\n\x89PNG\r\n\r\n--x--\r\n"
    )
    content_type = 'multipart/form-data; boundary="x"'
    assert read_form(content_type, body) == [Part("model", b"welds"), Part("image", b"\x89PNG\r\n")]
    for broken in (
        b"",
        b"--x--",
        body[:-8],
        body.replace(b'name="model"', b""),
        b"--x\r\n\r\n" * 300 + b"--x--",
    ):
        if broken != b"--x--":
            with pytest.raises(ApiError):
                read_form(content_type, broken)
    with pytest.raises(ApiError, match="boundary"):
        read_form("multipart/form-data", body)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"model": "minilm"}, "input"),
        ("/v1/embeddings", {"model": "minilm", "input": []}, "input"),
        ("/v1/embeddings", {"model": "minilm", "input": ["a", ""]}, "input"),
        ("/v1/embeddings", {"model": "minilm", "input": ["a", {}]}, "input"),
        ("/v1/embeddings", {"model": "minilm", "input": ["a"] * 2049}, "input"),
        ("/v1/embeddings", {"model": "minilm", "input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"model": "minilm", "input": "a", "inputs": "b"}, "inputs"),
        ("/v1/classify", {"model": "reviews"}, "input"),
        ("/v1/classify", {"model": "reviews", "input": "a", "image": PNG}, "input"),
        ("/v1/inspect", {"model": "welds", "image": "no base64"}, "image"),
        ("/v1/inspect", {"model": "welds", "image": [PNG] * 65}, "image"),
        ("/v1/inspect", {"model": "welds", "image": 7}, "image"),
        ("/v1/inspect", {"model": "welds", "input": "text"}, "input"),
        ("/v1/classify", {"model": "parts", "image": PNG, "heat_map": True}, "heat_map"),
        ("/v1/classify", {"model": "reviews", "input": "a", "heat_map": "overlay"}, "heat_map"),
    ],
)
async def test_what_is_wrong_is_named(path: str, body: dict[str, Any], param: str) -> None:
    async with running(edge_app(everything())) as url, httpx.AsyncClient(base_url=url) as client:
        refused = await client.post(path, json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        (
            "/v1/chat/completions",
            {"model": "minilm", "messages": [{"role": "user", "content": "x"}]},
            "embeddings",
        ),
        ("/v1/completions", {"model": "welds", "prompt": "x", "stream": True}, "inspect"),
        ("/v1/embeddings", {"model": "smol", "input": "x"}, "chat/completions"),
        ("/v1/embeddings", {"model": "reviews", "input": "x"}, "classify"),
        ("/v1/classify", {"model": "parts", "input": "x"}, "classify"),
        ("/v1/inspect", {"model": "parts", "image": PNG}, "classify"),
    ],
)
async def test_a_model_asked_for_something_else_says_where_it_is_asked(path, body, where) -> None:
    journal = MemoryJournal()
    async with (
        running(edge_app(everything(), journal=journal)) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        refused = await client.post(path, json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "unsupported_model", "model")
    assert f"/v1/{where}" in error["message"]
    assert [record.facts.get("error") for record in journal.records] == [None, "WrongTask"]


@pytest.mark.parametrize(("path", "body"), CALLS)
async def test_intent_and_result_surround_every_answer(path: str, body: dict[str, Any]) -> None:
    journal, outcomes = MemoryJournal(delay=0.02), list[Outcome]()
    catalog = everything()
    catalog.observe(outcomes.append)
    async with running(edge_app(catalog, journal=journal)) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.post(path, json=body | {"user": "shift-3"})
        metrics = (await client.get("/metrics")).text
    assert answer.json()["outpost"]["audit"] == {"intent": 1, "result": 2}
    known = json.loads(base64.urlsafe_b64decode(answer.headers["x-outpost-receipt"] + "=="))
    assert known["audit"] == {"intent": 1, "result": 2}
    intent, result = journal.records
    assert (intent.facts["endpoint"], intent.facts["model"]) == (path.rsplit("/", 1)[1], body["model"])
    assert (result.facts["release"], result.facts["inputs"]) == (Digest.of(body["model"].encode()), 1)
    assert {record.subject for record in journal.records} == {"shift-3"}
    assert "pump" not in json.dumps([record.facts for record in journal.records])
    assert [outcome.ok for outcome in outcomes] == [True] and outcomes[0].completion_tokens == 1
    assert f'outpost_request_success_total{{model_name="{body["model"]}",served_by="edge"}} 1' in metrics
    if "image" in body:
        assert PNG.encode() not in intent.body and Digest.of(b"a picture").hex.encode() in intent.body


async def test_of_vectors_their_digest_is_on_record() -> None:
    journal = MemoryJournal()
    async with (
        running(edge_app(everything(), journal=journal)) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        asked = {"model": "minilm", "input": ["x" * 1000] * 200, "encoding_format": "base64"}
        answer = (await client.post("/v1/embeddings", json=asked)).json()
    intent, result = journal.records
    assert json.loads(intent.body) == asked
    vectors = b"".join(base64.b64decode(one["embedding"]) for one in answer["data"])
    assert json.loads(result.body) == {"embeddings": 200, "sha256": Digest.of(vectors).hex}


@pytest.mark.parametrize(("path", "body"), CALLS)
async def test_without_a_record_nothing_is_answered(path: str, body: dict[str, Any]) -> None:
    for full in ("intent", "result"):
        journal = MemoryJournal(full=frozenset({full}))
        async with (
            running(edge_app(everything(), journal=journal)) as url,
            httpx.AsyncClient(base_url=url) as client,
        ):
            refused = await client.post(path, json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "audit_unavailable")


@pytest.mark.parametrize(
    ("error", "status", "code", "blamed"),
    [
        (EngineError("killed by signal 9"), 503, "engine_failed", True),
        (ContextLengthExceeded("too long"), 400, "context_length_exceeded", False),
        (InvalidImage("no picture"), 400, "invalid_image", False),
        (NoRoom("needs about 60 MB of 50 MB"), 503, "no_room", False),
        (UnsafeFile("model.onnx: is cut off"), 503, "unsafe_file", False),
    ],
)
async def test_failures_are_blamed_on_who_is_to_blame(error, status, code, blamed) -> None:
    journal, outcomes = MemoryJournal(), list[Outcome]()
    catalog = everything(fail_with=error)
    catalog.observe(outcomes.append)
    async with running(edge_app(catalog, journal=journal)) as url, httpx.AsyncClient(base_url=url) as client:
        refused = await client.post("/v1/inspect", json={"model": "welds", "image": PNG})
        metrics = (await client.get("/metrics")).text
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    assert "x-ratelimit-remaining-requests" in refused.headers
    assert refused.json()["error"]["message"].endswith(f"{str(error)[1:]}.")  # begun as a sentence
    assert journal.records[-1].facts["error"] == type(error).__name__
    assert [outcome.ok for outcome in outcomes] == ([False] if blamed else [])
    assert ("outpost_engine_failures_total{" in metrics) is blamed


async def test_an_error_brings_the_headers_that_an_answer_would() -> None:
    async def work() -> Response:
        raise NoRoom("needs about 60 MB of 50 MB")

    places = {"x-ratelimit-remaining-requests": "3"}
    app = httpx.ASGITransport(Later(work, Named(), places))
    async with httpx.AsyncClient(transport=app, base_url="http://here") as client:
        refused = await client.get("/")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_room")
    assert refused.headers["x-ratelimit-remaining-requests"] == "3"
    assert refused.headers["retry-after"]


async def test_restricted_is_answered_here_and_bodies_that_are_too_large_are_not() -> None:
    app = edge_app(everything(), limits=Limits(max_body_bytes=1000, max_picture_bytes=2000))
    async with running(app) as url, httpx.AsyncClient(base_url=url) as client:
        head = {"x-outpost-data-class": "restricted"}
        kept = await client.post("/v1/embeddings", json={"model": "minilm", "input": "x"}, headers=head)
        assert kept.json()["outpost"]["data_class"] == "restricted"
        for path, body in [("/v1/embeddings", "x" * 1001), ("/v1/inspect", "x" * 2001)]:
            assert (await client.post(path, content=body)).status_code == 413


async def test_a_client_that_leaves_frees_its_place_and_the_queue_is_bounded() -> None:
    gate, journal = asyncio.Event(), MemoryJournal()
    engine = ScriptedEncoder("embed", gate=gate)
    app = edge_app(
        catalog_of(encoder(engine, "minilm")), journal=journal, limits=Limits(running=1, waiting=0)
    )
    ask = {"model": "minilm", "input": "x"}
    async with running(app) as url, httpx.AsyncClient(base_url=url) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/embeddings", json=ask, timeout=0.2)
        await asyncio.wait_for(journal.until("result", 1), 5)
        waiting = asyncio.create_task(client.post("/v1/embeddings", json=ask))
        while len(engine.calls) < 2:  # noqa: ASYNC110 - nothing tells of a call
            await asyncio.sleep(0.01)
        assert (await client.post("/v1/embeddings", json=ask)).status_code == 429
        gate.set()
        assert (await waiting).status_code == 200
    assert engine.cancelled == 1
    assert journal.records[1].facts["error"] == "CancelledError"


async def test_encoders_are_ready_when_they_have_answered() -> None:
    catalog = everything()
    async with running(edge_app(catalog)) as url, httpx.AsyncClient(base_url=url) as client:
        found = (await client.get("/readyz")).json()["models"]
        assert [name for name, one in found.items() if one["ready"]] == [
            "minilm",
            "parts",
            "reviews",
            "smol",
            "welds",
        ]
        assert len((await client.get("/v1/models")).json()["data"]) == 5
