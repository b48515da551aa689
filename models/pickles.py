"""Pickles, which run code when they are read: known by name or by their first bytes, and never opened."""

import zipfile
from pathlib import Path

from models.errors import UnsafeFile, unreadable

SUFFIXES = frozenset({".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npz"})
"""Names that may mean a pickle: a ``pytorch_model.bin`` is one; so may be an array in an ``.npz``."""

_HIGHEST_PROTOCOL = 5


def refuse_pickle(path: Path) -> None:
    """Raise ``UnsafeFile`` for a file that is, or may hold, a pickle; whatever its suffix."""
    if path.suffix.lower() in SUFFIXES:
        raise UnsafeFile(f"{path.name}: may hold a pickle, which runs code when it is read; it is not opened")
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise unreadable(path, error) from error
    if is_pickle(head) or (head.startswith(b"PK\3\4") and _holds_pickle(path)):
        raise UnsafeFile(f"{path.name}: is a pickle, which runs code when it is read; it is not opened")


def is_pickle(head: bytes) -> bool:
    """Whether a file that begins with ``head``, nine bytes, is a pickle of protocol 2 or later.

    The length that begins a safetensors file may look like one; what follows it does not.
    """
    if len(head) < 2 or head[0] != 0x80 or not 2 <= head[1] <= _HIGHEST_PROTOCOL:
        return False
    return not (head[4:8] == b"\0\0\0\0" and head[8:9] == b"{")


def _holds_pickle(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith((".pkl", ".pickle")) for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return True  # PyTorch writes zip archives; a broken one gets no benefit of the doubt
