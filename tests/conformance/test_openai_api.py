"""OpenAI's API to the letter that client libraries rely on, asked with the official client."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
import openai
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from targets import Target

TICKET = "Spindle 3 overheats, coolant pump is silent. Line is stopped."
SCHEMA = {
    "type": "object",
    "properties": {"severity": {"enum": ["stop", "degraded", "watch"]}, "urgent": {"type": "boolean"}},
    "required": ["severity", "urgent"],
    "additionalProperties": False,
}


def ask(target: Target, **changes: Any) -> Any:
    facts: dict[str, Any] = {
        "model": target.model,
        "messages": [{"role": "user", "content": "Name three colours."}],
        "max_tokens": 12,
        "temperature": 0,
    }
    return target.openai().chat.completions.create(**(facts | changes))


def test_models_are_listed_and_found(target: Target) -> None:
    client = target.openai()
    assert target.model in [model.id for model in client.models.list()]
    assert client.models.retrieve(target.model).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


def test_a_whole_answer(target: Target) -> None:
    answer = ask(target)
    [choice] = answer.choices
    assert answer.object == "chat.completion"
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens <= 12
    assert answer._request_id
    assert answer.outpost["served_by"] in ("edge", "hub", "cache")


def test_a_stream_says_what_the_whole_answer_says(target: Target) -> None:
    whole = ask(target)
    chunks = list(ask(target, stream=True, stream_options={"include_usage": True}))
    *body, last = chunks
    assert body[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in body)
    assert text == whole.choices[0].message.content
    assert body[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert all(chunk.usage is None for chunk in body)
    assert (last.choices, last.usage.completion_tokens) == ([], whole.usage.completion_tokens)
    assert last.outpost["request_id"] == chunks[0].id.removeprefix("chatcmpl-")
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_is_events_that_end_in_done(target: Target) -> None:
    body = {"model": target.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    with target.http() as client:
        response = client.post("/chat/completions", json=body | {"stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *data, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    parsed = [json.loads(item.removeprefix("data: ")) for item in data]
    assert {item["object"] for item in parsed} == {"chat.completion.chunk"}
    assert "usage" not in parsed[0]


def test_length_and_stop_are_honoured_and_told_apart(target: Target) -> None:
    short = ask(target, max_tokens=2)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)
    whole = ask(target, max_tokens=24).choices[0].message.content
    word = whole.split()[1]
    cut = ask(target, max_tokens=24, stop=[word])
    assert cut.choices[0].finish_reason == "stop"
    assert cut.choices[0].message.content == whole[: whole.index(word)]
    assert ask(target, max_tokens=None, max_completion_tokens=2).usage.completion_tokens == 2


def test_a_schema_is_enforced(target: Target) -> None:
    for temperature in (0, 1.5):
        answer = ask(
            target,
            messages=[{"role": "user", "content": TICKET}],
            max_tokens=60,
            temperature=temperature,
            response_format={"type": "json_schema", "json_schema": {"name": "ticket", "schema": SCHEMA}},
        )
        assert answer.choices[0].finish_reason == "stop"
        Draft202012Validator(SCHEMA).validate(json.loads(answer.choices[0].message.content))


def test_the_clients_own_parsing_of_structured_answers(target: Target) -> None:
    class Ticket(BaseModel):
        severity: Literal["stop", "degraded", "watch"]
        stopped: bool

    answer = target.openai().chat.completions.parse(
        model=target.model,
        messages=[{"role": "user", "content": TICKET}],
        max_tokens=60,
        response_format=Ticket,
    )
    assert isinstance(answer.choices[0].message.parsed, Ticket)


def test_the_same_seed_gives_the_same_answer(target: Target) -> None:
    texts = {ask(target, temperature=1.2, seed=7).choices[0].message.content for _ in range(2)}
    assert len(texts) == 1


def test_an_answer_can_be_sent_back(target: Target) -> None:
    first = ask(target).choices[0].message
    history = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Name three colours."}]},
        first.model_dump(),
        {"role": "user", "content": "One more."},
    ]
    assert ask(target, messages=history).choices[0].message.content


def test_a_text_completion_whole_and_streamed(target: Target) -> None:
    facts: dict[str, Any] = {
        "model": target.model,
        "prompt": "Once upon a",
        "max_tokens": 5,
        "temperature": 0,
    }
    whole = target.openai().completions.create(**facts)
    streamed = target.openai().completions.create(**facts, stream=True)
    assert whole.object == "text_completion"
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text
    assert whole.usage is not None and whole.usage.completion_tokens == 5


def test_requests_at_once_are_all_answered(target: Target) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: ask(target, max_tokens=6), range(6)))
    assert all(answer.choices[0].message.content for answer in answers)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"n": 2}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"extra_body": {"temprature": 1}}, "temprature"),
    ({"temperature": 3}, "temperature"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"stop": [""]}, "stop"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "boss", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "object", "not": {"required": ["a"]}}},
            }
        },
        "response_format",
    ),
]


@pytest.mark.parametrize(("changes", "param"), REFUSED, ids=[param for _, param in REFUSED])
def test_what_cannot_be_honoured_is_refused_by_name(
    target: Target, changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(target, **changes)
    error = refused.value
    assert (error.type, error.param) == ("invalid_request_error", param)
    assert error.code and param.split(".")[-1].split("[")[0] in error.message


@pytest.mark.parametrize("stream", [False, True])
def test_more_than_the_context_holds(target: Target, stream: bool) -> None:
    long = [{"role": "user", "content": "word " * 20_000}]
    with pytest.raises(openai.BadRequestError) as refused:
        ask(target, messages=long, stream=stream)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_limit_that_the_context_does_not_hold_is_named(target: Target, limit: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(target, **{"max_tokens": None, limit: 999_999})
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", limit)


def test_an_unknown_model_is_404(target: Target) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        ask(target, model="gpt-nowhere")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/chat/completions", b"{nope", 400),
        ("POST", "/chat/completions", b"", 400),
        ("POST", "/chat/completions", b"[]", 400),
        ("POST", "/chat/completions", b"[" * 50_000, 400),
        (
            "POST",
            "/chat/completions",
            b'{"model": "x", "messages": [{"role": "user", "content": "\\ud800"}]}',
            400,
        ),
        ("POST", "/chat/completions", b'{"model": "x", "model": "y"}', 400),
        ("POST", "/chat/completions", b" " * (9 << 20), 413),
        ("GET", "/chat/completions", b"", 405),
        ("POST", "/no/such/thing", b"{}", 404),
    ],
    ids=["broken", "empty", "list", "deep", "surrogate", "twice", "huge", "method", "path"],
)
def test_whatever_comes_in_an_error_object_comes_out(
    target: Target, method: str, path: str, body: bytes, status: int
) -> None:
    with target.http() as client:
        response = client.request(method, path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"][-1] in ".?"
    assert error["code"]
    assert response.headers["x-request-id"]


def test_a_client_that_leaves_does_not_keep_the_model_busy(target: Target) -> None:
    with target.http() as client:
        body = {"model": target.model, "messages": [{"role": "user", "content": "Tell a long story."}]}
        with client.stream("POST", "/chat/completions", json=body | {"stream": True}) as response:
            next(response.iter_lines())
        with pytest.raises(httpx.ReadTimeout):
            client.post("/chat/completions", json=body | {"max_tokens": 1500}, timeout=0.3)
    assert ask(target, max_tokens=2).usage.completion_tokens == 2
