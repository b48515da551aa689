"""The people's listener (8443): REST with roles, the gateway, enrolment, metrics; the console mounts here."""

import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from cloud_hub import access, console, control, registry, view
from cloud_hub.access import Bearer, Permission, Role
from cloud_hub.database import Database
from cloud_hub.enrolment import Enroller
from cloud_hub.errors import NotAllowed, NotFound
from cloud_hub.gateway import PATHS, Gateway
from cloud_hub.ingest import export_ring, export_trail
from cloud_hub.rollout import parse_waves
from cloud_hub.snapshot import read_rows
from cloud_hub.web import Clock, answer_errors, bearer_token, forward, read_body
from models.openai.writers import model_json, models_json
from sync.identity import Anchor, EnrolRequest
from sync.protocol import ProbationTerms

Counts = Callable[[], dict[str, float]]
"""Process counters for ``/metrics``, by name."""


class RolloutOrder(BaseModel):
    """Body of ``POST /api/v1/rollouts``."""

    model_config = ConfigDict(extra="forbid")

    release: str
    group: str
    waves: str = "100%"
    probation: ProbationTerms = Field(default=ProbationTerms())


class TokenOrder(BaseModel):
    """Body of ``POST /api/v1/tokens``."""

    model_config = ConfigDict(extra="forbid")

    role: Role
    name: str = ""
    days: float | None = Field(default=None, gt=0)


def create_app(
    database: Database,
    gateway: Gateway,
    enroller: Enroller,
    anchor: Anchor,
    console_routes: APIRouter,
    counts: Counts,
    stale_after: float,
    now: Clock,
) -> FastAPI:
    """The application of the people's listener."""
    app = FastAPI(title="Outpost hub", docs_url=None, redoc_url=None, openapi_url="/api/v1/openapi.json")
    answer_errors(app)

    def demand(permission: Permission) -> Callable[[Request], Coroutine[Any, Any, Bearer]]:
        async def check(request: Request) -> Bearer:
            token = bearer_token(request)
            bearer = await database.reading(lambda each: access.authenticate(each, token, now()))
            if not bearer.may(permission):
                raise NotAllowed(f"the role {bearer.role} may not {permission}")
            return bearer

        return check

    async def picture() -> dict[str, Any]:
        rows = await database.reading(read_rows)
        return view.picture(rows, now(), stale_after)

    _mount_open(app, enroller, anchor, database, now)
    app.include_router(_fleet(picture, demand, database, now))
    app.include_router(_trail(database, demand))
    app.include_router(_inference(gateway, demand, now))
    app.include_router(console_routes)
    app.mount(console.STATIC, console.static_files())

    @app.get("/metrics", dependencies=[Depends(demand(Permission.VIEW))])
    async def metrics() -> Response:
        return PlainTextResponse(_metrics(await picture(), counts()), media_type="text/plain; version=0.0.4")

    return app


Demand = Callable[[Permission], Callable[[Request], Coroutine[Any, Any, Bearer]]]


def _mount_open(app: FastAPI, enroller: Enroller, anchor: Anchor, database: Database, now: Clock) -> None:
    """What needs no token: health, the anchor, and enrolment, whose secret is its token."""

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("/console", 303)

    @app.get("/healthz")
    async def healthz() -> Response:
        await database.reading(lambda connection: connection.exec_driver_sql("SELECT 1").scalar())
        return JSONResponse({"status": "ok"})

    @app.get("/api/v1/anchor")
    async def get_anchor() -> Response:
        return Response(anchor.to_bytes(), media_type="application/json")

    @app.post("/api/v1/enroll")
    async def enroll(request: Request) -> Response:
        order = EnrolRequest.from_bytes(await read_body(request, 1 << 16))
        reply = await database.writing(lambda connection: enroller.enroll(connection, order, now()))
        return Response(reply.to_bytes(), media_type="application/json")


def _fleet(
    picture: Callable[[], Coroutine[Any, Any, dict[str, Any]]], demand: Demand, database: Database, now: Clock
) -> APIRouter:
    router = APIRouter(prefix="/api/v1")
    may_view = [Depends(demand(Permission.VIEW))]
    may_operate = [Depends(demand(Permission.OPERATE))]
    may_administer = [Depends(demand(Permission.ADMINISTER))]

    @router.get("/devices", dependencies=may_view)
    async def devices() -> Any:
        found = await picture()
        return {"devices": found["devices"], "summary": found["summary"]}

    @router.get("/devices/{device}", dependencies=may_view)
    async def device(device: str) -> Any:
        return _named((await picture())["devices"], "id", device, "device")

    @router.post("/devices/{device}/revoke", dependencies=may_administer)
    async def revoke(device: str) -> Any:
        await database.writing(lambda connection: registry.revoke_device(connection, device, now()))
        return {"revoked": device}

    @router.get("/groups", dependencies=may_view)
    async def groups() -> Any:
        found = (await picture())["devices"]
        names = sorted({each["group"] for each in found})
        return {
            "groups": [
                {"name": name, "devices": [each["id"] for each in found if each["group"] == name]}
                for name in names
            ]
        }

    @router.get("/releases", dependencies=may_view)
    async def releases() -> Any:
        return {"releases": (await picture())["releases"]}

    @router.get("/figures", dependencies=may_view)
    async def figures() -> Any:
        return {"figures": [each for device in (await picture())["devices"] for each in device["figures"]]}

    @router.get("/rollouts", dependencies=may_view)
    async def rollouts() -> Any:
        return {"rollouts": (await picture())["rollouts"]}

    @router.get("/rollouts/{number}", dependencies=may_view)
    async def rollout(number: int) -> Any:
        return _named((await picture())["rollouts"], "id", number, "rollout")

    @router.post("/rollouts", dependencies=may_operate, status_code=201)
    async def create(order: RolloutOrder) -> Any:
        waves = parse_waves(order.waves)

        def start(connection: Connection) -> Any:
            made = control.start_rollout(
                connection, order.release, order.group, waves, order.probation, now()
            )
            unfit = control.unfit_devices(connection, made.assignment.release, order.group)
            return {**control.rollout_facts(made), "unfit": unfit}

        return await database.writing(start)

    @router.post("/rollouts/{number}/{verb}", dependencies=may_operate)
    async def steer(number: int, verb: str) -> Any:
        changed = await database.writing(
            lambda connection: control.steer_rollout(connection, number, verb, now())
        )
        return control.rollout_facts(changed)

    @router.post("/tokens", dependencies=may_administer, status_code=201)
    async def create_token(order: TokenOrder) -> Any:
        expires = None if order.days is None else now() + order.days * 86_400
        made = await database.writing(
            lambda connection: access.create_token(
                connection, order.role, order.name or order.role, now(), secrets.token_bytes, expires
            )
        )
        return {"token": made, "role": order.role}

    @router.delete("/tokens/{token_id}", dependencies=may_administer)
    async def revoke_token(token_id: str) -> Any:
        await database.writing(lambda connection: access.revoke_token(connection, token_id, now()))
        return {"revoked": token_id}

    @router.get("/audit", dependencies=may_view)
    async def audit() -> Any:
        found = await picture()
        return {"audit": found["audit"], "evidence": found["evidence"]}

    return router


def _trail(database: Database, demand: Demand) -> APIRouter:
    router = APIRouter(prefix="/api/v1/audit", dependencies=[Depends(demand(Permission.AUDIT))])

    @router.get("/{device}/ring")
    async def ring(device: str) -> Response:
        lines = await database.reading(lambda connection: list(export_ring(connection, device)))
        return Response(b"".join(lines), media_type="application/jsonl")

    @router.get("/{device}/{epoch}")
    async def trail(device: str, epoch: int) -> Response:
        lines = await database.reading(lambda connection: list(export_trail(connection, device, epoch)))
        return StreamingResponse(iter(lines), media_type="application/jsonl")

    return router


def _inference(gateway: Gateway, demand: Demand, now: Clock) -> APIRouter:
    router = APIRouter(dependencies=[Depends(demand(Permission.INFER))])

    @router.get("/v1/models")
    async def models() -> Any:
        return models_json([model_json(name, int(now())) for name in await gateway.models()])

    def route(path: str) -> None:
        @router.post(path)
        async def post(request: Request) -> Response:
            return await forward(gateway, path, await read_body(request), request)

    for path in PATHS:
        route(path)
    return router


def _named(rows: list[dict[str, Any]], key: str, value: object, what: str) -> dict[str, Any]:
    for row in rows:
        if row[key] == value:
            return row
    raise NotFound(f"no {what} {value!r:.80}")


def _metrics(picture: dict[str, Any], counts: dict[str, float]) -> str:
    """Prometheus text format 0.0.4."""
    summary = picture["summary"]
    lines = ["# HELP outpost_devices Devices by presence.", "# TYPE outpost_devices gauge"]
    lines += [f'outpost_devices{{presence="{name}"}} {count}' for name, count in summary["presence"].items()]
    gauges = {
        "outpost_rollouts_open": ("Rollouts that are running, paused or halted.", "active_rollouts"),
        "outpost_rollbacks": ("Releases that devices refused or took back.", "rollbacks"),
        "outpost_audit_records": ("Audit records committed.", "audit_records"),
        "outpost_audit_contradictions": ("Signed contradictions kept as evidence.", "evidence"),
    }
    for name, (words, key) in gauges.items():
        lines += [f"# HELP {name} {words}", f"# TYPE {name} gauge", f"{name} {summary[key]}"]
    for key, value in counts.items():
        name = f"outpost_hub_{key}_total"
        lines += [
            f"# HELP {name} Since this process started: {key.replace('_', ' ')}.",
            f"# TYPE {name} counter",
            f"{name} {value:g}",
        ]
    return "\n".join(lines) + "\n"
