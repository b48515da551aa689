r"""Patterns and formats of strings to GBNF. Pure.

A pattern is ECMAScript's regular expression (JSON Schema, "pattern"), searched for anywhere unless it is
anchored. Enforced are literals, classes, groups, alternatives, quantifiers, and anchors at the ends. What
looks around, back, or at the edges of words is refused with ``UnsupportedRequest``. Characters are those of a
JSON string: a quote, a backslash and control characters with a short escape are written escaped.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from models.errors import UnsupportedRequest

Ranges = Sequence[tuple[int, int]]

CHARACTER = r"[\x20\x21\x23-\x5B\x5D-\x7E\u0080-\uD7FF\uE000-\U0010FFFF]"
"""A character that a JSON string holds as it is. A negated class would let through what is no character."""

_LAST = 0x10FFFF
_DIGITS = [(0x30, 0x39)]
_WORD = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_SPACE = [(9, 13), (32, 32), (0xA0, 0xA0), (0x2028, 0x2029)]
_LINE_ENDS = [(10, 10), (13, 13), (0x2028, 0x2029)]
_ESCAPED = {0x22: '"', 0x5C: "\\", 8: "b", 9: "t", 10: "n", 12: "f", 13: "r"}
_CONTROL = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_MAX_REPEAT = 1_000

_HOST = r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?){0,4}"
_DATE = (
    r"[12][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    r"|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_URI = rf"https?://{_HOST}(/[A-Za-z0-9._~-]{{0,40}}){{0,8}}(\?[A-Za-z0-9._~=&-]{{0,60}})?"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": r"P([0-9]{1,4}D(T[0-9]{1,2}H)?|T[0-9]{1,4}[HMS]|[0-9]{1,4}W)",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "email": rf"[A-Za-z0-9]{{1,20}}([._+-][A-Za-z0-9]{{1,20}}){{0,2}}@{_HOST}",
    "hostname": _HOST,
    "ipv4": rf"{_OCTET}(\.{_OCTET}){{3}}",
    "ipv6": r"([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}",
    "uri": _URI,
    "uri-reference": _URI,
    "iri": _URI,
    "json-pointer": r"(/[A-Za-z0-9_-]{0,30}){0,8}",
    "byte": r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",
}
"""Formats of strings and patterns of texts that have them, if not of all: years begin with 1 or 2."""


@dataclass(frozen=True, slots=True)
class Text:
    """GBNF for a part of a string, and how many characters it has at least and at most."""

    body: str
    low: int
    high: int | None

    def fits(self, low: int, high: int | None) -> bool:
        """Whether every text of it is as long as that."""
        return self.low >= low and (high is None or (self.high is not None and self.high <= high))


def pattern(source: str) -> Text:
    """What a string that matches ``source`` holds between its quotes. Raises ``UnsupportedRequest``."""
    return _Parser(source).parse()


def of_format(name: str) -> Text | None:
    """What a string of a format holds, None for a format that is not known."""
    return pattern(f"^({FORMATS[name]})$") if name in FORMATS else None


class _Parser:
    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._depth = 0

    def parse(self) -> Text:
        whole = self._alternatives()
        if self._at < len(self._source):
            raise self._refused("unbalanced ')'")
        return whole

    def _alternatives(self) -> Text:
        found = [self._sequence()]
        while self._next("|"):
            found.append(self._sequence())
        return _either(found) if len(found) > 1 else found[0]

    def _sequence(self) -> Text:
        top = self._depth == 0
        parts: list[Text] = []
        if top and not self._next("^"):
            parts.append(_ANYTHING)
        while self._at < len(self._source) and self._source[self._at] not in "|)":
            if (
                top
                and self._source[self._at] == "$"
                and self._source[self._at + 1 : self._at + 2] in ("", "|")
            ):
                self._at += 1
                return _joined(parts)
            parts.append(self._quantified(self._atom()))
        if top:
            parts.append(_ANYTHING)
        return _joined(parts)

    def _quantified(self, atom: Text) -> Text:
        found = re.compile(r"\*|\+|\?|\{(\d{1,9})(?:(,)(\d{0,9}))?\}").match(self._source, self._at)
        if found is None:
            return atom
        self._at = found.end()
        self._next("?")  # lazy: what can be matched is the same
        if self._at < len(self._source) and self._source[self._at] in "*+":
            raise self._refused("two quantifiers")
        low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(found[0], (int(found[1] or 0), None))
        if found[1] is not None:
            high = (int(found[3]) if found[3] else None) if found[2] else low
        if max(low, high or 0) > _MAX_REPEAT or (high is not None and high < low):
            raise self._refused(f"a repetition beyond {_MAX_REPEAT}")
        most = None if high is None or atom.high is None else atom.high * high
        bounds = found[0] if found[1] is None else f"{{{low},{'' if high is None else high}}}"
        return Text(f"({atom.body}){bounds}" if high != 0 else '""', atom.low * low, most)

    def _atom(self) -> Text:
        character = self._take()
        if character == "(":
            if self._next("?"):
                kind = re.compile(r":|<[A-Za-z_]\w*>").match(self._source, self._at)
                if kind is None:
                    raise self._refused("a group that looks around")
                self._at = kind.end()
            self._depth += 1
            inner = self._alternatives()
            self._depth -= 1
            if not self._next(")"):
                raise self._refused("a group without an end")
            return Text(f"({inner.body})", inner.low, inner.high)
        if character == "[":
            return _one_of(self._class())
        if character == ".":
            return _one_of(_without(_LINE_ENDS))
        if character == "\\":
            return _one_of(self._escape())
        if character in "^$*+?":
            raise self._refused(f"{character!r} in this place")
        return _one_of([(ord(character), ord(character))])

    def _class(self) -> Ranges:
        negated = self._next("^")
        ranges: list[tuple[int, int]] = []
        while not self._next("]"):
            first = self._member()
            if (
                self._source[self._at : self._at + 1] == "-"
                and self._source[self._at + 1 : self._at + 2] != "]"
            ):
                self._at += 1
                last = self._member()
                if len(first) != 1 or len(last) != 1 or first[0][0] > last[0][1]:
                    raise self._refused("a range that is none")
                ranges.append((first[0][0], last[0][1]))
            else:
                ranges += first
        return _without(ranges) if negated else ranges

    def _member(self) -> Ranges:
        character = self._take()
        return self._escape() if character == "\\" else [(ord(character), ord(character))]

    def _escape(self) -> Ranges:
        character = self._take()
        known = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
        if character.lower() in known:
            ranges = known[character.lower()]
            return ranges if character.islower() else _without(ranges)
        code = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]{1,6})\}").match(
            self._source, self._at - 1
        )
        if code is not None:
            self._at = code.end()
            number = int(code[1] or code[2] or code[3], 16)
            return [(number, number)]
        if character in _CONTROL:
            return [(_CONTROL[character], _CONTROL[character])]
        if character.isascii() and character.isalnum():
            raise self._refused(f"'\\{character}'")
        return [(ord(character), ord(character))]

    def _next(self, expected: str) -> bool:
        if self._source[self._at : self._at + 1] != expected:
            return False
        self._at += 1
        return True

    def _take(self) -> str:
        if self._at >= len(self._source):
            raise self._refused("no end")
        self._at += 1
        return self._source[self._at - 1]

    def _refused(self, what: str) -> UnsupportedRequest:
        return UnsupportedRequest(f"the pattern {self._source!r:.100} has {what}, which cannot be enforced")


def _joined(parts: Sequence[Text]) -> Text:
    highs = [part.high for part in parts]
    most = None if None in highs else sum(high for high in highs if high is not None)
    return Text(" ".join(part.body for part in parts) or '""', sum(part.low for part in parts), most)


def _either(parts: Sequence[Text]) -> Text:
    highs = [part.high for part in parts]
    most = None if None in highs else max(high for high in highs if high is not None)
    return Text(f"({' | '.join(part.body for part in parts)})", min(part.low for part in parts), most)


def _without(ranges: Ranges) -> Ranges:
    """All other characters."""
    left, start = [], 0
    for first, last in sorted(ranges):
        if first > start:
            left.append((start, first - 1))
        start = max(start, last + 1)
    return [*left, (start, _LAST)] if start <= _LAST else left


def _one_of(ranges: Ranges) -> Text:
    """One character of ``ranges``, as a JSON string holds it."""
    unwritten = [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F), (0xD800, 0xDFFF)]
    plain = _without([*_without(ranges), *unwritten])
    escaped = "".join(
        letter for code, letter in _ESCAPED.items() if any(first <= code <= last for first, last in ranges)
    )
    ways = []
    if plain:
        ways.append("[" + "".join(_range(first, last) for first, last in plain) + "]")
    if escaped:
        ways.append(r'"\\" [' + "".join("\\" + each if each in '"\\' else each for each in escaped) + "]")
    if not ways:
        raise UnsupportedRequest("a pattern asks for a character that JSON holds by its number alone")
    return Text(ways[0] if ways == ways[:1] and plain else f"({' | '.join(ways)})", 1, 1)


def _range(first: int, last: int) -> str:
    return _code(first) if first == last else f"{_code(first)}-{_code(last)}"


def _code(number: int) -> str:
    if number < 0x80 and chr(number).isalnum():
        return chr(number)
    return (
        f"\\x{number:02X}"
        if number < 0x100
        else f"\\u{number:04X}"
        if number < 0x10000
        else f"\\U{number:08X}"
    )


def quoted(texts: Iterable[str]) -> str:
    """A JSON string with these parts of GBNF between its quotes."""
    return " ".join(('"\\""', *texts, '"\\""'))


def literal(value: Any) -> str:
    """A GBNF string that matches the JSON of ``value`` and nothing else."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    escaped = re.sub(r'["\\]', lambda match: "\\" + match.group(), text)
    return f'"{escaped}"'


_ANYTHING = Text("char*", 0, None)
"""Any text; ``char`` is a rule of ``models.grammar``."""
