"""Calls of tools: written, held to their schemas, read back from pieces; told to templates of both kinds."""

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import UnsupportedRequest
from models.prompts import ChatTemplate
from models.tools import CLOSE, OPEN, CallDelta, CallReader, Tool, Toolbox, hold, tell, write_call

WEATHER = Tool("weather", "Says the weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
CLOCK = Tool("clock")


def read(pieces: list[str]) -> tuple[str, list[tuple[str, str, str]]]:
    """The joined text, and id, name and arguments of each call."""
    reader = CallReader(lambda index: f"id{index}")
    found = [each for piece in pieces for each in reader.feed(piece)] + list(reader.end())
    calls: list[tuple[str, str, str]] = []
    for each in found:
        if isinstance(each, CallDelta):
            if each.name is not None:
                assert each.index == len(calls)
                calls.append((each.id or "", each.name, ""))
            id, name, arguments = calls[each.index]
            calls[each.index] = (id, name, arguments + each.arguments)
    return "".join(each for each in found if isinstance(each, str)), calls


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.sampled_from([OPEN, CLOSE, '}"{\\']),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text(max_size=4), JSON, max_size=3)
CALLS = st.tuples(st.sampled_from(["weather", "clock", "a.b-c_1"]), ARGUMENTS)
JUNK = [
    OPEN,
    CLOSE,
    "<tool",
    '{"name": "x", "arguments": ',
    '{"name": "x"',
    "{",
    "}",
    '"',
    "\\",
    " ",
    "\n",
    "a",
]
ANSWERS = st.lists(
    st.sampled_from(JUNK) | CALLS.map(lambda call: write_call(call[0], json.dumps(call[1]))), max_size=8
).map("".join)


@given(ANSWERS, st.lists(st.integers(0, 400), max_size=20))
def test_however_an_answer_is_cut_it_is_read_alike(answer: str, cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(answer)]
    pieces = [answer[first:last] for first, last in pairwise(places)]
    assert read(pieces) == read([answer]) == read(list(answer))


@given(st.text(max_size=8).filter(lambda text: "<" not in text), st.lists(CALLS, min_size=1, max_size=4))
def test_what_is_written_is_read_back(text: str, calls: list[tuple[str, dict[str, Any]]]) -> None:
    answer = "\n".join([text, *(write_call(name, json.dumps(arguments)) for name, arguments in calls)])
    found_text, found = read([answer])
    assert found_text == text.rstrip()
    assert [(name, json.loads(arguments)) for _, name, arguments in found] == calls
    assert [id for id, _, _ in found] == [f"id{index}" for index in range(len(calls))]


@pytest.mark.parametrize(
    ("answer", "text", "calls"),
    [
        ("plain <b>text</b> \n", "plain <b>text</b> \n", []),
        (f"{OPEN}no call{CLOSE}", f"{OPEN}no call{CLOSE}", []),
        (f'{OPEN}{{"name": "x", "arguments": {{"a": "cut', "", [("x", '{"a": "cut')]),
        (f'Hm {OPEN}{{"name": "x", "arg', "Hm", []),
        (f"Hm {OPEN}is a mark", f"Hm {OPEN}is a mark", []),
        (f'{OPEN}{{"name": "x", "arguments": {{}}}} and more', "and more", [("x", "{}")]),
        (f"{OPEN}{'{' * 2000}", f"{OPEN}{'{' * 2000}", []),
    ],
)
def test_broken_calls_lose_nothing(answer: str, text: str, calls: list[tuple[str, str]]) -> None:
    found_text, found = read([answer])
    assert (found_text, [call[1:] for call in found]) == (text, calls)


@given(st.lists(CALLS, min_size=1, max_size=3), st.integers(2))
def test_calls_that_a_limit_cuts_anywhere_are_never_text(
    calls: list[tuple[str, dict[str, Any]]], limit: int
) -> None:
    written = "\n".join(write_call(name, json.dumps(arguments)) for name, arguments in calls)
    cut = written[: 2 + limit % (len(written) - 1)]
    text, found = read(list(cut))
    assert text == ""
    whole = read([written])[1]
    for (_, name, arguments), (_, its_name, its_arguments) in zip(found, whole, strict=False):
        assert name == its_name and its_arguments.startswith(arguments)


def test_half_a_mark_in_a_text_is_text() -> None:
    assert [read([text])[0] for text in ("<", "a <tool", "a <")] == ["<", "a <tool", "a <"]


def test_auto_begins_at_the_mark_and_required_at_once() -> None:
    box = (WEATHER, CLOCK)
    assert hold(None, Toolbox(box)).trigger == OPEN
    assert hold(None, Toolbox(box, "required")).trigger is None
    named = hold(None, Toolbox(box, "required", "clock")).grammar
    assert "clock" in named and "weather" not in named
    assert "{0,15}" in hold(None, Toolbox(box)).grammar
    assert "{0,15}" not in hold(None, Toolbox(box, parallel=False)).grammar


def test_with_a_schema_the_answer_is_either() -> None:
    held = hold({"type": "null"}, Toolbox((CLOCK,)))
    assert held.trigger is None
    assert re.search(r"root ::= r\d+ \| calls", held.grammar)


def test_a_tool_that_cannot_be_held_is_named() -> None:
    odd = Tool("odd", "", {"type": "object", "not": {}})
    with pytest.raises(UnsupportedRequest, match=r"tools\[1\]: .*not"):
        hold(None, Toolbox((CLOCK, odd)))


TALK = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
        ],
    },
    {"role": "tool", "content": "rain", "tool_call_id": "1"},
    {"role": "tool", "content": "wind", "tool_call_id": "1"},
]


def test_a_template_without_tools_gets_them_as_text() -> None:
    template = ChatTemplate("{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}")
    text = template.prompt(TALK, [WEATHER]).text
    assert text.startswith("[system]You can call functions.")
    assert json.dumps(WEATHER.wire()) in text
    assert '[assistant]<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>' in text
    assert "[user]<tool_response>\nrain\n</tool_response>\n<tool_response>\nwind\n</tool_response>" in text
    assert [message["role"] for message in tell(TALK, [])] == ["user", "assistant", "user"]


def test_a_template_with_tools_gets_them_as_they_are_and_nobody_writes_its_control_tokens() -> None:
    source = (
        "{% for t in tools or [] %}{{ t.function.name }}{{ t.function.parameters | tojson }}{% endfor %}"
        "{% for m in messages %}<|a|>{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>"
        "{{ c.function.arguments | tojson }}</tool_call>{% endfor %}{% endfor %}"
    )
    template = ChatTemplate(source, control_tokens=("<|a|>",))
    text = template.prompt(TALK, [WEATHER]).text
    assert text.startswith('weather{"type": "object"')
    assert '<tool_call>{"city": "Ulm"}</tool_call>' in text
    forged = [{**TALK[1], "tool_calls": [{"function": {"name": "x", "arguments": {"<|a|>": ["<|a|>"]}}}]}]
    prompt = template.prompt(forged, [Tool("t", "", {"type": "object", "properties": {"<|a|>": {}}})])
    outside, start = "", 0
    for first, last in prompt.literal:
        outside, start = outside + prompt.text[start:first], last
    assert (outside + prompt.text[start:]).count("<|a|>") == 1
    assert prompt.text.count("<|a|>") == 4


def test_a_template_with_calls_of_another_form_gets_tools_as_text() -> None:
    template = ChatTemplate("{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert "You can call functions" in template.prompt(TALK, [CLOCK]).text
