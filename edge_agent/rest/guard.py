"""What every HTTP request passes first: a request id, Host and Origin checks, API keys, and a last catch.

A page in a browser can reach a server on loopback; the Host check defeats DNS rebinding, the Origin
check requests from other sites (WHATWG Fetch, "Origin header"). Refuses knowing any route.
"""

import logging
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge_agent.errors import Overloaded
from edge_agent.keys import Keys
from edge_agent.rest.answers import error_response
from edge_agent.rest.errors import Named, to_api_error
from models.openai.errors import ApiError

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
REQUEST_ID = "x-request-id"

OPEN = frozenset({"/healthz", "/readyz"})
"""What may be asked without a key: whoever supervises the device has none. It learns which models there are,
and why one cannot be asked now."""

log = logging.getLogger(__name__)


class Guard:
    """ASGI middleware. ``hosts`` are the names that a client may call this server by."""

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str], new_id: Callable[[], str]) -> None:
        self._app = app
        self._hosts = hosts
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what must not pass; name and pass on the rest."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = self._new_id()
        scope.setdefault("state", {})["request_id"] = request_id
        begun = False

        async def named(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        refusal = self._refusal(Headers(scope=scope))
        if refusal is not None:
            await error_response(refusal)(scope, receive, named)
            return
        try:
            await self._app(scope, receive, named)
        except ClientDisconnect:
            return  # before its request was whole: there is nobody to answer
        except Exception:
            log.exception("request %s failed", request_id)
            if begun:
                return
            defect = ApiError(
                500, f"This device failed; see its log for {request_id}.", code="internal_error"
            )
            await error_response(defect)(scope, receive, named)

    def _refusal(self, headers: Headers) -> ApiError | None:
        host = headers.get("host", "")
        if _hostname(f"//{host}") not in self._hosts:
            return ApiError(403, f"This server is not called {host!r:.100}.", code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != host.lower():
            return ApiError(
                403, f"Pages from {origin!r:.100} may not use this server.", code="origin_not_allowed"
            )
        return None


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _netloc(origin: str) -> str | None:
    """Host and port of an origin, None for ``null`` and for what is no http origin."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc.lower() if parts.scheme in ("http", "https") else None


class Locked:
    """ASGI middleware that lets in who presents a key, as often as the key may call."""

    def __init__(self, app: ASGIApp, *, keys: Keys) -> None:
        self._app, self._keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 or 429, or pass on."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        scheme, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
        caller = self._keys.find(secret.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            refused = ApiError(
                401,
                "This API key is not known here."
                if secret
                else "An API key is needed: Authorization: Bearer KEY.",
                code="invalid_api_key",
            )
            await error_response(refused, {"www-authenticate": "Bearer"})(scope, receive, send)
            return
        try:
            self._keys.enter(caller)
        except Overloaded as error:
            response = error_response(to_api_error(error, Named()))
            response.headers.update(caller.headers())
            await response(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(caller.headers())
            await send(message)

        try:
            await self._app(scope, receive, told)
        finally:
            caller.leave()
