"""Pictures and recordings within a message, as parts of chats and responses carry them. Pure.

They come with the request: a URL that would have to be fetched is refused. Reference: OpenAI's API reference,
"Create chat completion" (``image_url``, ``input_audio``) and "Create a model response" (``input_image``).
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from models.engines.base import Media, MediaKind
from models.openai.errors import unsupported
from models.openai.reading import Frozen, Json

MAX_MEDIA = 16
"""Pictures and recordings in one request."""

KINDS: Mapping[str, MediaKind] = {"image_url": "image", "input_image": "image", "input_audio": "audio"}
"""What the parts of chats and responses are that hold no text."""

_FORMATS = ("wav", "mp3")
_DATA_URL = {"type": "string", "pattern": "^data:[^,]*;base64,"}
_DETAIL = {"const": "auto"}
_AUDIO = {
    "type": "object",
    "properties": {
        "type": {"const": "input_audio"},
        "input_audio": {
            "type": "object",
            "properties": {"data": {"type": "string"}, "format": {"enum": list(_FORMATS)}},
            "required": ["data", "format"],
        },
    },
    "required": ["type", "input_audio"],
}
CHAT_PARTS: list[Json] = [
    {
        "type": "object",
        "properties": {
            "type": {"const": "image_url"},
            "image_url": {
                "type": "object",
                "properties": {"url": _DATA_URL, "detail": _DETAIL},
                "required": ["url"],
            },
        },
        "required": ["type", "image_url"],
    },
    _AUDIO,
]
"""What ``read_media`` takes of a chat, as JSON Schema."""


class MediaPart(Frozen):
    """A picture or recording at ``media.at`` in a message's text; ``part`` names it in the request.

    ``wire``: the same as a part of a chat, for another server.
    """

    media: Media
    part: str
    wire: Json

    @property
    def wire_bytes(self) -> int:
        """About how many bytes of the request it takes, as base64."""
        return 4 * len(self.media.data) // 3


def read_media(given: Json, part: str, at: int) -> MediaPart:
    """A part of a message that holds no text. Raises ``ApiError`` (400) about ``part``."""
    kind = given["type"]
    inside = given.get(kind) if kind != "input_image" else {**given, "url": given.get("image_url")}
    if not isinstance(inside, dict):
        raise unsupported(part, f"'{part}': {kind!r} is missing.")
    if kind == "input_audio":
        form, text = inside.get("format"), inside.get("data")
        if form not in _FORMATS:
            raise unsupported(part, f"'{part}': the format of a recording is one of {', '.join(_FORMATS)}.")
        wire = {"type": "input_audio", "input_audio": {"data": text, "format": form}}
        data = from_base64(text) if isinstance(text, str) else None
    else:
        if inside.get("file_id") is not None:
            raise unsupported(part, f"'{part}': nothing is stored here, so 'file_id' names no picture.")
        if inside.get("detail") not in (None, "auto"):
            raise unsupported(part, f"'{part}': 'detail' is only supported as \"auto\".")
        url = inside.get("url")
        if not isinstance(url, str) or not url.startswith("data:"):
            raise unsupported(part, f"'{part}': a picture is sent as a data: URL; nothing is fetched.")
        wire = {"type": "image_url", "image_url": {"url": url}}
        data = from_base64(url)
    if data is None:
        raise unsupported(part, f"'{part}' holds no base64.")
    return MediaPart(media=Media(KINDS[kind], data, at), part=part, wire=wire)


def from_base64(text: str) -> bytes | None:
    """The bytes behind base64 or a data URL of it; ``None``: it is neither."""
    head, comma, rest = text[:100].partition(",")
    if comma and head.startswith("data:") and head.endswith(";base64"):
        text = rest + text[100:]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def parts_of(text: str, media: tuple[MediaPart, ...], part_of: Any) -> list[Json]:
    """A message's content in parts: its text cut where ``part_of`` each of ``media`` stands."""
    parts: list[Json] = []
    start = 0
    for one in media:
        parts += [{"type": "text", "text": text[start : one.media.at]}, part_of(one)]
        start = one.media.at
    parts.append({"type": "text", "text": text[start:]})
    return [part for part in parts if part.get("text") != ""]
