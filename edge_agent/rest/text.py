"""Routes of models that write text: ``/v1/chat/completions``, ``/v1/completions``, ``/v1/responses``.

Owns how a body becomes a call. Refuses everything else (``edge_agent.calls.text``).
"""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from edge_agent.admission import Limits
from edge_agent.calls.text import Ask, Service, Written
from edge_agent.catalog import Served
from edge_agent.rest.answers import Answer
from edge_agent.rest.errors import Named
from edge_agent.rest.openapi import takes
from models import data_class
from models.openai.errors import ApiError, unsupported
from models.openai.media import MediaPart
from models.openai.requests import ChatRequest, CompletionRequest
from models.openai.response_requests import ResponseRequest
from models.openai.response_writer import ResponseWriter
from models.openai.sse import Noise
from models.openai.writers import ChatWriter, CompletionWriter
from models.prompts import Prompt

ReadBody = Callable[[Request, int], Awaitable[bytes]]


def text_routes(
    service: Service,
    limits: Limits,
    read_body: ReadBody,
    places: Callable[[], dict[str, str]],
    now: Callable[[], float],
    sees: Callable[[], bool],
    *,
    hub: bool,
) -> APIRouter:
    """The routes. ``places`` are headers about free places; ``sees``: whether any model takes pictures or
    recordings; ``hub``: whether there is a way to one.
    """
    router = APIRouter()

    async def read_conversation(request: Request) -> bytes:
        return await read_body(request, limits.max_picture_bytes if sees() else limits.max_body_bytes)

    @router.post("/v1/chat/completions", openapi_extra=takes(ChatRequest, stream=True))
    async def chat(request: Request) -> Response:
        body = await read_conversation(request)
        asked = ChatRequest.parse(body)
        ask = Ask(
            **_of(request),
            **_conversation(asked, hub),
            endpoint="chat",
            body=body,
        )
        writer = ChatWriter(
            f"chatcmpl-{ask.id}", int(now()), asked.model, asked.include_usage, asked.n, noise=_noise(asked)
        )
        named = Named("messages", asked.limit_name, _form(asked, "response_format"))
        return Answer(service.answer(ask), writer, stream=asked.stream, named=named, headers=places())

    @router.post("/v1/responses", openapi_extra=takes(ResponseRequest, stream=True))
    async def responses(request: Request) -> Response:
        body = await read_conversation(request)
        asked = ResponseRequest.parse(body)
        named = Named("input", "max_output_tokens", _form(asked.chat, "text.format"))
        ask = Ask(
            **_of(request),
            **_conversation(asked.chat, hub),
            endpoint="responses",
            schema_name="text.format",
            body=body,
        )
        writer = ResponseWriter(f"resp_{ask.id}", int(now()), asked, _noise(asked))
        return Answer(service.answer(ask), writer, stream=asked.stream, named=named, headers=places())

    @router.post("/v1/completions", openapi_extra=takes(CompletionRequest, stream=True))
    async def completions(request: Request) -> Response:
        body = await read_body(request, limits.max_body_bytes)
        asked = CompletionRequest.parse(body)
        ask = Ask(
            **_of(request),
            endpoint="completions",
            model=asked.model,
            prompts=tuple(_as_it_is(prompt) for prompt in asked.prompt),
            choices=asked.n,
            sampling=asked.sampling,
            body=body,
            subject=asked.subject,
        )
        echo = tuple(str(prompt) for prompt in asked.prompt for _ in range(asked.n)) if asked.echo else ()
        writer = CompletionWriter(
            f"cmpl-{ask.id}",
            int(now()),
            asked.model,
            asked.include_usage,
            ask.answers,
            echo,
            noise=_noise(asked),
        )
        return Answer(
            service.answer(ask), writer, stream=asked.stream, named=Named("prompt"), headers=places()
        )

    return router


def _of(request: Request) -> dict[str, Any]:
    return {"id": request.state.request_id, "declared_class": request.headers.get(data_class.HEADER)}


def _conversation(asked: ChatRequest, hub: bool) -> dict[str, Any]:
    """What chats and responses have in common."""
    return {
        "model": asked.model,
        "prompts": (lambda served: _chat_prompt(asked, served),),
        "choices": asked.n,
        "sampling": asked.sampling,
        "json_schema": asked.json_schema,
        "toolbox": asked.toolbox,
        "media": tuple(part.media for part in _media(asked)),
        "unread": sum(part.wire_bytes for part in _media(asked)),
        "outgoing": asked.upstream() if hub else None,
        "subject": asked.subject,
    }


def _media(asked: ChatRequest) -> list[MediaPart]:
    return [part for message in asked.messages for part in message.media]


def _noise(asked: ChatRequest | CompletionRequest | ResponseRequest) -> Noise | None:
    """What a caller's stream is padded with who asks for it."""
    return (lambda size: secrets.token_hex(size)[:size]) if asked.padded else None


def _form(asked: ChatRequest, schema: str) -> str:
    """By which option the caller asks for a form of the answer."""
    return "tools" if asked.json_schema is None and asked.tools else schema


def _as_it_is(prompt: str | tuple[int, ...]) -> Callable[[Served], Written]:
    return lambda served: Prompt(prompt) if isinstance(prompt, str) else prompt


def _chat_prompt(asked: ChatRequest, served: Served) -> Prompt:
    if served.template is None:
        raise ApiError(
            400,
            f"{served.model_id!r} has no chat template; use /v1/completions.",
            code="unsupported_model",
            param="model",
        )
    for part in _media(asked):
        if part.media.kind not in served.takes:
            taken = " and ".join(("text", *served.takes))
            raise unsupported(part.part, f"'{part.part}': {served.model_id!r} takes {taken} alone.")
    turns = [message.turn() for message in asked.messages]
    if served.system_prompt is not None and all(turn["role"] != "system" for turn in turns):
        turns.insert(0, {"role": "system", "content": served.system_prompt})
    told = asked.toolbox.tools if asked.toolbox is not None and asked.toolbox.choice != "none" else ()
    return served.template.prompt(turns, told)
