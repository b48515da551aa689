"""Sealing audit bodies so that only the auditor can read them.

Owns: data keys, the encryption of a body, and the ring entry that carries a data key to the auditor.
Refuses: deciding who is whose subject, and storing anything.

A body is AES-256-GCM under a random data key; the data key is sealed with HPKE (RFC 9180, base mode:
DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM) to the auditor's public key. Whoever deletes a ring
entry, and every copy of it, erases all bodies under its key; the records still verify.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from sync.errors import AuditBroken

RandomBytes = Callable[[int], bytes]
"""n to n unpredictable bytes (``os.urandom``)."""

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_INFO = b"outpost audit data key v1 "
_NONCE = 12
_SALT = 32


@dataclass(frozen=True, slots=True)
class DataKey:
    """A key for bodies: ``key_id`` is random, 32 hex digits, and says nothing of its subject."""

    key_id: str
    secret: bytes

    @classmethod
    def generate(cls, random_bytes: RandomBytes) -> "DataKey":
        """A new 256-bit key."""
        return cls(random_bytes(16).hex(), random_bytes(32))

    def __repr__(self) -> str:
        return f"DataKey({self.key_id})"


@dataclass(frozen=True, slots=True)
class SealedBody:
    """``ciphertext`` is nonce (12 bytes), AES-GCM output and tag (16 bytes)."""

    salt: bytes
    ciphertext: bytes


def context(device: str, epoch: int, kind: str, request_id: str) -> bytes:
    """What a body is bound to: it opens as this record of this log and as no other."""
    return "\n".join(("outpost audit body v1", device, str(epoch), kind, request_id)).encode()


def seal_body(key: DataKey, body: bytes, bound_to: bytes, random_bytes: RandomBytes) -> SealedBody:
    """Encrypt. Law: ``open_body(k, seal_body(k, b, c, r).ciphertext, c) == b``."""
    nonce = random_bytes(_NONCE)
    return SealedBody(random_bytes(_SALT), nonce + AESGCM(key.secret).encrypt(nonce, body, bound_to))


def open_body(key: DataKey, ciphertext: bytes, bound_to: bytes) -> bytes:
    """Decrypt. Raises ``AuditBroken`` when key, record and ciphertext do not belong together."""
    if len(ciphertext) < _NONCE + 16:
        raise AuditBroken("a ciphertext is too short to be one")
    try:
        return AESGCM(key.secret).decrypt(ciphertext[:_NONCE], ciphertext[_NONCE:], bound_to)
    except InvalidTag as error:
        raise AuditBroken(f"the key {key.key_id} does not open this body") from error


def seal_key(key: DataKey, auditor: X25519PublicKey) -> str:
    """The sealed key of a ring entry, in base64: 48 bytes longer than the key."""
    sealed = _SUITE.encrypt(key.secret, auditor, _INFO + key.key_id.encode())
    return base64.b64encode(sealed).decode("ascii")


def open_key(key_id: str, sealed: str, auditor: X25519PrivateKey) -> DataKey:
    """The data key of a ring entry. Raises ``AuditBroken`` when this auditor's key does not open it."""
    try:
        secret = _SUITE.decrypt(base64.b64decode(sealed, validate=True), auditor, _INFO + key_id.encode())
    except (InvalidTag, ValueError) as error:
        raise AuditBroken(f"this auditor's key does not open the ring entry {key_id}") from error
    return DataKey(key_id, secret)
