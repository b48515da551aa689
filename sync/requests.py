"""How a device says that an HTTP request is its own: a signed claim in a header.

The device listener ends TLS, but an application behind it cannot see whose certificate that was, and
a header is never believed. So the device signs ``{device, at, body_sha256}`` with its key (a
``sync.signing`` envelope of kind ``request``, base64url without padding) and the hub verifies it
against the key it has on file for that device. Pure: the clock is passed in.
"""

import base64
import binascii
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from models import canonical
from models.digest import Digest
from models.errors import ModelsError
from sync.errors import BadSignature, InvalidMessage
from sync.protocol import DeviceId, Message
from sync.signing import open_envelope, sign

HEADER = "x-outpost-device-signature"
MAX_SKEW = 300.0
"""Seconds by which the clocks of device and hub may differ."""


class RequestClaim(Message):
    """Which device sent a body, and when (seconds since the epoch)."""

    device: DeviceId
    at: float
    body_sha256: Digest


def sign_request(key: Ed25519PrivateKey, device: str, at: float, body: bytes) -> str:
    """The value of ``HEADER`` for ``body``."""
    claim = RequestClaim(device=device, at=at, body_sha256=Digest.of(body))
    return base64.urlsafe_b64encode(sign(key, "request", claim.to_bytes())).rstrip(b"=").decode("ascii")


def open_request(
    header: str, body: bytes, now: float, key_of: Callable[[str], Ed25519PublicKey | None]
) -> RequestClaim:
    """Who sent ``body``, verified. ``key_of`` gives the key on file for a device id, or None.

    Raises ``InvalidMessage`` for what is no claim, ``BadSignature`` for a claim that does not hold:
    an unknown device, another key, another body, or a time further than ``MAX_SKEW`` from ``now``.
    Law: ``open_request(sign_request(k, d, t, b), b, t, {d: k.public}.get).device == d``.
    """
    try:
        envelope = base64.urlsafe_b64decode(header + "=" * (-len(header) % 4))
        stated = canonical.decode(envelope)["payload"]
        name = RequestClaim.from_bytes(base64.b64decode(stated, validate=True)).device
    except (ModelsError, KeyError, TypeError, ValueError, binascii.Error) as error:
        raise InvalidMessage(f"{HEADER} is not a signed claim: {error!r:.200}") from error
    key = key_of(name)
    if key is None:
        raise BadSignature(f"no key on file for device {name!r}")
    claim = RequestClaim.from_bytes(open_envelope(envelope, "request", key))
    if claim.body_sha256 != Digest.of(body):
        raise BadSignature(f"{name} signed another body")
    if abs(claim.at - now) > MAX_SKEW:
        raise BadSignature(f"{name} signed at {claim.at:.0f}, more than {MAX_SKEW:.0f} s from {now:.0f}")
    return claim
