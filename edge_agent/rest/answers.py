"""A call's answer as HTTP: whole or as server-sent events, cancelled when nobody listens any more.

An error before the first byte is a status and a JSON body; after it, an error event that ends the
stream without ``[DONE]``.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from edge_agent.calls.text import Finished, Part, Started
from edge_agent.rest.errors import Known, Named, to_api_error
from models.openai import sse
from models.openai.errors import ApiError
from models.openai.parts import Piece
from models.openai.writers import Writer

_DEFECT = ApiError(500, "This device failed in a way that it did not expect.", code="internal_error")


def error_response(error: ApiError, headers: Mapping[str, str] = {}) -> JSONResponse:
    """An error that is the whole answer."""
    later = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    return JSONResponse(error.body(), error.status, {**headers, **later})


class Answer(Response):
    """Runs a call while it is being answered. ``named``: the request's words for what errors are about."""

    def __init__(
        self,
        parts: AsyncGenerator[Part, None],
        writer: Writer,
        *,
        stream: bool,
        named: Named,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__()
        self._parts = parts
        self._writer = writer
        self._stream = stream
        self._named = named
        self._extra = dict(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client leaves first."""
        work = self._streamed(send) if self._stream else self._whole(scope, receive, send)
        await _while_connected(work, receive)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: Response = error_response(_DEFECT)
        try:
            async with aclosing(self._parts) as parts:
                async for part in parts:
                    if isinstance(part, Finished):
                        body = self._writer.whole(part.choices, part.usage, part.receipt.to_json())
                        response = JSONResponse(body, headers=self._extra | part.receipt.headers())
        except Known as error:
            response = error_response(to_api_error(error, self._named), self._extra)
        await response(scope, receive, send)

    async def _streamed(self, send: Send) -> None:
        stream = _Stream(send)
        try:
            async with aclosing(self._parts) as parts:
                async for part in parts:
                    if isinstance(part, Started):
                        receipt = part.receipt
                        stream.open(self._extra | receipt.headers(), self._writer.opening(receipt.to_json()))
                    elif isinstance(part, Piece):
                        await stream.say(self._writer.piece(part))
                    else:
                        reasons = [choice.reason for choice in part.choices]
                        closing = self._writer.closing(reasons, part.usage, part.receipt.to_json())
                        await stream.say(closing)
        except Known as error:
            await self._fail(send, to_api_error(error, self._named), stream.begun)
        except Exception:
            if stream.begun:  # before, whoever catches this can still answer with a status
                await self._fail(send, _DEFECT, begun=True)
            raise
        else:
            await _send(send, b"", more=False)

    async def _fail(self, send: Send, error: ApiError, begun: bool) -> None:
        if begun:
            await _send(send, self._writer.failure(error), more=False)
            return
        response = error_response(error, self._extra)
        await send({"type": "http.response.start", "status": error.status, "headers": response.raw_headers})
        await _send(send, bytes(response.body), more=False)


class _Stream:
    """A stream whose head waits for the first text: until then the answer can still be an error."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._headers: Mapping[str, str] = {}
        self._opening = b""
        self.begun = False

    def open(self, headers: Mapping[str, str], opening: bytes) -> None:
        """What comes before the first text."""
        fixed = {"content-type": sse.MEDIA_TYPE, "cache-control": "no-cache"}
        self._headers, self._opening = {**fixed, **headers}, opening

    async def say(self, text: bytes) -> None:
        """Send ``text``, and the head before it."""
        if not self.begun:
            self.begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _raw(self._headers)})
            text = self._opening + text
        await _send(self._send, text)


class Later(Response):
    """Runs ``work`` while it is being answered; its response is the answer. See ``Answer``.

    ``headers``: those of an error; ``work`` brings its own.
    """

    def __init__(
        self, work: Callable[[], Awaitable[Response]], named: Named, headers: Mapping[str, str] = {}
    ) -> None:
        super().__init__()
        self._work = work
        self._named = named
        self._extra = dict(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client leaves first."""
        await _while_connected(self._respond(scope, receive, send), receive)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._work()
        except Known as error:
            response = error_response(to_api_error(error, self._named), self._extra)
        await response(scope, receive, send)


async def _send(send: Send, body: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


async def _while_connected(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Run ``work``; cancel it, once, when the client disconnects or this task is cancelled."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
    finally:
        watch.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
    if not task.cancelled():
        task.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
