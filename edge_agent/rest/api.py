"""The local REST API: OpenAI's routes over a catalog, those of encoders, health, readiness, metrics.

Owns routes and how a request's body becomes a call. Everything that can go wrong is answered in
OpenAI's shape. Refuses: policy, journal and engines, which come in from outside.
"""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge_agent.admission import Admission, Bodies, Limits
from edge_agent.calls.encoders import EncoderService
from edge_agent.calls.questions import Rules
from edge_agent.calls.shared import Shared
from edge_agent.calls.text import Service
from edge_agent.catalog import Catalog, Served
from edge_agent.egress import Egress
from edge_agent.errors import EdgeError
from edge_agent.journal import Journal
from edge_agent.keys import Keys
from edge_agent.metrics import MEDIA_TYPE, Metrics
from edge_agent.rest import openapi
from edge_agent.rest.answers import error_response
from edge_agent.rest.encoders import encoder_routes
from edge_agent.rest.errors import Named, to_api_error
from edge_agent.rest.guard import LOOPBACK_HOSTS, Guard, Locked
from edge_agent.rest.readiness import Readiness
from edge_agent.rest.text import text_routes
from models.openai.errors import ApiError
from models.openai.writers import model_json, models_json


def create_app(
    catalog: Catalog,
    *,
    journal: Journal | None,
    egress: Egress | None,
    now: Callable[[], float],
    monotonic: Callable[[], float],
    new_id: Callable[[], str],
    limits: Limits = Limits(),
    rules: Rules = Rules(),
    hosts: frozenset[str] = LOOPBACK_HOSTS,
    keys: Keys | None = None,
) -> FastAPI:
    """The API. ``now``: seconds since the epoch; ``monotonic``: seconds for durations; ``new_id``: an
    unguessable string for each request; ``hosts``: the names that this server may be called by; ``keys``:
    who may call, None for everybody who can reach it.
    """
    app = FastAPI(title="Outpost edge", docs_url=None, redoc_url=None, openapi_url=None)
    metrics = Metrics()
    admission = Admission(limits)
    readiness = Readiness(catalog)
    shared = Shared(catalog, journal, admission, rules, metrics, monotonic)

    def places() -> dict[str, str]:
        return {
            "x-ratelimit-limit-requests": str(limits.capacity),
            "x-ratelimit-remaining-requests": str(admission.remaining),
        }

    def sees() -> bool:
        return any(served.takes for served in catalog.list())

    text = Service(shared, egress)
    app.include_router(text_routes(text, limits, _read_body, places, now, sees, hub=egress is not None))
    app.include_router(encoder_routes(EncoderService(shared), limits, _read_body, places))

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse(models_json([_row(served) for served in catalog.list()]))

    @app.get("/v1/models/{model_id:path}")
    async def model(model_id: str) -> Response:
        return JSONResponse(_row(catalog.resolve(model_id)))

    @app.get("/openapi.json", include_in_schema=False)
    async def description() -> Response:
        return JSONResponse(openapi.describe(app, [served.model_id for served in catalog.list()]))

    @app.get("/healthz")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/readyz")
    async def ready() -> Response:
        models = await readiness.check()
        is_ready = bool(models) and all(one.ready for one in models.values())
        body = {
            "status": "ready" if is_ready else "not ready",
            "models": {name: one.to_json() for name, one in models.items()},
        }
        return JSONResponse(body, 200 if is_ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        text = metrics.text(in_flight=admission.inside, served=catalog.list())
        return PlainTextResponse(text, media_type=MEDIA_TYPE)

    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(EdgeError, _edge_error)
    app.add_exception_handler(HTTPException, _http_error)
    # The last added is the outermost: what the guard refuses is counted too, and holds no memory.
    app.add_middleware(_Weighed, bodies=Bodies(limits), retry_after=admission.retry_after)
    if keys is not None:
        app.add_middleware(Locked, keys=keys)
    app.add_middleware(Guard, hosts=hosts, new_id=new_id)
    app.add_middleware(_Counted, metrics=metrics)
    return app


class _Counted:
    """ASGI middleware that counts answers by route and status."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self._metrics.http(route, message["status"])
            await send(message)

        await self._app(scope, receive, counted if scope["type"] == "http" else send)


class _Weighed:
    """ASGI middleware that bounds the bodies of all requests together, from their first byte to their end."""

    def __init__(self, app: ASGIApp, *, bodies: Bodies, retry_after: Callable[[], int]) -> None:
        self._app = app
        self._bodies = bodies
        self._retry_after = retry_after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        taken = 0

        async def weighed() -> Message:
            nonlocal taken
            message = await receive()
            size = len(message.get("body", b""))
            self._bodies.take(size, self._retry_after())  # raised where the body is read
            taken += size
            return message

        try:
            await self._app(scope, weighed, send)
        finally:
            self._bodies.give_back(taken)


def _row(served: Served) -> dict[str, Any]:
    facts = {"task": served.task or "generate", "context_length": served.context_tokens or None}
    return model_json(served.model_id, served.created) | {"outpost": facts}


async def _read_body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > limit:
            raise ApiError(413, f"The body is larger than {limit} bytes.", code="request_too_large")
    return bytes(body)


async def _api_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return error_response(error)


async def _edge_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, EdgeError):
        raise error
    return error_response(to_api_error(error, Named()))


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        meant = _meant(request)
        hint = f" Did you mean {meant}?" if meant else ""
        return error_response(ApiError(404, f"There is no {where} here.{hint}", code="unknown_url"))
    if error.status_code == 405:
        refused = ApiError(405, f"{where} is not allowed here.", code="method_not_allowed")
        response = error_response(refused)
        response.headers.update(error.headers or {})
        return response
    return error_response(ApiError(error.status_code, str(error.detail), code="http_error"))


def _meant(request: Request) -> str | None:
    """The path of a route that a client with a wrong base URL wanted."""
    path = request.url.path
    for meant in (f"/v1{path}", path.removeprefix("/v1")):
        asked = {**request.scope, "path": meant}
        if any(route.matches(asked)[0] is Match.FULL for route in request.app.routes):
            return meant
    return None
