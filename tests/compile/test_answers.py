"""Structured answers: what counts, and the schema that a device enforces."""

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.evaluate.answers import Field, read, schema_of, score, write

FIELDS = (Field("class", ("wear", "power")), Field("component"))
RIGHT = {"class": "wear", "component": "pump P3"}


def test_only_an_answer_of_the_schema_counts():
    answer = write(RIGHT, FIELDS)
    assert score(RIGHT, answer, FIELDS).exact
    twice = answer[:-1] + ',"component":"pump P3"}'
    for broken in ("", "{}", answer[:-1], answer.replace("wear", "tear"), f"[{answer}]", "null", twice):
        found = score(RIGHT, broken, FIELDS)
        assert not found.valid and not any(found.right.values())


@pytest.mark.parametrize(
    ("said", "right"), [("PUMP  p3", True), ("pump P", True), ("pu", False), ("valve", False)]
)
def test_a_span_may_differ_in_case_and_a_little_in_length(said, right):
    answer = json.dumps(RIGHT | {"component": said})
    assert score(RIGHT, answer, FIELDS).right["component"] is right


@given(st.sampled_from(("wear", "power")), st.text(st.characters(codec="utf-8"), min_size=1, max_size=120))
def test_what_is_written_is_read_again_and_meets_the_schema(label, component):
    values = {"class": label, "component": component}
    answer = write(values, FIELDS)
    assert read(answer, FIELDS) == values
    jsonschema.validate(json.loads(answer), schema_of(FIELDS))
