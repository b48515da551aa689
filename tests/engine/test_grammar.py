"""JSON Schema is enforced, or refused by keyword."""

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from models.engines.base import Finish, GenerateRequest
from models.engines.llama_cpp import LlamaEngine
from models.errors import UnsupportedRequest
from models.grammar import json_schema_to_grammar

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
        ({"type": "integer", "minimum": 3}, "minimum"),
        ({"type": "string", "pattern": "^a$"}, "pattern"),
        ({"type": "string", "format": "date"}, "format"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"oneOf": [{"type": "null"}]}, "type"),
        ({"anyOf": [{"type": "null"}], "type": "null"}, "type"),
        ({"type": "object", "properties": {}, "required": ["x"]}, "'x' is required"),
        ({"type": "object", "properties": {"x": {"type": "date"}}}, r"schema\.x"),
        ({"type": "object", "propertyNames": {"maxLength": 3}}, "propertyNames"),
        ({"$ref": "https://example.org/schema"}, "inside the schema"),
        ({"$ref": "#/$defs/none"}, "points at nothing"),
        ({"enum": []}, "enum"),
        ({"enum": ["a", 1], "type": "string"}, "not of type"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "maxItems"),
        ({"type": "string", "maxLength": 10**9}, "maxLength"),
        ({"not": {}}, "type"),
        (False, "a schema is"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(schema: Any, named: str) -> None:
    with pytest.raises(UnsupportedRequest, match=named):
        json_schema_to_grammar(schema)


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
