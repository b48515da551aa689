r"""JSON Schema to GBNF, so that an answer cannot but meet its schema. Pure.

Owns the subset of JSON Schema (draft 2020-12) that is enforced while tokens are chosen. Refuses, with
``UnsupportedRequest`` naming the keyword, every schema outside that subset: a constraint is enforced or
refused, never ignored. Law: every text that the grammar accepts is JSON that meets the schema.

The grammar may be narrower than the schema: properties come in the order of the schema, an object with
``properties`` gets no others, ``additionalProperties`` or not, and white space is at most one space after
a colon or comma.

GBNF: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from models.errors import UnsupportedRequest

MAX_RULES = 2_000
MAX_REPEAT = 1_000
"""Longest bounded repetition: the sampler unrolls them."""

_ANNOTATIONS = frozenset(
    (
        *("$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default"),
        *("examples", "deprecated", "readOnly", "writeOnly"),
    )
)
_PER_TYPE: Mapping[str, frozenset[str]] = {
    "object": frozenset(("properties", "required", "additionalProperties")),
    "array": frozenset(("items", "minItems", "maxItems")),
    "string": frozenset(("minLength", "maxLength")),
    "number": frozenset(),
    "integer": frozenset(),
    "boolean": frozenset(),
    "null": frozenset(),
}
_SHARED = {
    "char": r'[^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" code)',
    # Escaped surrogates are left out: a pair would count as two characters, half of one is no text.
    "code": "[0-9a-cefA-CEF] hex hex hex | [dD] [0-7] hex hex",
    "hex": "[0-9a-fA-F]",
    "string": r'"\"" char* "\""',
    "digits": "[0-9]{1,16}",
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": 'integer ("." digits)? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "object": '"{" (string ":" " "? value ("," " "? string ":" " "? value)*)? "}"',
    "array": '"[" (value ("," " "? value)*)? "]"',
}
_USES = {
    "char": ("code",),
    "code": ("hex",),
    "string": ("char",),
    "number": ("integer", "digits"),
    "value": ("object", "array", "string", "number", "boolean", "null"),
    "object": ("string", "value"),
    "array": ("value",),
}


def json_schema_to_grammar(schema: Mapping[str, Any] | bool) -> str:
    """GBNF with root rule ``root`` for ``schema``. Raises ``UnsupportedRequest``."""
    rules = Rules()
    rules.define("root", rules.schema(schema))
    return rules.text()


class Rules:
    """A grammar in the making, for one schema or several."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}

    def schema(self, document: Mapping[str, Any] | bool) -> str:
        """The name of a rule for JSON that meets ``document``. Raises ``UnsupportedRequest``."""
        try:
            return self.named(_Converter(document, self).convert())
        except RecursionError as error:
            raise UnsupportedRequest("the schema is nested too deeply") from error

    def define(self, name: str, body: str) -> str:
        """Give a rule a name of its own, which is returned."""
        self._rules[name] = body
        return name

    def named(self, body: str) -> str:
        """A new rule's name. Raises ``UnsupportedRequest`` when there are too many."""
        if len(self._rules) >= MAX_RULES:
            raise UnsupportedRequest(f"the schema needs more than {MAX_RULES} grammar rules")
        return self.define(f"r{len(self._rules)}", body)

    def shared(self, name: str) -> str:
        """One of the rules that every schema may use."""
        if name not in self._rules:
            self._rules[name] = _SHARED[name]
            for used in _USES.get(name, ()):
                self.shared(used)
        return name

    def text(self) -> str:
        """The grammar in GBNF."""
        return "\n".join(f"{name} ::= {body}" for name, body in self._rules.items()) + "\n"


class _Converter:
    """One schema's rules; references are looked up in its own document."""

    def __init__(self, document: Mapping[str, Any] | bool, rules: Rules) -> None:
        self._document = document
        self._references: dict[str, str] = {}
        self._named, self._shared, self._define = rules.named, rules.shared, rules.define

    def convert(self) -> str:
        """The body of the rule for the whole document."""
        return self._rule(self._document, "schema")

    def _rule(self, schema: Any, where: str) -> str:
        """The body of a rule; alternatives in it are in parentheses."""
        if schema is True:
            return self._shared("value")
        if not isinstance(schema, Mapping):
            raise UnsupportedRequest(f"{where}: a schema is an object, or true")
        keywords = {key for key in schema if key not in _ANNOTATIONS}
        if not keywords:
            return self._shared("value")
        for only, build in (
            ("$ref", self._reference),
            ("const", lambda value, _: literal(value)),
            ("enum", _enum),
            ("anyOf", self._any_of),
        ):
            if only in keywords:
                # ``type`` beside ``const`` or ``enum`` is common; it is checked, so it is not ignored.
                rest = keywords - {only}
                if only in ("const", "enum") and rest == {"type"}:
                    values = [schema["const"]] if only == "const" else schema["enum"]
                    _check_types(values, schema["type"], where)
                elif rest:
                    raise UnsupportedRequest(f"{where}: {min(rest)!r} beside {only!r} cannot be enforced")
                return build(schema[only], where)
        kind = schema.get("type")
        if isinstance(kind, list) and kind:
            return self._alternatives([{**schema, "type": one} for one in kind], where, trim=True)
        if kind is None:
            kind = _implied(keywords)
        if not isinstance(kind, str) or kind not in _PER_TYPE:
            raise UnsupportedRequest(f"{where}: 'type' is missing or unknown")
        unknown = keywords - _PER_TYPE[kind] - {"type"}
        if unknown:
            raise UnsupportedRequest(f"{where}: {min(unknown)!r} cannot be enforced for type {kind!r}")
        if kind == "object":
            return self._object(schema, where)
        if kind == "array":
            return self._array(schema, where)
        if kind == "string" and keywords & _PER_TYPE["string"]:
            return f'"\\"" {self._shared("char")}{_times(schema, "minLength", "maxLength", where)} "\\""'
        return self._shared(kind)

    def _alternatives(self, schemas: Sequence[Mapping[str, Any]], where: str, *, trim: bool) -> str:
        bodies = []
        for schema in schemas:
            if trim:  # keywords of the other types in the list do not concern this one
                others = frozenset().union(*(_PER_TYPE.values())) - _PER_TYPE.get(schema["type"], frozenset())
                schema = {key: value for key, value in schema.items() if key not in others}
            bodies.append(self._rule(schema, where))
        return "(" + " | ".join(bodies) + ")"

    def _any_of(self, schemas: Any, where: str) -> str:
        if not isinstance(schemas, list) or not schemas:
            raise UnsupportedRequest(f"{where}: 'anyOf' needs a list of schemas")
        return (
            "(" + " | ".join(self._rule(one, f"{where}.anyOf[{at}]") for at, one in enumerate(schemas)) + ")"
        )

    def _reference(self, reference: Any, where: str) -> str:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise UnsupportedRequest(f"{where}: only references inside the schema ('#/...') are followed")
        if reference not in self._references:
            target: Any = self._document
            for part in reference[1:].split("/")[1:]:
                key = part.replace("~1", "/").replace("~0", "~")
                if not isinstance(target, Mapping) or key not in target:
                    raise UnsupportedRequest(f"{where}: {reference!r:.100} points at nothing")
                target = target[key]
            if isinstance(target, Mapping) and "$ref" in target:
                raise UnsupportedRequest(f"{where}: {reference!r:.100} only points at another reference")
            name = self._named("")  # named before it is built: a schema may contain itself
            self._references[reference] = name
            self._define(name, self._rule(target, reference))
        return self._references[reference]

    def _object(self, schema: Mapping[str, Any], where: str) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        extra = schema.get("additionalProperties", True)
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise UnsupportedRequest(f"{where}: 'properties' is an object and 'required' a list")
        missing = [name for name in required if name not in properties]
        if missing:
            raise UnsupportedRequest(f"{where}: {missing[0]!r:.100} is required but has no schema")
        if not properties:
            if extra is True and "properties" not in schema:
                return self._shared("object")
            if isinstance(extra, bool):
                return '"{" "}"'
            pair = f'{self._shared("string")} ":" " "? {self._named(self._rule(extra, where + ".*"))}'
            # Keys could repeat; a reader takes the last, and every one of them meets the schema.
            return f'"{{" ({pair} ("," " "? {pair})*)? "}}"'
        pairs = []
        for name, value in properties.items():
            rule = self._named(self._rule(value, f"{where}.{name}"))
            pairs.append((f'{literal(name)} ":" " "? {rule}', name in required))
        return f'"{{" {self._members(pairs)} "}}"'

    def _members(self, pairs: Sequence[tuple[str, bool]]) -> str:
        """The properties in order, optional ones left out or not, commas only between."""
        # ``after[i]``: what may follow once a property before ``i`` has been written.
        after = [""] * (len(pairs) + 1)
        for index in reversed(range(len(pairs))):
            pair, needed = pairs[index]
            body = f'"," " "? {pair}'
            after[index] = self._named(f"{body if needed else f'({body})?'} {after[index + 1]}".rstrip())
        starts = []
        for index, (pair, needed) in enumerate(pairs):
            starts.append(f"{pair} {after[index + 1]}".rstrip())
            if needed:
                return "(" + " | ".join(starts) + ")"
        return "(" + " | ".join(starts) + ")?"

    def _array(self, schema: Mapping[str, Any], where: str) -> str:
        item = self._named(self._rule(schema.get("items", True), f"{where}[]"))
        low, high = _bounds(schema, "minItems", "maxItems", where)
        if high == 0:
            return '"[" "]"'
        more = f"{{{max(low - 1, 0)},{'' if high is None else high - 1}}}"
        body = f'{item} ("," " "? {item}){more}'
        return f'"[" {body if low else f"({body})?"} "]"'


def _enum(values: Any, where: str) -> str:
    if not isinstance(values, list) or not values:
        raise UnsupportedRequest(f"{where}: 'enum' needs a list of values")
    return "(" + " | ".join(literal(value) for value in values) + ")"


def literal(value: Any) -> str:
    """A GBNF string that matches the JSON of ``value`` and nothing else."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    escaped = re.sub(r'["\\]', lambda match: "\\" + match.group(), text)
    return f'"{escaped}"'


def _implied(keywords: set[str]) -> str | None:
    """The type that the keywords speak of, when they speak of one only."""
    kinds = [kind for kind, known in _PER_TYPE.items() if keywords and keywords <= known]
    return kinds[0] if len(kinds) == 1 else None


def _check_types(values: Any, kind: Any, where: str) -> None:
    python: Mapping[str, tuple[type, ...]] = {
        "string": (str,),
        "integer": (int,),
        "number": (int, float),
        "boolean": (bool,),
        "null": (type(None),),
        "object": (dict,),
        "array": (list,),
    }
    kinds = kind if isinstance(kind, list) else [kind]
    allowed = {one for name in kinds for one in python.get(name, ())}
    for value in values if isinstance(values, list) else ():
        if type(value) not in allowed:
            raise UnsupportedRequest(f"{where}: {value!r:.60} is not of type {kind!r}")


def _bounds(schema: Mapping[str, Any], least: str, most: str, where: str) -> tuple[int, int | None]:
    low, high = schema.get(least, 0), schema.get(most)
    for name, value in ((least, low), (most, high)):
        if value is not None and (type(value) is not int or not 0 <= value <= MAX_REPEAT):
            raise UnsupportedRequest(f"{where}: {name!r} is a whole number up to {MAX_REPEAT}")
    if high is not None and high < low:
        raise UnsupportedRequest(f"{where}: {most!r} is below {least!r}")
    return low, high


def _times(schema: Mapping[str, Any], least: str, most: str, where: str) -> str:
    low, high = _bounds(schema, least, most, where)
    return f"{{{low},{'' if high is None else high}}}"
