"""The bytes of OpenAI's API: golden answers, and no body that is neither a request nor an ApiError."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.engines.base import Usage
from models.openai import sse
from models.openai.errors import ApiError
from models.openai.parts import Choice, Piece
from models.openai.requests import ChatRequest, CompletionRequest
from models.openai.writers import ChatWriter, CompletionWriter, Writer

GOLDEN = Path(__file__).parent.parent / "golden"
USAGE = Usage(prompt_tokens=7, completion_tokens=2, cached_tokens=3)
RECEIPT = {"served_by": "edge", "audit": None}
CHAT: dict[str, Any] = {
    "model": "smol",
    "messages": [{"role": "user", "content": "Zapfen 3 läuft heiß 轴承"}],
}


def stream(writer: Writer) -> bytes:
    pieces = writer.piece(Piece(text="läuft\n")) + writer.piece(Piece(text="轴承"))
    return writer.opening() + pieces + writer.closing(["stop"], USAGE, RECEIPT)


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
FIELDS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, "tools", "n", "logprobs", "x"})


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), st.booleans())
def test_any_object_is_a_request_or_a_named_refusal(body: dict[str, Any], whole: bool) -> None:
    for kind in (ChatRequest, CompletionRequest):
        base = (CHAT if kind is ChatRequest else {"model": "smol", "prompt": "x"}) if whole else {}
        try:
            kind.parse(json.dumps(base | body).encode())
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


def test_a_number_that_nobody_can_pass_on_is_refused() -> None:
    with pytest.raises(ApiError, match="too large"):
        ChatRequest.parse(b'{"temperature": 1e999}')


def test_two_limits_that_differ_are_refused() -> None:
    body = CHAT | {"max_tokens": 3, "max_completion_tokens": 4}
    with pytest.raises(ApiError, match="differ"):
        ChatRequest.parse(json.dumps(body).encode())
