"""The bytes of OpenAI's API: golden answers, and no body that is neither a request nor an ApiError."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.digest import Digest
from models.engines.base import Media, TokenLogprob, Usage
from models.openai import sse
from models.openai.errors import ApiError
from models.openai.parts import Choice, InvalidChunk, Piece, read_chunk
from models.openai.requests import ChatRequest, CompletionRequest
from models.openai.response_requests import ResponseRequest
from models.openai.writers import ChatWriter, CompletionWriter, Writer, fingerprint
from models.tools import CallDelta

GOLDEN = Path(__file__).parent.parent / "golden"
USAGE = Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=3)
RECEIPT = {
    "served_by": "edge",
    "release": Digest.of(b"base"),
    "adapter": Digest.of(b"adapter"),
    "audit": None,
}
CHAT: dict[str, Any] = {
    "model": "smol",
    "messages": [{"role": "user", "content": "Zapfen 3 läuft heiß 轴承"}],
}


def stream(writer: Writer) -> bytes:
    opening = writer.opening(RECEIPT)
    pieces = writer.piece(Piece(text="läuft\n")) + writer.piece(Piece(text="轴承"))
    return opening + pieces + writer.closing(["stop"], USAGE, RECEIPT)


@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("chat", ChatWriter("chatcmpl-1", 1_700_000_000, "smol")),
        ("chat_usage", ChatWriter("chatcmpl-1", 1_700_000_000, "smol", include_usage=True)),
        ("completion", CompletionWriter("cmpl-1", 1_700_000_000, "smol")),
        ("completion_usage", CompletionWriter("cmpl-1", 1_700_000_000, "smol", include_usage=True)),
    ],
)
def test_answers_are_the_golden_bytes(name: str, writer: Writer) -> None:
    whole = sse.event(writer.whole([Choice("läuft\n轴承", reason="length")], USAGE, RECEIPT))
    assert whole + stream(writer) == (GOLDEN / f"openai_{name}.txt").read_bytes()


@given(st.text(max_size=90), st.sampled_from([None, "x.delta"]))
def test_a_padded_event_tells_the_same_and_not_its_size(text: str, name: str | None) -> None:
    value = {"text": text}
    padded = sse.padded_event(value, lambda size: "x" * size, name)
    assert len(padded) % sse.BLOCK == 0
    assert 0 <= len(padded) - len(sse.event({**value, "obfuscation": ""}, name)) < sse.BLOCK
    told = json.loads(padded.decode().partition("data: ")[2])
    assert told.pop("obfuscation").strip("x") == ""
    assert told == value


def test_the_fingerprint_names_release_and_adapter_and_nothing_of_a_bare_file() -> None:
    base, adapter = Digest.of(b"base"), Digest.of(b"adapter")
    alone, both = fingerprint({"release": base}), fingerprint({"release": base, "adapter": adapter})
    assert alone == f"fp_{base.hex[:12]}"
    assert both == f"fp_{base.hex[:12]}_{adapter.hex[:12]}"
    assert fingerprint({"release": None, "adapter": adapter}) is None


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none()), max_size=4))
def test_events_decode_to_what_was_encoded(values: list[dict[str, Any]]) -> None:
    decoder = sse.Decoder()
    lines = b"".join(map(sse.event, values)).decode().split("\n")
    assert [json.loads(data) for line in lines if (data := decoder.feed(line)) is not None] == values


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KINDS: dict[Any, dict[str, Any]] = {
    ChatRequest: CHAT,
    CompletionRequest: {"model": "smol", "prompt": "x"},
    ResponseRequest: {"model": "smol", "input": "x"},
}
FIELDS = sorted({"x", *(name for kind in KINDS for name in kind.model_fields)})


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), st.booleans())
def test_any_object_is_a_request_or_a_named_refusal(body: dict[str, Any], whole: bool) -> None:
    for kind, base in KINDS.items():
        try:
            kind.parse(json.dumps((base if whole else {}) | body).encode())
        except ApiError as refusal:
            assert refusal.status == 400
            assert refusal.param and refusal.code


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_a_refusal(body: bytes) -> None:
    with pytest.raises(ApiError):
        ChatRequest.parse(body)


def test_what_goes_upstream_asks_the_same_and_does_not_say_who_asks() -> None:
    body = CHAT | {"stop": "x", "seed": 3, "max_completion_tokens": 9, "user": "bob", "n": 1, "tools": []}
    asked = ChatRequest.parse(json.dumps(body).encode())
    again = ChatRequest.parse(asked.upstream())
    assert (again.messages, again.stop, again.seed) == (asked.messages, asked.stop, asked.seed)
    assert (again.token_limit, again.subject, again.stream) == (9, None, True)


TOKENS = st.builds(
    TokenLogprob,
    st.binary(min_size=1, max_size=4),
    st.floats(-9, 0),
    st.lists(st.tuples(st.binary(min_size=1, max_size=4), st.floats(-9, 0)), max_size=2).map(tuple),
)
NAMED = st.builds(CallDelta, st.integers(0, 3), st.just("f"), st.text(max_size=4), st.just("id"))
MORE = st.builds(CallDelta, st.integers(0, 3), st.none(), st.text(max_size=4))
PIECES = st.builds(
    Piece,
    st.integers(0, 2),
    st.text(max_size=4),
    st.lists(NAMED | MORE, max_size=2).map(tuple),
    st.lists(TOKENS, max_size=2).map(tuple),
).filter(lambda piece: bool(piece.text or piece.calls or piece.logprobs))


@given(st.lists(PIECES, max_size=4))
def test_a_chats_stream_is_read_back_as_it_was_written(pieces: list[Piece]) -> None:
    writer = ChatWriter("chatcmpl-1", 0, "smol", include_usage=True, choices=3)
    stream = writer.opening(RECEIPT) + b"".join(map(writer.piece, pieces))
    stream += writer.closing(["stop", "length", "tool_calls"], USAGE, RECEIPT)
    decoder = sse.Decoder()
    data = [found for line in stream.decode().split("\n") if (found := decoder.feed(line)) is not None]
    assert data.pop() == sse.LAST
    chunks = [read_chunk(json.loads(each)) for each in data]
    assert [piece for chunk in chunks for piece in chunk.pieces] == pieces
    assert {key: value for chunk in chunks for key, value in chunk.reasons.items()} == {
        0: "stop",
        1: "length",
        2: "tool_calls",
    }
    assert (chunks[-1].usage, chunks[-1].receipt) == (USAGE, RECEIPT)


@given(JSON)
def test_whatever_a_hub_sends_is_a_chunk_or_none(value: Any) -> None:
    for chunk in (value, {"choices": value}, {"choices": [value]}, {"choices": [{"delta": value}]}):
        try:
            read_chunk(chunk)
        except InvalidChunk:
            continue


CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
OPTIONS: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "logprobs": True,
    "top_logprobs": 3,
    "n": 2,
    "logit_bias": {"17": -100},
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "top_k": 40,
    "min_p": 0.1,
    "repeat_penalty": 1.1,
    "ignore_eos": True,
    "response_format": {"type": "json_object"},
    "messages": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "c1", "content": "y"},
    ],
}


def test_every_option_goes_upstream_as_it_came() -> None:
    asked = ChatRequest.parse(json.dumps(CHAT | OPTIONS).encode())
    again = ChatRequest.parse(asked.upstream())
    assert again.sampling == asked.sampling
    assert (again.messages, again.toolbox) == (asked.messages, asked.toolbox)
    assert (again.n, again.json_schema) == (2, {"type": "object"})


@pytest.mark.parametrize(
    ("kind", "change", "param"),
    [
        (ChatRequest, {"n": 65}, "n"),
        (ChatRequest, {"metadata": {"line": 3}}, "metadata.line"),
        (ChatRequest, {"metadata": {"line": "x" * 513}}, "metadata.line"),
        (ChatRequest, {"messages": [{"role": "user", "content": "x", "name": ""}]}, "messages[0].name"),
        (ChatRequest, {"top_logprobs": 2}, "top_logprobs"),
        (ChatRequest, {"logit_bias": {"pump": 1}}, "logit_bias.pump"),
        (ChatRequest, {"logit_bias": {"7": 101}}, "logit_bias.7"),
        (ChatRequest, {"tool_choice": "required"}, "tool_choice"),
        (ChatRequest, OPTIONS | {"tool_choice": "sometimes"}, "tool_choice"),
        (ChatRequest, OPTIONS | {"tools": [{"type": "web_search"}]}, "tools[0].type"),
        (ChatRequest, OPTIONS | {"tools": OPTIONS["tools"] * 2}, "tools"),
        (
            ChatRequest,
            OPTIONS | {"tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
        ),
        (
            ChatRequest,
            {"messages": [{"role": "tool", "tool_call_id": "z", "content": "y"}]},
            "messages[0].tool_call_id",
        ),
        (
            ChatRequest,
            {"messages": [{"role": "user", "content": [{"type": {}, "text": "x"}]}]},
            "messages[0].content[0]",
        ),
        (
            ChatRequest,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0]",
        ),
        (ResponseRequest, {"stream": True, "stream_options": {"include_usage": True}}, "stream_options"),
        (ChatRequest, {"repetition_penalty": 1.1}, "repetition_penalty"),
        (CompletionRequest, {"best_of": 2}, "best_of"),
        (CompletionRequest, {"suffix": "end"}, "suffix"),
        (CompletionRequest, {"echo": True, "logprobs": 1}, "echo"),
        (CompletionRequest, {"echo": True, "prompt": [1, 2]}, "echo"),
        (CompletionRequest, {"prompt": ["a", 1]}, "prompt[1]"),
        (CompletionRequest, {"prompt": [[]]}, "prompt[0]"),
        (CompletionRequest, {"prompt": [-1]}, "prompt[0]"),
        (CompletionRequest, {"prompt": ["a"] * 40, "n": 2}, "n"),
        (ResponseRequest, {"previous_response_id": "resp_1"}, "previous_response_id"),
        (ResponseRequest, {"store": True}, "store"),
        (ResponseRequest, {"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        (
            ResponseRequest,
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0]",
        ),
        (ResponseRequest, {"top_logprobs": 2}, "top_logprobs"),
        (ResponseRequest, {"text": {"verbosity": "low"}}, "text.verbosity"),
        (ResponseRequest, {"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(kind: Any, change: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        kind.parse(json.dumps(KINDS[kind] | change).encode())
    assert (refused.value.status, refused.value.param and refused.value.param.startswith(param)) == (
        400,
        True,
    )


def test_a_response_is_the_chat_that_it_asks_for() -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "y"},
    ]
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}
    body = {
        "model": "smol",
        "input": items,
        "instructions": "Be kind.",
        "tools": [tool],
        "max_output_tokens": 9,
    }
    chat = ResponseRequest.parse(json.dumps(body).encode()).chat
    assert [message.role for message in chat.messages] == ["system", "user", "assistant", "tool"]
    assert chat.messages[0].content == "Be kind.\n\nBe brief."
    assert chat.messages[1:] == ChatRequest.parse(json.dumps(CHAT | OPTIONS).encode()).messages
    assert ChatRequest.parse(chat.upstream()).sampling == chat.sampling


def test_a_number_that_nobody_can_pass_on_is_refused() -> None:
    with pytest.raises(ApiError, match="too large"):
        ChatRequest.parse(b'{"temperature": 1e999}')


def test_two_limits_that_differ_are_refused() -> None:
    body = CHAT | {"max_tokens": 3, "max_completion_tokens": 4}
    with pytest.raises(ApiError, match="differ"):
        ChatRequest.parse(json.dumps(body).encode())


def test_what_a_chat_shows_stands_in_its_text_and_goes_on_to_another_server() -> None:
    shown = {"type": "image_url", "image_url": {"url": "data:image/png;base64,UE5H"}}
    heard = {"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}}
    texts = [{"type": "text", "text": text} for text in ("look", " and", " listen")]
    chat = CHAT | {"messages": [{"role": "user", "content": [texts[0], shown, *texts[1:], heard]}]}
    asked = ChatRequest.parse(json.dumps(chat).encode())
    (message,) = asked.messages
    assert message.content == "look and listen"
    found = [part.media for part in message.media]
    assert found == [Media("image", b"PNG", 4), Media("audio", b"RIF", 15)]
    assert [part.part for part in message.media] == ["messages[0].content[1]", "messages[0].content[4]"]
    again = ChatRequest.parse(asked.upstream()).messages[0]
    assert (again.content, [part.media for part in again.media]) == (message.content, found)
    seen = {"type": "input_image", "image_url": shown["image_url"]["url"]}  # type: ignore[index]
    response = {"model": "smol", "input": [{"role": "user", "content": [seen]}]}
    (turn,) = ResponseRequest.parse(json.dumps(response).encode()).chat.messages
    assert [part.media for part in turn.media] == [Media("image", b"PNG", 0)]
