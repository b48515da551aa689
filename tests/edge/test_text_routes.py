"""Text routes asked with the official client, over scripted engines: choices, prompts, tools, responses."""

import asyncio
import gc
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pytest
from edge_app import catalog_of, edge_app, served
from http_server import running
from memory_journal import MemoryJournal
from scripted_engine import ScriptedEngine

from edge_agent.admission import Limits
from edge_agent.calls.choices import merged
from edge_agent.catalog import Outcome, Served
from models.engines.base import Event, GenerateRequest
from models.errors import EngineError, UnsupportedRequest
from models.prompts import ChatTemplate
from models.tools import OPEN, write_call

CHAT = "/v1/chat/completions"
MESSAGES: Any = [{"role": "user", "content": "hello there"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "stop_line",
            "description": "Stops a line.",
            "parameters": {
                "type": "object",
                "properties": {"line": {"type": "integer"}},
                "required": ["line"],
            },
        },
    }
]
ASKED: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": MESSAGES}),
    ("/v1/completions", {"prompt": "hello there"}),
    ("/v1/responses", {"input": "hello there"}),
]
"""A call of each route."""
CALLING = "On it. " + write_call("stop_line", '{"line": 3}') + "\n" + write_call("stop_line", '{"line": 4}')


@asynccontextmanager
async def client(engine: ScriptedEngine, **facts: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        running(edge_app(catalog_of(served(engine)), **facts)) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as connected,
    ):
        yield connected


def by_seed(request: GenerateRequest) -> str:
    return f"seed {request.sampling.seed}"


async def test_a_stream_is_padded_where_it_is_asked_for() -> None:
    padding: Any = {"include_obfuscation": True}
    async with client(ScriptedEngine("a considerably longer word than a")) as ai:
        streamed = await ai.chat.completions.create(
            model="smol", messages=MESSAGES, stream=True, stream_options=padding
        )
        said = [chunk async for chunk in streamed if chunk.choices[0].delta.content]
        assert len(said) == 6
        for chunk in said:
            event = f"data: {json.dumps(chunk.to_dict(), separators=(',', ':'))}\n\n"
            assert len(event) % 64 == 0
            assert "obfuscation" in chunk.model_fields_set
        responses = await ai.responses.create(
            model="smol", input="hello", stream=True, stream_options=padding
        )
        deltas = [event async for event in responses if event.type == "response.output_text.delta"]
        assert ["obfuscation" in event.model_fields_set for event in deltas] == [True] * 6
        bare = await ai.chat.completions.create(model="smol", messages=MESSAGES, stream=True)
        assert not [chunk async for chunk in bare if "obfuscation" in chunk.model_fields_set]


async def test_answers_and_chunks_say_which_weights_spoke() -> None:
    async with client(ScriptedEngine()) as ai:
        whole = await ai.chat.completions.create(model="smol", messages=MESSAGES)
        release = whole.model_extra["outpost"]["release"] if whole.model_extra else ""
        expected = f"fp_{release.removeprefix('sha256:')[:12]}"
        assert whole.system_fingerprint == expected
        streamed = await ai.chat.completions.create(model="smol", messages=MESSAGES, stream=True)
        assert {chunk.system_fingerprint async for chunk in streamed} == {expected}
        text = await ai.completions.create(model="smol", prompt="x")
        assert text.system_fingerprint == expected
        texts = await ai.completions.create(model="smol", prompt="x", stream=True)
        assert {chunk.system_fingerprint async for chunk in texts} == {expected}


async def test_choices_have_seeds_of_their_own_and_the_prompt_counts_once() -> None:
    engine, journal = ScriptedEngine(by_seed), MemoryJournal()
    async with client(engine, journal=journal) as ai:
        whole = await ai.chat.completions.create(model="smol", messages=MESSAGES, n=3, seed=7)
    assert [choice.message.content for choice in whole.choices] == ["seed 7", "seed 8", "seed 9"]
    assert whole.usage and (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (4, 6)
    assert len({request.prompt for request in engine.requests}) == 1
    assert len({request.id for request in engine.requests}) == 3
    assert [each["text"] for each in json.loads(journal.records[1].body)] == ["seed 7", "seed 8", "seed 9"]


async def test_streamed_choices_are_interleaved_by_index() -> None:
    gate = asyncio.Semaphore(1)  # a stream's head waits for its first text
    async with client(ScriptedEngine(by_seed, gate=gate)) as ai:
        stream = await ai.chat.completions.create(
            model="smol",
            messages=MESSAGES,
            n=2,
            seed=1,
            stream=True,
            stream_options={"include_usage": True},
        )
        texts, order, ends, usage = ["", ""], [], {}, None
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                if choice.delta.content:
                    texts[choice.index] += choice.delta.content
                    order.append(choice.index)
                    gate.release()
                if choice.finish_reason:
                    ends[choice.index] = choice.finish_reason
    assert (texts, ends) == (["seed 1", "seed 2"], {0: "stop", 1: "stop"})
    assert order == [0, 1, 0, 1]
    assert usage and usage.completion_tokens == 4


async def test_choices_are_cancelled_together() -> None:
    engine = ScriptedEngine(gate=asyncio.Semaphore(1))
    async with client(engine) as ai:
        stream = await ai.chat.completions.create(model="smol", messages=MESSAGES, n=3, stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        for _ in range(100):
            if len(engine.cancelled) == 3:
                break
            await asyncio.sleep(0.02)
    assert len(engine.cancelled) == 3


async def test_one_choice_that_fails_ends_all() -> None:
    engine = ScriptedEngine(fail_after=1)
    async with client(engine) as ai:
        with pytest.raises(openai.InternalServerError):
            await ai.chat.completions.create(model="smol", messages=MESSAGES, n=3)
    assert len(engine.cancelled) == 3


async def test_a_crash_under_all_choices_is_heard_of_each(caplog: pytest.LogCaptureFixture) -> None:
    crash = asyncio.Event()

    async def choice() -> AsyncGenerator[Event, None]:
        yield Event("r")
        await crash.wait()
        raise EngineError("the engine's process ended")

    async def listen() -> None:
        async for at, _ in merged([choice(), choice(), choice()]):
            if at == 2:
                asyncio.get_running_loop().call_later(0.01, crash.set)

    with pytest.raises(EngineError):
        await listen()
    gc.collect()  # a task whose error nobody heard says so when it is forgotten
    assert not [record.getMessage() for record in caplog.records if record.name == "asyncio"]


async def test_a_page_of_a_library_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    failure = EngineError("the model cannot be loaded: out of memory\nggml_aligned_malloc: 4 GB\nllama: no")
    async with client(ScriptedEngine(fail_after=0, fail_with=failure)) as ai:
        with pytest.raises(openai.InternalServerError) as failed:
            await ai.chat.completions.create(model="smol", messages=MESSAGES)
    assert "out of memory." in failed.value.message and "ggml" not in failed.value.message
    assert "ggml_aligned_malloc: 4 GB" in caplog.text


async def test_each_choice_takes_a_place() -> None:
    async with client(ScriptedEngine(), limits=Limits(running=2, waiting=1)) as ai:
        with pytest.raises(openai.BadRequestError) as refused:
            await ai.chat.completions.create(model="smol", messages=MESSAGES, n=4)
        assert refused.value.param == "n"
        assert len((await ai.chat.completions.create(model="smol", messages=MESSAGES, n=3)).choices) == 3


async def test_several_prompts_texts_and_token_ids() -> None:
    engine = ScriptedEngine(lambda request: f"{request.prompt} {request.sampling.seed}")
    async with client(engine) as ai:
        texts = await ai.completions.create(model="smol", prompt=["a", "b c"], n=2, seed=5, echo=True)
        ids = await ai.completions.create(model="smol", prompt=[[7, 8], [9]])
        one = await ai.completions.create(model="smol", prompt=[7, 8])
    assert [choice.text for choice in texts.choices] == ["aa 5", "aa 6", "b cb c 5", "b cb c 6"]
    assert [choice.index for choice in texts.choices] == [0, 1, 2, 3]
    assert texts.usage and texts.usage.prompt_tokens == 3
    assert [request.prompt for request in engine.requests[4:]] == [(7, 8), (9,), (7, 8)]
    assert (len(ids.choices), len(one.choices)) == (2, 1)


async def test_log_probabilities_in_both_forms() -> None:
    async with client(ScriptedEngine("öne two")) as ai:
        chat = await ai.chat.completions.create(
            model="smol", messages=MESSAGES, logprobs=True, top_logprobs=2
        )
        text = await ai.completions.create(model="smol", prompt="x", logprobs=1)
        stream = await ai.completions.create(model="smol", prompt="x", logprobs=0, stream=True)
        offsets = [
            choice.logprobs.text_offset
            async for chunk in stream
            for choice in chunk.choices
            if choice.logprobs
        ]
    assert chat.choices[0].logprobs and chat.choices[0].logprobs.content
    first = chat.choices[0].logprobs.content[0]
    assert (first.token, bytes(first.bytes or ()), first.logprob) == ("öne ", "öne ".encode(), -0.5)
    assert [top.token for top in first.top_logprobs] == ["öne ", "other"]
    listed = text.choices[0].logprobs
    assert listed and (listed.tokens, listed.token_logprobs) == (["öne ", "two"], [-0.5, -0.5])
    assert (listed.text_offset, listed.top_logprobs) == ([0, 4], [{"öne ": -0.5}, {"two": -0.5}])
    assert offsets == [[0], [4]]


async def test_every_option_reaches_the_engine() -> None:
    engine = ScriptedEngine()
    extra = {"top_k": 40, "min_p": 0.1, "repeat_penalty": 1.1, "ignore_eos": True}
    async with client(engine) as ai:
        await ai.chat.completions.create(
            model="smol",
            messages=MESSAGES,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            logit_bias={"17": -100},
            max_completion_tokens=5,
            extra_body=extra,
        )
    sampling = engine.requests[0].sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
    assert (sampling.logit_bias, sampling.max_tokens) == (((17, -100.0),), 5)
    assert {name: getattr(sampling, name) for name in extra} == extra


@pytest.mark.parametrize(
    ("option", "param"), [("top_k", "top_k"), ("max_tokens", "max_tokens"), ("grammar", "response_format")]
)
async def test_an_option_that_the_engine_cannot_honour_is_named(option: str, param: str) -> None:
    engine = ScriptedEngine(fail_after=0, fail_with=UnsupportedRequest("no such thing here", option))
    async with client(engine) as ai:
        with pytest.raises(openai.BadRequestError) as refused:
            await ai.chat.completions.create(model="smol", messages=MESSAGES)
        assert (refused.value.code, refused.value.param) == ("unsupported_parameter", param)
        with pytest.raises(openai.BadRequestError) as refused:
            await ai.chat.completions.create(model="smol", messages=MESSAGES, tools=TOOLS)
        assert refused.value.param == ("tools" if option == "grammar" else param)


async def test_a_form_that_cannot_be_met_is_no_failure_of_the_model() -> None:
    impossible = UnsupportedRequest("the form allows none of the model's tokens here", "grammar")
    catalog = catalog_of(served(ScriptedEngine(fail_after=2, fail_with=impossible)))
    outcomes: list[Outcome] = []
    catalog.observe(outcomes.append)  # as probation does
    asked = {"model": "smol", "messages": MESSAGES, "response_format": {"type": "json_object"}}
    async with running(edge_app(catalog)) as url, httpx.AsyncClient(base_url=url) as http:
        whole = await http.post(CHAT, json=asked)
        assert (whole.status_code, whole.json()["error"]["param"]) == (400, "response_format")
        stream = await http.post(CHAT, json={**asked, "stream": True})
        assert stream.text.count("data: ") == 4  # the role, two words, the error
        assert json.loads(stream.text.rsplit("data: ", 1)[1])["error"]["param"] == "response_format"
        assert "outpost_engine_failures_total{" not in (await http.get("/metrics")).text
    assert outcomes == []


async def test_an_error_begins_with_an_option_as_it_is_spelt() -> None:
    for said, told in (("repeat_penalty is odd", "repeat_penalty is odd."), ("no such", "No such.")):
        engine = ScriptedEngine(fail_after=0, fail_with=UnsupportedRequest(said, "repeat_penalty"))
        async with client(engine) as ai:
            with pytest.raises(openai.BadRequestError) as refused:
                await ai.chat.completions.create(model="smol", messages=MESSAGES)
        assert refused.value.body["message"] == told  # type: ignore[index]


async def test_tools_are_told_held_and_called() -> None:
    engine, journal = ScriptedEngine(lambda request: CALLING), MemoryJournal()
    async with client(engine, journal=journal) as ai:
        whole = await ai.chat.completions.create(model="smol", messages=MESSAGES, tools=TOOLS)
        [choice] = whole.choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "On it.")
        calls = choice.message.tool_calls or []
        assert [json.loads(call.function.arguments) for call in calls] == [{"line": 3}, {"line": 4}]
        assert len({call.id for call in calls}) == 2
        answers: Any = [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in calls]
        talk = [*MESSAGES, choice.message.model_dump(exclude_none=True), *answers]
        await ai.chat.completions.create(model="smol", messages=talk, tools=TOOLS, tool_choice="none")
    first, second = engine.requests
    assert "Stops a line." in first.prompt and first.sampling.trigger == OPEN
    assert first.sampling.grammar and "stop_line" in first.sampling.grammar
    assert "Stops a line." not in second.prompt and second.sampling.grammar is None
    assert '{"name": "stop_line", "arguments": {"line": 3}}' in second.prompt
    assert "<tool_response>\ndone\n</tool_response>" in second.prompt
    assert json.loads(journal.records[1].body)[0]["calls"][1]["arguments"] == '{"line": 4}'


async def test_streamed_calls_have_their_name_first() -> None:
    async with (
        client(ScriptedEngine(lambda request: CALLING)) as ai,
        ai.chat.completions.stream(model="smol", messages=MESSAGES, tools=TOOLS) as stream,
    ):
        events = [event async for event in stream]
        final = (await stream.get_final_completion()).choices[0]
    deltas = [
        call
        for event in events
        if event.type == "chunk"
        for call in event.chunk.choices[0].delta.tool_calls or []
    ]
    named = [(call.index, call.function.name) for call in deltas if call.function and call.function.name]
    assert named == [(0, "stop_line"), (1, "stop_line")]
    assert all(call.type == "function" and call.id for call in deltas if call.function and call.function.name)
    assert final.finish_reason == "tool_calls"
    assert [call.function.arguments for call in final.message.tool_calls or []] == [
        '{"line": 3}',
        '{"line": 4}',
    ]


@pytest.mark.parametrize(
    ("choice", "trigger", "calls"),
    [
        ("required", None, True),
        ({"type": "function", "function": {"name": "stop_line"}}, None, True),
        ("auto", OPEN, True),
        ("none", None, False),
    ],
)
async def test_how_tools_are_chosen(choice: Any, trigger: str | None, calls: bool) -> None:
    engine = ScriptedEngine()
    async with client(engine) as ai:
        await ai.chat.completions.create(model="smol", messages=MESSAGES, tools=TOOLS, tool_choice=choice)
    sampling = engine.requests[0].sampling
    assert (sampling.trigger, sampling.grammar is not None) == (trigger, calls)


async def test_a_tool_that_cannot_be_held_is_refused() -> None:
    odd: Any = [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}]
    async with client(ScriptedEngine()) as ai:
        with pytest.raises(openai.BadRequestError) as refused:
            await ai.chat.completions.create(model="smol", messages=MESSAGES, tools=odd)
    assert (refused.value.code, refused.value.param) == ("unsupported_schema", "tools")


FLAT: Any = [{"type": "function", "strict": True, **TOOLS[0]["function"]}]


async def test_a_response_whole_and_streamed() -> None:
    engine = ScriptedEngine("one two three")
    async with client(engine) as ai:
        whole = await ai.responses.create(model="smol", input="hello", instructions="Be brief.")
        async with ai.responses.stream(model="smol", input="hello") as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        short = await ai.responses.create(model="smol", input="hello", max_output_tokens=2)
    assert (whole.output_text, whole.status) == ("one two three", "completed")
    assert whole.usage and whole.usage.total_tokens == whole.usage.input_tokens + 3
    assert engine.requests[0].prompt.startswith("system: Be brief.\n")
    assert final.output_text == "one two three"
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert short.status == "incomplete" and short.incomplete_details
    assert short.incomplete_details.reason == "max_output_tokens"


async def test_metadata_comes_back_with_a_response_and_is_told_to_no_model() -> None:
    engine, notes = ScriptedEngine(), {"trace": "7f3a", "line": "3"}
    async with client(engine) as ai:
        whole = await ai.responses.create(model="smol", input="hello", metadata=notes)
        await ai.chat.completions.create(model="smol", messages=MESSAGES, metadata=notes)
        too_many = {str(number): "" for number in range(17)}
        with pytest.raises(openai.BadRequestError) as refused:
            await ai.chat.completions.create(model="smol", messages=MESSAGES, metadata=too_many)
    assert whole.metadata == notes
    assert refused.value.param == "metadata"
    assert not any("7f3a" in str(request.prompt) for request in engine.requests)


async def test_a_speakers_name_is_told_by_a_template_that_knows_names() -> None:
    engine, named = ScriptedEngine(), [{**MESSAGES[0], "name": "line_3"}]
    knows = ChatTemplate("{% for m in messages %}{{ m.name or m.role }}: {{ m.content }}{% endfor %}")
    async with plain(served(engine), served(engine, "named", template=knows)) as http:
        for model in ("smol", "named"):
            told = await http.post(CHAT, json={"model": model, "messages": named})
            assert told.status_code == 200
        odd = await http.post(CHAT, json={"model": "smol", "messages": [{**named[0], "name": "a <b>"}]})
    assert odd.json()["error"]["param"] == "messages[0].name"
    assert ["line_3" in str(request.prompt) for request in engine.requests] == [False, True]


async def test_a_response_with_calls() -> None:
    engine = ScriptedEngine(lambda request: CALLING)
    async with client(engine) as ai:
        whole = await ai.responses.create(model="smol", input="hello", tools=FLAT)
        async with ai.responses.stream(model="smol", input="hello", tools=FLAT) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        outputs: Any = [
            {"type": "function_call_output", "call_id": item.call_id, "output": "done"}
            for item in whole.output
            if item.type == "function_call"
        ]
        talk: Any = [
            {"role": "user", "content": "hello"},
            *(item.model_dump() for item in whole.output),
            *outputs,
        ]
        await ai.responses.create(model="smol", input=talk, tools=FLAT)
    for response in (whole, final):
        assert [item.type for item in response.output] == ["message", "function_call", "function_call"]
        assert [item.arguments for item in response.output if item.type == "function_call"] == [
            '{"line": 3}',
            '{"line": 4}',
        ]
    assert kinds.count("response.function_call_arguments.done") == 2
    assert engine.requests[-1].prompt.count("done") == 2


async def test_a_response_with_a_schema_and_log_probabilities() -> None:
    engine = ScriptedEngine()
    form: Any = {"format": {"type": "json_schema", "name": "s", "schema": {"type": "object"}}}
    async with client(engine) as ai:
        answer = await ai.responses.create(
            model="smol", input="x", text=form, include=["message.output_text.logprobs"], top_logprobs=1
        )
        form["format"]["schema"] = {"not": {}}
        with pytest.raises(openai.BadRequestError) as refused:
            await ai.responses.create(model="smol", input="x", text=form)
    assert engine.requests[0].sampling.grammar
    part: Any = answer.output[0]
    assert [token.token for token in part.content[0].logprobs] == ['{"severity": ', '"stop"}']
    assert (refused.value.code, refused.value.param) == ("unsupported_schema", "text.format")


async def test_a_response_that_fails_half_way_is_an_error_for_the_client() -> None:
    async with client(ScriptedEngine(fail_after=2, fail_with=EngineError("it broke"))) as ai:
        stream = await ai.responses.create(model="smol", input="x", stream=True)
        with pytest.raises(openai.APIError, match="It broke"):
            async for _ in stream:
                pass


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_places_are_told_before_the_first_byte_and_with_errors(
    path: str, body: dict[str, Any], stream: bool
) -> None:
    engine, asked = ScriptedEngine(fail_after=0), {"model": "smol", "stream": stream, **body}
    async with running(edge_app(catalog_of(served(engine)))) as url, httpx.AsyncClient(base_url=url) as http:
        failed = await http.post(path, json=asked)
        engine.fail_after = None
        async with http.stream("POST", path, json=asked) as answered:
            pass
    for response in (failed, answered):
        assert response.headers["x-ratelimit-limit-requests"] == str(Limits().capacity)
        assert response.headers["x-request-id"]
    assert (failed.status_code, failed.json()["error"]["code"]) == (503, "engine_failed")
    assert int(failed.headers["retry-after"]) >= 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), ASKED)
async def test_who_finds_no_place_is_refused_before_the_first_byte(
    path: str, body: dict[str, Any], stream: bool
) -> None:
    gate, asked = asyncio.Semaphore(0), {"model": "smol", "stream": stream, **body}
    engine = ScriptedEngine("done", gate=gate)
    app = edge_app(catalog_of(served(engine)), limits=Limits(running=1, waiting=0))
    async with running(app) as url, httpx.AsyncClient(base_url=url) as http:
        inside = asyncio.create_task(http.post(path, json=asked))
        while not engine.requests:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
        refused = await http.post(path, json=asked)
        gate.release()
        assert (await inside).status_code == 200
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert int(refused.headers["retry-after"]) >= 1


async def test_the_description_covers_every_route_and_is_openapi() -> None:
    app = edge_app(catalog_of(served(ScriptedEngine())))
    async with running(app) as url, httpx.AsyncClient(base_url=url) as http:
        document = (await http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert "422" not in operation["responses"]
            assert (method != "post") or operation["requestBody"]["content"], path
    chat = document["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert chat["required"] == ["model", "messages"]
    assert chat["properties"]["model"]["examples"] == ["smol"]
    assert "text/plain" in document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    assert "$ref" not in json.dumps(document)


@asynccontextmanager
async def plain(*models: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with running(edge_app(catalog_of(*models))) as url, httpx.AsyncClient(base_url=url) as connected:
        yield connected


@pytest.mark.parametrize(
    ("words", "limit", "param", "remedy"),
    [
        (300, 5, "messages", "shorten the prompt, or serve with --context N (the model was made for 8192)."),
        (
            3,
            999,
            "max_tokens",
            "ask for a shorter answer, or serve with --context N (the model was made for 8192).",
        ),
    ],
)
async def test_what_does_not_fit_is_told_what_to_do(words: int, limit: int, param: str, remedy: str) -> None:
    body = {"model": "smol", "max_tokens": limit, "messages": [{"role": "user", "content": "word " * words}]}
    async with plain(served(ScriptedEngine(), made_for_tokens=8192)) as http:
        error = (await http.post(CHAT, json=body)).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert error["message"].endswith(remedy)
    async with plain(served(ScriptedEngine(), made_for_tokens=200)) as http:
        error = (await http.post(CHAT, json=body)).json()["error"]
    assert "--context" not in error["message"]  # it has all that the model was made for


async def test_an_unknown_model_is_told_what_there_is() -> None:
    body = {"model": "gpt-4o", "messages": MESSAGES}
    few = [served(ScriptedEngine(), name) for name in ("smol", "smol:tickets")]
    async with plain(*few) as http:
        error = (await http.post(CHAT, json=body)).json()["error"]
    assert error["message"].endswith("there is 'smol', 'smol:tickets'.")
    async with plain(*(served(ScriptedEngine(), f"m{number}") for number in range(6))) as http:
        error = (await http.post(CHAT, json=body)).json()["error"]
        assert error["message"].endswith("GET /v1/models lists the 6 that are.")
        assert (await http.get("/v1/models/gpt-4o")).json()["error"]["code"] == "model_not_found"


async def test_a_list_of_models_says_what_they_do_and_hold() -> None:
    async with plain(served(ScriptedEngine())) as http:
        [row] = (await http.get("/v1/models")).json()["data"]
        assert row == (await http.get("/v1/models/smol")).json()
    assert (row["id"], row["object"]) == ("smol", "model")
    assert row["outpost"] == {"task": "generate", "context_length": 200}


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/v1/chat/completions"])
async def test_a_wrong_base_url_is_told_the_right_one(path: str) -> None:
    async with plain(served(ScriptedEngine())) as http:
        told = await http.post(path, json={})
        lost = await http.post("/no/such/thing", json={})
    assert told.status_code == 404
    assert told.json()["error"]["message"].endswith("Did you mean /v1/chat/completions?")
    assert "mean" not in lost.json()["error"]["message"]
