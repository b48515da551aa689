"""Enrolment at the hub: the trust anchor for whoever asks, a certificate for whoever holds a secret."""

from datetime import UTC, datetime

from sqlalchemy import Connection

from cloud_hub import access, registry
from cloud_hub.errors import NotFound, Refused
from cloud_hub.home import Home, Settings
from sync.identity import (
    Anchor,
    CertificateAuthority,
    EnrolReply,
    EnrolRequest,
    device_public_key,
    encode_public,
    issue_device,
)


def anchor(home: Home) -> Anchor:
    """What a device holds against the digests in its token."""
    return Anchor(ca=home.ca_certificate.read_text("ascii"), root=home.repository.root.decode())


class Enroller:
    """Issues device certificates. ``director`` is the raw public key in base64."""

    def __init__(self, authority: CertificateAuthority, director: str, settings: Settings) -> None:
        self._authority = authority
        self._director = director
        self._settings = settings

    def enroll(self, connection: Connection, request: EnrolRequest, now: float) -> EnrolReply:
        """Spend the secret, register the device, issue its certificate: all in one transaction.

        The reply names the epoch of the device's audit trail. Whoever asks again gets the same one.

        Raises ``InvalidToken``, ``Refused`` for an id that is taken, and what ``issue_device`` raises;
        the secret is spent only when the device got in.
        """
        group, first = access.use_enrolment(connection, request.secret, request.device, now)
        certificate = issue_device(
            self._authority, request.csr.encode(), request.device, datetime.fromtimestamp(now, UTC)
        )
        key = device_public_key(certificate)
        if first:
            epoch = registry.add_device(connection, request.device, group, key.public_bytes_raw(), now)
        else:
            _demand_same_key(connection, request.device, key.public_bytes_raw())
            epoch = registry.last_epoch(connection, request.device)
        settings = self._settings
        return EnrolReply(
            certificate=certificate.decode("ascii"),
            director=self._director,
            device_url=f"https://{settings.hosts[0]}:{settings.device_port}",
            broker_host=settings.hosts[0],
            broker_port=settings.broker_port,
            epoch=epoch,
        )


def public_director(home: Home) -> str:
    """The director's public key as devices are given it."""
    return encode_public(home.director().public_key())


def _demand_same_key(connection: Connection, device: str, key: bytes) -> None:
    try:
        known = registry.device(connection, device).public_key.public_bytes_raw()
    except NotFound as error:
        raise Refused("this enrolment token was used by a device that is gone") from error
    if known != key:
        raise Refused("this enrolment token was used with another key")
