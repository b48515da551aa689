"""``/v1/ocr`` and ``/v1/audio/transcriptions``: requests read strictly, answers written. Pure.

The second is OpenAI's ("Create transcription"), but that languages are told by their code; ``stream``,
``include`` and ``chunking_strategy`` are refused. The first is ours.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StrictBytes, StrictStr

from edge_agent.engines.encoder_calls import EncoderAnswer
from edge_agent.rest.encoder_requests import fields_of_form, listed, read_images
from edge_agent.rest.multipart import Part
from models.engines.readings import Page, Recording, Segment, Transcript
from models.errors import EngineError
from models.openai.errors import bad_request
from models.openai.reading import Frozen, read_body, validated

Json = dict[str, Any]


class OcrRequest(Frozen):
    """Pictures of text."""

    model: StrictStr = Field(min_length=1, max_length=200)
    image: Annotated[tuple[bytes, ...], BeforeValidator(read_images)]
    user: StrictStr | None = Field(default=None, max_length=512)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a JSON body. Raises ``ApiError`` (400) that names the parameter."""
        return read_body(cls, data, {})

    @classmethod
    def of_form(cls, parts: Sequence[Part]) -> Self:
        """Read a form. Raises ``ApiError`` (400) that names the parameter."""
        given, images = fields_of_form(parts, "image", ("model", "user"))
        return validated(cls, {**given, "image": images})


def pages_json(model: str, answer: EncoderAnswer) -> Json:
    """The answer: of each picture its text and its lines. Boxes: corners in pixels, see ``TextLine``."""
    return listed(model, [_page(index, page) for index, page in enumerate(answer.pages)])


def _page(index: int, page: Page) -> Json:
    lines = [
        {"text": line.text, "confidence": line.confidence, "box": [list(corner) for corner in line.box]}
        for line in page.lines
    ]
    return {"index": index, "text": page.text, "width": page.width, "height": page.height, "lines": lines}


class TranscriptionRequest(Frozen):
    """A recording and how it is to be heard and written down."""

    file: StrictBytes
    model: StrictStr = Field(min_length=1, max_length=200)
    language: StrictStr | None = Field(default=None, pattern="^[a-z]{2,3}$")
    prompt: StrictStr | None = Field(default=None, max_length=10_000)
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: float = Field(default=0.0, ge=0, le=1)
    timestamp_granularities: tuple[Literal["word", "segment"], ...] = ()
    user: StrictStr | None = Field(default=None, max_length=512)

    @classmethod
    def of_form(cls, parts: Sequence[Part]) -> Self:
        """Read a form. Raises ``ApiError`` (400) that names the parameter."""
        listed = "timestamp_granularities[]"
        words = [part.data.decode("utf-8", "replace") for part in parts if part.name == listed]
        texts = ("model", "language", "prompt", "response_format", "temperature", "user", "stream")
        given, files = fields_of_form([part for part in parts if part.name != listed], "file", texts)
        if given.pop("stream", "false") != "false":
            raise bad_request("'stream' is not supported here.", "stream", "unsupported_parameter")
        if len(files) != 1:
            raise bad_request("One recording is sent as 'file'.", "file", "missing_required_parameter")
        asked = validated(cls, {**given, "file": files[0], "timestamp_granularities": tuple(words)})
        if words and asked.response_format != "verbose_json":
            raise bad_request(
                "'timestamp_granularities' needs 'response_format' verbose_json.", listed, "invalid_value"
            )
        return asked

    @property
    def recording(self) -> Recording:
        """What the engine is asked. Temperature 0 rises by itself where that is needed, as OpenAI has it."""
        return Recording(
            data=self.file,
            language=self.language,
            prompt=self.prompt,
            temperature=self.temperature or None,
            words="word" in self.timestamp_granularities,
        )


def transcript_answer(
    asked: TranscriptionRequest, answer: EncoderAnswer, *, whole: bool = False
) -> Json | str:
    """The answer in the form that was asked for. ``whole``: all that is known, whatever was asked for."""
    transcript = answer.transcript
    if transcript is None:
        raise EngineError("the engine answered without a transcript")
    if asked.response_format in _TEXTS and not whole:
        return _TEXTS[asked.response_format](transcript)
    found: Json = {"text": transcript.text}
    if asked.response_format == "verbose_json" or whole:
        found = _verbose(transcript, asked.timestamp_granularities or ("segment",))
    found["usage"] = {"type": "duration", "seconds": math.ceil(transcript.duration)}
    return found


def _verbose(transcript: Transcript, wanted: Sequence[str]) -> Json:
    found: Json = {
        "task": "transcribe",
        "language": transcript.language,
        "duration": transcript.duration,
        "text": transcript.text,
    }
    if "word" in wanted:
        spoken = [word for segment in transcript.segments for word in segment.words]
        found["words"] = [{"word": one.word.strip(), "start": one.start, "end": one.end} for one in spoken]
    if "segment" in wanted:
        found["segments"] = [_segment(index, one) for index, one in enumerate(transcript.segments)]
    return found


def _segment(index: int, segment: Segment) -> Json:
    return {
        "id": index,
        "seek": 0,
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }


def _srt(transcript: Transcript) -> str:
    """SubRip: numbered cues, a comma before the milliseconds."""
    return "".join(
        f"{number}\n{clock(one.start, ',')} --> {clock(one.end, ',')}\n{_cue(one)}\n\n"
        for number, one in enumerate(transcript.segments, start=1)
    )


def _vtt(transcript: Transcript) -> str:
    """WebVTT (W3C)."""
    cues = (
        f"{clock(one.start, '.')} --> {clock(one.end, '.')}\n{_cue(one)}\n\n" for one in transcript.segments
    )
    return "WEBVTT\n\n" + "".join(cues)


def _cue(segment: Segment) -> str:
    """A cue's text; what would be read as its timing or as its end is not let through."""
    return re.sub("--+>", "->", " ".join(segment.text.split()))


def clock(seconds: float, point: str) -> str:
    """``HH:MM:SS``, ``point``, milliseconds."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:02}:{minute:02}:{second:02}{point}{milliseconds:03}"


_TEXTS: Mapping[str, Callable[[Transcript], str]] = {
    "text": lambda transcript: transcript.text + "\n",
    "srt": _srt,
    "vtt": _vtt,
}
