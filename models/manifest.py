"""Release manifests: what a shipped thing is, where it came from and what was measured of it.

A release is a folder with ``release.json`` (canonical JSON of a ``Manifest``) and the files it
names. The digest of those canonical bytes is the identity of the release. Pure: no I/O.
"""

import re
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from models import canonical
from models.digest import CHUNK_SIZE, Digest
from models.errors import InvalidManifest

MANIFEST_FILE = "release.json"


Task = Literal["embed", "classify", "rerank", "classify-image", "inspect", "ocr", "transcribe"]
"""What a model is asked for, when it is not asked for text."""


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


class _Grown(_Frozen):
    """A shape that has grown since manifests were first signed.

    Fields in ``_later`` are left out of the bytes while they have their defaults, so that a manifest which
    does not use them has the digest that it always had. Law: so has every manifest that was written before.
    """

    _later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        unset = {name for name in self._later if getattr(self, name) == fields[name].default}
        return {name: value for name, value in written.items() if name not in unset}


class Speed(_Grown):
    """What was measured on one device: units/s (median and interquartile range), bytes of RAM.

    ``unit`` is ``tokens/s`` of language models, which the field is named after; ``texts/s``, ``images/s``.
    """

    _later = frozenset({"unit"})

    device: str
    tokens_per_second: float
    spread: tuple[float, float]
    peak_ram_bytes: int
    unit: str = "tokens/s"


class Fallback(_Frozen):
    """A tensor that did not get the precision that was asked for."""

    tensor: str
    asked: str
    got: str


class Probe(_Grown):
    """An input whose answer is known: replayed on the device before a release is activated.

    One of four: ``messages``, a chat, answered greedily with at most ``max_tokens`` tokens; ``text``, to be
    embedded, classified, or judged by ``query``; ``image``, a file of the release, to be classified,
    inspected or read; ``audio``, likewise, to be transcribed. The probe holds when the similarity of answer
    and ``expected`` (``models.probes`` defines both) is at least ``tolerance``.
    """

    _later = frozenset({"messages", "max_tokens", "text", "image", "query", "audio"})

    messages: tuple[dict[str, str], ...] = ()
    max_tokens: int | None = Field(default=None, gt=0, le=1024)
    expected: str
    tolerance: float = Field(ge=0, le=1)
    text: str | None = None
    image: RelativePath | None = None
    query: str | None = None
    audio: RelativePath | None = None

    @model_validator(mode="after")
    def _asks_one_thing(self) -> "Probe":
        inputs = (self.text, self.image, self.audio)
        if bool(self.messages) + sum(one is not None for one in inputs) != 1:
            raise ValueError("a probe asks one thing: messages, a text, an image or audio")
        if self.query is not None and self.text is None:
            raise ValueError("query goes with text, and with nothing else")
        if bool(self.messages) != (self.max_tokens is not None):
            raise ValueError("max_tokens goes with messages, and with nothing else")
        return self


class AdapterFacts(_Frozen):
    """What an adapter needs to be right.

    ``trained_on`` is the digest of the reference that it learned upon, a file that need not be released
    (docs/adr/0013-trained-on.md). ``checked_against`` are the manifests' digests of the bases that it was
    measured on: it attaches to these and to no other.
    """

    base_name: Name
    trained_on: Digest
    checked_against: tuple[Digest, ...]
    rank: int = Field(gt=0)
    targets: tuple[str, ...]


class AdapterSlots(_Frozen):
    """The adapters that a base can take."""

    max_rank: int = Field(gt=0)
    targets: tuple[str, ...]


class TextInput(_Frozen):
    """How an encoder reads text. ``max_tokens`` counts the special tokens; a longer text is not its business.

    ``pooling`` makes one vector of the states of all tokens; None when the graph's output is the answer.
    ``normalize``: vectors are scaled to length 1.
    """

    max_tokens: int = Field(gt=0, le=1 << 20)
    pooling: Literal["mean", "cls"] | None = None
    normalize: bool = False


class ImageInput(_Frozen):
    """How a vision model sees a picture: RGB, resized, values in [0, 1] less ``mean``, divided by ``std``.

    The graph takes float32 [n, 3, height, width]. ``stretch`` ignores the picture's proportions;
    ``shorter-side`` keeps them, scales the shorter side to ``resize_to`` and cuts out the middle.
    """

    width: int = Field(gt=0, le=4096)
    height: int = Field(gt=0, le=4096)
    resize: Literal["stretch", "shorter-side"] = "stretch"
    resize_to: int | None = Field(default=None, gt=0, le=8192)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @model_validator(mode="after")
    def _can_be_cut(self) -> "ImageInput":
        if (self.resize == "shorter-side") != (self.resize_to is not None):
            raise ValueError("resize_to goes with shorter-side, and with nothing else")
        if self.resize_to is not None and self.resize_to < max(self.width, self.height):
            raise ValueError("resize_to is less than what is cut out")
        if min(self.std) <= 0:
            raise ValueError("std is above 0")
        return self


class AnomalyFacts(_Frozen):
    """From which score on a part is a defect.

    ``threshold`` was chosen so that of the good parts it was calibrated on, ``calibrated_on`` in number, the
    share ``false_reject_rate`` lies at or above it.
    """

    threshold: float
    false_reject_rate: float = Field(ge=0, le=1)
    calibrated_on: int = Field(ge=0)


class Engine(_Grown):
    """What the engine needs to be right.

    ``output_schema`` is a JSON Schema that every complete answer is expected to meet; the device
    counts violations during probation. ``task`` None: the model generates text. ``labels`` are in the order
    of the graph's classes.
    """

    _later = frozenset({"task", "labels", "text", "image", "anomaly"})

    context_length: int | None = None
    chat_template: Digest | None = None
    tokenizer: Digest | None = None
    adapter_slots: AdapterSlots | None = None
    output_schema: dict[str, Any] | None = None
    system_prompt: str | None = None
    task: Task | None = None
    labels: tuple[str, ...] = ()
    text: TextInput | None = None
    image: ImageInput | None = None
    anomaly: AnomalyFacts | None = None

    @model_validator(mode="after")
    def _fits_its_task(self) -> "Engine":
        needs = _NEEDS[self.task]
        for name, value in (
            ("labels", self.labels),
            ("text", self.text),
            ("image", self.image),
            ("anomaly", self.anomaly),
        ):
            if bool(value) != (name in needs):
                word = "needs" if name in needs else "has no use for"
                raise ValueError(f"a model that is asked to {self.task or 'generate'} {word} {name!r}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("a label is listed twice")
        return self


_NEEDS: dict[Task | None, frozenset[str]] = {
    None: frozenset(),
    "embed": frozenset({"text"}),
    "classify": frozenset({"text", "labels"}),
    "rerank": frozenset({"text"}),
    "classify-image": frozenset({"image", "labels"}),
    "inspect": frozenset({"image", "anomaly"}),
    "ocr": frozenset(),
    "transcribe": frozenset(),
}

_ASKED_BY: dict[Task | None, Literal["messages", "text", "image", "audio"]] = {
    None: "messages",
    "embed": "text",
    "classify": "text",
    "rerank": "text",
    "classify-image": "image",
    "inspect": "image",
    "ocr": "image",
    "transcribe": "audio",
}
"""What a probe of each task holds."""


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
        asks = _ASKED_BY[self.engine.task]
        for number, probe in enumerate(self.probes, start=1):
            if getattr(probe, asks) in (None, ()) or (probe.query is None) == (self.engine.task == "rerank"):
                raise ValueError(f"probe {number} is not asked by {asks}, as this model is")
            for path in (probe.image, probe.audio):
                if path is not None and path not in paths:
                    raise ValueError(f"probe {number}: {path} is no file of the release")
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
