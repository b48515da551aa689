"""The hub's home folder: settings, keys, certificates, database and repository, and nothing else.

Owns where things lie and how they are made once, by ``create``. Refuses to overwrite what exists.

::

    hub.json                settings
    hub.db                  database (unless settings name PostgreSQL)
    keys/                   director, certificate authority; mode 0600
    tls/                    server certificate, the hub's client certificate for the broker, and a
                            certificate for a broker on another machine
    repository/             TUF metadata and blobs (``sync.repository``)
"""

import contextlib
import fcntl
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from cloud_hub.errors import Refused, WrongUse
from models.store import make_folder, write_durably
from sync.errors import InvalidMessage
from sync.identity import (
    CertificateAuthority,
    create_ca,
    issue_hub_client,
    issue_server,
    load_device_key,
    private_pem,
)
from sync.repository import Repository

SETTINGS_FILE = "hub.json"


def _host(text: str) -> str:
    """An IP address or a DNS name that fits a certificate's common name (64 characters)."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        label = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
        if len(text) > 64 or not re.fullmatch(rf"{label}([.]{label})*", text):
            raise ValueError(f"a name or an address such as hub.example or 10.0.0.5, not {text!r}") from None
        return text


Host = Annotated[str, AfterValidator(_host)]


class Settings(BaseModel):
    """What an operator chooses. ``hosts`` are the names and addresses in the server certificate; the
    first is the one that devices are told, and they find the broker there unless ``broker_host`` says
    otherwise. One that is not among ``hosts`` is another machine's, so no broker is embedded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hosts: tuple[Host, ...] = Field(min_length=1)
    bind: str = "127.0.0.1"
    people_port: int = Field(default=8443, ge=0, le=65535)
    device_port: int = Field(default=8444, ge=0, le=65535)
    broker_port: int = Field(default=8883, ge=0, le=65535)
    broker_host: Host | None = None
    database: str | None = None
    stale_after_seconds: float = Field(default=90.0, gt=0)

    @property
    def broker(self) -> tuple[str, int]:
        """Where devices are told to find the broker."""
        return self.broker_host or self.hosts[0], self.broker_port

    @property
    def external_broker(self) -> tuple[str, int] | None:
        """The same, when it is another machine."""
        return self.broker if self.broker[0] not in self.hosts else None


@dataclass(frozen=True, slots=True)
class Home:
    """A home folder. Properties are paths; only ``create`` and the key readers touch the disk."""

    root: Path

    @property
    def settings_file(self) -> Path:
        """Settings in JSON."""
        return self.root / SETTINGS_FILE

    @property
    def repository(self) -> Repository:
        """What devices fetch from."""
        return Repository(self.root / "repository")

    @property
    def server_certificate(self) -> Path:
        """The certificate of every listener, PEM."""
        return self.root / "tls" / "server.pem"

    @property
    def server_key(self) -> Path:
        """Its private key."""
        return self.root / "tls" / "server.key"

    @property
    def link_certificate(self) -> Path:
        """The certificate with which the hub meets the broker."""
        return self.root / "tls" / "link.pem"

    @property
    def link_key(self) -> Path:
        """Its private key."""
        return self.root / "tls" / "link.key"

    @property
    def ca_certificate(self) -> Path:
        """The authority that every device trusts, PEM."""
        return self.root / "tls" / "ca.pem"

    def settings(self) -> Settings:
        """Raises ``WrongUse`` when this is no home, or a key in the file is wrong."""
        try:
            return Settings.model_validate_json(self.settings_file.read_bytes())
        except FileNotFoundError as error:
            raise WrongUse(
                f"--home: {self.root} is no hub's home; name one, or make one with outpost-hub init"
            ) from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "file"
            raise WrongUse(f"{self.settings_file}: {where}: {first['msg']}") from error

    def database_url(self, settings: Settings) -> str:
        """Where the rows live."""
        return settings.database or f"sqlite:///{self.root / 'hub.db'}"

    @contextlib.contextmanager
    def repository_lock(self) -> Iterator[None]:
        """Keeps two processes from signing the repository's next state at once."""
        with (self.root / "repository.lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def director(self) -> Ed25519PrivateKey:
        """The key that signs desired states and ingest receipts."""
        path = self.root / "keys" / "director.pem"
        with _naming(path):
            return load_device_key(path.read_bytes())

    def authority(self) -> CertificateAuthority:
        """The authority that signs device certificates."""
        path = self.root / "keys" / "ca.key"
        with _naming(path, self.ca_certificate):
            return CertificateAuthority.from_pem(path.read_bytes(), self.ca_certificate.read_bytes())

    def demand_new(self) -> None:
        """Raises ``Refused`` when there is a hub here already."""
        if self.settings_file.exists():
            raise Refused(f"--home: {self.root} holds a hub already; its keys are never overwritten")

    def create(self, settings: Settings, carried: Path, now: datetime) -> None:
        """Make keys and certificates, and a repository from the folder that ``keys init`` carried here.

        Settings are written last, so a home that has them is whole. Raises ``Refused`` when there is
        a home already, and what ``Repository.create`` raises.
        """
        self.demand_new()
        make_folder(self.root)
        self.root.chmod(0o700)
        self.repository.create(carried, now)
        authority = create_ca("Outpost device authority", now)
        write_durably(self.root / "keys" / "ca.key", authority.key_pem, mode=0o600)
        write_durably(self.ca_certificate, authority.certificate_pem)
        write_durably(
            self.root / "keys" / "director.pem", private_pem(Ed25519PrivateKey.generate()), mode=0o600
        )
        issue_server(authority, settings.hosts, now).write(self.server_key, self.server_certificate)
        issue_hub_client(authority, now).write(self.link_key, self.link_certificate)
        if settings.external_broker is not None:
            tls = self.root / "tls"
            hosts = settings.external_broker[:1]
            issue_server(authority, hosts, now).write(tls / "broker.key", tls / "broker.pem")
        write_durably(self.settings_file, settings.model_dump_json(indent=2).encode() + b"\n")


@contextlib.contextmanager
def _naming(*paths: Path) -> Iterator[None]:
    try:
        yield
    except InvalidMessage as error:
        raise InvalidMessage(f"{' and '.join(map(str, paths))}: {error}") from error
