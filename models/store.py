"""Files on disk: durable writes, content-addressed blobs, release folders.

Owns the order in which bytes become durable (temporary file, fsync, rename, fsync of the folder), so that a
power cut leaves the old file or the new one. Refuses bytes that are not what their digest says, links and
paths that leave a release. Knows nothing of where bytes come from.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from models.digest import CHUNK_SIZE, Digest
from models.errors import DigestMismatch, InvalidManifest, ModelsError
from models.manifest import MANIFEST_FILE, File, Manifest

TARGETS_FILE = "targets.json"
"""The signed list, copied into the release folder so that one folder is carried to the hub."""

MAX_MANIFEST = 16 << 20
"""Bytes; the chunk digests of a 200 GiB model fit."""


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Create ``folder`` and its missing parents, durably."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync_folder(path.parent)


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace ``path`` by ``data`` so that a crash leaves the old bytes or the new ones."""
    make_folder(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def copy_durably(source: Path, target: Path, digest: Digest) -> None:
    """Copy a file; ``target`` appears whole or not at all. Raises ``DigestMismatch`` for other bytes."""
    make_folder(target.parent)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".copy-")
    temporary, whole = Path(name), hashlib.sha256()
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(stream.fileno(), 0o644)
            for chunk in chunks_of(source):
                whole.update(chunk)
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        found = Digest.from_hex(whole.hexdigest())
        if found != digest:
            raise DigestMismatch(f"{source.name} is {found}, not {digest}")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)


def chunks_of(path: Path) -> Iterator[bytes]:
    """The bytes of a file in chunks of ``CHUNK_SIZE``; the last may be shorter."""
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_SIZE):
            yield chunk


def digest_of(path: Path) -> Digest:
    """Of a file's bytes; of a folder, of the names and bytes of its files in order."""
    whole = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            if path.is_dir():
                whole.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
            for chunk in chunks_of(file):
                whole.update(chunk)
    return Digest.from_hex(whole.hexdigest())


def describe_file(path: Path, relative: str) -> File:
    """What a manifest says of the file at ``path`` when it is listed as ``relative``."""
    whole, size, chunks = hashlib.sha256(), 0, []
    for chunk in chunks_of(path):
        whole.update(chunk)
        size += len(chunk)
        chunks.append(Digest.of(chunk))
    return File(path=relative, sha256=Digest.from_hex(whole.hexdigest()), size=size, chunks=tuple(chunks))


def free_space(folder: Path) -> int:
    """Bytes that may still be written to the disk of ``folder``."""
    return shutil.disk_usage(folder).free


class BlobStore:
    """Content-addressed files under ``root``: whole blobs, and partial ones that are still arriving.

    A file under ``blobs/`` is complete, verified and never changes. Its name is its digest. ``free_space``
    tells how many bytes the disk of a folder has left.
    """

    def __init__(self, root: Path, free_space: Callable[[Path], int] = free_space) -> None:
        self._root = root
        self._free_space = free_space

    def free(self) -> int:
        """Bytes that the store may still grow by until the disk is full."""
        make_folder(self._root)
        return self._free_space(self._root)

    def path(self, digest: Digest) -> Path:
        """Where the blob is, or would be."""
        return self._root / "blobs" / digest.hex[:2] / digest.hex

    def partial(self, digest: Digest) -> Path:
        """Where bytes of a blob gather until it is whole. Nothing in this file is trusted."""
        return self._root / "partial" / f"{digest.hex}.part"

    def has(self, digest: Digest) -> bool:
        """Whether the whole blob is here."""
        return self.path(digest).is_file()

    def adopt(self, digest: Digest) -> Path:
        """Turn the partial file of ``digest`` into the blob.

        The whole file is hashed first. Raises ``DigestMismatch``, and drops the partial file, when the
        bytes are others.
        """
        partial = self.partial(digest)
        whole = hashlib.sha256()
        for chunk in chunks_of(partial):
            whole.update(chunk)
        found = Digest.from_hex(whole.hexdigest())
        if found != digest:
            partial.unlink()
            raise DigestMismatch(f"the bytes received for {digest} are {found}")
        target = self.path(digest)
        make_folder(target.parent)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(target)
        sync_folder(target.parent)
        return target

    def lay_out(self, release: Digest, files: Sequence[File]) -> Path:
        """A folder that holds the blobs of ``files`` under their names; it is whole or not there.

        They are links to the blobs where the disk has such, else copies. One is laid out at a time: what a
        crash left unfinished is removed. Raises ``DigestMismatch``.
        """
        folder = self._laid_out(release)
        if folder.is_dir():
            return folder
        make_folder(folder.parent)
        for left in folder.parent.glob(".unfinished-*"):
            shutil.rmtree(left)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unfinished-"))
        try:
            for file in files:
                target = unfinished / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(self.path(file.sha256), target)
                except OSError:
                    copy_durably(self.path(file.sha256), target, file.sha256)
            for inside in {(unfinished / file.path).parent for file in files} | {unfinished}:
                sync_folder(inside)
            unfinished.chmod(0o755)
            unfinished.replace(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        sync_folder(folder.parent)
        return folder

    def remove_layout(self, release: Digest) -> None:
        """Forget the folder of a release; none is no error. Whoever has its files open keeps their bytes."""
        folder = self._laid_out(release)
        if folder.is_dir():
            gone = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unfinished-"))
            folder.replace(gone)  # gone in one step: what is left of it after a crash is not taken for whole
            shutil.rmtree(gone, ignore_errors=True)

    def _laid_out(self, release: Digest) -> Path:
        return self._root / "releases" / release.hex

    def remove(self, digest: Digest) -> None:
        """Forget a blob, whole or partial. Whoever has it open keeps its bytes; none is no error."""
        self.path(digest).unlink(missing_ok=True)
        self.partial(digest).unlink(missing_ok=True)


def write_release(folder: Path, manifest: Manifest, files: Mapping[str, Path]) -> Digest:
    """Write a release folder: every file of the manifest, taken from ``files``, then the manifest last.

    ``files`` maps the manifest's relative paths to where the bytes are; a file that lies in place already is
    only checked. A folder that has ``release.json`` is therefore whole. Returns the identity of the release.
    Raises ``InvalidManifest`` when ``files`` misses a path, ``DigestMismatch`` when bytes differ.
    """
    make_folder(folder)
    for file in manifest.files:
        source = files.get(file.path)
        if source is None:
            raise InvalidManifest(f"no bytes were given for {file.path}")
        target = folder / file.path
        if source.resolve() != target.resolve():
            copy_durably(source, target, file.sha256)
        _check(file, target)
    data = manifest.to_bytes()
    write_durably(folder / MANIFEST_FILE, data)
    return Digest.of(data)


def read_release(folder: Path) -> tuple[Manifest, bytes]:
    """The manifest of a release folder and its exact bytes, whose digest is the release's identity.

    Raises ``InvalidManifest``, which names the folder, when there is none that can be read.
    """
    path = folder.absolute() / MANIFEST_FILE
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_MANIFEST + 1)
    except OSError as error:
        raise InvalidManifest(
            f"{path.parent} is no release folder: its {MANIFEST_FILE} cannot be read ({error.strerror}); "
            "give a folder that outpost-compile wrote"
        ) from error
    if len(data) > MAX_MANIFEST:
        raise InvalidManifest(f"{path}: more than {MAX_MANIFEST} bytes")
    try:
        return Manifest.parse(data), data
    except ModelsError as error:
        raise InvalidManifest(f"{path}: {error}") from error


def verify_release(folder: Path) -> Manifest:
    """Hash every file of a release folder. Raises ``DigestMismatch`` or ``InvalidManifest``."""
    manifest, _ = read_release(folder)
    verify_files(folder, manifest)
    return manifest


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Hash every file of ``manifest`` in ``folder``. Raises ``DigestMismatch`` or ``InvalidManifest``."""
    for file in manifest.files:
        _check(file, folder.absolute() / file.path)


def unlisted(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """Files at the top of a release folder that its manifest says nothing of; nobody has vouched for them."""
    known = {MANIFEST_FILE, TARGETS_FILE, *(file.path.split("/")[0] for file in manifest.files)}
    return tuple(sorted(path.name for path in folder.iterdir() if path.name not in known))


def _check(file: File, path: Path) -> None:
    if path.is_symlink() or not path.is_file():
        raise InvalidManifest(f"{path}: not a regular file of the release")
    if path.stat().st_size != file.size:
        raise DigestMismatch(f"{path}: {path.stat().st_size} bytes, not {file.size}")
    if describe_file(path, file.path) != file:
        raise DigestMismatch(f"{path}: the bytes are not those of the manifest")
