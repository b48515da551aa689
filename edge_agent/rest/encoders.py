"""Routes of encoders and vision models: embeddings, classify, rerank, inspect; and those of readers.

Owns how a body becomes a call and an answer becomes JSON. Refuses everything else
(``edge_agent.calls.encoders``).
"""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from edge_agent.admission import Limits
from edge_agent.calls.encoders import EncoderService, Labels, keep_files
from edge_agent.engines.encoder_calls import EncoderAnswer, EncoderCall
from edge_agent.rest.encoder_front import Front, ReadBody
from edge_agent.rest.encoder_requests import (
    ClassifyRequest,
    InspectRequest,
    classes_json,
    form_of_pictures,
    inspections_json,
)
from edge_agent.rest.errors import Named
from edge_agent.rest.openapi import takes
from edge_agent.rest.readers import reading_routes
from edge_agent.rest.rerank import RerankRequest, ranked_json, relevances
from models.digest import Digest
from models.manifest import Task
from models.openai.embeddings import EmbeddingRequest, embeddings_json

_INSPECTED = form_of_pictures(heat_map={"enum": ["true", "false", "overlay"]})


def encoder_routes(
    service: EncoderService, limits: Limits, read_body: ReadBody, places: Callable[[], dict[str, str]]
) -> APIRouter:
    """The routes. ``read_body`` reads at most so many bytes; ``places`` are headers about free places."""
    router, front = APIRouter(), Front(service, limits, read_body, places)
    router.include_router(reading_routes(front))

    @router.post("/v1/embeddings", openapi_extra=takes(EmbeddingRequest))
    async def embeddings(request: Request) -> Response:
        body = await read_body(request, limits.max_body_bytes)
        asked = EmbeddingRequest.parse(body)
        return front.answer(
            request,
            "embeddings",
            model=asked.model,
            user=asked.user,
            body=body,
            call=EncoderCall(asked.input),
            tasks=("embed",),
            write=lambda answer, _: embeddings_json(
                asked.model, answer.rows, asked.encoding_format, answer.tokens
            ),
            named=Named("input"),
            kept=_digests,
        )

    @router.post("/v1/rerank", openapi_extra=takes(RerankRequest))
    async def rerank(request: Request) -> Response:
        body = await read_body(request, limits.max_body_bytes)
        asked = RerankRequest.parse(body)
        task: Task = "embed" if service.task_of(asked.model) == "embed" else "rerank"
        return front.answer(
            request,
            "rerank",
            model=asked.model,
            user=asked.user,
            body=body,
            call=asked.call(task),
            tasks=(task,),
            write=lambda answer, _: ranked_json(asked, task, answer),
            named=Named("documents"),
            kept=lambda answer, _: {"relevance": relevances(task, answer)},
        )

    @router.post("/v1/classify", openapi_extra=takes(ClassifyRequest, form=form_of_pictures()))
    async def classify(request: Request) -> Response:
        asked, body = await front.read(request, ClassifyRequest.parse, ClassifyRequest.of_form)
        task: Task = "classify" if asked.input else "classify-image"
        return front.answer(
            request,
            "classify",
            model=asked.model,
            user=asked.user,
            body=body if asked.input else keep_files({"model": asked.model}, images=asked.image),
            call=EncoderCall(asked.input, asked.image),
            tasks=(task,),
            write=lambda answer, labels: classes_json(asked.model, labels, answer),
            named=Named("input" if asked.input else "image"),
        )

    @router.post("/v1/inspect", openapi_extra=takes(InspectRequest, form=_INSPECTED))
    async def inspect(request: Request) -> Response:
        asked, _ = await front.read(request, InspectRequest.parse, InspectRequest.of_form)
        return front.answer(
            request,
            "inspect",
            model=asked.model,
            user=asked.user,
            body=keep_files({"model": asked.model, "heat_map": asked.heat_map}, images=asked.image),
            call=EncoderCall(images=asked.image, heat_maps=asked.heat_map),
            tasks=("inspect",),
            write=lambda answer, _: inspections_json(asked.model, answer),
            named=Named("image"),
            kept=lambda answer, _: inspections_json(asked.model, answer, heat_maps=False),
        )

    return router


def _digests(answer: EncoderAnswer, labels: Labels) -> Any:
    """Vectors are large and say nothing to a reader: the journal keeps what proves them."""
    return {"embeddings": len(answer.rows), "sha256": Digest.of(b"".join(answer.rows)).hex}
