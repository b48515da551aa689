"""A signed claim names one device, one body, one time; anything else does not pass."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from sync.errors import BadSignature, InvalidMessage
from sync.requests import MAX_SKEW, open_request, sign_request

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEYS = {"press-07": KEY.public_key()}


@given(st.binary(max_size=200), st.floats(min_value=0, max_value=4e9))
def test_a_claim_opens_to_the_device_that_signed_it(body: bytes, at: float) -> None:
    claim = open_request(sign_request(KEY, "press-07", at, body), body, at, KEYS.get)
    assert (claim.device, claim.at) == ("press-07", at)


@pytest.mark.parametrize(
    ("header", "body", "now", "why"),
    [
        (sign_request(KEY, "press-07", 1000.0, b"a"), b"b", 1000.0, "another body"),
        (sign_request(KEY, "press-08", 1000.0, b"a"), b"a", 1000.0, "no key on file"),
        (sign_request(KEY, "press-07", 1000.0, b"a"), b"a", 1001.0 + MAX_SKEW, "s from"),
        (sign_request(Ed25519PrivateKey.generate(), "press-07", 1000.0, b"a"), b"a", 1000.0, "no signature"),
    ],
)
def test_a_claim_that_does_not_hold_is_refused(header: str, body: bytes, now: float, why: str) -> None:
    with pytest.raises(BadSignature, match=why):
        open_request(header, body, now, KEYS.get)


@given(st.text(max_size=80))
def test_what_is_no_claim_is_named_as_such(header: str) -> None:
    with pytest.raises(InvalidMessage):
        open_request(header, b"", 0.0, KEYS.get)
