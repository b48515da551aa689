"""Blobs through bad links and past bad sources."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.digest import CHUNK_SIZE, Digest
from models.errors import DigestMismatch, InvalidManifest
from models.manifest import Kind, Manifest
from models.store import BlobStore, copy_durably, describe_file, read_release, verify_release, write_release
from sync.errors import EndlessData, LinkDown, StoreFull
from sync.transfer import RESERVE, fetch_blob, require_room

DATA = os.urandom(3 * CHUNK_SIZE + 12_345)


class Source:
    """Serves ``DATA``; ``script`` says what happens at each read, in order, and honesty follows."""

    def __init__(self, *script: str, piece: int = 300_000) -> None:
        self.script = list(script)
        self.piece = piece
        self.offsets: list[int] = []

    async def read(self, digest: Digest, offset: int, length: int) -> bytes:
        what = self.script.pop(0) if self.script else "honest"
        if what == "cut":
            raise LinkDown("cut")
        self.offsets.append(offset)
        data = DATA[offset : offset + min(length, self.piece)]
        return {"honest": data, "lie": b"\0" * len(data), "endless": data + b"x" * length, "empty": b""}[what]


@pytest.fixture
def file(tmp_path):
    (tmp_path / "weights").write_bytes(DATA)
    return describe_file(tmp_path / "weights", "weights.gguf")


async def test_a_cut_transfer_goes_on_after_the_last_whole_chunk(tmp_path, file):
    store, source = BlobStore(tmp_path / "store"), Source(*["honest"] * 9, "cut")
    with pytest.raises(LinkDown):
        await fetch_blob(file, store, source)
    assert not store.has(file.sha256)
    source.offsets.clear()
    path = await fetch_blob(file, store, source)
    assert path.read_bytes() == DATA
    assert source.offsets[0] == 2 * CHUNK_SIZE
    assert not store.partial(file.sha256).exists()
    source.offsets.clear()
    await fetch_blob(file, store, source)
    assert source.offsets == []  # what is here costs nothing


async def test_a_partial_file_is_not_believed(tmp_path, file):
    store = BlobStore(tmp_path / "store")
    partial = store.partial(file.sha256)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(DATA[:CHUNK_SIZE] + b"!" + DATA[CHUNK_SIZE + 1 :] + b"and more")
    source = Source()
    assert (await fetch_blob(file, store, source)).read_bytes() == DATA
    assert source.offsets[0] == CHUNK_SIZE


@pytest.mark.parametrize(
    ("what", "error"), [("lie", DigestMismatch), ("endless", EndlessData), ("empty", LinkDown)]
)
async def test_a_bad_source_is_caught_in_its_first_chunk(tmp_path, file, what, error):
    store, source = BlobStore(tmp_path / "store"), Source(*["honest"] * 4, what)
    with pytest.raises(error):
        await fetch_blob(file, store, source)
    assert store.partial(file.sha256).stat().st_size == CHUNK_SIZE
    assert (await fetch_blob(file, store, Source())).read_bytes() == DATA


@settings(max_examples=15, deadline=None)
@given(script=st.lists(st.sampled_from(["honest", "cut", "lie", "empty"]), max_size=12))
async def test_whatever_happens_the_blob_is_whole_or_absent(tmp_path_factory, script):
    folder = tmp_path_factory.mktemp("any")
    (folder / "weights").write_bytes(DATA)
    file = describe_file(folder / "weights", "weights.gguf")
    store, source = BlobStore(folder / "store"), Source(*script)
    while not store.has(file.sha256):
        try:
            await fetch_blob(file, store, source)
        except (LinkDown, DigestMismatch):
            assert not store.has(file.sha256)
    assert store.path(file.sha256).read_bytes() == DATA


async def test_an_empty_file_arrives(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    file = describe_file(tmp_path / "empty", "labels.json")
    assert (await fetch_blob(file, BlobStore(tmp_path / "store"), Source())).read_bytes() == b""


async def test_a_transfer_leaves_the_reserve_free(tmp_path, file):
    disk = {"free": RESERVE + file.size - 1}
    store, source = BlobStore(tmp_path / "store", lambda folder: disk["free"]), Source()
    with pytest.raises(StoreFull, match="3 MiB to fetch and 256 MiB to stay free; the disk has 259 MiB"):
        require_room([file, file], store)
    with pytest.raises(StoreFull):
        await fetch_blob(file, store, source)
    assert source.offsets == []
    disk["free"] += 1
    require_room([file, file], store)  # the same bytes are kept once
    read = source.read

    async def read_while_others_write(*where: object) -> bytes:
        disk["free"] = RESERVE
        return await read(*where)

    source.read = read_while_others_write
    with pytest.raises(StoreFull):
        await fetch_blob(file, store, source)
    assert store.partial(file.sha256).stat().st_size == CHUNK_SIZE
    disk["free"] = RESERVE + file.size - CHUNK_SIZE
    require_room([file], store)  # what arrived is there already
    source.read = read
    await fetch_blob(file, store, source)
    disk["free"] = 0
    require_room([file], store)
    store.remove(file.sha256)
    store.remove(file.sha256)
    assert not store.has(file.sha256)


async def test_a_disk_that_is_full_all_the_same_gets_its_room_back(tmp_path, file):
    class Full(BlobStore):
        def adopt(self, digest: Digest) -> Path:
            raise OSError(errno.ENOSPC, "no space left on device")

    store = Full(tmp_path / "store")
    with pytest.raises(StoreFull):
        await fetch_blob(file, store, Source())
    assert not store.partial(file.sha256).exists()


def test_a_release_folder_that_was_touched_is_refused(tmp_path, file):
    manifest = Manifest(
        kind=Kind.MODEL, name="tiny", version="1.0.0", format="gguf", precision="q8_0",
        files=(file,), license="Apache-2.0",
    )  # fmt: skip
    release = tmp_path / "release"
    digest = write_release(release, manifest, {"weights.gguf": tmp_path / "weights"})
    assert verify_release(release) == manifest
    assert Digest.of(read_release(release)[1]) == digest
    weights = release / "weights.gguf"
    weights.write_bytes(DATA[:-1] + b"?")
    with pytest.raises(DigestMismatch, match=r"weights\.gguf"):
        verify_release(release)
    weights.unlink()
    weights.symlink_to(tmp_path / "weights")
    with pytest.raises(InvalidManifest, match="regular file"):
        verify_release(release)
    with pytest.raises(DigestMismatch):
        copy_durably(tmp_path / "weights", tmp_path / "copies" / "weights", Digest.of(b"other"))
    assert not list((tmp_path / "copies").iterdir())
