"""Routes of encoders and vision models: ``/v1/embeddings``, ``/v1/classify``, ``/v1/inspect``.

Owns how a body becomes a call and an answer becomes JSON. Refuses everything else (``edge_agent.encoding``).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from edge_agent.admission import Limits
from edge_agent.answers import Later
from edge_agent.api_errors import Named
from edge_agent.catalog import Served
from edge_agent.encoder_calls import EncoderAnswer, EncoderCall
from edge_agent.encoder_requests import EncoderRequest, classes_json, inspections_json
from edge_agent.encoding import Encoded, EncoderAsk, EncoderService, keep_pictures
from edge_agent.multipart import is_form, read_form
from edge_agent.openapi import takes
from edge_agent.questions import Endpoint
from models import data_class
from models.digest import Digest
from models.manifest import Task
from models.openai.embeddings import EmbeddingRequest, embeddings_json

ReadBody = Callable[[Request, int], Awaitable[bytes]]

FORM = {
    "type": "object",
    "properties": {
        "model": {"type": "string"},
        "image": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "heat_map": {"enum": ["true", "false"]},
    },
    "required": ["model", "image"],
}
"""How the same request looks as a form."""


def encoder_routes(
    service: EncoderService, limits: Limits, read_body: ReadBody, places: Callable[[], dict[str, str]]
) -> APIRouter:
    """The routes. ``read_body`` reads at most so many bytes; ``places`` are headers about free places."""
    router = APIRouter()

    @router.post("/v1/embeddings", openapi_extra=takes(EmbeddingRequest))
    async def embeddings(request: Request) -> Response:
        body = await read_body(request, limits.max_body_bytes)
        asked = EmbeddingRequest.parse(body)
        ask = EncoderAsk(
            **_named(request, "embeddings", asked.model, asked.user),
            body=body,
            call=EncoderCall(asked.input),
            tasks=("embed",),
        )

        async def work() -> Response:
            found = await service.answer(ask, _digests)
            receipt = found.receipt.to_json()
            whole = await asyncio.to_thread(
                lambda: _json(
                    embeddings_json(
                        asked.model, found.answer.rows, asked.encoding_format, found.answer.tokens, receipt
                    )
                )
            )
            return _response(whole, found, places())

        return Later(work, Named("input"))

    @router.post("/v1/classify", openapi_extra=takes(EncoderRequest, form=FORM))
    async def classify(request: Request) -> Response:
        asked, kept = await _read(request, limits, read_body)
        tasks: tuple[Task, ...] = ("classify",) if asked.input else ("classify-image",)
        ask = EncoderAsk(
            **_named(request, "classify", asked.model, asked.user), body=kept, call=asked.call, tasks=tasks
        )

        def kept_answer(answer: EncoderAnswer, served: Served) -> Any:
            labels = served.encoder(*tasks).facts.labels
            return classes_json(asked.model, labels, answer, None)

        async def work() -> Response:
            found = await service.answer(ask, kept_answer)
            whole = classes_json(asked.model, found.labels, found.answer, found.receipt.to_json())
            return _response(_json(whole), found, places())

        return Later(work, Named("input" if asked.input else "image"))

    @router.post("/v1/inspect", openapi_extra=takes(EncoderRequest, form=FORM))
    async def inspect(request: Request) -> Response:
        asked, kept = await _read(request, limits, read_body)
        ask = EncoderAsk(
            **_named(request, "inspect", asked.model, asked.user),
            body=kept,
            call=asked.call,
            tasks=("inspect",),
        )

        def kept_answer(answer: EncoderAnswer, served: Served) -> Any:
            return inspections_json(asked.model, answer, None, pictures=False)

        async def work() -> Response:
            found = await service.answer(ask, kept_answer)
            whole = inspections_json(asked.model, found.answer, found.receipt.to_json())
            return _response(_json(whole), found, places())

        return Later(work, Named("image"))

    return router


async def _read(request: Request, limits: Limits, read_body: ReadBody) -> tuple[EncoderRequest, bytes]:
    """A request for texts or pictures, and what the journal keeps of it. Raises ``ApiError``."""
    content_type = request.headers.get("content-type", "")
    body = await read_body(request, limits.max_picture_bytes)

    def parse() -> tuple[EncoderRequest, bytes]:
        if is_form(content_type):
            asked = EncoderRequest.of_form(read_form(content_type, body))
        else:
            asked = EncoderRequest.parse(body)
        if asked.input:
            return asked, body
        return asked, keep_pictures({"model": asked.model, "heat_map": asked.heat_map}, asked.image)

    # Megabytes of base64 take a while, and other streams are running.
    return await asyncio.to_thread(parse)


def _named(request: Request, endpoint: Endpoint, model: str, subject: str | None) -> dict[str, Any]:
    return {
        "id": request.state.request_id,
        "endpoint": endpoint,
        "model": model,
        "declared_class": request.headers.get(data_class.HEADER),
        "subject": subject,
    }


def _digests(answer: EncoderAnswer, served: Served) -> Any:
    """Vectors are large and say nothing to a reader: the journal keeps what proves them."""
    return {"embeddings": len(answer.rows), "sha256": Digest.of(b"".join(answer.rows)).hex}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _response(body: bytes, found: Encoded, places: dict[str, str]) -> Response:
    headers = places | found.receipt.headers()
    return Response(body, headers=headers, media_type="application/json")
