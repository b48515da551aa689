"""The hub passes the text routes on: what a device does with the official client, a hub does as well."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from gguf_models import Shape, write_llama
from targets import Target, edge, hub

MESSAGES: Any = [{"role": "user", "content": "the cat"}]
TOOL: dict[str, Any] = {
    "name": "f",
    "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}},
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A hub above a device whose model is small and knows nothing."""
    root = tmp_path_factory.mktemp("hub")
    model = write_llama(root / "random.gguf", Shape(layers=1, width=64, inner=64, heads=2, kv_heads=1))
    with edge(model) as below, hub(root, below) as above:
        yield above


def test_chats_with_choices_and_log_probabilities(gateway: Target) -> None:
    facts: dict[str, Any] = {"model": gateway.model, "messages": MESSAGES, "max_tokens": 4, "seed": 1}
    client = gateway.openai()
    whole = client.chat.completions.create(n=2, logprobs=True, **facts)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert whole.choices[0].logprobs and whole.choices[0].logprobs.content
    receipt: Any = whole.model_extra and whole.model_extra["outpost"]
    assert (receipt["served_by"], receipt["upstream"]["served_by"]) == ("hub", "edge")
    texts = ["", ""]
    for chunk in client.chat.completions.create(n=2, stream=True, **facts):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_tools_go_down_and_a_refusal_comes_back(gateway: Target) -> None:
    """A byte is a token here, and so the tool that is told leaves no room for an answer."""
    tools: Any = [{"type": "function", "function": TOOL}]
    with pytest.raises(openai.BadRequestError) as refused:
        gateway.openai().chat.completions.create(
            model=gateway.model, messages=MESSAGES, tools=tools, tool_choice="required", max_tokens=10
        )
    assert refused.value.code == "context_length_exceeded"


def test_text_completions_of_token_ids(gateway: Target) -> None:
    answer = gateway.openai().completions.create(model=gateway.model, prompt=[[40, 41], [42]], max_tokens=2)
    assert (len(answer.choices), answer.usage and answer.usage.prompt_tokens) == (2, 3)


def test_responses_whole_and_streamed(gateway: Target) -> None:
    client = gateway.openai()
    whole = client.responses.create(model=gateway.model, input="the cat", max_output_tokens=4)
    with client.responses.stream(model=gateway.model, input="the cat", max_output_tokens=4) as stream:
        events = list(stream)
    last: Any = events[-1]
    for response in (whole, last.response):
        assert response.status in ("completed", "incomplete")
        assert response.model_extra["outpost"]["upstream"]["served_by"] == "edge"


def test_an_error_below_is_an_error_above(gateway: Target) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        gateway.openai().responses.create(model=gateway.model, input="x", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError):
        gateway.openai().responses.create(model="nowhere", input="x")
