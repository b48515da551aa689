"""The image side of trust: offline keys, signed targets, the repository that devices read.

TUF 1.0 metadata through python-tuf. Root and targets are signed on a machine that is not the hub; the hub
holds the snapshot and timestamp keys only, so it can say which state is current and never add a release.
The auditor's public key rides in ``root.json`` (``x-outpost-auditor-key``), so the root threshold signs it.

A repository folder is served as it lies: ``metadata/`` and ``targets/`` (consistent snapshots: files never
change once named, and ``timestamp.json`` moves last), blobs under ``targets/blobs/<sha256>``. ``keys/`` is
not served. Choosing what a device runs belongs to the hub's director, not here.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from models.digest import Digest
from models.manifest import Manifest
from models.store import copy_durably, make_folder, read_release, verify_release, write_durably
from sync.errors import InvalidMessage, RolledBack, UntrustedRelease, WrongKeys
from sync.identity import load_device_key, private_pem
from sync.trust import AUDITOR_KEY_FIELD

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)

CARRIED = ("root.json", "targets.json", "snapshot.pem", "timestamp.pem")
"""The files of the folder that ``keys_init`` makes for the hub."""


@dataclass(frozen=True, slots=True)
class Lives:
    """How long metadata is believed. Devices refuse new activations, and run on, past these."""

    root: timedelta = timedelta(days=730)
    targets: timedelta = timedelta(days=365)
    snapshot: timedelta = timedelta(days=7)
    timestamp: timedelta = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Published:
    """A release that the repository now offers."""

    manifest: Manifest
    release: Digest
    target_path: str
    targets_version: int


def keys_init(offline: Path, threshold: int, now: datetime, lives: Lives = Lives()) -> None:
    """Make all keys, on a machine that is not the hub.

    Writes ``root-N.pem`` and ``targets-N.pem`` (``threshold`` + 1 of each, so that one may be lost),
    ``auditor.pem`` (X25519), ``root.json``, ``targets.json`` (empty, signed) and ``hub/``: the folder to
    carry to the hub, with both files and the online keys. Raises ``UntrustedRelease`` over existing keys.
    """
    if (offline / "root.json").exists():
        raise UntrustedRelease(f"{offline} holds keys already; they are never overwritten")
    auditor = X25519PrivateKey.generate()
    root = Root(
        version=1,
        expires=_expiry(now, lives.root),
        consistent_snapshot=True,
        unrecognized_fields={
            AUDITOR_KEY_FIELD: base64.b64encode(
                auditor.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            ).decode()
        },
    )
    hub = offline / "hub"
    offline_keys = {
        role: {f"{role}-{number}": Ed25519PrivateKey.generate() for number in range(1, threshold + 2)}
        for role in (Root.type, Targets.type)
    }
    online_keys = {role: Ed25519PrivateKey.generate() for role in (Snapshot.type, Timestamp.type)}
    for role, keys in offline_keys.items():
        for name, key in keys.items():
            root.add_key(CryptoSigner(key).public_key, role)
            write_durably(offline / f"{name}.pem", private_pem(key), mode=0o600)
        root.roles[role].threshold = threshold
    for role, key in online_keys.items():
        root.add_key(CryptoSigner(key).public_key, role)
        write_durably(hub / f"{role}.pem", private_pem(key), mode=0o600)
    auditor_pem = auditor.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_durably(offline / "auditor.pem", auditor_pem, mode=0o600)
    targets = Metadata(Targets(version=1, expires=_expiry(now, lives.targets)))
    targets_data = _signed(targets, list(offline_keys[Targets.type].values())[:threshold])
    root_data = _signed(Metadata(root), list(offline_keys[Root.type].values())[:threshold])
    for folder in (hub, offline):
        write_durably(folder / "targets.json", targets_data)
        write_durably(folder / "root.json", root_data)


def sign_release(
    release: Path, targets_json: Path, key_files: Sequence[Path], now: datetime, lives: Lives = Lives()
) -> Published:
    """List a release in ``targets.json`` and sign it with each key.

    A new release raises the version and drops old signatures. A release that is listed already only gains
    signatures: with a threshold above one, each holder of a key signs the same file in turn. Raises
    ``DigestMismatch`` or ``InvalidManifest`` for a folder that is not whole, ``UntrustedRelease`` when this
    name and version was signed with other bytes before, ``InvalidMessage`` naming a file that is no key.
    """
    keys = [_read_key(path) for path in key_files]
    manifest = verify_release(release)
    _, data = read_release(release)
    metadata = _load(targets_json.read_bytes(), Targets, targets_json)
    listed = metadata.signed.targets.get(manifest.target_path)
    target = TargetFile.from_data(manifest.target_path, data, ["sha256"])
    if listed is None:
        metadata.signed.targets[manifest.target_path] = target
        metadata.signed.version += 1
        metadata.signed.expires = _expiry(now, lives.targets)
        metadata.signatures.clear()
    elif listed.hashes != target.hashes:
        raise UntrustedRelease(
            f"{manifest.name} {manifest.version} was signed with other bytes: a version never changes, "
            "choose a new one"
        )
    write_durably(targets_json, _signed(metadata, keys))
    return Published(manifest, Digest.of(data), manifest.target_path, metadata.signed.version)


class Repository:
    """The hub's copy of the repository: verifies what it is given, and serves it."""

    def __init__(self, folder: Path, lives: Lives = Lives()) -> None:
        self._folder = folder
        self._lives = lives

    @property
    def metadata(self) -> Path:
        """The folder served as ``/tuf/metadata``."""
        return self._folder / "metadata"

    @property
    def targets(self) -> Path:
        """The folder served as ``/tuf/targets``."""
        return self._folder / "targets"

    @property
    def root(self) -> bytes:
        """The first root: the anchor that enrolment hands out."""
        return (self.metadata / "1.root.json").read_bytes()

    def blob(self, digest: Digest) -> Path:
        """Where a published blob lies, or would lie."""
        return self.targets / "blobs" / digest.hex

    def create(self, carried: Path, now: datetime) -> None:
        """Start from the ``hub/`` folder that ``keys_init`` made.

        Nothing is written unless everything carried is right, and running it again with the same folder
        changes nothing. Raises ``UntrustedRelease``, and ``InvalidMessage`` for what is no key.
        """
        given = carried / "root.json"
        root_data = given.read_bytes()
        first = self.metadata / "1.root.json"
        if first.exists() and first.read_bytes() != root_data:
            raise UntrustedRelease(f"{self._folder} belongs to another root")
        root = _load(root_data, Root, given)
        if root.signed.version != 1:
            raise UntrustedRelease(f"{given}: a repository starts from version 1 of its root")
        _verify(root.signed, Root.type, root, given)
        online = {}
        for role in (Snapshot.type, Timestamp.type):
            path = carried / f"{role}.pem"
            key = _read_key(path)
            if CryptoSigner(key).public_key.keyid not in root.signed.roles[role].keyids:
                raise WrongKeys(f"{path} is not the key that {given} names")
            online[path.name] = key
        data = (carried / "targets.json").read_bytes()
        targets = _load(data, Targets, carried / "targets.json")
        _verify(root.signed, Targets.type, targets, carried / "targets.json")
        for name, key in online.items():
            write_durably(self._folder / "keys" / name, private_pem(key), mode=0o600)
        write_durably(first, root_data)
        make_folder(self.targets)
        if not (self.metadata / "timestamp.json").exists():
            self._advance(targets.signed.version, data, now)

    def publish(self, release: Path, targets_json: Path, now: datetime) -> Published:
        """Offer a signed release. Running it again changes nothing.

        Blobs and manifest are in place before metadata names them, and the timestamp moves last. Raises
        ``WrongKeys`` when the newest root's threshold is not met, ``RolledBack`` for older targets,
        ``UntrustedRelease`` when the release is not listed as it is, ``DigestMismatch`` for a broken folder.
        """
        manifest = verify_release(release)
        _, data = read_release(release)
        signed_data = targets_json.read_bytes()
        metadata = _load(signed_data, Targets, targets_json)
        _verify(self._newest_root(), Targets.type, metadata, targets_json)
        listed = metadata.signed.targets.get(manifest.target_path)
        if listed is None or listed.hashes.get("sha256") != Digest.of(data).hex:
            raise UntrustedRelease(
                f"{manifest.name} {manifest.version} is not signed as it lies in {release}"
            )
        current = self._current_targets()
        version = metadata.signed.version
        if version < current.signed.version:
            raise RolledBack(f"targets {version} are older than {current.signed.version}, which devices know")
        if version == current.signed.version and metadata.signed != current.signed:
            raise UntrustedRelease(f"targets {version} were published with other contents")
        for file in manifest.files:
            if not self.blob(file.sha256).exists():
                copy_durably(release / file.path, self.blob(file.sha256), file.sha256)
        folder, _, name = manifest.target_path.rpartition("/")
        write_durably(self.targets / folder / f"{Digest.of(data).hex}.{name}", data)
        if version > current.signed.version:
            self._advance(version, signed_data, now)
        return Published(manifest, Digest.of(data), manifest.target_path, version)

    def refresh_timestamp(self, now: datetime) -> bool:
        """Sign the online metadata anew when half of its life is over; says whether it did."""
        snapshot, timestamp = self._current_snapshot(), self._current_timestamp()
        due_snapshot = _due(snapshot.signed, now, self._lives.snapshot)
        if due_snapshot:
            snapshot.signed.version += 1
            snapshot.signed.expires = _expiry(now, self._lives.snapshot)
            self._write_online(Snapshot.type, snapshot, f"{snapshot.signed.version}.snapshot.json")
        if not (due_snapshot or _due(timestamp.signed, now, self._lives.timestamp)):
            return False
        self._stamp(snapshot.signed.version, timestamp.signed.version + 1, now)
        return True

    def _advance(self, targets_version: int, targets_data: bytes, now: datetime) -> None:
        fresh = not (self.metadata / "timestamp.json").exists()
        snapshot_version = 1 if fresh else self._current_snapshot().signed.version + 1
        timestamp_version = 1 if fresh else self._current_timestamp().signed.version + 1
        write_durably(self.metadata / f"{targets_version}.targets.json", targets_data)
        snapshot = Snapshot(
            version=snapshot_version,
            expires=_expiry(now, self._lives.snapshot),
            meta={"targets.json": MetaFile.from_data(targets_version, targets_data, ["sha256"])},
        )
        self._write_online(Snapshot.type, Metadata(snapshot), f"{snapshot_version}.snapshot.json")
        self._stamp(snapshot_version, timestamp_version, now)

    def _stamp(self, snapshot_version: int, version: int, now: datetime) -> None:
        data = (self.metadata / f"{snapshot_version}.snapshot.json").read_bytes()
        timestamp = Timestamp(
            version=version,
            expires=_expiry(now, self._lives.timestamp),
            snapshot_meta=MetaFile.from_data(snapshot_version, data, ["sha256"]),
        )
        self._write_online(Timestamp.type, Metadata(timestamp), "timestamp.json")

    def _write_online(self, role: str, metadata: Metadata[Snapshot] | Metadata[Timestamp], name: str) -> None:
        key = _read_key(self._folder / "keys" / f"{role}.pem")
        metadata.signatures.clear()
        write_durably(self.metadata / name, _signed(metadata, [key]))

    def _newest_root(self) -> Root:
        """The last root of the chain that devices walk: each is signed as the one before it and as itself
        demand (TUF 1.0, section 5.3)."""
        trusted = self._read("1.root.json", Root).signed
        while (path := self.metadata / f"{trusted.version + 1}.root.json").exists():
            offered = self._read(path.name, Root)
            for judge in (trusted, offered.signed):
                _verify(judge, Root.type, offered, path)
            if offered.signed.version != trusted.version + 1:
                raise UntrustedRelease(f"{path}: it holds version {offered.signed.version} of the root")
            trusted = offered.signed
        return trusted

    def _current_timestamp(self) -> Metadata[Timestamp]:
        return self._read("timestamp.json", Timestamp)

    def _current_snapshot(self) -> Metadata[Snapshot]:
        version = self._current_timestamp().signed.snapshot_meta.version
        return self._read(f"{version}.snapshot.json", Snapshot)

    def _current_targets(self) -> Metadata[Targets]:
        version = self._current_snapshot().signed.meta["targets.json"].version
        return self._read(f"{version}.targets.json", Targets)

    def _read(self, name: str, kind: type[S]) -> Metadata[S]:
        path = self.metadata / name
        return _load(path.read_bytes(), kind, path)


def _load(data: bytes, kind: type[S], path: Path) -> Metadata[S]:
    """Metadata out of ``data``, which was read from ``path``: errors name it."""
    name = f"{kind.type}.json"
    try:
        metadata = Metadata[S].from_bytes(data)
    except (DeserializationError, RepositoryError) as error:
        carried = " that outpost-hub keys init made" if name in CARRIED else ""
        raise UntrustedRelease(f"{path} is no {name}{carried}: {error}") from error
    if not isinstance(metadata.signed, kind):
        raise UntrustedRelease(f"{path} holds {metadata.signed.type} metadata; a {name} is expected")
    return metadata


def _verify(root: Root, role: str, metadata: Metadata[S], path: Path) -> None:
    """Raises ``WrongKeys`` unless as many keys of ``role`` signed as ``root`` demands."""
    result = root.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    if result:
        return
    more = f"{result.missing} more {'is' if result.missing == 1 else 'are'} needed"
    if role == Targets.type:
        more += ": outpost-hub release sign … --key KEY"
    raise WrongKeys(
        f"{path} is signed by {len(result.signed)} of the {result.threshold} {role} keys that must sign; "
        + more
    )


def _read_key(path: Path) -> Ed25519PrivateKey:
    try:
        return load_device_key(path.read_bytes())
    except InvalidMessage as error:
        raise InvalidMessage(f"{path} is no key that outpost-hub keys init made: {error}") from error


def _signed(metadata: Metadata[Any], keys: Sequence[Ed25519PrivateKey]) -> bytes:
    for key in keys:
        metadata.sign(CryptoSigner(key), append=True)
    return metadata.to_bytes(JSONSerializer())


def _expiry(now: datetime, life: timedelta) -> datetime:
    return (now + life).replace(microsecond=0)


def _due(signed: Signed, now: datetime, life: timedelta) -> bool:
    return signed.expires - now < life / 2
