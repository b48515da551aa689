"""Blobs on their way to the device: pulled in chunks, verified chunk by chunk, resumed after a cut.

Whatever carries the bytes (HTTPS ranges here, MQTT in ``sync.link``) is a ``BlobSource`` and is not trusted:
a chunk is kept only when its digest is the manifest's. What was kept survives a cut link and a killed
process; when the transfer goes on, it is hashed again before it counts. Choosing the source belongs to the
caller.
"""

import asyncio
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import httpx

from models.digest import CHUNK_SIZE, Digest
from models.errors import DigestMismatch
from models.manifest import File
from models.store import BlobStore, chunks_of, make_folder
from sync.errors import BlobMissing, EndlessData, LinkDown, StoreFull

RESERVE = 256 << 20
"""Bytes of the disk that no release may take: without room for its records a device answers nothing."""


class BlobSource(Protocol):
    """Where bytes of blobs come from."""

    async def read(self, digest: Digest, offset: int, length: int) -> bytes:
        """1 to ``length`` bytes of a blob from ``offset``. Raises ``LinkDown``, ``BlobMissing``."""


def require_room(files: Iterable[File], store: BlobStore, reserve: int = RESERVE) -> None:
    """Raise ``StoreFull`` unless what is missing of ``files`` fits and ``reserve`` bytes stay free."""
    absent = {file.sha256: file for file in files if not store.has(file.sha256)}
    _demand(store, sum(file.size - _arrived(store, file) for file in absent.values()), reserve)


async def fetch_blob(file: File, store: BlobStore, source: BlobSource, reserve: int = RESERVE) -> Path:
    """Bring a file of a verified manifest into the store; returns its path.

    A blob that is there already costs nothing. ``reserve`` bytes of the disk stay free. Raises ``LinkDown``
    (what arrived is kept), ``DigestMismatch`` when the source sent other bytes, ``EndlessData`` when it sent
    too many, ``StoreFull``.
    """
    if store.has(file.sha256):
        return store.path(file.sha256)
    partial = store.partial(file.sha256)
    with _room(partial):
        done = await asyncio.to_thread(_keep_verified, file, partial)
    for index in range(done, len(file.chunks)):
        _demand(store, file.size - index * CHUNK_SIZE, reserve)  # others write to the disk meanwhile
        chunk = await _read_chunk(file, index, source)
        with _room(partial):
            await asyncio.to_thread(_append, partial, chunk)
    with _room(partial):
        return await asyncio.to_thread(store.adopt, file.sha256)


class HttpBlobSource:
    """Blobs by HTTPS range requests. ``url`` is the folder in which each blob is named by its hex digest."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url.rstrip("/")

    async def read(self, digest: Digest, offset: int, length: int) -> bytes:
        """See ``BlobSource``. An answer without the asked range counts as a link that is down."""
        url = f"{self._url}/{digest.hex}"
        headers = {"range": f"bytes={offset}-{offset + length - 1}", "accept-encoding": "identity"}
        received = bytearray()
        try:
            async with self._client.stream("GET", url, headers=headers) as response:
                if response.status_code == httpx.codes.NOT_FOUND:
                    raise BlobMissing(f"{url}: not there")
                if response.status_code != httpx.codes.PARTIAL_CONTENT:
                    raise LinkDown(f"{url}: {response.status_code} where a range was asked for")
                async for block in response.aiter_bytes():
                    received += block
                    if len(received) > length:
                        raise EndlessData(f"{url}: more than the {length} bytes that were asked for")
        except httpx.TransportError as error:
            raise LinkDown(f"{url}: {error}") from error
        return bytes(received)


async def _read_chunk(file: File, index: int, source: BlobSource) -> bytes:
    start = index * CHUNK_SIZE
    wanted = min(CHUNK_SIZE, file.size - start)
    chunk = bytearray()
    while len(chunk) < wanted:
        left = wanted - len(chunk)
        piece = await source.read(file.sha256, start + len(chunk), left)
        if not piece:
            raise LinkDown(f"{file.path}: the source has nothing at byte {start + len(chunk)}")
        if len(piece) > left:
            raise EndlessData(f"{file.path}: {len(piece)} bytes where {left} were asked for")
        chunk += piece
    if Digest.of(bytes(chunk)) != file.chunks[index]:
        raise DigestMismatch(f"{file.path}: chunk {index} is not what the manifest says")
    return bytes(chunk)


def _keep_verified(file: File, partial: Path) -> int:
    """Cut the partial file after its last good chunk; returns how many chunks it holds."""
    make_folder(partial.parent)
    partial.touch()
    good = 0
    for found, expected in zip(chunks_of(partial), file.chunks, strict=False):
        if Digest.of(found) != expected:
            break
        good += 1
    with partial.open("r+b") as stream:
        stream.truncate(min(good * CHUNK_SIZE, file.size))
    return good


def _append(partial: Path, chunk: bytes) -> None:
    with partial.open("ab") as stream:
        stream.write(chunk)


def _arrived(store: BlobStore, file: File) -> int:
    partial = store.partial(file.sha256)
    return min(partial.stat().st_size, file.size) if partial.exists() else 0


def _demand(store: BlobStore, missing: int, reserve: int) -> None:
    free = store.free()
    if missing and free < missing + reserve:
        raise StoreFull(
            f"{missing >> 20} MiB to fetch and {reserve >> 20} MiB to stay free; "
            f"the disk has {free >> 20} MiB"
        )


@contextmanager
def _room(partial: Path) -> Iterator[None]:
    """A disk that is full all the same gets back what this transfer took."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            partial.unlink(missing_ok=True)
            raise StoreFull("the disk has no room for this release") from error
        raise
