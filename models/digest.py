"""Content digests: the only names by which artifacts are trusted.

Pure: hashing of bytes and of iterables of bytes. Reading files belongs to ``models.store``.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from models.errors import InvalidDigest

CHUNK_SIZE = 1 << 20
"""Bytes in one chunk of a resumable transfer (the last may be shorter)."""

_FORM = re.compile(r"sha256:[0-9a-f]{64}")


class Digest(str):
    """A SHA-256 digest, written ``sha256:<64 lower-case hex digits>``, validated at birth.

    Raises ``InvalidDigest`` for any other form.
    """

    __slots__ = ()

    def __new__(cls, value: str) -> Self:
        if not _FORM.fullmatch(value):
            raise InvalidDigest(f"not a digest of the form sha256:<64 hex>: {value!r:.100}")
        return super().__new__(cls, value)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """The digest of ``data``."""
        return cls("sha256:" + hashlib.sha256(data).hexdigest())

    @classmethod
    def from_hex(cls, value: str) -> Self:
        """The digest whose 64 hex digits are ``value``."""
        return cls("sha256:" + value)

    @property
    def hex(self) -> str:
        """The 64 hex digits, without the algorithm."""
        return self[len("sha256:") :]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(_parse, core_schema.str_schema())


def _parse(value: str) -> Digest:
    try:
        return Digest(value)
    except InvalidDigest as error:  # pydantic reports ValueError with the field's path
        raise ValueError(str(error)) from error


def chunked(blocks: Iterable[bytes], size: int = CHUNK_SIZE) -> Iterator[bytes]:
    """Regroup ``blocks`` into chunks of exactly ``size`` bytes; the last may be shorter.

    Law: ``b"".join(chunked(blocks)) == b"".join(blocks)``.
    """
    buffer = bytearray()
    for block in blocks:
        buffer += block
        while len(buffer) >= size:
            yield bytes(buffer[:size])
            del buffer[:size]
    if buffer:
        yield bytes(buffer)
