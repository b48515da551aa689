"""TensorRT engines on a device's disk: a folder for each key, sealed once it is whole.

Owns that an engine is built beside the folder that will hold it, made durable, listed by digest and only then
given its name; that one process at a time builds a key; and that nothing is read from a folder that is not
exactly what was sealed under this key. What TensorRT has timed is kept apart, for the builds to come.

Who can write into the folder can run code in whoever reads it, as with any engine file: it belongs to the
agent's user alone.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models import canonical
from models.errors import EngineError
from models.store import copy_durably, digest_of, make_folder, sync_folder, write_durably
from models.tensorrt_key import EngineIdentity, engine_name, timing_name

SEAL_FILE = "sealed.json"
_log = logging.getLogger(__name__)


@contextmanager
def engine_folder(root: Path, identity: EngineIdentity) -> Iterator[Path]:
    """The folder from which the engine of ``identity`` is read, or into which it is to be built.

    It is sealed when the block ends well. Where the block fails, what it read or built is dropped, so that
    the next try begins anew. Waits for another process that builds the same. Raises ``EngineError`` when the
    block leaves no engine.
    """
    make_folder(root)
    root.chmod(0o700)
    kept = root / engine_name(identity)
    building, timing = root / f".{kept.name}.building", root / timing_name(identity)
    with _alone(root / f".{kept.name}.lock"):
        if is_sealed(kept, identity):
            try:
                yield kept
            except BaseException:
                _drop(kept)
                raise
            if not is_sealed(kept, identity):  # the runtime wrote another engine over it, and not durably
                _drop(kept)
            return
        if kept.exists():
            _log.warning("%s is not the engine that was sealed there: it is built again", kept)
        _drop(kept)
        _drop(building)
        building.mkdir(mode=0o700)
        try:
            _copy_timings(timing, building)
            yield building
            _copy_timings(building, timing)
            _seal(building, identity)
            building.rename(kept)
            sync_folder(root)
        except BaseException:
            _drop(building)
            _drop(timing)  # TensorRT fails over one that it cannot read
            raise


def is_sealed(folder: Path, identity: EngineIdentity) -> bool:
    """Whether a folder holds what was sealed for ``identity``, byte for byte, and nothing else."""
    try:
        seal = (folder / SEAL_FILE).read_bytes()
        return seal == _seal_of(folder, identity)
    except OSError:
        return False


def _seal(folder: Path, identity: EngineIdentity) -> None:
    for timings in folder.glob("*.timing"):
        timings.unlink()
    if not any(folder.glob("*.engine")):
        raise EngineError("TensorRT took no part of the graph: there is no engine to serve from")
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    write_durably(folder / SEAL_FILE, _seal_of(folder, identity))


def _seal_of(folder: Path, identity: EngineIdentity) -> bytes:
    files = {path.name: digest_of(path) for path in folder.iterdir() if path.name != SEAL_FILE}
    return canonical.encode({"schema": 1, "identity": identity.to_json(), "files": files})


def _copy_timings(source: Path, target: Path) -> None:
    for path in source.glob("*.timing"):
        copy_durably(path, target / path.name, digest_of(path))


def _drop(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a file's lock; the kernel lets go of it when the process ends, however it ends."""
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
