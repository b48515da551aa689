"""Release manifests: what a shipped thing is, where it came from and what was measured of it.

A release is a folder with ``release.json`` (canonical JSON of a ``Manifest``) and the files it
names. The digest of those canonical bytes is the identity of the release. Pure: no I/O.
"""

import re
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from models import canonical
from models.digest import CHUNK_SIZE, Digest
from models.errors import InvalidManifest

MANIFEST_FILE = "release.json"


class Kind(StrEnum):
    """What a release carries."""

    MODEL = "model"
    ADAPTER = "adapter"
    PROMPT_PACK = "prompt-pack"
    POLICY = "policy"
    KNOWLEDGE_PACK = "knowledge-pack"


def _name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", value) or ".." in value:
        raise ValueError("a name is 1 to 64 of a-z 0-9 . _ - and starts with a letter or digit")
    return value


def _semver(value: str) -> str:
    if not re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?", value):
        raise ValueError("a version is MAJOR.MINOR.PATCH, optionally with a -suffix")
    return value


def _relative(value: str) -> str:
    path = PurePosixPath(value)
    if not value or path.is_absolute() or ".." in path.parts or "\\" in value or str(path) != value:
        raise ValueError("a file's path is relative, normalised, and stays inside the release")
    if value == MANIFEST_FILE:
        raise ValueError(f"{MANIFEST_FILE} cannot list itself")
    return value


Name = Annotated[str, AfterValidator(_name)]
Version = Annotated[str, AfterValidator(_semver)]
RelativePath = Annotated[str, AfterValidator(_relative)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class File(_Frozen):
    """One file of a release. ``chunks`` are the digests of its 1 MiB chunks in order."""

    path: RelativePath
    sha256: Digest
    size: int = Field(ge=0)
    chunks: tuple[Digest, ...]

    @model_validator(mode="after")
    def _chunks_cover_the_file(self) -> "File":
        if len(self.chunks) != -(-self.size // CHUNK_SIZE):
            raise ValueError(f"{self.path}: {len(self.chunks)} chunks cannot hold {self.size} bytes")
        return self


class Quality(_Frozen):
    """One measured promise. ``ci95`` is the paired 95 % interval of ``value - reference``.

    ``budget`` bounds the pessimistic end of that interval in the metric's bad direction.
    """

    metric: str
    reference: float | None
    value: float
    ci95: tuple[float, float] | None
    budget: float | None
    passed: bool
    samples: int = 0


class Speed(_Frozen):
    """What was measured on one device: tokens/s (median and interquartile range), bytes of RAM."""

    device: str
    tokens_per_second: float
    spread: tuple[float, float]
    peak_ram_bytes: int


class Fallback(_Frozen):
    """A tensor that did not get the precision that was asked for."""

    tensor: str
    asked: str
    got: str


class Probe(_Frozen):
    """An input whose answer is known: replayed on the device before a release is activated.

    ``messages`` are chat messages, answered greedily with at most ``max_tokens`` tokens. The probe
    holds when the similarity of answer and ``expected`` (``models.probes``) is at least ``tolerance``.
    """

    messages: tuple[dict[str, str], ...]
    max_tokens: int = Field(gt=0, le=1024)
    expected: str
    tolerance: float = Field(ge=0, le=1)


class AdapterFacts(_Frozen):
    """What an adapter needs to be right. Digests of bases are digests of their manifests."""

    base_name: Name
    trained_on: Digest
    checked_against: tuple[Digest, ...]
    rank: int = Field(gt=0)
    targets: tuple[str, ...]


class AdapterSlots(_Frozen):
    """The adapters that a base can take."""

    max_rank: int = Field(gt=0)
    targets: tuple[str, ...]


class Engine(_Frozen):
    """What the engine needs to be right.

    ``output_schema`` is a JSON Schema that every complete answer is expected to meet; the device
    counts violations during probation.
    """

    context_length: int | None = None
    chat_template: Digest | None = None
    tokenizer: Digest | None = None
    adapter_slots: AdapterSlots | None = None
    output_schema: dict[str, Any] | None = None
    system_prompt: str | None = None


class Manifest(_Frozen):
    """A release. Raises ``InvalidManifest`` from ``parse`` for anything out of shape."""

    schema_version: Literal[1] = 1
    kind: Kind
    name: Name
    version: Version
    format: Literal["gguf", "onnx", "onnx-genai", "ctranslate2", "tensorrt-recipe", "peft", "json"]
    precision: str
    files: tuple[File, ...]
    profiles: tuple[str, ...] = ()
    engine: Engine = Engine()
    adapter: AdapterFacts | None = None
    lineage: dict[str, Any] = Field(default_factory=dict)
    quality: tuple[Quality, ...] = ()
    speed: tuple[Speed, ...] = ()
    fallback_ledger: tuple[Fallback, ...] = ()
    probes: tuple[Probe, ...] = ()
    license: str

    @model_validator(mode="after")
    def _is_whole(self) -> "Manifest":
        paths = [file.path for file in self.files]
        if len(set(paths)) != len(paths):
            raise ValueError("a path is listed twice")
        if (self.kind is Kind.ADAPTER) != (self.adapter is not None):
            raise ValueError("an adapter, and only an adapter, carries the facts of its base")
        return self

    @classmethod
    def parse(cls, data: bytes) -> "Manifest":
        """Read a manifest from its bytes. Verify their digest first. Unknown fields are kept out."""
        try:
            return cls.model_validate(canonical.decode(data))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "manifest"
            raise InvalidManifest(f"{where}: {first['msg']}") from error

    def to_bytes(self) -> bytes:
        """The canonical bytes whose digest is the identity of this release."""
        return canonical.encode(self.model_dump(mode="json"))

    @property
    def digest(self) -> Digest:
        """The identity of this release."""
        return Digest.of(self.to_bytes())

    @property
    def slot(self) -> str:
        """What this release replaces on a device: one release per kind and name is active."""
        return f"{self.kind}/{self.name}"

    @property
    def target_path(self) -> str:
        """Where TUF's targets metadata lists this release."""
        return f"releases/{self.kind}/{self.name}/{self.version}/{MANIFEST_FILE}"
