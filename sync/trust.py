"""Two keys must agree: what the director wants and what the repository vouches for.

Pure decisions. The director side is the hub's signed desired state, whose version only grows. The image side
is TUF (``sync.tuf_client``). Either alone moves nothing: a release is activated only as an ``Approved``, and
only ``agree`` makes one.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from models import canonical
from models.digest import Digest
from models.errors import ModelsError
from models.manifest import Manifest
from sync.errors import MetadataMixed, StaleDesired, UntrustedRelease
from sync.protocol import DESIRED, Assignment, Desired
from sync.signing import open_envelope

AUDITOR_KEY_FIELD = "x-outpost-auditor-key"
"""The field of ``root.json`` with the auditor's X25519 public key: base64 of its 32 raw bytes."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The last desired state that a device accepted: its version, and the digest of its payload."""

    version: int
    payload: Digest


@dataclass(frozen=True, slots=True)
class Vouched:
    """A manifest that TUF metadata, fresh at that moment, lists with this digest."""

    target_path: str
    release: Digest
    data: bytes


class _AgreeOnly:
    """Held by this module alone."""


_TOKEN = _AgreeOnly()


@dataclass(frozen=True, slots=True)
class Approved:
    """A release on which both sides agree. Made by ``agree`` and by nothing else."""

    assignment: Assignment
    manifest: Manifest
    token: _AgreeOnly

    def __post_init__(self) -> None:
        if self.token is not _TOKEN:
            raise UntrustedRelease("only sync.trust.agree approves a release")


def accept_desired(
    envelope: bytes, director: Ed25519PublicKey, device: str, last: Accepted | None
) -> tuple[Desired, Accepted]:
    """Open a desired state. The same bytes again are accepted again: retained messages repeat.

    Raises ``BadSignature``, ``InvalidMessage``; ``StaleDesired`` for a version below the last one, for other
    contents under the last version, and for a state meant for another device.
    """
    payload = open_envelope(envelope, DESIRED.kind, director)
    desired = Desired.from_bytes(payload)
    accepted = Accepted(desired.version, Digest.of(payload))
    if desired.device != device:
        raise StaleDesired(f"this desired state is for {desired.device}, not for {device}")
    if last is not None and desired.version < last.version:
        raise StaleDesired(f"desired version {desired.version} is older than {last.version}")
    if last is not None and desired.version == last.version and accepted != last:
        raise StaleDesired(f"desired version {desired.version} was given before with other contents")
    return desired, accepted


def agree(desired: Desired, last_version: int, assignment: Assignment, vouched: Vouched) -> Approved:
    """Approve ``assignment`` when the director wants it and the repository vouches for the same bytes.

    ``last_version`` is the highest desired version accepted so far. Raises ``StaleDesired`` when ``desired``
    is older, ``UntrustedRelease`` when the sides differ, ``InvalidManifest`` for a malformed manifest.
    """
    if desired.version < last_version:
        raise StaleDesired(f"desired version {desired.version} is older than {last_version}")
    if assignment not in desired.assignments:
        raise UntrustedRelease(f"the director does not want {assignment.name} {assignment.version} here")
    if vouched.target_path != assignment.target_path or vouched.release != assignment.release:
        raise UntrustedRelease(
            f"the director wants {assignment.release} at {assignment.target_path}, "
            f"the repository vouches for {vouched.release} at {vouched.target_path}"
        )
    if Digest.of(vouched.data) != vouched.release:
        raise MetadataMixed(f"the manifest of {assignment.name} is not the one that is vouched for")
    manifest = Manifest.parse(vouched.data)
    wanted = (assignment.kind, assignment.name, assignment.version, assignment.target_path)
    if (manifest.kind, manifest.name, manifest.version, manifest.target_path) != wanted:
        raise UntrustedRelease(
            f"{assignment.release} is {manifest.slot} {manifest.version}, not what was assigned"
        )
    return Approved(assignment, manifest, _TOKEN)


def auditor_key(root: bytes) -> bytes:
    """The auditor's X25519 public key, 32 bytes, in a verified ``root.json``. Raises ``UntrustedRelease``."""
    try:
        metadata: Any = canonical.decode(root)
        key = base64.b64decode(metadata["signed"][AUDITOR_KEY_FIELD], validate=True)
    except (ModelsError, KeyError, TypeError, binascii.Error) as error:
        raise UntrustedRelease("this root carries no auditor's key") from error
    if len(key) != 32:
        raise UntrustedRelease("the auditor's key in this root is not an X25519 key")
    return key
