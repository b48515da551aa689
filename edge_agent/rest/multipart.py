"""``multipart/form-data`` (RFC 7578) of a body that is already here and of bounded size.

Refuses, with 400, what has no boundary, no end or too many parts.
"""

from dataclasses import dataclass
from email.message import Message

from models.openai.errors import bad_request

MAX_PARTS = 256
_MAX_HEAD = 4096


@dataclass(frozen=True, slots=True)
class Part:
    """One field of a form."""

    name: str
    data: bytes


def is_form(content_type: str) -> bool:
    """Whether a body of this type is a form."""
    return content_type.lower().startswith("multipart/form-data")


def read_form(content_type: str, body: bytes) -> list[Part]:
    """The fields in order. Raises ``ApiError`` (400)."""
    boundary = _parameter("content-type", content_type, "boundary")
    if not boundary or len(boundary) > 70:
        raise _broken("it names no boundary")
    mark = b"--" + boundary.encode("latin-1", "replace")
    pieces = (b"\r\n" + body).split(b"\r\n" + mark)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise _broken("it has no end")
    if len(pieces) - 2 > MAX_PARTS:
        raise _broken(f"it has more than {MAX_PARTS} parts")
    return [_part(piece) for piece in pieces[1:-1]]


def _part(piece: bytes) -> Part:
    head, blank, data = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    if not blank or len(head) > _MAX_HEAD:
        raise _broken("a part has no headers, or too many")
    for line in head.decode("utf-8", "replace").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            name = _parameter(key, value.strip(), "name")
            if name:
                return Part(name, data)
    raise _broken("a part has no name")


def _parameter(header: str, value: str, name: str) -> str:
    message = Message()
    message[header.replace("\r", "").replace("\n", "")] = value.replace("\r", "").replace("\n", "")
    found = message.get_param(name, header=header)
    return found if isinstance(found, str) else ""


def _broken(why: str) -> Exception:
    return bad_request(f"The form cannot be read: {why}.", code="invalid_form")
