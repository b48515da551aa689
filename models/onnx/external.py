"""Weights in files beside the model: where they are said to be must be in its folder, and there."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from models.errors import UnsafeFile
from models.onnx.facts import External


def place_of(label: str, entries: Mapping[str, str], size: int) -> External:
    """Where a tensor's bytes are. Raises ``UnsafeFile`` for any place but a file in the model's folder."""
    unknown = set(entries) - {"location", "offset", "length", "checksum"}
    location = entries.get("location", "")
    path = PurePosixPath(location)
    if unknown:
        raise UnsafeFile(f"{label}: unknown words about its place: {', '.join(sorted(unknown))!r:.200}")
    if (
        not location
        or path.is_absolute()
        or ".." in path.parts
        # ``*/_ORT_MEM_ADDR_/*`` makes the runtime read its own memory at a number that the file chooses.
        or any(letter in "\\*?" or ord(letter) < 32 for letter in location)
        or path.name == ""
    ):
        raise UnsafeFile(f"{label} lies outside the model's folder: {location!r:.200}")
    offset, length = _count(label, entries.get("offset")) or 0, _count(label, entries.get("length"))
    if length is not None and length != size:
        raise UnsafeFile(f"{label} is of {size} bytes and has {length}")
    return External(location, offset, length)


def check_there(path: Path, name: str, where: External, size: int) -> None:
    """That the file beside the model ``path`` holds all bytes of a tensor. Raises ``UnsafeFile``."""
    target = path.parent
    for part in PurePosixPath(where.location).parts:
        target /= part
        if target.is_symlink():
            raise UnsafeFile(f"{path.name}: tensor {name!r:.200} lies behind a link, {where.location!r:.200}")
    if not target.is_file():
        raise UnsafeFile(
            f"{path.name}: tensor {name!r:.200} lies in {where.location!r:.200}, which is not here"
        )
    there = target.stat().st_size
    if where.offset + size > there:
        raise UnsafeFile(
            f"{path.name}: tensor {name!r:.200} ends at byte {where.offset + size} "
            f"of {where.location!r:.200}, which has {there}"
        )


def _count(label: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise UnsafeFile(f"{label}: {text!r:.40} is no number of bytes")
    return int(text)
