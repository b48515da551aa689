"""``outpost-edge enroll``: make a key, join a hub, keep what was verified."""

import ssl
from pathlib import Path

import httpx

from edge_agent.errors import AlreadyEnrolled
from edge_agent.home import Home, Membership
from sync.errors import BadSignature
from sync.identity import EnrolmentToken, enroll

TIMEOUT = 20.0
"""Seconds for each of the two calls to the hub."""


def join(home: Home, hub_url: str, token_file: Path, device: str) -> Membership:
    """Join the hub at ``hub_url`` as ``device``. A failed attempt leaves the key and nothing else.

    Raises ``AlreadyEnrolled``, ``InvalidMessage`` for a broken token, ``BadSignature`` when the hub is not
    the one of the token, ``EnrolmentRefused``, ``LinkDown``, and ``OSError`` for the token file.
    """
    if home.enrolled():
        raise AlreadyEnrolled(f"{home.root} belongs to {home.membership().device}; use another --home")
    token = EnrolmentToken.decode(token_file.read_text(encoding="utf-8"))
    if token.hub_url != hub_url.rstrip("/"):
        raise BadSignature(f"the token is for {token.hub_url}, not for {hub_url}")
    enrolment = enroll(token, device, home.create_key(), _connect)
    home.keep(enrolment, token.hub_url)
    return home.membership()


def _connect(context: ssl.SSLContext) -> httpx.Client:
    return httpx.Client(verify=context, timeout=TIMEOUT, trust_env=False)
