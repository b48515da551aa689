"""The ``data`` section of a recipe: where the rows are, what they mean, and what may be done to them.

Owns the keys, their defaults and their bounds. Reads no file: a path that is not there is found by
``compile.data.reading``.
"""

import codecs
from typing import Literal

from pydantic import Field, field_validator, model_validator

from compile.recipe.sections import Section

Format = Literal["auto", "jsonl", "json", "csv"]
Shape = Literal["auto", "instruction", "question", "chat", "dialogue", "label", "preference", "fields"]
Role = Literal[
    "system",
    "instruction",
    "input",
    "output",
    "question",
    "answer",
    "messages",
    "history",
    "response",
    "text",
    "label",
    "prompt",
    "chosen",
    "rejected",
]
"""What a column can be. A role's column has its own name unless ``columns`` says otherwise."""


class AnswerField(Section):
    """One named part of a structured answer: one of ``labels``, a ``span`` of the text, or free ``text``.

    ``column`` is where it stands in the source; by default the field's own name.
    """

    labels: tuple[str, ...] = ()
    span: bool = False
    text: bool = False
    column: str | None = None

    @model_validator(mode="after")
    def _is_one_thing(self) -> "AnswerField":
        if sum((bool(self.labels), self.span, self.text)) != 1:
            raise ValueError("an answer field sets exactly one of labels, span: true, text: true")
        if len(set(self.labels)) != len(self.labels) or not all(label.strip() for label in self.labels):
            raise ValueError("labels are different and not empty")
        return self


class Augment(Section):
    """More rows to train on, made from those that are there.

    ``synonyms``: a file with one set of interchangeable words a line, separated by commas.
    ``templates``: a file with one text a line, in which ``{text}`` (or an answer field's name in braces)
    is replaced. ``copies`` of each kind are tried for each row.
    """

    synonyms: str | None = None
    templates: str | None = None
    copies: int = Field(default=1, ge=1, le=20)

    @model_validator(mode="after")
    def _says_how(self) -> "Augment":
        if self.synonyms is None and self.templates is None:
            raise ValueError("augment names a synonyms file, a templates file or both")
        return self


class DataSource(Section):
    """A data set.

    It is a file (or a folder with one sub-folder of text files per label) at ``path``, beside the recipe;
    ``file`` inside an installed ``package``; or ``files``, one text file (one text a line) or folder per
    label, inside ``package`` where that is given. ``language``, ``id``, ``split`` and ``group`` name columns;
    rows of one ``group`` (a machine, a customer, a document) never lie in different splits. ``made_by``: the
    command that makes it, for whoever does not have it; no step's key holds it.
    """

    path: str | None = None
    package: str | None = None
    file: str | None = None
    files: dict[str, str] | None = None
    made_by: str | None = Field(default=None, exclude=True)

    format: Format = "auto"
    shape: Shape = "auto"
    encoding: str = "utf-8"
    columns: dict[Role, str] = Field(default={})
    language: str = "language"
    id: str = "id"
    split: str | None = None
    group: str | None = None
    labels: tuple[str, ...] | None = Field(default=None, min_length=2)
    answer: dict[str, AnswerField] | None = Field(default=None, min_length=1)

    bad_rows: Literal["refuse", "drop"] = "refuse"
    duplicates: Literal["refuse", "drop"] = "refuse"
    near_duplicates: Literal["group", "drop"] = "group"
    near_duplicate: float = Field(default=0.7, ge=0.3, le=1)
    max_chars: int = Field(default=20_000, ge=16)
    pii: Literal["report", "refuse", "mask"] = "report"

    seed: int = 7
    train_rows: int | None = Field(default=None, ge=16)
    augment: Augment | None = None

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, value: str) -> str:
        try:
            known = codecs.lookup(value)
            "".encode(value)  # refuses codecs that are no text encodings, like base64
        except LookupError as error:
            raise ValueError(f"{value!r} is not an encoding that Python knows") from error
        return known.name

    @field_validator("answer")
    @classmethod
    def _has_plain_names(cls, value: dict[str, AnswerField] | None) -> dict[str, AnswerField] | None:
        for name in value or ():
            if not name.isidentifier() or name == "text":
                raise ValueError(f"{name!r}: an answer field's name is a word, and 'text' is the input")
        return value

    @model_validator(mode="after")
    def _says_where(self) -> "DataSource":
        ways = [self.path is not None, self.file is not None, self.files is not None]
        if sum(ways) != 1:
            raise ValueError("data names exactly one of path, file (with package) and files")
        if self.file is not None and self.package is None:
            raise ValueError("file lies inside a package: name it, or use path")
        if self.path is not None and self.package is not None:
            raise ValueError("path lies beside the recipe; inside a package it is file")
        if self.split is not None and self.group is not None:
            raise ValueError("with split the source says which row lies where: group has nothing to decide")
        if self.files is not None and len(self.files) < 2:
            raise ValueError("files names at least two labels")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> "DataSource":
        if (self.shape == "fields") != (self.answer is not None) and self.shape != "auto":
            raise ValueError("shape: fields and answer belong together")
        if self.files is not None and (self.shape not in ("auto", "label") or self.answer is not None):
            raise ValueError("files holds labelled texts: shape is label")
        if self.labels is not None and self.shape not in ("auto", "label"):
            raise ValueError("labels belongs to shape: label; for fields, say them in answer")
        if self.files is not None and self.labels is not None and set(self.labels) != set(self.files):
            raise ValueError("labels and files name different labels")
        return self
