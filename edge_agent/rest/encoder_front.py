"""What the routes of encoders share: a request read, the call made, its answer written, headers and all."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response

from edge_agent.admission import Limits
from edge_agent.calls.encoders import Encoded, EncoderAsk, EncoderService, Labels
from edge_agent.calls.questions import Endpoint
from edge_agent.engines.encoder_calls import EncoderAnswer, EncoderCall
from edge_agent.rest.answers import Later
from edge_agent.rest.errors import Named
from edge_agent.rest.multipart import Part, is_form, read_form
from models import data_class
from models.manifest import Task

ReadBody = Callable[[Request, int], Awaitable[bytes]]
Write = Callable[[EncoderAnswer, Labels], dict[str, Any] | str]
"""An answer as JSON, to which the receipt is added as the field ``outpost``, or as text."""
_R = TypeVar("_R")

LARGE = 1 << 16
"""Bytes of vectors or pictures from which writing an answer is left to a thread, as other streams run."""


@dataclass(frozen=True, slots=True)
class Front:
    """``read_body`` reads at most so many bytes; ``places`` are headers about free places."""

    service: EncoderService
    limits: Limits
    read_body: ReadBody
    places: Callable[[], dict[str, str]]

    async def read(
        self, request: Request, of_json: Callable[[bytes], _R] | None, of_form: Callable[[list[Part]], _R]
    ) -> tuple[_R, bytes]:
        """A request that carries files, and its body. ``of_json`` None: it is always a form.

        Raises ``ApiError``.
        """
        content_type = request.headers.get("content-type", "")
        body = await self.read_body(request, self.limits.max_picture_bytes)

        def parse() -> _R:
            if of_json is None or is_form(content_type):
                return of_form(read_form(content_type, body))
            return of_json(body)

        # Megabytes of base64 take a while, and other streams are running.
        return await asyncio.to_thread(parse), body

    def answer(
        self,
        request: Request,
        endpoint: Endpoint,
        *,
        model: str,
        user: str | None,
        body: bytes,
        call: EncoderCall,
        tasks: tuple[Task, ...],
        write: Write,
        named: Named,
        kept: Callable[[EncoderAnswer, Labels], Any] | None = None,
    ) -> Response:
        """``write`` makes the answer. The journal keeps ``body`` and what ``kept``, else ``write``, makes."""
        ask = EncoderAsk(
            id=request.state.request_id,
            endpoint=endpoint,
            model=model,
            declared_class=request.headers.get(data_class.HEADER),
            subject=user,
            body=body,
            call=call,
            tasks=tasks,
        )

        async def work() -> Response:
            found = await self.service.answer(ask, kept or write)
            size = sum(map(len, found.answer.rows)) + sum(
                len(one.heat_map or b"") for one in found.answer.inspections
            )
            data, kind = (
                await asyncio.to_thread(_written, write, found) if size > LARGE else _written(write, found)
            )
            return Response(data, headers=self.places() | found.receipt.headers(), media_type=kind)

        return Later(work, named, self.places())


def _written(write: Write, found: Encoded) -> tuple[bytes, str]:
    whole = write(found.answer, found.labels)
    if isinstance(whole, str):
        return whole.encode(), "text/plain; charset=utf-8"
    whole["outpost"] = found.receipt.to_json()
    text = json.dumps(whole, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode(), "application/json"
