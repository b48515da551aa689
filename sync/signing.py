"""Ed25519 signatures over messages, in a DSSE envelope.

Format: DSSE v1 (https://github.com/secure-systems-lab/dsse): the signature covers
``PAE(payload type, payload)``, so bytes of one type can never pass for another.
Law: ``open_envelope(sign(k, t, p), t, k.public) == p``.
"""

import base64
import binascii
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from models import canonical
from models.digest import Digest
from models.errors import ModelsError
from sync.errors import BadSignature, InvalidMessage

_TYPE = "application/vnd.outpost.{}.v1+json"


def key_id(key: Ed25519PublicKey) -> str:
    """The name of a key: the first 16 hex digits of the SHA-256 of its raw bytes."""
    return Digest.of(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hex[:16]


def sign(key: Ed25519PrivateKey, kind: str, payload: bytes) -> bytes:
    """An envelope over ``payload``. ``kind`` is a word such as ``desired``; it is signed too."""
    payload_type = _TYPE.format(kind)
    return canonical.encode(
        {
            "payloadType": payload_type,
            "payload": _b64(payload),
            "signatures": [
                {"keyid": key_id(key.public_key()), "sig": _b64(key.sign(_pae(payload_type, payload)))}
            ],
        }
    )


def open_envelope(data: bytes, kind: str, key: Ed25519PublicKey) -> bytes:
    """The payload, verified. Raises ``BadSignature``, or ``InvalidMessage`` for what is no envelope."""
    payload_type = _TYPE.format(kind)
    try:
        envelope: Any = canonical.decode(data)
        stated = envelope["payloadType"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures = [base64.b64decode(item["sig"], validate=True) for item in envelope["signatures"]]
    except (ModelsError, KeyError, TypeError, binascii.Error) as error:
        raise InvalidMessage(f"not a signed envelope: {error!r:.200}") from error
    if stated != payload_type:
        raise BadSignature(f"the envelope holds {stated!r:.100}, not {payload_type!r}")
    for signature in signatures:
        try:
            key.verify(signature, _pae(payload_type, payload))
        except InvalidSignature:
            continue
        return payload
    raise BadSignature(f"no signature of {key_id(key)} over this {kind}")


def _pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    encoded = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(encoded), encoded, len(payload), payload)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
