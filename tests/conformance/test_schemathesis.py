"""What our own description of the API allows, and what it does not, made up by schemathesis.

Whatever comes is answered as described or refused in OpenAI's form; nothing is a 5xx. Streams are left out:
they are read event by event elsewhere. Answers are kept short. ``--real-model`` asks ``outpost-edge serve``.
"""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from edge_app import catalog_of, edge_app, served
from http_server import running
from hypothesis import HealthCheck, settings
from schemathesis import checks
from scripted_encoder import ScriptedEncoder
from scripted_engine import ScriptedEngine
from starlette.testclient import TestClient
from targets import edge

from edge_agent.catalog import ROUTES, Served

EXAMPLES = 15
"""Bodies for each route."""
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
LIMITS = {
    "/v1/chat/completions": ("max_tokens",),
    "/v1/completions": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
}
SHORT = 8
"""Tokens; a description allows as many as there are."""
NAMES = {route: task or "text" for task, route in ROUTES.items()}
NAMES |= {"/v1/completions": "text", "/v1/responses": "text"}
"""A model that each route can ask."""


def described() -> dict[str, Any]:
    """What the app says of itself."""
    found: dict[str, Any] = TestClient(edge_app(catalog_of()), "http://localhost").get("/openapi.json").json()
    return found


async def serve(started: threading.Event, url: list[str], stop: threading.Event) -> None:
    """A model for every task until ``stop``."""
    encoders = [ScriptedEncoder(task) for task in ROUTES if task is not None]
    models = [Served(one.facts.task, one, None, None, 8, task=one.facts.task) for one in encoders]
    async with running(edge_app(catalog_of(served(ScriptedEngine(), "text"), *models))) as base:
        url.append(base)
        started.set()
        await asyncio.to_thread(stop.wait)


@pytest.fixture(scope="module")
def base_url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.config.getoption("--real-model", default=False):
        with edge() as target:
            yield target.base_url.removesuffix("/v1")
        return
    started, stop, url = threading.Event(), threading.Event(), list[str]()
    thread = threading.Thread(target=lambda: asyncio.run(serve(started, url, stop)))
    thread.start()
    try:
        assert started.wait(10)
        yield url[0]
    finally:
        stop.set()
        thread.join(10)


@pytest.fixture(scope="module")
def published(base_url: str) -> list[str]:
    return [model["id"] for model in httpx.get(f"{base_url}/v1/models").json()["data"]]


schema = schemathesis.openapi.from_dict(described())


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_whatever_comes_is_answered_or_refused_in_openais_form(
    case: schemathesis.Case, base_url: str, published: list[str]
) -> None:
    body = case.body
    if isinstance(body, dict):
        if "stream" in body:
            body["stream"] = False
        for limit in LIMITS.get(case.operation.path, ()):
            if isinstance(body.get(limit, SHORT), int):
                body[limit] = min(body.get(limit, SHORT), SHORT)
        if isinstance(body.get("model"), str):  # a name made up would be the only thing that is looked at
            name = NAMES.get(case.operation.path, "text")
            body["model"] = name if name in published else published[0]
    case.call_and_validate(base_url=base_url, checks=CHECKS)
