"""The folder in which a device keeps who it is and what it holds.

::

    device.json     who we are, whose we are, where the hub is
    device.key      Ed25519, made here, mode 0600; never leaves
    device.crt  ca.pem  root.json
    keys.json       API keys of those who may call this device, if any were made
    edge.db         releases, audit trail, key ring
    blobs/  tuf/    verified files; verified repository metadata

Owns: this layout. Refuses: keeping it open (``edge_agent.agent`` does).
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field

from edge_agent.errors import NotEnrolled
from models.store import make_folder, write_durably
from sync.errors import InvalidMessage
from sync.identity import Enrolment, decode_public, encode_public, load_device_key, private_pem
from sync.protocol import DeviceId, Message


class Membership(Message):
    """What ``device.json`` says. ``director`` is the hub's signing key for desired state, base64.

    ``epoch`` is that of the audit trail, given by the hub: a device that comes back under its old id begins
    a new trail.
    """

    device: DeviceId
    hub_url: str
    device_url: str
    broker_host: str
    broker_port: int = Field(gt=0, lt=65536)
    director: str
    epoch: int = Field(default=1, ge=1)

    @property
    def director_key(self) -> Ed25519PublicKey:
        """The key under which desired state and ingest receipts must verify."""
        return decode_public(self.director)


@dataclass(frozen=True, slots=True)
class Home:
    """A device's home. Its paths are known before anything in it exists."""

    root: Path

    @property
    def database(self) -> Path:
        """Releases and audit trail."""
        return self.root / "edge.db"

    @property
    def blobs(self) -> Path:
        """The root of the content-addressed store."""
        return self.root / "blobs"

    @property
    def prefixes(self) -> Path:
        """What many prompts begin with, as the engines' own state: see docs/serving_engine.md."""
        return self.root / "prefixes"

    @property
    def engine_cache(self) -> Path:
        """TensorRT engines that were built here: see docs/tensorrt.md."""
        return self.root / "engines"

    @property
    def tuf(self) -> Path:
        """Verified repository metadata."""
        return self.root / "tuf"

    @property
    def key_file(self) -> Path:
        """The device's private key."""
        return self.root / "device.key"

    @property
    def api_keys(self) -> Path:
        """Who may call this device's API."""
        return self.root / "keys.json"

    @property
    def certificate_file(self) -> Path:
        """The device's client certificate."""
        return self.root / "device.crt"

    @property
    def _membership_file(self) -> Path:
        return self.root / "device.json"

    def enrolled(self) -> bool:
        """Whether this device has joined a hub: ``device.json`` is written last."""
        return self._membership_file.exists()

    def create_key(self) -> Ed25519PrivateKey:
        """The device's key: made at the first call, the same one after it: joining can be tried again."""
        make_folder(self.root)
        if not self.key_file.exists():
            write_durably(self.key_file, private_pem(Ed25519PrivateKey.generate()), mode=0o600)
        return self.key()

    def key(self) -> Ed25519PrivateKey:
        """The device's key. Raises ``NotEnrolled`` when there is none."""
        return load_device_key(self._read(self.key_file))

    def ca(self) -> bytes:
        """The hub's CA certificate, PEM."""
        return self._read(self.root / "ca.pem")

    def trusted_root(self) -> bytes:
        """The TUF root that came with the enrolment, held against the token."""
        return self._read(self.root / "root.json")

    def keep(self, enrolment: Enrolment, hub_url: str) -> None:
        """Write down a verified enrolment, durably, the membership last."""
        write_durably(self.root / "ca.pem", enrolment.ca_pem)
        write_durably(self.root / "root.json", enrolment.root)
        write_durably(self.certificate_file, enrolment.certificate_pem)
        membership = Membership(
            device=enrolment.device,
            hub_url=hub_url,
            device_url=enrolment.device_url,
            broker_host=enrolment.broker_host,
            broker_port=enrolment.broker_port,
            director=encode_public(enrolment.director),
            epoch=enrolment.epoch,
        )
        write_durably(self._membership_file, membership.to_bytes())

    def membership(self) -> Membership:
        """Who we are. Raises ``NotEnrolled``, or ``InvalidMessage`` for a file that someone has changed."""
        data = self._read(self._membership_file)
        try:
            return Membership.from_bytes(data)
        except InvalidMessage as error:
            raise InvalidMessage(f"{self._membership_file} cannot be read: {error}") from error

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise NotEnrolled(
                f"--home {self.root}: no home of an enrolled device ({path.name} is missing): "
                "run outpost-edge enroll --hub URL --token-file FILE --home DIR"
            ) from None
