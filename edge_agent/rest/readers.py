"""Routes of what reads pictures and hears speech: ``/v1/ocr``, ``/v1/audio/transcriptions``."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from edge_agent.calls.encoders import keep_files
from edge_agent.engines.encoder_calls import EncoderCall
from edge_agent.rest.encoder_front import Front
from edge_agent.rest.encoder_requests import form_of_pictures
from edge_agent.rest.errors import Named
from edge_agent.rest.openapi import takes
from edge_agent.rest.reader_requests import OcrRequest, TranscriptionRequest, pages_json, transcript_answer

_RECORDING = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "model": {"type": "string"},
        "language": {"type": "string"},
        "prompt": {"type": "string"},
        "response_format": {"enum": ["json", "text", "srt", "verbose_json", "vtt"]},
        "temperature": {"type": "string"},
        "timestamp_granularities[]": {"type": "array", "items": {"enum": ["word", "segment"]}},
        "user": {"type": "string"},
    },
    "required": ["file", "model"],
}


def reading_routes(front: Front) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.post("/v1/ocr", openapi_extra=takes(OcrRequest, form=form_of_pictures()))
    async def ocr(request: Request) -> Response:
        asked, _ = await front.read(request, OcrRequest.parse, OcrRequest.of_form)
        return front.answer(
            request,
            "ocr",
            model=asked.model,
            user=asked.user,
            body=keep_files({"model": asked.model}, images=asked.image),
            call=EncoderCall(images=asked.image),
            tasks=("ocr",),
            write=lambda answer, _: pages_json(asked.model, answer),
            named=Named("image"),
        )

    @router.post("/v1/audio/transcriptions", openapi_extra=takes(form=_RECORDING))
    async def transcriptions(request: Request) -> Response:
        asked, _ = await front.read(request, None, TranscriptionRequest.of_form)
        fields = asked.model_dump(exclude={"file"}, exclude_none=True)
        return front.answer(
            request,
            "transcriptions",
            model=asked.model,
            user=asked.user,
            body=keep_files(fields, file=(asked.file,)),
            call=EncoderCall(recording=asked.recording),
            tasks=("transcribe",),
            write=lambda answer, _: transcript_answer(asked, answer),
            named=Named("language", recording="file"),  # the first is what an engine may not honour
            kept=lambda answer, _: transcript_answer(asked, answer, whole=True),
        )

    return router
