r"""JSON Schema to GBNF, so that an answer cannot but meet its schema. Pure.

Owns the subset of JSON Schema (draft 2020-12) that is enforced while tokens are chosen. Refuses, with
``UnsupportedRequest`` naming the keyword, every schema outside that subset: a constraint is enforced or
refused, never ignored. Law: every text that the grammar accepts is JSON that meets the schema.

The grammar may be narrower than the schema: properties come in the order of the schema, an object with
``properties`` gets no others, ``additionalProperties`` or not, and white space is at most one space after
a colon or comma.

GBNF: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
"""

from collections.abc import Mapping, Sequence
from typing import Any

from models.errors import UnsupportedRequest
from models.grammar_numbers import Bounds, integers, numbers, read_bounds
from models.grammar_schema import Document, says_nothing
from models.grammar_text import CHARACTER, literal, of_format, pattern, quoted

MAX_RULES = 2_000
MAX_REPEAT = 1_000
"""Longest bounded repetition: the sampler unrolls them."""

_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format")
_PER_TYPE: Mapping[str, frozenset[str]] = {
    "object": frozenset(
        (
            *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
            *("minProperties", "maxProperties"),
        )
    ),
    "array": frozenset(("items", "prefixItems", "minItems", "maxItems", "uniqueItems")),
    "string": frozenset(("minLength", "maxLength", "pattern", "format")),
    "integer": frozenset(_BOUNDS),
    "number": frozenset(_BOUNDS),
    "boolean": frozenset(),
    "null": frozenset(),
}
_FREE_FORMATS = ("password", "int64")
"""Formats that any string has."""
_SHARED = {
    "char": CHARACTER + r' | "\\" (["\\/bfnrt] | "u" code)',
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
        self._document = Document(document)
        self._references: dict[str, str] = {}
        self._named, self._shared, self._define = rules.named, rules.shared, rules.define

    def convert(self) -> str:
        """The body of the rule for the whole document."""
        return self._rule(self._document.whole, "schema")

    def _rule(self, schema: Any, where: str) -> str:
        """The body of a rule; alternatives in it are in parentheses."""
        if schema is True:
            return self._shared("value")
        if not isinstance(schema, Mapping):
            raise UnsupportedRequest(f"{where}: a schema is an object, or true")
        schema = {key: value for key, value in schema.items() if not says_nothing(key)}
        if not schema:
            return self._shared("value")
        if set(schema) == {"$ref"}:
            return self._reference(schema["$ref"], where)
        if "allOf" in schema or "$ref" in schema:
            return self._rule(self._document.all_of(schema, where), where)
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return self._any_of(schema, several, where)
        if "const" in schema or "enum" in schema:
            return _values(schema, where)
        return self._typed(schema, where)

    def _typed(self, schema: Mapping[str, Any], where: str) -> str:
        unknown = set(schema).difference({"type"}, *_PER_TYPE.values())
        if unknown:
            raise UnsupportedRequest(f"{where}: {min(unknown)!r} cannot be enforced")
        kind = schema.get("type", _implied(schema))
        if isinstance(kind, list) and kind:
            return f"({' | '.join(self._typed({**schema, 'type': one}, where) for one in kind)})"
        if not isinstance(kind, str) or kind not in _PER_TYPE:
            raise UnsupportedRequest(f"{where}: 'type' is missing or unknown")
        # Keywords of other types say nothing about this one.
        about = {key: value for key, value in schema.items() if key in _PER_TYPE[kind]}
        match kind:
            case "object":
                return self._object(about, where)
            case "array":
                return self._array(about, where)
            case "string" if about:
                return self._string(about, where)
            case "integer" | "number" if about:
                return self._number(about, kind, where)
        return self._shared(kind)

    def _reference(self, reference: Any, where: str) -> str:
        target = self._document.target(reference, where)
        if reference not in self._references:
            if isinstance(target, Mapping) and "$ref" in target:
                raise UnsupportedRequest(f"{where}: {reference!r:.100} only points at another reference")
            name = self._named("")  # named before it is built: a schema may contain itself
            self._references[reference] = name
            self._define(name, self._rule(target, reference))
        return self._references[reference]

    # Schemas together

    def _any_of(self, schema: Mapping[str, Any], several: str, where: str) -> str:
        listed = schema[several]
        if not isinstance(listed, list) or not listed:
            raise UnsupportedRequest(f"{where}: {several!r} needs a list of schemas")
        beside = {key: value for key, value in schema.items() if key != several}
        if several == "oneOf" and not self._document.disjoint(listed, beside, where):
            raise UnsupportedRequest(f"{where}: alternatives of 'oneOf' that do not exclude each other")
        ways = []
        for at, one in enumerate(listed):
            ways.append(
                self._rule(
                    self._document.both(beside, one, where) if beside else one, f"{where}.{several}[{at}]"
                )
            )
        return f"({' | '.join(ways)})"

    # Types

    def _string(self, schema: Mapping[str, Any], where: str) -> str:
        low, high = _bounds(schema, "minLength", "maxLength", where)
        forms = [key for key in ("pattern", "format") if key in schema and schema[key] not in _FREE_FORMATS]
        if not forms:
            if low == 0 and high is None:
                return self._shared("string")
            return quoted([f"{self._shared('char')}{{{low},{'' if high is None else high}}}"])
        if len(forms) > 1:
            raise UnsupportedRequest(f"{where}: 'pattern' and 'format' together cannot be enforced")
        [key] = forms
        value = schema[key]
        text = (pattern if key == "pattern" else of_format)(value) if isinstance(value, str) else None
        if text is None:
            raise UnsupportedRequest(f"{where}: {key} {value!r:.60} cannot be enforced")
        if not text.fits(low, high):
            raise UnsupportedRequest(f"{where}: a length beside {key!r} cannot be enforced")
        self._shared("char")
        return quoted([text.body])

    def _number(self, schema: Mapping[str, Any], kind: str, where: str) -> str:
        try:
            bounds = read_bounds(schema, kind)
        except ValueError as error:
            raise UnsupportedRequest(f"{where}: {error}") from error
        if bounds == Bounds():
            return self._shared(kind)
        body = (integers if kind == "integer" else numbers)(bounds)
        if body is None:
            raise UnsupportedRequest(f"{where}: no {kind} lies within the bounds")
        return body

    def _object(self, schema: Mapping[str, Any], where: str) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        extra = schema.get("additionalProperties", True)
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise UnsupportedRequest(f"{where}: 'properties' is an object and 'required' a list")
        # What is required without a schema of its own is one of the others.
        properties = {**properties, **{name: extra for name in required if name not in properties}}
        properties = {
            name: value for name, value in properties.items() if value is not False or name in required
        }
        _check_properties(schema, properties, required, where)
        if not properties:
            return self._map(schema, extra, where)
        pairs = []
        for name, value in properties.items():
            rule = self._named(self._rule(value, f"{where}.{name}"))
            pairs.append((f'{literal(name)} ":" " "? {rule}', name in required))
        return f'"{{" {self._members(pairs)} "}}"'

    def _map(self, schema: Mapping[str, Any], extra: Any, where: str) -> str:
        """An object without named properties. Keys may repeat: a reader takes the last of them."""
        patterns = schema.get("patternProperties", {})
        if not isinstance(patterns, Mapping) or len(patterns) > 1:
            raise UnsupportedRequest(f"{where}: several 'patternProperties' cannot be enforced")
        key: Any = schema.get("propertyNames", True)
        for source, value in patterns.items():
            key, extra = {"allOf": [{"pattern": source}, key]}, value
        low, high = _bounds(schema, "minProperties", "maxProperties", where)
        if low > 1:
            raise UnsupportedRequest(f"{where}: 'minProperties' above 1: keys may repeat")
        if (isinstance(extra, bool) and "properties" in schema) or extra is False or high == 0:
            if low:
                raise UnsupportedRequest(f"{where}: 'minProperties' of an object without properties")
            return '"{" "}"'
        if extra is True and key is True and high is None and not low:
            return self._shared("object")
        name = self._shared("string")
        if key is not True:
            named = {"type": "string", "allOf": [key]}
            name = self._named(self._rule(named, f"{where}: propertyNames"))
        pair = f'{name} ":" " "? {self._named(self._rule(extra, where + ".*"))}'
        body = _list_of(pair, low, high)
        return f'"{{" {body} "}}"'

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
        low, high = _bounds(schema, "minItems", "maxItems", where)
        if schema.get("uniqueItems") and (high is None or high > 1):
            raise UnsupportedRequest(f"{where}: 'uniqueItems' of more than one item cannot be enforced")
        first, rest = schema.get("prefixItems", []), schema.get("items", True)
        if not isinstance(first, list) or isinstance(rest, list):
            raise UnsupportedRequest(f"{where}: 'prefixItems' is a list and 'items' a schema")
        if rest is False:
            high = len(first) if high is None else min(high, len(first))
        if high is not None and high < low:
            raise UnsupportedRequest(f"{where}: fewer items than 'minItems'")
        if not first or high == 0:
            item = '""' if high == 0 else self._named(self._rule(rest, f"{where}[]"))
            return f'"[" {_list_of(item, low, high)} "]"'
        return f'"[" {self._tuple(first, rest, low, high, where)} "]"'

    def _tuple(self, first: Sequence[Any], rest: Any, low: int, high: int | None, where: str) -> str:
        """Items of a fixed place, then the others; what is not required may be left out from the end."""
        count = len(first) if high is None else min(len(first), high)
        more = high is None or high > count
        body = ""
        if more:
            item = self._named(self._rule(rest, f"{where}[]"))
            body = f'("," " "? {item}){{{max(low - count, 0)},{"" if high is None else high - count}}}'
        for at in reversed(range(count)):
            one = self._named(self._rule(first[at], f"{where}[{at}]"))
            comma = '"," " "? ' if at else ""
            body = f"{comma}{one} {body}".rstrip()
            if at >= low:
                body = f"({body})?"
        return body


def _list_of(item: str, low: int, high: int | None) -> str:
    """Items with commas between."""
    if high == 0:
        return '""'
    more = f"{{{max(low - 1, 0)},{'' if high is None else high - 1}}}"
    body = f'{item} ("," " "? {item}){more}'
    return body if low else f"({body})?"


def _values(schema: Mapping[str, Any], where: str) -> str:
    """``const`` and ``enum``; ``type`` beside them is common, and checked, so it is not ignored."""
    rest = set(schema) - {"const", "enum", "type"}
    if rest or {"const", "enum"} <= set(schema):
        raise UnsupportedRequest(f"{where}: {min(rest or {'const'})!r} beside 'enum' cannot be enforced")
    values = [schema["const"]] if "const" in schema else schema["enum"]
    if not isinstance(values, list) or not values:
        raise UnsupportedRequest(f"{where}: 'enum' needs a list of values")
    if "type" in schema:
        _check_types(values, schema["type"], where)
    return "(" + " | ".join(literal(value) for value in values) + ")"


def _check_properties(
    schema: Mapping[str, Any], properties: Mapping[str, Any], required: Sequence[str], where: str
) -> None:
    """Beside named properties, the other keywords of objects only pass where they change nothing."""
    if not properties:
        return
    for key in ("patternProperties", "propertyNames"):
        if schema.get(key) not in (None, {}, True):
            raise UnsupportedRequest(f"{where}: {key!r} beside 'properties' cannot be enforced")
    low, high = _bounds(schema, "minProperties", "maxProperties", where)
    if low > len(set(required)) or (high is not None and high < len(properties)):
        raise UnsupportedRequest(f"{where}: a number of properties beside 'properties' cannot be enforced")


def _implied(schema: Mapping[str, Any]) -> str | None:
    """A type that the keywords speak of. Without a type, values of others would pass as well."""
    return next((kind for kind, known in _PER_TYPE.items() if known & set(schema)), None)


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
