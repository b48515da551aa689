"""Rows and splits: what the data step hands to everything that trains or measures.

Owns their form on disk (``splits.json``). Knows nothing of where rows come from.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from compile.errors import BadData
from models.digest import Digest

Item = TypeVar("Item")

SPLITS = "splits.json"
SHOWN = 20
"""Of many things that are wrong."""
PARTS = ("train", "validation", "test")
_MADE = re.compile(r"#(synonyms|template)\d+$")
"""How the id of a row that was made from another one ends."""


@dataclass(frozen=True)
class Row:
    """One example.

    ``number`` is the line of the source, from 1. ``messages`` is the chat before the answer (``role`` and
    ``content``); a labelled text is one user message. ``answer`` is what is to be said: for ``fields``
    compact JSON of them, for a labelled text the label. ``rejected`` is the worse answer of a preference.
    """

    number: int
    messages: tuple[Mapping[str, str], ...]
    answer: str = ""
    label: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    rejected: str = ""
    language: str = ""
    id: str = ""

    @property
    def text(self) -> str:
        """The last user message."""
        return next((one["content"] for one in reversed(self.messages) if one["role"] == "user"), "")

    @property
    def asked(self) -> str:
        """Everything that stands before the answer but the system prompt: what a leak is judged by."""
        return "\n".join(one["content"] for one in self.messages if one["role"] != "system")

    @property
    def augmented(self) -> bool:
        """Whether it was made from another row."""
        return bool(_MADE.search(self.id))


@dataclass(frozen=True)
class Splits:
    """Train, validation and test."""

    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]

    def parts(self) -> Iterator[tuple[str, tuple[Row, ...]]]:
        """Each split with its name."""
        for name in PARTS:
            yield name, getattr(self, name)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that occurs, in order of its name."""
        return tuple(sorted({row.label for _, rows in self.parts() for row in rows if row.label}))

    @property
    def sizes(self) -> dict[str, int]:
        """How many rows each split has."""
        return {name: len(rows) for name, rows in self.parts()}


def spread(items: Sequence[Item], wanted: int | None) -> tuple[Item, ...]:
    """``wanted`` of ``items`` at even distances, all where there are no more or None is wanted.

    Splits are ordered by label and language, and few must show all of them.
    """
    count = len(items) if wanted is None else min(wanted, len(items))
    return tuple(items[at * len(items) // count] for at in range(count))


def listed(what: str, lines: Sequence[str], rest: str = "") -> BadData:
    """The error that counts ``what`` (one of them, by name) and shows the first of its ``lines``."""
    more = f"\n... and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    head = f"{len(lines)} {what}{'' if len(lines) == 1 else 's'}{rest}"
    return BadData(f"{head}:\n" + "\n".join(lines[:SHOWN]) + more)


def write_splits(folder: Path, splits: Splits) -> Digest:
    """Write ``splits.json``, one row a line, and return its digest. Law: ``read_splits`` gives them back."""
    digest = hashlib.sha256()
    with (folder / SPLITS).open("wb") as stream:

        def put(text: str) -> None:
            data = text.encode()
            digest.update(data)
            stream.write(data)

        put("{")
        for at, (name, rows) in enumerate(splits.parts()):
            put(f'{"," if at else ""}\n"{name}": [')
            for number, row in enumerate(rows):
                put(("," if number else "") + "\n" + json.dumps(_plain(row), ensure_ascii=False))
            put("]")
        put("\n}\n")
    return Digest.from_hex(digest.hexdigest())


def read_splits(folder: Path) -> Splits:
    """What ``write_splits`` wrote. Raises ``BadData`` for any other file."""
    try:
        stored = json.loads((folder / SPLITS).read_text(encoding="utf-8"))
        return Splits(**{name: tuple(_row(one) for one in stored[name]) for name in PARTS})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadData(f"{folder / SPLITS}: not the splits of a data step: {error}") from error


def _plain(row: Row) -> dict[str, Any]:
    """What is empty is left out."""
    plain = {
        "number": row.number,
        "id": row.id,
        "messages": [dict(message) for message in row.messages],
        "answer": row.answer,
        "label": row.label,
        "fields": dict(row.fields),
        "rejected": row.rejected,
        "language": row.language,
    }
    return {name: value for name, value in plain.items() if value or name in ("number", "messages")}


def _row(stored: dict[str, Any]) -> Row:
    return Row(**stored | {"messages": tuple(stored["messages"])})
