"""Shapes: what the columns of a record mean. Records in, rows out. Pure.

Owns the shapes that data sets come in, how one is recognised by its columns, and the checks of single rows.
Texts are expected clean (``compile.data.cleaning``). A row that does not fit is a ``ValueError`` with the
reason, for the caller to count; columns that fit no shape at all are ``BadData``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from compile.data.reading import Record
from compile.data.rows import Row
from compile.data.scripts import language_of
from compile.errors import BadData
from compile.evaluate.answers import MAX_TEXT, Field, write
from compile.recipe.data import DataSource, Role, Shape

_NEEDS: Mapping[str, tuple[str, ...]] = {
    "chat": ("messages",),
    "preference": ("prompt", "chosen", "rejected"),
    "instruction": ("instruction", "output"),
    "dialogue": ("history", "response"),
    "question": ("question", "answer"),
    "label": ("text", "label"),
    "fields": ("text",),
}
"""The columns without which a shape is none, most telling shape first."""
_MAY: Mapping[str, tuple[str, ...]] = {
    "instruction": ("input", "system"),
    "question": ("system",),
    "dialogue": ("system", "prompt"),
    "preference": ("system",),
}
_LOOKED_AT = 20
"""Rows whose columns tell the shape: the first one may be a bad one."""
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
"""Names of speakers that are in use beside the usual ones (ShareGPT and others)."""


def find_shape(source: DataSource, records: Sequence[Record]) -> Shape:
    """The shape of the data: as the section says, else by the columns of the first rows.

    Raises ``BadData`` when the columns fit none, and when those of a given shape are not there.
    """
    columns = dict.fromkeys(column for record in records[:_LOOKED_AT] for column in record.values)
    if source.shape != "auto":
        wanted: Shape = source.shape
    elif source.answer is not None:
        wanted = "fields"
    elif source.files is not None or source.labels is not None:
        wanted = "label"
    else:
        fitting = (shape for shape in _NEEDS if shape != "fields" and not _missing(shape, source, columns))
        found = next(fitting, None)
        if found is None:
            shapes = "; ".join(f"{shape}: {', '.join(needs)}" for shape, needs in _NEEDS.items())
            raise BadData(
                f"the columns {_listed(columns)} fit no shape ({shapes}); name them under data.columns"
            )
        return next(shape for shape in get_args(Shape) if shape == found)
    if missing := _missing(wanted, source, columns):
        raise BadData(
            f"shape {wanted} needs the columns {_listed(missing)}; there are {_listed(columns)}. "
            "Other names go under data.columns"
        )
    return wanted


def used_columns(source: DataSource, shape: Shape) -> frozenset[str]:
    """The columns that enter the rows; others are read past."""
    roles = (*_NEEDS[shape], *_MAY.get(shape, ()))
    fields = (field.column or name for name, field in (source.answer or {}).items())
    return frozenset({_column(source, role) for role in roles} | set(fields))


def fields_of(source: DataSource) -> tuple[Field, ...]:
    """The fields of a structured answer, as the evaluation wants them."""
    return tuple(Field(name, field.labels) for name, field in (source.answer or {}).items())


def to_row(record: Record, source: DataSource, shape: Shape) -> Row:
    """The row that a record stands for. Raises ``ValueError`` with what is wrong with it."""
    make = _MAKERS[shape]
    made = make(_Reader(record.values, source))
    length = sum(len(message["content"]) for message in made["messages"]) + len(made.get("answer", ""))
    if length > source.max_chars:
        raise ValueError(f"{length} characters, more than max_chars ({source.max_chars})")
    given = _word(record.values.get(source.language))
    name = _word(record.values.get(source.id)) or (
        f"{record.file}:{record.number}" if record.file else str(record.number)
    )
    row = Row(number=record.number, id=name, language=given, **made)
    return row if given else Row(**vars(row) | {"language": language_of(row.text or row.asked)})


class _Reader:
    """The values of one record, by role."""

    def __init__(self, values: Mapping[str, Any], source: DataSource) -> None:
        self._values = values
        self.source = source

    def value(self, role: str) -> Any:
        return self._values.get(_column(self.source, role))

    def text(self, role: str) -> str:
        """A text that must be there."""
        return self.named(_column(self.source, role))

    def named(self, column: str) -> str:
        value = self._values.get(column)
        if not isinstance(value, str) or not value:
            raise ValueError(f"{column!r} is missing, empty or no text")
        return value

    def optional(self, role: str) -> str:
        value = self.value(role)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{_column(self.source, role)!r} is no text")
        return value or ""

    def label(self, column: str, known: Sequence[str] | None) -> str:
        """A word or a whole number."""
        label = _word(self._values.get(column))
        if not label:
            raise ValueError(f"{column!r} is missing or empty")
        if known is not None and label not in known:
            raise ValueError(f"{column!r}: unknown label {label!r}")
        return label

    def system(self) -> list[Mapping[str, str]]:
        system = self.optional("system")
        return [{"role": "system", "content": system}] if system else []


def _instruction(row: _Reader) -> dict[str, Any]:
    more = row.optional("input")
    asked = row.text("instruction") + (f"\n\n{more}" if more else "")
    return {"messages": (*row.system(), _user(asked)), "answer": row.text("output")}


def _question(row: _Reader) -> dict[str, Any]:
    return {"messages": (*row.system(), _user(row.text("question"))), "answer": row.text("answer")}


def _label(row: _Reader) -> dict[str, Any]:
    label = row.label(_column(row.source, "label"), row.source.labels)
    return {"messages": (_user(row.text("text")),), "answer": label, "label": label}


def _fields(row: _Reader) -> dict[str, Any]:
    text = row.text("text")
    said: dict[str, str] = {}
    for name, field in (row.source.answer or {}).items():
        column = field.column or name
        if field.labels:
            said[name] = row.label(column, field.labels)
            continue
        said[name] = row.named(column)
        if len(said[name]) > MAX_TEXT:
            raise ValueError(f"{column!r} has {len(said[name])} characters; a field holds {MAX_TEXT}")
        if field.span and said[name] not in text:
            raise ValueError(f"{column!r}: {said[name]!r} does not stand in the text")
    fields = fields_of(row.source)
    label = next((said[field.name] for field in fields if field.labels), "")
    return {"messages": (_user(text),), "answer": write(said, fields), "label": label, "fields": said}


def _chat(row: _Reader) -> dict[str, Any]:
    column = _column(row.source, "messages")
    turns = _turns(row.value("messages"), column)
    if not turns or turns[-1]["role"] != "assistant":
        raise ValueError(f"{column!r} does not end with the assistant's answer")
    if not any(turn["role"] == "user" for turn in turns[:-1]):
        raise ValueError(f"{column!r} has no user message before the answer")
    return {"messages": tuple(turns[:-1]), "answer": turns[-1]["content"]}


def _dialogue(row: _Reader) -> dict[str, Any]:
    column = _column(row.source, "history")
    history = row.value("history")
    if isinstance(history, str):
        history = [history]
    if not isinstance(history, list):
        raise ValueError(f"{column!r} is neither a text nor a list of turns")
    flat: list[Any] = []
    for turn in history:  # a list of turns, or of [asked, answered] pairs
        flat += turn if isinstance(turn, list) else [turn]
    if last := row.optional("prompt"):
        flat.append(last)
    if not flat or not all(isinstance(turn, str) and turn for turn in flat):
        raise ValueError(f"{column!r} has no turns, or one that is empty or no text")
    # Who speaks alternates, and the last turn before the response is the user's.
    roles = ("user", "assistant")
    turns = [{"role": roles[(len(flat) - 1 - at) % 2], "content": turn} for at, turn in enumerate(flat)]
    return {"messages": (*row.system(), *turns), "answer": row.text("response")}


def _preference(row: _Reader) -> dict[str, Any]:
    prompt = row.value("prompt")
    column = _column(row.source, "prompt")
    asked = [_user(row.text("prompt"))] if isinstance(prompt, str) else _turns(prompt, column)
    if not asked or asked[-1]["role"] != "user":
        raise ValueError(f"{column!r} does not end with a user message")
    chosen, rejected = (_said(row, role) for role in ("chosen", "rejected"))
    if chosen == rejected:
        raise ValueError("chosen and rejected are the same")
    return {"messages": (*row.system(), *asked), "answer": chosen, "rejected": rejected}


def _said(row: _Reader, role: str) -> str:
    """An answer, alone or as the last turn of a chat."""
    value = row.value(role)
    if isinstance(value, list):
        turns = _turns(value, _column(row.source, role))
        if not turns or turns[-1]["role"] != "assistant":
            raise ValueError(f"{_column(row.source, role)!r} does not end with the assistant's answer")
        return turns[-1]["content"]
    return row.text(role)


def _turns(value: Any, column: str) -> list[Mapping[str, str]]:
    """Messages with a role and a content; ``from`` and ``value`` are taken for them, too."""
    if not isinstance(value, list):
        raise ValueError(f"{column!r} is no list of messages")
    turns: list[Mapping[str, str]] = []
    for at, message in enumerate(value, start=1):
        if not isinstance(message, Mapping):
            raise ValueError(f"{column!r}: message {at} is no object")
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        role = _ROLES.get(role, role) if isinstance(role, str) else role
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"{column!r}: message {at} has the role {role!r}")
        if not isinstance(content, str) or not content:
            raise ValueError(f"{column!r}: message {at} is empty or no text")
        if role == "system" and at > 1:
            raise ValueError(f"{column!r}: message {at}: a system message stands first")
        if turns and role == turns[-1]["role"]:
            raise ValueError(f"{column!r}: message {at}: two messages of the {role} in a row")
        turns.append({"role": role, "content": content})
    return turns


_MAKERS: Mapping[str, Callable[[_Reader], dict[str, Any]]] = {
    "instruction": _instruction,
    "question": _question,
    "label": _label,
    "fields": _fields,
    "chat": _chat,
    "dialogue": _dialogue,
    "preference": _preference,
}


def _user(text: str) -> Mapping[str, str]:
    return {"role": "user", "content": text}


def _column(source: DataSource, role: str) -> str:
    named: Mapping[str, str] = {str(key): value for key, value in source.columns.items()}
    return named.get(role, role)


def _missing(shape: str, source: DataSource, columns: Any) -> list[str]:
    wanted = [_column(source, role) for role in _NEEDS[shape]]
    if shape == "fields":
        wanted += [field.column or name for name, field in (source.answer or {}).items()]
    return [column for column in wanted if column not in columns]


def _word(value: Any) -> str:
    """A label, a language or an id: a text, or a whole number as text."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).strip() if isinstance(value, str | int) else ""


def _listed(columns: Any) -> str:
    return ", ".join(repr(column) for column in columns) or "(none)"


assert set(_MAKERS) == set(_NEEDS) == set(get_args(Shape)) - {"auto"} and Role  # noqa: S101
