"""Schemas of many shapes: what people write by hand, what generators emit, and random ones."""

import random
from typing import Any

Json = dict[str, Any]
S: Json = {"type": "string"}
I: Json = {"type": "integer"}  # noqa: E741
N: Json = {"type": "number"}
B: Json = {"type": "boolean"}
NULL: Json = {"type": "null"}


def obj(required: str = "", **properties: Any) -> Json:
    """A closed object; ``required`` names properties, all of them as ``*``."""
    names = list(properties) if required == "*" else required.split()
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def arr(items: Any, **bounds: Any) -> Json:
    """A list."""
    return {"type": "array", "items": items, **bounds}


def text(**keywords: Any) -> Json:
    """A string."""
    return {"type": "string", **keywords}


def whole(low: int | None = None, high: int | None = None) -> Json:
    """An integer within bounds."""
    bounds = {"minimum": low, "maximum": high}
    return {"type": "integer", **{key: value for key, value in bounds.items() if value is not None}}


PATTERNS = [
    *(
        "^[A-Z]{2}[0-9]{4}$",
        r"^\d{3}-\d{2}-\d{4}$",
        "^(pump|valve|motor)-[1-9][0-9]{0,2}$",
        "^#[0-9a-fA-F]{6}$",
    ),
    *(
        r"^v?\d+\.\d+\.\d+$",
        "^[^\\s@]+@[^\\s@]+$",
        "^$",
        "^(a|b)*$",
        "ab",
        "^x",
        "y$",
        r"^[\w.-]{1,12}$",
        "^.{2,5}$",
    ),
    *(
        r"^\+?[1-9]\d{1,14}$",
        "^[äöüß]+$",
        "^[\u4e00-\u9fff]{1,4}$",
        '^"[a-z]"$',
        r"^\\\\[a-z]+$",
        "^a?b+c{2}$",
    ),
    *(
        r"^(?:[01]\d|2[0-3]):[0-5]\d$",
        r"^[^\d]{3}$",
        "^(foo(bar)?)+$",
        r"^\u0041\x42$",
        "^a|b$",
        "^[a-z]+?$",
        "^[]a]",
    ),
    *(
        "^(?=a)a$",
        r"(a)\1",
        r"\bword\b",
        r"^\p{L}+$",
        "^(?!x)",
        r"^[\t\n]$",
        "^a{2000}$",
    ),
]
FORMATS = [
    "date",
    "time",
    "date-time",
    "duration",
    "uuid",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uri",
    "uri-reference",
    "regex",
    "json-pointer",
    "byte",
    "password",
]
BOUNDS: list[Json] = [
    *({"minimum": 0}, {"maximum": 0}, {"minimum": 1, "maximum": 10}, {"minimum": -5, "maximum": 5}),
    *({"minimum": 7, "maximum": 7}, {"exclusiveMinimum": 0}, {"exclusiveMaximum": 100}, {"minimum": 98765}),
    *({"exclusiveMinimum": 0, "exclusiveMaximum": 1}, {"minimum": 0, "maximum": 1}, {"minimum": -273.15}),
    *(
        {"minimum": 0.25, "maximum": 0.75},
        {"minimum": -0.5, "maximum": 0.125},
        {"minimum": 99.5, "maximum": 1200},
    ),
    *(
        {"minimum": 1000, "maximum": 65535},
        {"minimum": -40, "maximum": -7},
        {"multipleOf": 5},
        {"multipleOf": 0.01},
    ),
    *({"minimum": 5, "maximum": 4}, {"exclusiveMinimum": 3, "exclusiveMaximum": 4}, {"format": "int32"}),
]
TAGGED = [
    obj("*", kind={"const": "circle"}, radius={"type": "number", "minimum": 0}),
    obj("*", kind={"const": "box"}, width=N, height=N),
    obj("kind", kind={"enum": ["line", "path"]}, points=arr(arr(N, minItems=2, maxItems=2), maxItems=3)),
]

REAL: dict[str, Any] = {
    "ticket": obj("*", **{"class": {"enum": ["leak", "noise", "power"]}, "urgent": B}),
    "weather tool": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {"city": S, "unit": {"type": "string", "enum": ["C", "F"], "default": "C"}},
        "required": ["city"],
    },
    "pydantic optional": {
        "title": "Item",
        "type": "object",
        "properties": {
            "name": {"title": "Name", "type": "string"},
            "price": {
                "anyOf": [{"type": "number", "exclusiveMinimum": 0}, NULL],
                "default": None,
                "title": "Price",
            },
            "tags": {"items": S, "title": "Tags", "type": "array", "default": []},
        },
        "required": ["name"],
    },
    "pydantic nested": {
        "$defs": {
            "Severity": {"enum": ["low", "high"], "title": "Severity", "type": "string"},
            "Part": obj("*", id=I, severity={"$ref": "#/$defs/Severity"}),
        },
        **obj("*", parts=arr({"$ref": "#/$defs/Part"}, maxItems=3), main={"$ref": "#/$defs/Part"}),
    },
    "pydantic v1": {
        "definitions": {"Point": obj("*", x=N, y=N)},
        **obj("*", at={"title": "At", "allOf": [{"$ref": "#/definitions/Point"}], "description": "where"}),
    },
    "pydantic union": {"oneOf": TAGGED[:2], "discriminator": {"propertyName": "kind"}},
    "linked list": {"$defs": {"n": obj("v", v=I, next={"$ref": "#/$defs/n"})}, "$ref": "#/$defs/n"},
    "tree": {"$defs": {"t": obj("*", v=B, kids=arr({"$ref": "#/$defs/t"}, maxItems=2))}, "$ref": "#/$defs/t"},
    "expression": {
        "$defs": {"e": {"anyOf": [I, obj("*", op={"enum": ["+", "*"]}, l={"$ref": "#/$defs/e"}, r=I)]}},
        "$ref": "#/$defs/e",
    },
    "self at root": obj("v", v=NULL, again={"$ref": "#"}),
    "reference into properties": obj("*", a=text(maxLength=3), b={"$ref": "#/properties/a"}),
    "escaped reference": {"$defs": {"a/b~c": B}, **obj("*", x={"$ref": "#/$defs/a~1b~0c"})},
    "reference beside keywords": {"$defs": {"s": S}, **obj("*", x={"$ref": "#/$defs/s", "maxLength": 4})},
    "reference nowhere": {"$ref": "#/$defs/none"},
    "reference outside": {"$ref": "https://example.org/s.json"},
    "endless reference": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "invoice": obj(
        "number date total lines",
        number=text(pattern="^INV-[0-9]{6}$"),
        date=text(format="date"),
        total={"type": "number", "minimum": 0, "maximum": 100000},
        currency={"enum": ["EUR", "USD", "CNY"]},
        lines=arr(obj("*", item=text(maxLength=20), count=whole(1, 99)), minItems=1, maxItems=3),
    ),
    "address": obj(
        "street city",
        street=text(maxLength=30),
        city=text(minLength=1, maxLength=20),
        zip=text(pattern=r"^\d{5}$"),
    ),
    "person": obj("*", name=text(maxLength=12), age=whole(0, 130), email=text(format="email")),
    "machine state": obj(
        "*",
        line=whole(1, 12),
        temperature={"type": "number", "minimum": -40, "maximum": 150},
        state={"enum": ["run", "stop", "fault"]},
        since=text(format="date-time"),
    ),
    "labels": obj("*", labels=arr({"enum": ["a", "b", "c"]}, minItems=1, maxItems=3)),
    "scores": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1}},
    "few scores": {"type": "object", "additionalProperties": I, "minProperties": 1, "maxProperties": 2},
    "many keys": {"type": "object", "additionalProperties": I, "minProperties": 3},
    "keys by pattern": {
        "type": "object",
        "patternProperties": {"^k[0-9]$": B},
        "additionalProperties": False,
    },
    "two patterns": {"type": "object", "patternProperties": {"^a": B, "b$": I}},
    "named keys": {"type": "object", "propertyNames": {"enum": ["x", "y"]}, "additionalProperties": B},
    "short keys": {"type": "object", "propertyNames": {"maxLength": 3}, "additionalProperties": NULL},
    "any": {},
    "true": True,
    "false": False,
    "any object": {"type": "object"},
    "empty object": obj(),
    "any array": {"type": "array"},
    "forbidden property": {"type": "object", "properties": {"a": B, "b": False}, "required": ["a"]},
    "required elsewhere": {"type": "object", "properties": {"a": B}, "required": ["a", "b"]},
    "required and closed": {"type": "object", "required": ["b"], "additionalProperties": False},
    "null": NULL,
    "nullable": {"type": ["string", "null"], "maxLength": 3},
    "several types": {"type": ["integer", "boolean", "null"]},
    "typed enum": {"type": ["string", "null"], "enum": ["a", None]},
    "mixed enum": {"enum": [1, "1", None, True, 2.5, [1], {"a": "ü"}]},
    "const object": {"const": {"a": [1, {"b": None}], "ä": '"\\\n'}},
    "const string": {"const": "轴承 – läuft\u2028heiß"},
    "enum off type": {"enum": ["a", 1], "type": "string"},
    "unicode names": obj("*", **{"größe": whole(0, 9), "名前": text(maxLength=4), 'a b"c\\d': B, "": NULL}),
    "emoji": obj("*", mood={"enum": ["🙂", "🙁", "👩‍🔧"]}),
    "no type": {"properties": {"a": B}, "required": ["a"]},
    "no type, length": {"minLength": 2, "maxLength": 4},
    "keywords of other types": {"type": "boolean", "minLength": 3, "maximum": 2},
    "tuple": {"type": "array", "prefixItems": [S | {"maxLength": 3}, I, B], "items": False, "minItems": 3},
    "tuple, optional end": {"type": "array", "prefixItems": [B, I], "items": False},
    "tuple and rest": {"type": "array", "prefixItems": [B], "items": NULL, "minItems": 1, "maxItems": 4},
    "old tuple": {"type": "array", "items": [B, I]},
    "pair": arr(N, minItems=2, maxItems=2),
    "no items": arr(S, maxItems=0),
    "at least two": arr(B, minItems=2, maxItems=5),
    "bounds crossed": arr(B, minItems=3, maxItems=2),
    "matrix": arr(arr(whole(0, 1), minItems=2, maxItems=2), minItems=2, maxItems=2),
    "unique": arr({"enum": [1, 2]}, uniqueItems=True),
    "unique, one at most": arr(B, uniqueItems=True, maxItems=1),
    "contains": {"type": "array", "contains": I},
    "any of": {"anyOf": [text(maxLength=2), whole(0, 9)]},
    "any of beside properties": {
        **{"type": "object", "properties": {"a": B, "b": B}, "additionalProperties": False},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "one of types": {"oneOf": [text(maxLength=2), whole(0, 9), NULL]},
    "one of tags": {"oneOf": TAGGED},
    "one of references": {
        "$defs": {"a": TAGGED[0], "b": TAGGED[1]},
        "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
    },
    "one of constants": {"oneOf": [{"const": 1, "title": "one"}, {"const": 2}]},
    "one of, overlapping": {"oneOf": [{"type": "number"}, {"type": "integer"}]},
    "one of, equal numbers": {"oneOf": [{"const": 1}, {"const": 1.0}]},
    "one of objects": {"oneOf": [obj("*", a=B), obj("*", b=B)]},
    "all of": {
        "allOf": [obj("*", a=B) | {"additionalProperties": True}, {"properties": {"b": I}, "required": ["b"]}]
    },
    "all of bounds": {"allOf": [whole(0, 50), {"minimum": 10}, {"maximum": 20}]},
    "all of closed": {"allOf": [obj("*", a=B), {"properties": {"b": I}}]},
    "all of, no type left": {"allOf": [S, I]},
    "all of patterns": {"type": "string", "allOf": [{"pattern": "a"}, {"pattern": "b"}]},
    "not": {"not": S},
    "if": {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}},
    "dependent": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "unevaluated": {"type": "object", "properties": {"a": B}, "unevaluatedProperties": False},
    "annotations": {**S, "maxLength": 2, "readOnly": True, "example": "x", "x-order": 3, "$comment": "…"},
    "bad type": {"type": "date"},
    "long repetition": text(maxLength=10**9),
    "length and pattern": text(pattern="^[a-z]{2,4}$", minLength=1, maxLength=9),
    "length against pattern": text(pattern="^[a-z]+$", maxLength=3),
    "exact length": text(minLength=3, maxLength=3),
    "deep": obj("*", a=obj("*", b=obj("*", c=obj("*", d=obj("*", e=arr(obj("*", f=B), maxItems=1)))))),
    "wide": obj("p0 p7 p19", **{f"p{index}": [B, NULL, whole(0, 3)][index % 3] for index in range(20)}),
    "all optional": obj(a=B, b=NULL, c=whole(0, 9)),
    **{f"pattern {source}": text(pattern=source) for source in PATTERNS},
    **{f"format {name}": text(format=name) for name in FORMATS},
    **{f"integer {bounds}": {"type": "integer", **bounds} for bounds in BOUNDS},
    **{f"number {bounds}": {"type": "number", **bounds} for bounds in BOUNDS},
}


def random_schema(chance: random.Random, depth: int = 3) -> Json:
    """A schema that can be met, of every kind of part."""
    kinds = ["text", "enum", "integer", "number", "plain", "pattern", "format"]
    if depth:
        kinds += ["object"] * 4 + ["array"] * 2 + ["map", "any of", "one of", "nullable", "all of"]
    match chance.choice(kinds):
        case "text":
            low = chance.randrange(4)
            return text(minLength=low, maxLength=low + chance.randrange(5))
        case "enum":
            return {"enum": chance.sample(["a", "b c", "ü", 1, -2.5, True, None], chance.randrange(1, 5))}
        case "integer":
            low = chance.randrange(-2000, 2000)
            return whole(low, low + chance.choice([0, 3, 50, 5000]))
        case "number":
            low = chance.randrange(-2000, 2000) / 100
            return {
                "type": "number",
                "minimum": low,
                "exclusiveMaximum": round(low + chance.choice([0.5, 3, 77.25]), 2),
            }
        case "plain":
            return chance.choice([B, NULL])
        case "pattern":
            return text(pattern=chance.choice(PATTERNS[:5]))
        case "format":
            return text(format=chance.choice(["date", "time", "ipv4", "uuid"]))
        case "object":
            names = chance.sample(["id", "name", "größe", "x-y", 'a"b', "_"], chance.randrange(1, 5))
            properties = {name: random_schema(chance, depth - 1) for name in names}
            required = " ".join(name for name in names if chance.random() < 0.6)
            return obj(required, **properties)
        case "array":
            low = chance.randrange(3)
            return arr(random_schema(chance, depth - 1), minItems=low, maxItems=low + chance.randrange(3))
        case "map":
            return {"type": "object", "additionalProperties": random_schema(chance, 0), "maxProperties": 2}
        case "any of":
            return {"anyOf": [random_schema(chance, depth - 1) for _ in range(chance.randrange(1, 4))]}
        case "one of":
            tags = chance.sample(["a", "b", "c", "d"], 2)
            return {"oneOf": [obj("*", tag={"const": tag}, of=random_schema(chance, 0)) for tag in tags]}
        case "nullable":
            return {"anyOf": [random_schema(chance, depth - 1), NULL]}
    one, other = (random_schema(chance, 0) for _ in range(2))
    return {
        "allOf": [
            {"type": "object", "properties": {"l": one}},
            {"properties": {"r": other}, "required": ["l"]},
        ]
    }


def all_schemas(generated: int = 120) -> dict[str, Any]:
    """Every schema by name."""
    chance = random.Random(2020_12)
    return REAL | {f"random {index}": random_schema(chance) for index in range(generated)}
