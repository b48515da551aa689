"""What both listeners share: who is asking, errors in OpenAI's shape, bounded bodies, passing on."""

import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from cloud_hub.errors import HubError, InvalidToken, NotAllowed, NotFound, NoUpstream, StorageFailed, WrongUse
from cloud_hub.gateway import MAX_BODY, Gateway
from models.errors import ModelsError
from models.openai.errors import ApiError
from sync.errors import SyncError

log = logging.getLogger("outpost.hub")

_STATUS: dict[type[Exception], int] = {
    InvalidToken: 401,
    NotAllowed: 403,
    NotFound: 404,
    WrongUse: 400,
    NoUpstream: 503,
    StorageFailed: 503,
}


def api_error(error: Exception) -> ApiError:
    """Any error that our packages raise on purpose, as an answer."""
    if isinstance(error, ApiError):
        return error
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), None)
    if status is None:
        status = 409 if isinstance(error, HubError) else 400
    return ApiError(status, str(error))


def answer_errors(app: FastAPI) -> None:
    """Make every error of ``app`` an OpenAI-shaped body; FastAPI's own 422 never leaks."""

    async def ours(_request: Request, error: Exception) -> Response:
        if isinstance(error, StorageFailed):  # it names the database, which is not for whoever asks
            log.error("%s", error)
            return _response(ApiError(503, "the hub's database cannot be used now"))
        return _response(api_error(error))

    async def http(_request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 500)
        return _response(ApiError(status, str(getattr(error, "detail", error))))

    async def invalid(_request: Request, error: Exception) -> Response:
        first: dict[str, Any] = (error.errors() if isinstance(error, RequestValidationError) else [{}])[0]
        where = ".".join(str(part) for part in first.get("loc", ())[1:])
        return _response(ApiError(400, f"{where}: {first.get('msg', 'not valid')}", param=where or None))

    async def unexpected(_request: Request, _error: Exception) -> Response:
        return _response(ApiError(500, "the hub failed on this request; its log says why"))

    for kind in (HubError, SyncError, ModelsError):
        app.add_exception_handler(kind, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)  # raised again, so that the server logs it
    app.add_exception_handler(RequestValidationError, invalid)


def _response(error: ApiError) -> Response:
    headers = {"retry-after": str(error.retry_after)} if error.retry_after is not None else {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error.body(), error.status, headers)


async def read_body(request: Request, limit: int = MAX_BODY) -> bytes:
    """The body, at most ``limit`` bytes. Raises ``ApiError``."""
    received = bytearray()
    async for block in request.stream():
        received += block
        if len(received) > limit:
            raise ApiError(413, f"a request has at most {limit} bytes")
    return bytes(received)


async def forward(gateway: Gateway, path: str, body: bytes, request: Request) -> Response:
    """Pass a request on to an upstream."""
    answer = await gateway.forward(path, body, request.headers)
    return StreamingResponse(answer.body, answer.status, answer.headers)


def bearer_token(request: Request) -> str:
    """The token in ``Authorization: Bearer``. Raises ``InvalidToken``."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise InvalidToken("send a token: Authorization: Bearer oph_...")
    return token.strip()


Clock = Callable[[], float]
