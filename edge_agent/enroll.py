"""``outpost-edge enroll``: make a key, join a hub, keep what was verified."""

import ssl
from pathlib import Path

import httpx

from edge_agent.errors import AlreadyEnrolled, WrongUse
from edge_agent.home import Home, Membership
from sync.errors import BadSignature
from sync.identity import EnrolmentToken, enroll
from sync.protocol import check_device_id

TIMEOUT = 20.0
"""Seconds for each of the two calls to the hub."""


def join(home: Home, hub_url: str, token_file: Path, device: str) -> Membership:
    """Join the hub at ``hub_url`` as ``device``. A failed attempt leaves the key and nothing else.

    Raises ``WrongUse`` for what can be no device id, ``AlreadyEnrolled``, ``InvalidMessage`` for a broken
    token, ``BadSignature`` when the hub is not the one of the token, ``EnrolmentRefused``, ``LinkDown``, and
    ``OSError`` for the token file.
    """
    try:
        check_device_id(device)
    except ValueError as error:
        raise WrongUse(f"--device {device!r:.100}: {error}") from error
    if home.enrolled():
        raise AlreadyEnrolled(f"--home {home.root}: belongs to {home.membership().device}; use another")
    token = EnrolmentToken.decode(token_file.read_text(encoding="utf-8"))
    if token.hub_url != hub_url.rstrip("/"):
        raise BadSignature(f"the token is for {token.hub_url}, not for {hub_url}")
    enrolment = enroll(token, device, home.create_key(), _connect)
    home.keep(enrolment, token.hub_url)
    return home.membership()


def _connect(context: ssl.SSLContext) -> httpx.Client:
    return httpx.Client(verify=context, timeout=TIMEOUT, trust_env=False)
