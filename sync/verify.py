"""Exported trails: their file format, and verifying and opening them with nobody's help.

Owns: the format and what a file proves. Refuses: the network, databases and anybody's word: only the
bytes, the devices' public keys and, to read contents, the key ring and the auditor's private key.

A trail file is JSON lines: ``{"format", "device", "epoch"}`` first, then ``{"record": AuditRecord}`` in
order from 0, with a ``{"checkpoint": signed note}`` after the last record of each segment; the last line
is a checkpoint, so nothing can be added or cut off unseen. A key ring file is JSON lines of
``{"key_id", "sealed"}``. A file of device keys is one JSON object: device id to epoch (in decimal) to raw
Ed25519 key in base64, for a device that enrolled again under its id has another key.
"""

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from models import canonical
from models.errors import ModelsError
from sync.audit import Checkpoint, Frontier, Leaf, check_record, check_root, erased_keys, unbase64
from sync.errors import AuditBroken, InvalidMessage
from sync.protocol import AuditRecord
from sync.sealing import context, open_body, open_key

FORMAT = "outpost-trail/1"

DeviceKeys = Mapping[str, Mapping[int, Ed25519PublicKey]]
"""Public keys by device id and epoch."""


@dataclass(frozen=True, slots=True)
class TrailFacts:
    """What a verified trail file holds. ``withheld`` records stand as hashes alone."""

    device: str
    epoch: int
    records: int
    withheld: int
    checkpoints: int
    root: str
    erased_keys: frozenset[str]


@dataclass(frozen=True, slots=True)
class OpenedRecord:
    """A verified record with its body, or with the reason why there is none to read."""

    leaf: Leaf
    body: bytes | None
    why: str | None


def header_line(device: str, epoch: int) -> bytes:
    """The first line of a trail file."""
    return canonical.encode({"format": FORMAT, "device": device, "epoch": epoch}) + b"\n"


def record_line(record: AuditRecord) -> bytes:
    """The line of a record."""
    return canonical.encode({"record": record.model_dump(mode="json")}) + b"\n"


def checkpoint_line(note: str) -> bytes:
    """The line of a checkpoint: it covers all records above it."""
    return canonical.encode({"checkpoint": note}) + b"\n"


def ring_line(key_id: str, sealed: str) -> bytes:
    """One line of a key ring file."""
    return canonical.encode({"key_id": key_id, "sealed": sealed}) + b"\n"


def verify_trail(lines: Iterable[bytes], keys: DeviceKeys) -> TrailFacts:
    """Verify a trail file from its lines. Raises ``AuditBroken`` naming the record or the line."""
    reader = _TrailReader(keys)
    for _ in reader.read(lines):
        pass
    return reader.facts()


def verify_file(path: Path, keys: DeviceKeys) -> TrailFacts:
    """``verify_trail`` of a file. Raises ``AuditBroken``, ``InvalidMessage`` when it cannot be read."""
    with _reading(path), path.open("rb") as file:
        return verify_trail(file, keys)


def open_trail(
    path: Path,
    keys: DeviceKeys,
    ring: Mapping[str, str],
    auditor: X25519PrivateKey,
) -> Iterator[OpenedRecord]:
    """The records of a trail file with their contents; the whole file is verified before the first.

    Raises ``AuditBroken`` for a trail that does not verify or a body that does not open.
    """
    verify_file(path, keys)
    reader = _TrailReader(keys)
    with _reading(path), path.open("rb") as file:
        for record, leaf in reader.read(file):
            if leaf is not None:
                yield _opened(record, leaf, ring, auditor)


def read_device_keys(path: Path) -> DeviceKeys:
    """The devices' public keys. Raises ``InvalidMessage`` naming the device."""
    with _reading(path):
        content = canonical.decode(path.read_bytes())
    if not isinstance(content, dict):
        raise InvalidMessage(f"{path}: an object of device ids and keys is expected")
    return {device: _keys_of(path, device, epochs) for device, epochs in content.items()}


def read_ring(path: Path) -> dict[str, str]:
    """A key ring file: key id to sealed key. Raises ``InvalidMessage`` naming the line."""
    ring = {}
    with _reading(path), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = canonical.decode(line)
                ring[str(entry["key_id"])] = str(entry["sealed"])
            except (ModelsError, KeyError, TypeError) as error:
                raise InvalidMessage(f"{path}, line {number}: not an entry of a key ring") from error
    return ring


def read_auditor_key(path: Path) -> X25519PrivateKey:
    """The auditor's private key (PEM). Raises ``InvalidMessage``."""
    with _reading(path):
        data = path.read_bytes()
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise InvalidMessage(f"{path}: not a private key in PEM") from error
    if not isinstance(key, X25519PrivateKey):
        raise InvalidMessage(f"{path}: not an X25519 key")
    return key


def _keys_of(path: Path, device: str, epochs: Any) -> dict[int, Ed25519PublicKey]:
    if not isinstance(epochs, dict):
        raise InvalidMessage(f"{path}: an object of epochs and keys is expected for {device}")
    try:
        return {
            int(epoch): Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
            for epoch, text in epochs.items()
        }
    except (ValueError, TypeError, binascii.Error) as error:
        raise InvalidMessage(f"{path}: a key of {device} is not an epoch and a raw Ed25519 key") from error


class _TrailReader:
    """Walks the lines of a trail file, believing nothing that the next checkpoint does not cover."""

    def __init__(self, keys: DeviceKeys) -> None:
        self._keys = keys
        self._device = ""
        self._epoch = 0
        self._tree = Frontier()
        self._covered = 0
        self._checkpoints = 0
        self._withheld = 0
        self._erased: set[str] = set()
        self._last: Checkpoint | None = None

    def read(self, lines: Iterable[bytes]) -> Iterator[tuple[AuditRecord, Leaf | None]]:
        for number, line in enumerate(lines, 1):
            where = (
                f"line {number}, where record {self._epoch}/{self._tree.size} of {self._device or '?'} is due"
            )
            fields = _fields(line, where)
            if number == 1:
                self._begin(fields)
            elif set(fields) == {"record"}:
                yield self._record(fields["record"], where)
            elif set(fields) == {"checkpoint"} and isinstance(fields["checkpoint"], str):
                self._checkpoint(fields["checkpoint"], number)
            else:
                raise AuditBroken(f"{where}: neither a record nor a checkpoint")
        if self._last is None or self._covered != self._tree.size:
            raise AuditBroken(
                f"records {self._epoch}/{self._covered} to {self._epoch}/{self._tree.size - 1} of "
                f"{self._device or '?'}: no checkpoint at the end covers them"
            )

    def facts(self) -> TrailFacts:
        return TrailFacts(
            device=self._device,
            epoch=self._epoch,
            records=self._tree.size,
            withheld=self._withheld,
            checkpoints=self._checkpoints,
            root=self._tree.root.hex(),
            erased_keys=frozenset(self._erased),
        )

    def _begin(self, fields: dict[str, Any]) -> None:
        if fields.get("format") != FORMAT:
            raise AuditBroken(f"line 1: not a trail file of the format {FORMAT}")
        device, epoch = fields.get("device"), fields.get("epoch")
        if type(epoch) is not int:
            raise AuditBroken("line 1: the epoch is not a number")
        if not isinstance(device, str) or epoch not in self._keys.get(device, {}):
            raise AuditBroken(
                f"line 1: no public key is at hand for the device {device!r:.80} in epoch {epoch}"
            )
        self._device, self._epoch = device, epoch

    def _record(self, value: Any, where: str) -> tuple[AuditRecord, Leaf | None]:
        try:
            record = AuditRecord.from_bytes(canonical.encode(value))
        except (InvalidMessage, ModelsError) as error:
            raise AuditBroken(f"{where}: {error}") from error
        if record.model_dump(mode="json") != value:
            raise AuditBroken(f"{where}: it has fields that a record does not have")
        stated, leaf = check_record(record, self._device, self._epoch, self._tree.size)
        self._tree = self._tree.append(stated)
        if leaf is None:
            self._withheld += 1
        else:
            self._erased |= erased_keys(leaf)
        return record, leaf

    def _checkpoint(self, note: str, number: int) -> None:
        key = self._keys[self._device][self._epoch]
        try:
            self._last = check_root(note, self._device, self._epoch, self._tree, key, self._covered)
        except AuditBroken as error:
            raise AuditBroken(f"line {number}: {error}") from error
        self._covered = self._tree.size
        self._checkpoints += 1


def _opened(
    record: AuditRecord, leaf: Leaf, ring: Mapping[str, str], auditor: X25519PrivateKey
) -> OpenedRecord:
    if leaf.key_id is None or record.ciphertext is None:
        return OpenedRecord(leaf, None, "no body" if leaf.body == "none" else "kept on the device")
    sealed = ring.get(leaf.key_id)
    if sealed is None:
        return OpenedRecord(leaf, None, f"its key {leaf.key_id} is not in the ring: erased, or not exported")
    where = f"record {leaf.epoch}/{leaf.seq} of {leaf.device}"
    ciphertext = unbase64(record.ciphertext, AuditBroken(f"{where}: its ciphertext is not base64"))
    try:
        key = open_key(leaf.key_id, sealed, auditor)
        bound_to = context(leaf.device, leaf.epoch, leaf.kind, leaf.request_id)
        return OpenedRecord(leaf, open_body(key, ciphertext, bound_to), None)
    except AuditBroken as error:
        raise AuditBroken(f"{where}: {error}") from error


def _fields(line: bytes, where: str) -> dict[str, Any]:
    """One line's object. Only the canonical form is accepted, so that no byte can change unseen."""
    try:
        value = canonical.decode(line)
        same = canonical.encode(value) + b"\n" == line
    except ModelsError as error:
        raise AuditBroken(f"{where}: {error}") from error
    if not isinstance(value, dict) or not same:
        raise AuditBroken(f"{where}: not one object in canonical JSON")
    return value


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidMessage(f"{path} cannot be read: {error.strerror}") from error
