"""Prefixes on disk: the KV cells of what many prompts begin with, for the next start.

Owns the file's format. A file is data from outside: its length, its digest and what it was made for are
checked before anything of it reaches llama.cpp; whatever does not fit exactly is as good as no file.

Format: magic, SHA-256 of all that follows, length of a JSON header (4 bytes, big-endian), that header
(``{"made_for": {...}, "prefixes": [{"tokens": [...], "bytes": n}, ...]}``), then the states in order.
"""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from models.engines.llama_cpp.cells import SavedPrefix
from models.store import write_durably

_MAGIC = b"outpost prefixes 1\n"
_SIZE = struct.Struct(">I")
_MOST_HEADER = 16 << 20
MOST_BYTES = 128 << 20
"""Of states in one file: it is written while the engine's end is waited for."""
_MOST_ON_DISK = 512 << 20
"""Of all files; those written longest ago go first."""


@dataclass(frozen=True, slots=True)
class SavedPrefixes:
    """A folder with a file for each base and adapter. ``weights`` is the digest of the base's file."""

    folder: Path
    weights: str

    def file(self, made_for: Mapping[str, object]) -> Path:
        """Where prefixes for exactly this lie."""
        name = hashlib.sha256(json.dumps(made_for, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{name[:32]}.prefixes"

    def save(self, made_for: Mapping[str, object], prefixes: Sequence[SavedPrefix]) -> None:
        """Replace the file; without prefixes there is none.

        A disk that takes no file costs the next start some time, and is no reason to fail here.
        """
        path = self.file(made_for)
        with suppress(OSError):
            if prefixes:
                write_durably(path, encode(made_for, prefixes), mode=0o600)
                self._trim()
            else:
                path.unlink(missing_ok=True)

    def _trim(self) -> None:
        left = _MOST_ON_DISK
        files = [(path.stat(), path) for path in self.folder.iterdir()]
        for told, path in sorted(files, key=lambda file: -file[0].st_mtime_ns):
            left -= told.st_size
            if left < 0:
                path.unlink(missing_ok=True)

    def load(self, made_for: Mapping[str, object]) -> list[SavedPrefix]:
        """What was saved for exactly this; nothing when there is no such file, or it is damaged."""
        path = self.file(made_for)
        try:
            if path.stat().st_size > MOST_BYTES + _MOST_HEADER:
                return []
            return decode(made_for, path.read_bytes()) or []
        except OSError:
            return []


def encode(made_for: Mapping[str, object], prefixes: Sequence[SavedPrefix]) -> bytes:
    """The bytes of a file."""
    listed = [{"tokens": tokens, "bytes": len(state)} for tokens, state in prefixes]
    header = json.dumps({"made_for": made_for, "prefixes": listed}).encode()
    body = b"".join([_SIZE.pack(len(header)), header, *(state for _, state in prefixes)])
    return _MAGIC + hashlib.sha256(body).digest() + body


def decode(made_for: Mapping[str, object], data: bytes) -> list[SavedPrefix] | None:
    """The inverse of ``encode``; ``None`` for other bytes, or those of something else."""
    start = len(_MAGIC) + hashlib.sha256().digest_size
    body = data[start:]
    if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) : start] != hashlib.sha256(body).digest():
        return None
    try:
        at = _SIZE.size + _SIZE.unpack_from(body)[0]
        header = json.loads(body[_SIZE.size : at])
        listed = [(one["tokens"], one["bytes"]) for one in header["prefixes"]]
        if header["made_for"] != made_for or not all(map(_is_listed, listed)):
            return None
    except (ValueError, KeyError, TypeError, RecursionError, struct.error):
        return None  # whole, but not written by ``encode``
    if at + sum(size for _, size in listed) != len(body):
        return None
    prefixes = []
    for tokens, size in listed:
        prefixes.append((tokens, bytearray(body[at : at + size])))
        at += size
    return prefixes


def _is_listed(prefix: tuple[object, object]) -> bool:
    tokens, size = prefix
    numbers = [*tokens, size] if isinstance(tokens, list) and tokens else [None]
    return all(type(number) is int and number >= 0 for number in numbers)
