"""JSON Schema is enforced, or refused by keyword."""

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engines.base import Finish, GenerateRequest
from models.engines.llama_cpp import LlamaEngine
from models.errors import UnsupportedRequest
from models.grammar import json_schema_to_grammar
from models.grammar_numbers import Bounds, integers, numbers
from models.grammar_text import pattern

TICKET = {
    "type": "object",
    "properties": {
        "class": {"enum": ["mechanical-wear", "hydraulic-pneumatic"]},
        "severity": {"type": "string", "enum": ["stop", "watch"]},
        "component": {"type": "string", "minLength": 2, "maxLength": 12},
    },
    "required": ["class", "severity", "component"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"n": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
            "required": ["n"],
        }
    },
    "$ref": "#/$defs/node",
}
OPTIONAL = {
    "type": "object",
    "properties": {
        "a": {"type": "boolean"},
        "b": {"type": ["number", "null"]},
        "c": {"const": 'quo"te\\é\n'},
        "d": {"type": "array", "items": {"anyOf": [{"type": "null"}, {"enum": [1, 2.5]}]}, "maxItems": 3},
    },
    "required": ["b"],
}
LIST = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}
MAP = {"type": "object", "additionalProperties": {"type": "integer"}}


@pytest.mark.model
@pytest.mark.parametrize("schema", [TICKET, TREE, OPTIONAL, LIST, MAP, {"type": "string", "maxLength": 5}])
def test_whatever_the_grammar_lets_through_meets_the_schema(
    schema: dict[str, Any], engine: LlamaEngine, run: Callable, chat: Callable[..., GenerateRequest]
) -> None:
    """At temperature 100 the model's taste is gone: this walks the grammar nearly at random."""
    grammar = json_schema_to_grammar(schema)
    for seed in range(6):
        wild = {"temperature": 100.0, "seed": seed, "grammar": grammar, "max_tokens": 60}
        engine.submit(chat(str(seed), "Answer.", **(wild if seed else {**wild, "temperature": 0.0})))
    answers = run(engine)
    complete = [id for id, last in answers.last.items() if last.finish is Finish.STOP]
    for id in complete:
        jsonschema.validate(json.loads(answers.text[id]), schema)
    assert complete or schema is MAP, "nothing came to an end"


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "integer", "multipleOf": 3}, "multipleOf"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no integer lies"),
        ({"type": "number", "minimum": 1e300}, "minimum"),
        ({"type": "string", "pattern": "^a(?=b)"}, "looks around"),
        ({"type": "string", "pattern": r"(a)\1"}, r"\\1"),
        ({"type": "string", "pattern": "^a+$", "maxLength": 3}, "length beside 'pattern'"),
        ({"type": "string", "pattern": "a", "format": "date"}, "together"),
        ({"type": "string", "format": "regex"}, "format"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": {}}, "contains"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "exclude each other"),
        ({"allOf": [{"type": "string", "pattern": "a"}, {"pattern": "b"}]}, "two different 'pattern'"),
        ({"anyOf": [{"type": "null"}], "type": "string"}, "type"),
        ({"type": "object", "required": ["x"], "additionalProperties": False}, "a schema is"),
        ({"type": "object", "properties": {"x": {"type": "date"}}}, r"schema\.x"),
        ({"type": "object", "properties": {"x": {}}, "propertyNames": {"maxLength": 3}}, "propertyNames"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"$ref": "https://example.org/schema"}, "inside the schema"),
        ({"$ref": "#/$defs/none"}, "points at nothing"),
        ({"enum": []}, "enum"),
        ({"enum": ["a", 1], "type": "string"}, "not of type"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "maxItems"),
        ({"type": "string", "maxLength": 10**9}, "maxLength"),
        ({"not": {}}, "not"),
        ({"type": "object", "if": {}, "then": {}}, "if"),
        (False, "a schema is"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(schema: Any, named: str) -> None:
    with pytest.raises(UnsupportedRequest, match=named):
        json_schema_to_grammar(schema)


def as_pattern(body: str) -> re.Pattern[str]:
    """What ``grammar_numbers`` writes uses nothing that a regular expression has not."""
    return re.compile(body.replace('"."', r"\.").replace('"-"', "-").replace(" ", ""))


NUMBERS = st.integers(-(10**6), 10**6) | st.integers(-30, 30)
BOUNDS = st.tuples(st.none() | NUMBERS, st.none() | NUMBERS, st.booleans(), st.booleans(), st.integers(0, 3))


def bounds_of(low: int | None, high: int | None, above: bool, below: bool, decimals: int) -> Bounds:
    scaled = [None if bound is None else Decimal(bound).scaleb(-decimals) for bound in (low, high)]
    return Bounds(scaled[0], scaled[1], above, below)


def inside(bounds: Bounds, number: Decimal) -> bool:
    low, high = bounds.low, bounds.high
    return (low is None or (low < number if bounds.open_low else low <= number)) and (
        high is None or (number < high if bounds.open_high else number <= high)
    )


@given(BOUNDS.map(lambda facts: bounds_of(*facts)), st.lists(NUMBERS, max_size=20))
def test_whole_numbers_are_written_if_and_only_if_they_are_inside(bounds: Bounds, tries: list[int]) -> None:
    body = integers(bounds)
    edges = [
        int(bound) + step for bound in (bounds.low, bounds.high) if bound is not None for step in (-1, 0, 1)
    ]
    for number in [*tries, *edges]:
        written = body is not None and as_pattern(body).fullmatch(str(number)) is not None
        assert written == inside(bounds, Decimal(number))


@given(
    BOUNDS.map(lambda facts: bounds_of(*facts)), st.lists(st.tuples(NUMBERS, st.integers(0, 4)), max_size=20)
)
def test_numbers_that_are_written_are_inside(bounds: Bounds, tries: list[tuple[int, int]]) -> None:
    body = numbers(bounds)
    near = [bound + step for bound in (bounds.low, bounds.high) if bound is not None for step in STEPS]
    for number in [*near, *(Decimal(digits).scaleb(-places) for digits, places in tries)]:
        if body is not None and as_pattern(body).fullmatch(f"{number:f}"):
            assert inside(bounds, number)


STEPS = [Decimal(step).scaleb(-places) for step in (-1, 0, 1) for places in (0, 1, 3, 4)]


@pytest.mark.parametrize(
    ("source", "body", "sizes"),
    [
        ("^a$", "[a]", (1, 1)),
        ("a", "char* [a] char*", (1, None)),
        ("^a|b$", "([a] char* | char* [b])", (1, None)),
        (r"^\d{2,3}$", "([0-9]){2,3}", (2, 3)),
        ("^(?<year>[0-9])?$", "(([0-9]))?", (0, 1)),
        ('^["\\\\]$', '("\\\\" [\\"\\\\])', (1, 1)),
        (r"^\n$", '("\\\\" [n])', (1, 1)),
    ],
)
def test_patterns(source: str, body: str, sizes: tuple[int, int | None]) -> None:
    found = pattern(source)
    assert (found.body, (found.low, found.high)) == (body, sizes)


def test_a_schema_as_deep_as_the_stack_is_refused() -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(3000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(UnsupportedRequest, match="deep"):
        json_schema_to_grammar(schema)


@pytest.mark.model
def test_a_grammar_that_is_none_is_refused_at_submission(
    engine: LlamaEngine, chat: Callable[..., GenerateRequest]
) -> None:
    endless = json_schema_to_grammar({"anyOf": [{"$ref": "#"}, {"type": "null"}]})
    for grammar in ("root ::= (", "leaf ::= [a]", endless):
        with pytest.raises(UnsupportedRequest, match="grammar"):
            engine.submit(chat("x", "Hi", grammar=grammar))
    assert engine.step() == []
