"""Every channel between a device and its hub: topic, direction, message type, QoS, retain.

``CHANNELS`` is the only place that formats or parses a topic. Messages that assert something travel
as signed envelopes (``sync.signing``); their payload is the canonical JSON of the types below.
Readers ignore unknown fields, so that either side may be upgraded first. Pure: no clock, no I/O.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from models import canonical
from models.digest import Digest
from models.errors import ModelsError
from models.manifest import Kind, Manifest, Name, Version
from models.profiles import Machine
from sync.errors import InvalidMessage, InvalidTopic

ROOT = "outpost/v1"
MAX_PAYLOAD = 256 * 1024
"""Bytes; the largest MQTT payload that either side sends or accepts."""

HUB = "hub"
"""The hub's name where a device has its id (client id, certificate). No device may bear it."""

BLOB_PIECE = 128 * 1024
"""Bytes of a blob carried by one MQTT message."""


def check_device_id(value: str) -> str:
    """``value``, if it can be a device's id. Raises ``ValueError`` with the rule."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", value):
        raise ValueError("a device id is 1 to 63 of a-z 0-9 - and starts with a letter or digit")
    if value == HUB:
        raise ValueError(f"{HUB!r} is the hub's own name, not a device id")
    return value


DeviceId = Annotated[str, AfterValidator(check_device_id)]


class Message(BaseModel):
    """Base of all messages: frozen, tolerant of unknown fields, with canonical bytes."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Parse verified bytes. Raises ``InvalidMessage``."""
        if len(data) > MAX_PAYLOAD:
            raise InvalidMessage(f"{cls.__name__}: {len(data)} bytes are more than {MAX_PAYLOAD}")
        try:
            return cls.model_validate(canonical.decode(data))
        except (ValidationError, ModelsError) as error:
            raise InvalidMessage(f"not a {cls.__name__}: {error}") from error

    def to_bytes(self) -> bytes:
        """Canonical JSON. Law: ``from_bytes(to_bytes(m)) == m``."""
        return canonical.encode(self.model_dump(mode="json"))


class State(StrEnum):
    """Where a release stands on a device (``sync.update``)."""

    OFFERED = "offered"
    FETCHING = "fetching"
    VERIFIED = "verified"
    STAGED = "staged"
    PROBED = "probed"
    ACTIVE = "active"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    SUPERSEDED = "superseded"


class Assignment(Message):
    """One release that the hub wants on a device."""

    kind: Kind
    name: Name
    version: Version
    release: Digest
    target_path: str

    @classmethod
    def of(cls, release: Digest, manifest: Manifest) -> Self:
        """The release of that digest, of which ``manifest`` is the manifest."""
        return cls(
            kind=manifest.kind,
            name=manifest.name,
            version=manifest.version,
            release=release,
            target_path=manifest.target_path,
        )


class ProbationTerms(Message):
    """How long a release is watched before it is committed, and what counts as harm.

    ``max_seconds`` commits a release that saw too little traffic to judge, unless most of that failed.
    ``alpha`` is the significance at which a release is called worse than the one before it.
    """

    min_requests: int = Field(default=20, ge=1)
    max_seconds: float = Field(default=86_400.0, gt=0)
    alpha: float = Field(default=0.05, gt=0, lt=1)
    latency_factor: float = Field(default=2.0, gt=1)


class Desired(Message):
    """What the hub wants a device to run. ``version`` only ever grows for a device."""

    device: DeviceId
    version: int = Field(ge=1)
    issued_at: float
    assignments: tuple[Assignment, ...]
    probation: ProbationTerms = ProbationTerms()


class Figures(Message):
    """What a device measured of a release while it replayed its probes; what was not measured is null.

    The fields down to ``threads`` say what was run, as ``models.forecast.Workload`` does; ``load_seconds`` is
    null for what was attached to an engine that ran. Tokens and items (texts or pictures) are per second.
    """

    format: str
    precision: str
    parameters: int = Field(ge=1)
    weight_bytes: int = Field(ge=1)
    kv_bytes: int = Field(default=0, ge=0)
    context_tokens: int = Field(default=0, ge=0)
    sequences: int = Field(default=1, ge=1)
    computes: str = "f32"
    threads: int = Field(default=1, ge=1)
    load_seconds: float | None = Field(default=None, ge=0)
    decode_per_second: float | None = Field(default=None, gt=0)
    prefill_per_second: float | None = Field(default=None, gt=0)
    items_per_second: float | None = Field(default=None, gt=0)
    peak_ram_bytes: int | None = Field(default=None, gt=0)


class ReleaseReport(Message):
    """Where one release stands on the device, and why. ``at`` holds seconds since the epoch by state."""

    kind: Kind
    name: Name
    version: Version
    release: Digest
    state: State
    reason: str | None = None
    attempts: int = 0
    at: dict[State, float] = Field(default_factory=dict)
    figures: Figures | None = None


class AuditReport(Message):
    """How far the trail has come: records written, and records covered by ingest receipts."""

    epoch: int
    size: int
    acknowledged: int


class Reported(Message):
    """What a device is and what it runs, said by the device."""

    device: DeviceId
    session: str
    sequence: int
    desired_version: int
    releases: tuple[ReleaseReport, ...]
    audit: AuditReport | None = None
    facts: dict[str, Any] = Field(default_factory=dict)
    at: float
    machine: Machine | None = None


class Status(Message):
    """Birth and will. A status whose session is not the latest reported one is stale."""

    device: DeviceId
    session: str
    online: bool
    at: float


class BlobRequest(Message):
    """Asks for ``length`` bytes of a blob from ``offset``; answered on the response topic."""

    digest: Digest
    offset: int = Field(ge=0)
    length: int = Field(gt=0, le=BLOB_PIECE)


class AuditRecord(Message):
    """One leaf as pushed. A record whose body stays on the device has ``leaf_hash`` alone."""

    seq: int = Field(ge=0)
    leaf_hash: str
    leaf: str | None = None
    salt: str | None = None
    ciphertext: str | None = None


class AuditSegment(Message):
    """Consecutive records of one epoch, and the device's signed checkpoint that covers them.

    ``checkpoint`` is a C2SP signed note. ``ring`` holds the sealed data keys that its records name
    and that the hub has not been given yet; the hub stores them apart from the records.
    """

    device: DeviceId
    epoch: int
    first_seq: int
    records: tuple[AuditRecord, ...]
    checkpoint: str
    ring: tuple[dict[str, str], ...] = ()


class IngestReceipt(Message):
    """The hub's word that records below ``size`` of an epoch are committed in its database."""

    device: DeviceId
    epoch: int
    size: int
    root: str
    at: float


class Direction(StrEnum):
    """Who publishes."""

    TO_DEVICE = "hub to device"
    TO_HUB = "device to hub"


@dataclass(frozen=True, slots=True)
class Channel:
    """One row of the table. ``signed`` payloads are envelopes; others are verified by digest."""

    name: str
    suffix: str
    direction: Direction
    message: type[Message] | None
    qos: int
    retain: bool
    signed: bool

    def topic(self, device: str) -> str:
        """The concrete topic for a device. Raises ``InvalidTopic`` for an id that is not one."""
        try:
            return f"{ROOT}/{check_device_id(device)}/{self.suffix}"
        except ValueError as error:
            raise InvalidTopic(str(error)) from error

    @property
    def kind(self) -> str:
        """What a signature over a message of this channel says that it covers (``sync.signing``)."""
        return self.suffix.replace("/", "-")

    @property
    def wildcard(self) -> str:
        """The filter with which the hub subscribes for every device."""
        return f"{ROOT}/+/{self.suffix}"


DESIRED = Channel("desired", "desired", Direction.TO_DEVICE, Desired, 1, True, True)
REPORTED = Channel("reported", "reported", Direction.TO_HUB, Reported, 1, True, True)
STATUS = Channel("status", "status", Direction.TO_HUB, Status, 1, True, True)
BLOB_REQUEST = Channel("blob request", "blob/request", Direction.TO_HUB, BlobRequest, 1, False, False)
BLOB_PIECE_CHANNEL = Channel("blob piece", "blob/piece", Direction.TO_DEVICE, None, 1, False, False)
AUDIT_SEGMENT = Channel("audit segment", "audit/segment", Direction.TO_HUB, AuditSegment, 1, False, True)
AUDIT_RECEIPT = Channel("audit receipt", "audit/receipt", Direction.TO_DEVICE, IngestReceipt, 1, False, True)

CHANNELS: tuple[Channel, ...] = (
    DESIRED,
    REPORTED,
    STATUS,
    BLOB_REQUEST,
    BLOB_PIECE_CHANNEL,
    AUDIT_SEGMENT,
    AUDIT_RECEIPT,
)


def parse_topic(topic: str) -> tuple[Channel, str]:
    """The channel and device of a topic. Law: ``parse_topic(c.topic(d)) == (c, d)``."""
    prefix = ROOT + "/"
    device, _, suffix = topic.removeprefix(prefix).partition("/")
    for channel in CHANNELS:
        if topic.startswith(prefix) and channel.suffix == suffix:
            return channel, _checked(device, topic)
    raise InvalidTopic(f"not a topic of the protocol: {topic!r:.200}")


def _checked(device: str, topic: str) -> str:
    try:
        return check_device_id(device)
    except ValueError as error:
        raise InvalidTopic(f"{topic!r:.200}: {error}") from error


def may_publish(client: str, topic: str) -> bool:
    """The broker's rule: a device publishes to the hub on its own topics and nowhere else."""
    return _owns(client, topic, Direction.TO_HUB)


def may_subscribe(client: str, topic: str) -> bool:
    """The broker's rule: a device hears what the hub says to it and nothing else."""
    return _owns(client, topic, Direction.TO_DEVICE)


def _owns(client: str, topic: str, direction: Direction) -> bool:
    try:
        channel, device = parse_topic(topic)
    except InvalidTopic:
        return False
    return channel.direction is direction and device == client
