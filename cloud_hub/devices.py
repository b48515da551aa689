"""The devices' listener (8444): the repository with ranges, and heavy requests signed by their device.

TLS has demanded a certificate of our authority before anything arrives here. Which device speaks is
known by its signature alone.
"""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import Connection
from starlette.staticfiles import StaticFiles

from cloud_hub import registry
from cloud_hub.database import Database
from cloud_hub.errors import NotFound
from cloud_hub.gateway import Gateway
from cloud_hub.web import Clock, answer_errors, forward, read_body
from models.openai.errors import ApiError
from sync.errors import SyncError
from sync.repository import Repository
from sync.requests import HEADER, MAX_SKEW, RequestClaim, open_request


def create_app(database: Database, repository: Repository, gateway: Gateway, now: Clock) -> FastAPI:
    """The application of the devices' listener."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    answer_errors(app)
    fresh = Freshness()

    @app.get("/healthz")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await read_body(request)
        header = request.headers.get(HEADER, "")
        try:
            claim = await database.reading(lambda connection: _claim(connection, header, body, now()))
        except SyncError as error:
            raise ApiError(401, str(error), code="device_signature") from error
        if not fresh.first_time(claim, now()):
            raise ApiError(401, "this signed request was received before", code="device_signature")
        return await forward(gateway, "/v1/chat/completions", body, request)

    # Metadata is small and changes; a device must never be given a cached timestamp.
    app.mount("/tuf/metadata", _Files(repository.metadata, "no-cache"))
    app.mount("/tuf/targets", _Files(repository.targets, "public, max-age=31536000, immutable"))
    return app


class Freshness:
    """Remembers signed requests for as long as their time would let them be replayed."""

    def __init__(self) -> None:
        self._seen: set[RequestClaim] = set()

    def first_time(self, claim: RequestClaim, now: float) -> bool:
        """Whether this claim was not seen before; it is from now on."""
        if claim in self._seen:
            return False
        if len(self._seen) > 10_000:
            self._seen = {known for known in self._seen if now - known.at <= MAX_SKEW}
        self._seen.add(claim)
        return True


def _claim(connection: Connection, header: str, body: bytes, now: float) -> RequestClaim:
    def key_of(device: str) -> Ed25519PublicKey | None:
        try:
            return registry.device(connection, device).public_key
        except NotFound:
            return None

    return open_request(header, body, now, key_of)


class _Files(StaticFiles):
    """A folder, with one cache rule for all of it."""

    def __init__(self, folder: object, cache: str) -> None:
        super().__init__(directory=str(folder), check_dir=False)
        self._cache = cache

    def file_response(self, *args: object, **kwargs: object) -> Response:
        """The file, or the part of it that a Range header asks for."""
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["cache-control"] = self._cache
        return response
