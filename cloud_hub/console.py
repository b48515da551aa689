"""The console: one page, live by server-sent events, under a strict content security policy.

Owns the HTML. Sign-in is an API token exchanged for a session cookie; changes need a role that may make
them and a request from this very site.
"""

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse, StreamingResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.staticfiles import StaticFiles

from cloud_hub import access, control
from cloud_hub.access import Bearer, Permission
from cloud_hub.database import Database
from cloud_hub.errors import InvalidToken, NotAllowed
from cloud_hub.live import Live
from cloud_hub.web import Clock, read_body
from models.openai.errors import ApiError

FOLDER = Path(__file__).parent
STATIC = "/console/static"
COOKIE = "__Host-outpost"
FRAGMENTS = ("summary", "devices", "rollouts", "releases", "audit")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "cross-origin-opener-policy": "same-origin",
}


class Pages:
    """Templates, rendered. ``hub_url`` is what devices enrol at."""

    def __init__(self, hub_url: str) -> None:
        self._hub_url = hub_url
        self._environment = Environment(
            loader=FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters.update(moment=_moment, size=_size, thousands=_thousands)

    def page(self, name: str, **values: Any) -> str:
        """A whole page."""
        return self._environment.get_template(name).render(hub_url=self._hub_url, **values)

    def fragments(self, picture: Mapping[str, Any], connected: bool) -> dict[str, str]:
        """The parts of the page that change, by the name of the event that replaces them."""
        values = {**picture, "hub_url": self._hub_url, "connected": connected}
        return {name: self._environment.get_template(f"{name}.html").render(values) for name in FRAGMENTS}


def create_router(database: Database, pages: Pages, live: Live, now: Clock, hub_name: str) -> APIRouter:
    """The routes under ``/console``."""
    router = APIRouter(prefix="/console", include_in_schema=False)

    async def bearer(request: Request) -> Bearer:
        cookie = request.cookies.get(COOKIE, "")
        return await database.reading(lambda connection: access.resume_session(connection, cookie, now()))

    @router.get("")
    async def page(request: Request) -> Response:
        try:
            visitor = await bearer(request)
        except InvalidToken:
            return RedirectResponse("/console/login", 303, HEADERS)
        _demand(visitor, Permission.VIEW)
        html = pages.page(
            "console.html",
            bearer=visitor,
            hub=hub_name,
            served_at=now(),
            may_operate=visitor.may(Permission.OPERATE),
            fragments=await live.snapshot(),
        )
        return HTMLResponse(html, headers=HEADERS)

    @router.get("/login")
    async def login_page() -> Response:
        return HTMLResponse(pages.page("login.html", error=None), headers=HEADERS)

    @router.post("/login")
    async def login(request: Request) -> Response:
        _demand_same_site(request)
        form = parse_qs((await read_body(request, 4096)).decode("utf-8", "replace"))
        token = form.get("token", [""])[0].strip()

        def begin(connection: Any) -> str:
            visitor = access.authenticate(connection, token, now())
            if not visitor.may(Permission.VIEW):
                raise InvalidToken("this token may not see the fleet")
            return access.begin_session(connection, visitor, now(), secrets.token_bytes)

        try:
            session = await database.writing(begin)
        except InvalidToken as error:
            sentence = f"{str(error)[0].upper()}{str(error)[1:]}."
            return HTMLResponse(pages.page("login.html", error=sentence), 401, HEADERS)
        response = RedirectResponse("/console", 303, HEADERS)
        response.set_cookie(
            COOKIE,
            session,
            max_age=int(access.SESSION_SECONDS),
            path="/",
            secure=True,
            httponly=True,
            samesite="strict",
        )
        return response

    @router.post("/logout")
    async def logout(request: Request) -> Response:
        _demand_same_site(request)
        cookie = request.cookies.get(COOKIE, "")
        await database.writing(lambda connection: access.end_session(connection, cookie))
        response = RedirectResponse("/console/login", 303, HEADERS)
        response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="strict")
        return response

    @router.get("/events")
    async def events(request: Request) -> Response:
        _demand(await bearer(request), Permission.VIEW)
        return StreamingResponse(live.watch(), media_type="text/event-stream", headers=HEADERS)

    @router.post("/rollouts/{number}/{verb}")
    async def steer(request: Request, number: int, verb: str) -> Response:
        _demand_same_site(request)
        _demand(await bearer(request), Permission.OPERATE)
        await database.writing(lambda connection: control.steer_rollout(connection, number, verb, now()))
        live.nudge()
        return Response(status_code=204, headers=HEADERS)

    return router


def static_files() -> StaticFiles:
    """Style, script and vendored libraries: to be mounted at ``STATIC``."""
    return StaticFiles(directory=FOLDER / "static", check_dir=False)


def _demand(bearer: Bearer, permission: Permission) -> None:
    if not bearer.may(permission):
        raise NotAllowed(f"the role {bearer.role} may not {permission}")


def _demand_same_site(request: Request) -> None:
    """A form of another site must not act for whoever is signed in here."""
    origin = request.headers.get("origin", "")
    if urlsplit(origin).netloc != request.headers.get("host") or not origin.startswith("https://"):
        raise ApiError(403, "this request did not come from the console's own page")


def _moment(at: float | None) -> Markup:
    """A point in time; the page's script turns it into an age that ticks."""
    if at is None:
        return Markup('<span class="quiet">never</span>')
    stamp = datetime.fromtimestamp(at, UTC)
    return Markup('<time datetime="{}" data-at="{:.0f}" title="{}">{}</time>').format(
        stamp.isoformat(timespec="seconds"),
        at,
        stamp.strftime("%Y-%m-%d %H:%M:%S UTC"),
        stamp.strftime("%H:%M UTC"),
    )


def _size(count: int) -> str:
    """Bytes in a unit that people read."""
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} B"


def _thousands(count: int) -> str:
    """A whole number with thin spaces between its thousands."""
    return f"{count:,}".replace(",", "\u202f")
