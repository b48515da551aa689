"""OpenAI's API to the letter that client libraries rely on, asked with the official client."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
import openai
import pytest
from jsonschema import Draft202012Validator
from minilm import package
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
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"n": 0}, "n"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
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


def test_choices_of_one_seed_differ_and_come_again(target: Target) -> None:
    facts: dict[str, Any] = {"n": 3, "seed": 11, "temperature": 1.5, "max_tokens": 8}
    first, second = (ask(target, **facts) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) > 1
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert first.usage.prompt_tokens == ask(target, max_tokens=1).usage.prompt_tokens
    assert first.usage.completion_tokens <= 24


def test_streamed_choices_are_the_whole_ones(target: Target) -> None:
    facts: dict[str, Any] = {"n": 2, "seed": 5, "temperature": 1.2, "max_tokens": 6}
    texts = ["", ""]
    for chunk in ask(target, stream=True, **facts):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in ask(target, **facts).choices]


def test_log_probabilities_are_those_of_the_text(target: Target) -> None:
    [choice] = ask(target, logprobs=True, top_logprobs=3, max_tokens=6).choices
    tokens = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode().strip() == choice.message.content.strip()
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.token == token.top_logprobs[0].token  # greedy takes the likeliest
        assert token.top_logprobs == sorted(token.top_logprobs, key=lambda top: -top.logprob)
    streamed = [
        token.token
        for chunk in ask(target, logprobs=True, max_tokens=6, stream=True)
        for token in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert streamed == [token.token for token in tokens]
    text = target.openai().completions.create(
        model=target.model, prompt="Once upon a", max_tokens=3, temperature=0, logprobs=2
    )
    listed = text.choices[0].logprobs
    assert listed and len(listed.tokens) == len(listed.token_logprobs) == len(listed.top_logprobs) == 3
    assert "".join(listed.tokens).strip() == text.choices[0].text.strip()
    assert listed.text_offset[0] == 0


def test_a_token_that_is_forbidden_does_not_come(target: Target) -> None:
    with target.http() as client:
        facts = {
            "model": target.model,
            "prompt": "Once upon a",
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
        }
        free = client.post("/completions", json=facts).json()["choices"][0]["text"]
        # Token ids are the model's own: forbid them all but few, and see which is left.
        bias = {str(token): 100 for token in range(300, 310)}
        pushed = client.post("/completions", json=facts | {"logit_bias": bias}).json()["choices"][0]["text"]
    assert free != pushed


def test_penalties_break_a_repetition(target: Target) -> None:
    client = target.openai()
    facts: dict[str, Any] = {
        "model": target.model,
        "prompt": "The pump is a pump is a pump",
        "max_tokens": 16,
        "temperature": 0,
    }
    plain = client.completions.create(**facts).choices[0].text
    bent = client.completions.create(**facts, frequency_penalty=2, presence_penalty=2).choices[0].text
    assert plain.count("pump") > bent.count("pump")


def test_several_prompts_are_answered_in_order(target: Target) -> None:
    client = target.openai()
    facts: dict[str, Any] = {"model": target.model, "max_tokens": 4, "temperature": 0}
    prompts = ["Once upon a", "The pump is"]
    both = client.completions.create(prompt=prompts, echo=True, **facts)
    alone = [client.completions.create(prompt=prompt, **facts) for prompt in prompts]
    assert [choice.text for choice in both.choices] == [
        prompt + one.choices[0].text for prompt, one in zip(prompts, alone, strict=True)
    ]
    assert both.usage and both.usage.prompt_tokens == sum(
        one.usage.prompt_tokens for one in alone if one.usage
    )


TOOL: dict[str, Any] = {
    "name": "stop_line",
    "description": "Stops a production line.",
    "parameters": {
        "type": "object",
        "properties": {
            "line": {"type": "integer", "minimum": 1, "maximum": 12},
            "why": {"enum": ["heat", "noise"]},
        },
        "required": ["line", "why"],
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "stop_line"}}])
def test_a_tool_is_called_with_arguments_of_its_schema(target: Target, choice: Any) -> None:
    facts: dict[str, Any] = {
        "messages": [{"role": "user", "content": TICKET}],
        "tools": [{"type": "function", "function": TOOL}],
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "max_tokens": 60,
    }
    [whole] = ask(target, **facts).choices
    assert whole.finish_reason == "tool_calls"
    [call] = whole.message.tool_calls
    assert (call.type, call.function.name) == ("function", "stop_line")
    Draft202012Validator(TOOL["parameters"]).validate(json.loads(call.function.arguments))
    with target.openai().chat.completions.stream(model=target.model, temperature=0, **facts) as stream:
        [streamed] = stream.get_final_completion().choices
    assert streamed.finish_reason == "tool_calls"
    assert [each.function.arguments for each in streamed.message.tool_calls or []] == [
        call.function.arguments
    ]
    answer = {"role": "tool", "tool_call_id": call.id, "content": "Line stopped."}
    history = [*facts["messages"], whole.message.model_dump(exclude_none=True), answer]
    assert ask(target, messages=history, tools=facts["tools"], tool_choice="none").choices[0].message.content


def test_tools_that_need_not_be_called_leave_the_text_alone(target: Target) -> None:
    tools = [{"type": "function", "function": TOOL}]
    [choice] = ask(target, tools=tools, tool_choice="auto", max_tokens=12).choices
    assert choice.message.content or choice.message.tool_calls


def test_a_response_is_the_chats_answer(target: Target) -> None:
    client = target.openai()
    facts: dict[str, Any] = {"model": target.model, "input": "Name three colours.", "temperature": 0}
    whole = client.responses.create(max_output_tokens=12, **facts)
    assert whole.object == "response" and whole.status in ("completed", "incomplete")
    assert whole.output_text == ask(target).choices[0].message.content
    with client.responses.stream(max_output_tokens=12, **facts) as stream:
        kinds = [event.type for event in stream]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == f"response.{whole.status}"
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(previous_response_id="resp_1", **facts)
    assert refused.value.param == "previous_response_id"


def test_a_responses_structured_answer_and_call(target: Target) -> None:
    client = target.openai()

    class Ticket(BaseModel):
        severity: Literal["stop", "degraded", "watch"]
        stopped: bool

    parsed = client.responses.parse(
        model=target.model, input=TICKET, text_format=Ticket, max_output_tokens=60
    )
    assert isinstance(parsed.output_parsed, Ticket)
    flat: Any = {"type": "function", "strict": True, **TOOL}
    called = client.responses.create(
        model=target.model, input=TICKET, tools=[flat], tool_choice="required", max_output_tokens=200
    )
    assert {item.type for item in called.output} == {"function_call"}


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


TEXTS = ["The pump leaks oil.", "Oil is dripping from the pump.", "The invoice is overdue."]


def test_texts_that_say_the_same_have_vectors_that_are_alike(target: Target, embedder: str) -> None:
    client = target.openai()
    made = client.embeddings.create(model=embedder, input=TEXTS)  # the client asks for base64
    assert (made.object, [one.index for one in made.data]) == ("list", [0, 1, 2])
    vectors = [one.embedding for one in made.data]
    assert len({len(vector) for vector in vectors}) == 1
    pump, drip, bill = vectors
    assert sum(map(float.__mul__, pump, drip)) > sum(map(float.__mul__, pump, bill))
    assert made.usage.total_tokens == made.usage.prompt_tokens >= sum(len(text.split()) for text in TEXTS)
    plain = client.embeddings.create(model=embedder, input=TEXTS[1], encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(drip, abs=1e-4)
    receipt: Any = plain.model_extra and plain.model_extra["outpost"]
    assert receipt["served_by"] in ("edge", "hub", "cache")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ["pump", ""]}, "input"),
        ({"input": [[5, 6]]}, "input"),
        ({"dimensions": 8}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"extra_body": {"inputs": ["pump"]}}, "inputs"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(
    target: Target, embedder: str, changes: dict[str, Any], param: str
) -> None:
    facts: dict[str, Any] = {"model": embedder, "input": "pump"}
    with pytest.raises(openai.BadRequestError) as refused:
        target.openai().embeddings.create(**(facts | changes))
    assert (refused.value.type, refused.value.param) == ("invalid_request_error", param)


def test_a_model_is_asked_what_it_is_made_for(target: Target, embedder: str) -> None:
    client = target.openai()
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=target.model, input="pump")
    assert refused.value.param == "model"
    with pytest.raises(openai.BadRequestError) as refused:
        ask(target, model=embedder)
    assert refused.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="no-such-model", input="pump")


SPOKEN = "Fail again"
"""Words of the recording."""


def test_a_recording_in_every_form_of_a_transcript(target: Target, speech: str) -> None:
    recording = package("moonshine_voice", "beckett.wav").read_bytes()

    def hear(**options: Any) -> Any:
        facts: dict[str, Any] = {"model": speech, "file": ("words.wav", recording)}
        return target.openai().audio.transcriptions.create(**(facts | options))

    plain = hear()
    assert SPOKEN in plain.text and plain.outpost["served_by"] in ("edge", "hub", "cache")
    assert SPOKEN in hear(response_format="text", language="en")
    whole = hear(response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert whole.duration == pytest.approx(10, abs=1) and SPOKEN in whole.text
    assert "".join(segment.text for segment in whole.segments).strip() == whole.text.strip()
    assert whole.words and all(0 <= word.start <= word.end <= whole.duration for word in whole.words)
    assert hear(response_format="srt").startswith("1\n00:00:0")
    assert hear(response_format="vtt").startswith("WEBVTT\n\n00:00:0")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"file": ("words.wav", b"RIFF")}, "file"),
        ({"file": ("words.wav", b"")}, "file"),
        ({"response_format": "xml"}, "response_format"),
        ({"temperature": 2}, "temperature"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities[]"),
        ({"stream": True}, "stream"),
        ({"extra_body": {"speed": 2}}, "speed"),
    ],
)
def test_what_cannot_be_heard_is_refused_by_name(
    target: Target, speech: str, changes: dict[str, Any], param: str
) -> None:
    recording = package("moonshine_voice", "beckett.wav").read_bytes()
    facts: dict[str, Any] = {"model": speech, "file": ("words.wav", recording)}
    with pytest.raises(openai.BadRequestError) as refused:
        target.openai().audio.transcriptions.create(**(facts | changes))
    assert (refused.value.type, refused.value.param) == ("invalid_request_error", param)


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
