"""The sections ``distil`` and ``prune`` of a recipe: who teaches, how, and what is cut out first.

Owns the keys, their defaults and their bounds. Reads no file and no environment: ``key_variable`` is the name
of the variable that holds a teacher's key, and only the command line looks into it.
"""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from compile.recipe.sections import Section, Source
from compile.recipe.training import FineTune

HEALING = FineTune(method="full", epochs=1, learning_rate=5e-4)
"""How weights that are left get used to each other: every one of them is trained."""


class TextTeacher(Section):
    """A model that answers in text: a GGUF here, or an OpenAI-compatible ``url`` (the part before ``/chat``).

    ``tries`` are made for an answer, each waiting twice as long as the one before, or as long as the server
    asks; ``parallel`` requests are under way at once.
    """

    file: Source | None = None
    url: str | None = None
    model: str = ""
    key_variable: str | None = None
    system: str | None = None
    max_tokens: int = Field(default=128, ge=1, le=8192)
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**31)
    context_tokens: int = Field(default=1024, ge=64, le=131072)
    parallel: int = Field(default=4, ge=1, le=64)
    tries: int = Field(default=5, ge=1, le=20)
    timeout: float = Field(default=120.0, gt=0, description="Seconds for one answer.")
    failures: int = Field(default=0, ge=0, description="Prompts that may stay without an answer.")

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("a teacher's url begins with http:// or https://")
        return value.rstrip("/") if value else value

    @model_validator(mode="after")
    def _is_one_model(self) -> "TextTeacher":
        if (self.file is None) == (self.url is None):
            raise ValueError("a teacher is exactly one of file, url")
        if self.url is not None and not self.model:
            raise ValueError("a teacher at a url needs the name of its model")
        if self.file is not None and (self.model or self.key_variable):
            raise ValueError("model and key_variable go with url")
        return self


class DistilLogits(Section):
    """A causal student learns the teacher's distribution over the next token (Hinton et al. 2015).

    The loss is ``hard`` times that of the text plus the rest times the divergence from the teacher, both at
    ``temperature``. ``top`` logits of a token are computed once and kept on disk, all others as one number;
    without it the teacher runs beside the student in every epoch. Teacher and student have one vocabulary.
    """

    kind: Literal["logits"] = "logits"
    teacher: Source
    temperature: float = Field(default=2.0, ge=1, le=20)
    hard: float = Field(default=0.3, ge=0, le=1)
    top: int | None = Field(default=None, ge=1, le=4096)


class DistilSequences(Section):
    """A causal student trains on what the teacher answers (Kim and Rush 2016); vocabularies may differ."""

    kind: Literal["sequences"] = "sequences"
    teacher: TextTeacher
    keep_answers: bool = Field(default=True, description="Rows that have an answer keep it.")


class _DistilEncoder(Section):
    """``texts``: more to learn from, one a line, of which the teacher alone says what to make; ``compare``:
    the same student is trained without the teacher as well, and its scores stand in the report."""

    texts: Source | None = None
    compare: bool = False


class DistilVectors(_DistilEncoder):
    """An encoder with fewer layers learns the teacher's sentence vectors of the training rows."""

    kind: Literal["vectors"] = "vectors"
    teacher: Source
    cosine: float = Field(default=0.5, ge=0, le=1, description="Weight of 1 - cosine; the rest is MSE's.")


class DistilLabels(_DistilEncoder):
    """A classifier learns the labels that a teacher gives to the training rows and to texts without one.

    The teacher is a classifier's folder, which gives probabilities at ``temperature``, or a model that
    answers in text. ``hard`` is the weight of a text's own label where it has one; at 1 the teacher is not
    asked about the rows.
    """

    kind: Literal["labels"] = "labels"
    teacher: Source | TextTeacher
    temperature: float = Field(default=1.0, ge=1, le=20)
    hard: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _teaches_something(self) -> "DistilLabels":
        if self.hard == 1 and self.texts is None:
            raise ValueError("with hard: 1 rows learn their own labels alone: name texts for the teacher")
        return self


Distil = DistilLogits | DistilSequences | DistilVectors | DistilLabels


class PruneDepth(Section):
    """Layers are dropped: exactly those of ``layers``, or ``drop`` of them, or all but ``keep``.

    Without ``layers`` those go that change their input least (block influence, Men et al. 2024); ``spare``
    layers at the start and at the end are never among them.
    """

    drop: int | None = Field(default=None, ge=1)
    keep: int | None = Field(default=None, ge=1)
    layers: tuple[int, ...] | None = Field(default=None, min_length=1)
    spare: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _says_one_thing(self) -> "PruneDepth":
        if sum(one is not None for one in (self.drop, self.keep, self.layers)) != 1:
            raise ValueError("depth sets exactly one of drop, keep, layers")
        if self.layers is not None and len(set(self.layers)) != len(self.layers):
            raise ValueError("layers names a layer twice")
        return self


class PruneWidth(Section):
    """Neurons of the MLP and heads of attention are cut, in every layer the same number.

    ``neurons`` and ``heads`` are how many are left. Rows stay divisible by ``multiple``: GGUF's K-quants need
    256, Q8_0 and Q4_0 need 32.
    """

    neurons: int | None = Field(default=None, ge=1)
    heads: int | None = Field(default=None, ge=1)
    by: Literal["activation", "taylor"] = "taylor"
    multiple: int = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _cuts_something(self) -> "PruneWidth":
        if self.neurons is None and self.heads is None:
            raise ValueError("width sets neurons, heads or both")
        if self.neurons is not None and self.neurons % self.multiple:
            raise ValueError(f"neurons {self.neurons} is not a multiple of {self.multiple}")
        return self


class Heal(Section):
    """A short distillation of what is left from the unpruned model."""

    temperature: float = Field(default=2.0, ge=1, le=20)
    hard: float = Field(default=0.3, ge=0, le=1)
    top: int | None = Field(default=None, ge=1, le=4096)
    training: FineTune = HEALING

    @field_validator("training", mode="before")
    @classmethod
    def _trains_everything(cls, value: Any) -> Any:
        if isinstance(value, dict):
            value = HEALING.model_dump(include={"method", "epochs", "learning_rate"}) | value
        method = value.get("method") if isinstance(value, dict) else getattr(value, "method", "full")
        if method != "full":
            raise ValueError(f"what is left heals with method: full, not {method}")
        return value


class Prune(Section):
    """What is cut, depth before width, and how what is left heals."""

    depth: PruneDepth | None = None
    width: PruneWidth | None = None
    heal: Heal | None = Heal()

    @model_validator(mode="after")
    def _cuts_something(self) -> "Prune":
        if self.depth is None and self.width is None:
            raise ValueError("prune sets depth, width or both")
        return self
