"""More rows to train on, by the user's synonyms and templates. Pure; deterministic given the seed.

A made row says so in its id (``T7#synonyms1``, ``T7#template2``). Only rows to train on are varied, the
answer stays, spans stay untouched, and nothing is made that is a near-duplicate of a row to validate or
test on, or equal to a row that there is.
"""

import random
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from compile.data.cleaning import clean
from compile.data.duplicates import near_pairs, plain
from compile.data.rows import Row, Splits
from compile.errors import BadData

_OTHERS = 0.5
"""How likely a word that has synonyms is replaced, beside the one that always is."""


@dataclass(frozen=True)
class Augmented:
    """The splits with more to train on; what was made, and what was thrown away as too close to the tests."""

    splits: Splits
    made: Mapping[str, int]
    too_close: int


def read_synonyms(text: str, name: str) -> tuple[tuple[str, ...], ...]:
    """Sets of words, one a line, separated by commas; ``#`` begins a comment. Raises ``BadData``."""
    sets: list[tuple[str, ...]] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.partition("#")[0].replace("，", ",")
        words = tuple(dict.fromkeys(clean(word) for word in line.split(",") if word.strip()))
        if not words:
            continue
        if len(words) < 2:
            raise BadData(f"{name} line {number}: one word alone has no synonym")
        for word in words:
            if (first := seen.setdefault(word.lower(), number)) != number:
                raise BadData(f"{name} line {number}: {word!r} stands in line {first}, too")
        sets.append(words)
    if not sets:
        raise BadData(f"{name}: no synonyms")
    return tuple(sets)


def read_templates(text: str, name: str, fields: Sequence[str]) -> tuple[str, ...]:
    """Templates, one a line, with ``{text}`` or answer fields in braces. Raises ``BadData``."""
    known = {"text", *fields}
    templates: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = clean(line)
        if not line or line.startswith("#"):
            continue
        try:
            parts = [
                (field, spec, conversion)
                for _, field, spec, conversion in string.Formatter().parse(line)
                if field is not None
            ]
        except ValueError as error:
            raise BadData(f"{name} line {number}: {error}") from error
        if not parts or any(field not in known or spec or conversion for field, spec, conversion in parts):
            raise BadData(
                f"{name} line {number}: a template has {{text}} or one of {sorted(known)} in braces"
            )
        templates.append(line)
    if not templates:
        raise BadData(f"{name}: no templates")
    return tuple(templates)


def augment(
    splits: Splits,
    synonyms: Sequence[Sequence[str]],
    templates: Sequence[str],
    spans: Sequence[str],
    copies: int,
    threshold: float,
    seed: int,
) -> Augmented:
    """Add up to ``copies`` of each kind for every row of train. ``spans`` are the fields to leave alone."""
    held = (*splits.validation, *splits.test)
    taken = {plain(row.asked) for _, part in splits.parts() for row in part}
    made: list[Row] = []
    words = _Words(synonyms) if synonyms else None
    for row in splits.train:
        for number in range(1, copies + 1):
            chance = random.Random(f"{seed}/{row.id}/{number}")  # noqa: S311 - repeatable on purpose
            texts = []
            if words is not None:
                texts.append(("synonyms", words.vary(row.text, [row.fields[name] for name in spans], chance)))
            if templates:
                filled = {"text": row.text, **row.fields}
                texts.append(("template", chance.choice(templates).format(**filled)))
            for kind, text in texts:
                new = _with_text(row, clean(text), f"{row.id}#{kind}{number}")
                stands = all(row.fields[name] in new.text for name in spans)
                if stands and plain(new.asked) not in taken:
                    taken.add(plain(new.asked))
                    made.append(new)
    pairs = near_pairs([row.asked for row in (*made, *held)], threshold, [0] * len(made) + [1] * len(held))
    close = {at for at, _, _ in pairs}
    kept = [row for at, row in enumerate(made) if at not in close]
    counts = {kind: sum(f"#{kind}" in row.id for row in kept) for kind in ("synonyms", "template")}
    return Augmented(replace(splits, train=(*splits.train, *kept)), counts, len(close))


class _Words:
    """Sets of synonyms, ready to be found in a text."""

    def __init__(self, sets: Sequence[Sequence[str]]) -> None:
        self._others = {
            word.lower(): [one for one in words if one != word] for words in sets for word in words
        }
        # The longest first, and whole words where the script has spaces between them.
        words = sorted(self._others, key=lambda word: (-len(word), word))
        self._form = re.compile("|".join(map(_whole, words)), re.IGNORECASE)

    def vary(self, text: str, spans: Sequence[str], chance: random.Random) -> str:
        """``text`` with one or more words replaced; unchanged where none has a synonym."""
        fixed = [
            (match.start(), match.end()) for span in spans for match in re.finditer(re.escape(span), text)
        ]
        found = [
            match
            for match in self._form.finditer(text)
            if match.group().lower() in self._others
            and all(match.end() <= low or match.start() >= high for low, high in fixed)
        ]
        if not found:
            return text
        always = chance.randrange(len(found))
        parts, end = [], 0
        for at, match in enumerate(found):
            replaced = at == always or chance.random() < _OTHERS
            other = chance.choice(self._others[match.group().lower()])
            parts += [text[end : match.start()], _cased(other, match.group()) if replaced else match.group()]
            end = match.end()
        return "".join((*parts, text[end:]))


def _whole(word: str) -> str:
    before = r"(?<![A-Za-z0-9_])" if word[0].isascii() and word[0].isalnum() else ""
    after = r"(?![A-Za-z0-9_])" if word[-1].isascii() and word[-1].isalnum() else ""
    return before + re.escape(word) + after


def _cased(word: str, like: str) -> str:
    """``word`` in capitals, or with a capital, where ``like`` is."""
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def _with_text(row: Row, text: str, name: str) -> Row:
    """``row`` with another last user message."""
    at = max(at for at, message in enumerate(row.messages) if message["role"] == "user")
    changed = {"role": "user", "content": text}
    return replace(row, messages=(*row.messages[:at], changed, *row.messages[at + 1 :]), id=name)
