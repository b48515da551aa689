"""Who is who: device keys, the hub's certificate authority, enrolment, TLS 1.3 contexts.

A device's key is Ed25519, made on the device, and never leaves it; the authority and the servers use P-256,
because browsers refuse Ed25519. Certificates follow RFC 5280: a server certificate is no client certificate
and the other way round. The one-time enrolment token carries the trust anchor: digests of the hub's CA
certificate (DER) and of the first TUF root, so that nothing the network says before is believed.
Writing keys to disk and choosing dates belongs to the callers.
"""

import base64
import binascii
import ipaddress
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Self

import httpx
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import AfterValidator, Field

from models import canonical
from models.digest import Digest
from models.errors import ModelsError
from models.store import write_durably
from sync.errors import BadSignature, EnrolmentRefused, InvalidMessage, LinkDown
from sync.protocol import HUB, DeviceId, Message

DEVICE_LIFE = timedelta(days=90)
SERVER_LIFE = timedelta(days=365)
CA_LIFE = timedelta(days=3650)
SKEW = timedelta(minutes=10)
"""Certificates are valid from a little before their birth, for devices whose clocks lag."""

_ENROLMENT_MARK = "outpost-enrol-"
_MAX_REPLY = 1 << 20


def _https(url: str) -> str:
    if not url.startswith("https://"):
        raise ValueError("a hub is reached by https://")
    return url.rstrip("/")


class EnrolmentToken(Message):
    """What a new device needs to be told out of band, once. ``secret`` is spent by the first enrolment.

    ``ca`` is the digest of the hub's CA certificate in DER, ``root`` of the exact bytes of the TUF root.
    """

    hub_url: Annotated[str, AfterValidator(_https)]
    secret: str
    ca: Digest
    root: Digest

    def encode(self) -> str:
        """One line to copy. Law: ``decode(encode(t)) == t``."""
        return _ENROLMENT_MARK + base64.urlsafe_b64encode(self.to_bytes()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Self:
        """Raises ``InvalidMessage`` for what is no token."""
        body = text.strip()
        if not body.startswith(_ENROLMENT_MARK):
            raise InvalidMessage(f"not an enrolment token: it does not start with {_ENROLMENT_MARK}")
        body = body.removeprefix(_ENROLMENT_MARK)
        try:
            data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        except binascii.Error as error:
            raise InvalidMessage("not an enrolment token: it was cut or changed in copying") from error
        return cls.from_bytes(data)


class Anchor(Message):
    """``GET /api/v1/anchor``: the hub's CA certificate (PEM) and the first TUF root (its exact text)."""

    ca: str
    root: str


class EnrolRequest(Message):
    """``POST /api/v1/enroll``. ``csr`` is PEM, signed by the device's key, with the device id as CN."""

    secret: str
    device: DeviceId
    csr: str


class EnrolReply(Message):
    """What an enrolled device gets: certificate (PEM), director key (base64, raw Ed25519), addresses.

    ``epoch`` is that of its audit trail: no device of its id had it before.
    """

    certificate: str
    director: str
    device_url: str
    broker_host: str
    broker_port: int = Field(gt=0, lt=65536)
    epoch: int = Field(default=1, ge=1)


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A verified enrolment: everything a device keeps of it, besides its key."""

    device: str
    ca_pem: bytes
    root: bytes
    certificate_pem: bytes
    director: Ed25519PublicKey
    device_url: str
    broker_host: str
    broker_port: int
    epoch: int


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """The hub's own authority: a P-256 key and its self-signed certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def certificate_pem(self) -> bytes:
        """The certificate, to be carried to devices."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key. It stays in the hub's home, mode 0600."""
        return private_pem(self.key)

    @property
    def digest(self) -> Digest:
        """What enrolment tokens pin."""
        return certificate_digest(self.certificate_pem)

    @classmethod
    def from_pem(cls, key_pem: bytes, certificate_pem: bytes) -> Self:
        """Raises ``InvalidMessage`` when the bytes are no P-256 authority."""
        key = _load_private(key_pem)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InvalidMessage("the authority's key is not an elliptic curve key")
        return cls(key, _load_certificate(certificate_pem))


@dataclass(frozen=True, slots=True)
class Credentials:
    """A private key and the certificate for it, both PEM."""

    key_pem: bytes
    certificate_pem: bytes

    def write(self, key: Path, certificate: Path) -> None:
        """Store both durably; the key readable by its owner only."""
        write_durably(key, self.key_pem, mode=0o600)
        write_durably(certificate, self.certificate_pem)


def private_pem(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #8 in PEM, not encrypted: the file's mode and the disk protect it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_device_key(pem: bytes) -> Ed25519PrivateKey:
    """Raises ``InvalidMessage`` for anything but an Ed25519 private key in PEM."""
    key = _load_private(pem)
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidMessage("not an Ed25519 private key")
    return key


def encode_public(key: Ed25519PublicKey) -> str:
    """The raw 32 bytes in base64: how public keys travel and are stored."""
    return base64.b64encode(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def decode_public(text: str) -> Ed25519PublicKey:
    """Law: ``decode_public(encode_public(k)) == k``. Raises ``InvalidMessage``."""
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except ValueError as error:
        raise InvalidMessage("not an Ed25519 public key in base64") from error


def certificate_digest(pem: bytes) -> Digest:
    """The digest of a certificate's DER form. Raises ``InvalidMessage``."""
    return Digest.of(_load_certificate(pem).public_bytes(Encoding.DER))


def certificate_life(pem: bytes) -> tuple[datetime, datetime]:
    """From when until when a certificate is valid. It is renewed at two thirds."""
    certificate = _load_certificate(pem)
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def certificate_name(pem: bytes) -> str:
    """The common name. Raises ``InvalidMessage`` unless there is exactly one."""
    return _common_name(_load_certificate(pem).subject)


def device_public_key(pem: bytes) -> Ed25519PublicKey:
    """The key with which a device signs, out of its certificate. Raises ``InvalidMessage``."""
    key = _load_certificate(pem).public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidMessage("a device certificate carries an Ed25519 key")
    return key


def make_csr(key: Ed25519PrivateKey, device_id: str) -> bytes:
    """A certificate request (PEM) that proves possession of ``key``."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(device_id))
    return builder.sign(key, None).public_bytes(Encoding.PEM)


def create_ca(name: str, now: datetime) -> CertificateAuthority:
    """A new authority that may sign leaf certificates and nothing below them."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    builder = (
        _builder(subject, subject, key.public_key(), key.public_key(), now, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return CertificateAuthority(key, builder.sign(key, hashes.SHA256()))


def issue_server(ca: CertificateAuthority, hosts: Sequence[str], now: datetime) -> Credentials:
    """A server certificate for DNS names and IP addresses; the first host is its common name."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    certificate = _leaf(
        ca, hosts[0], key.public_key(), now, SERVER_LIFE, ExtendedKeyUsageOID.SERVER_AUTH, names
    )
    return Credentials(private_pem(key), certificate)


def issue_hub_client(ca: CertificateAuthority, now: datetime) -> Credentials:
    """The certificate with which the hub meets its broker, under the reserved name ``hub``."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _leaf(ca, HUB, key.public_key(), now, SERVER_LIFE, ExtendedKeyUsageOID.CLIENT_AUTH)
    return Credentials(private_pem(key), certificate)


def issue_device(ca: CertificateAuthority, csr: bytes, device_id: str, now: datetime) -> bytes:
    """A client certificate (PEM) for the key of ``csr``.

    Raises ``InvalidMessage`` for a request that is malformed, names another device or the hub, or carries
    another kind of key; ``BadSignature`` when it does not prove possession of the key.
    """
    if device_id == HUB:
        raise InvalidMessage(f"{HUB!r} is reserved for the hub itself")
    try:
        request = x509.load_pem_x509_csr(csr)
        key = request.public_key()
        proven = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise InvalidMessage(f"not a certificate request: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidMessage("a device key is an Ed25519 key")
    if not proven:
        raise BadSignature("the certificate request is not signed by the key that it carries")
    if _common_name(request.subject) != device_id:
        raise InvalidMessage(f"the certificate request is not for {device_id}")
    return _leaf(ca, device_id, key, now, DEVICE_LIFE, ExtendedKeyUsageOID.CLIENT_AUTH)


def device_tls_context(ca_pem: bytes, certificate: Path, key: Path) -> ssl.SSLContext:
    """The client side of mutual TLS 1.3: trusts the hub's CA alone, shows the device's certificate."""
    context = anchor_tls_context(ca_pem)
    context.load_cert_chain(certificate, key)
    return context


def anchor_tls_context(ca_pem: bytes) -> ssl.SSLContext:
    """A TLS 1.3 client that trusts the hub's CA alone, without a certificate of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    return context


def server_tls_context(certificate: Path, key: Path, ca_pem: bytes, require_client: bool) -> ssl.SSLContext:
    """The server side of TLS 1.3. With ``require_client`` a certificate of the hub's CA is demanded."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    if require_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_verify_locations(cadata=ca_pem.decode("ascii"))
    return context


def enroll(
    token: EnrolmentToken,
    device_id: str,
    key: Ed25519PrivateKey,
    connect: Callable[[ssl.SSLContext], httpx.Client],
) -> Enrolment:
    """Join a hub: fetch the anchor, hold it against the token, and only then show the secret.

    ``connect`` opens an HTTP client with the given TLS context. The first connection is not verified, and
    carries nothing of ours; its answer is believed by digest only. Raises ``LinkDown``, ``BadSignature``
    when the hub is not the token's hub, ``EnrolmentRefused`` when the hub says no, ``InvalidMessage``.
    """
    anchor = Anchor.from_bytes(_call(connect, _blind_tls_context(), "GET", f"{token.hub_url}/api/v1/anchor"))
    ca_pem, root = anchor.ca.encode(), anchor.root.encode()
    if certificate_digest(ca_pem) != token.ca:
        raise BadSignature("this hub's certificate authority is not the one the enrolment token names")
    if Digest.of(root) != token.root:
        raise BadSignature("this hub's release root is not the one the enrolment token names")
    request = EnrolRequest(secret=token.secret, device=device_id, csr=make_csr(key, device_id).decode())
    reply = EnrolReply.from_bytes(
        _call(
            connect,
            anchor_tls_context(ca_pem),
            "POST",
            f"{token.hub_url}/api/v1/enroll",
            request.to_bytes(),
        )
    )
    certificate = reply.certificate.encode()
    if device_public_key(certificate) != key.public_key() or certificate_name(certificate) != device_id:
        raise BadSignature("the hub returned a certificate for another key or another name")
    return Enrolment(
        device=device_id,
        ca_pem=ca_pem,
        root=root,
        certificate_pem=certificate,
        director=decode_public(reply.director),
        device_url=reply.device_url,
        broker_host=reply.broker_host,
        broker_port=reply.broker_port,
        epoch=reply.epoch,
    )


def _call(
    connect: Callable[[ssl.SSLContext], httpx.Client],
    context: ssl.SSLContext,
    method: str,
    url: str,
    body: bytes | None = None,
) -> bytes:
    headers = {"content-type": "application/json"} if body is not None else None
    received = bytearray()
    try:
        with (
            connect(context) as client,
            client.stream(method, url, content=body, headers=headers) as response,
        ):
            for block in response.iter_bytes():
                received += block
                if len(received) > _MAX_REPLY:
                    raise InvalidMessage(f"{url}: the answer is longer than {_MAX_REPLY} bytes")
    except httpx.TransportError as error:
        raise LinkDown(f"{url}: {error}") from error
    if response.status_code >= 500:
        raise LinkDown(f"{url}: the hub answers {response.status_code}")
    if not response.is_success:
        raise EnrolmentRefused(f"the hub refuses ({response.status_code}): {_reason(bytes(received))}")
    return bytes(received)


def _reason(body: bytes) -> str:
    """The message in an error of the hub, or what else it said."""
    try:
        return str(canonical.decode(body)["error"]["message"])
    except (ModelsError, KeyError, TypeError):
        return body[:300].decode(errors="replace")


def _blind_tls_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _leaf(
    ca: CertificateAuthority,
    name: str,
    key: ec.EllipticCurvePublicKey | Ed25519PublicKey,
    now: datetime,
    life: timedelta,
    purpose: x509.ObjectIdentifier,
    names: x509.SubjectAlternativeName | None = None,
) -> bytes:
    builder = (
        _builder(_subject(name), ca.certificate.subject, key, ca.key.public_key(), now, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return builder.sign(ca.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey | Ed25519PublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _common_name(subject: x509.Name) -> str:
    found = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(found) != 1:
        raise InvalidMessage("a certificate has exactly one common name")
    return str(found[0].value)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _load_private(pem: bytes) -> object:
    try:
        return load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidMessage(f"not a private key in PEM: {error}") from error


def _load_certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise InvalidMessage(f"not a certificate in PEM: {error}") from error
