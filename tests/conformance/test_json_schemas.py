"""Every schema is enforced or refused: a model of random weights answers, which has no taste of its own."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from gguf_models import Shape, write_llama
from json_schemas import all_schemas
from jsonschema import Draft202012Validator
from targets import Target, edge

FIRST_BYTE = 2
"""Token id of byte 0 in the random model's vocabulary."""
BIAS = {
    # What ends strings, objects and arrays: at random, they would hardly ever end.
    **{str(FIRST_BYTE + ord(each)): bias for each, bias in {'"': 5, "}": 4, "]": 4, "0": 1}.items()},
    # Overlong forms begin with these bytes. llama.cpp's grammar lets some pass; no trained model writes any.
    **{str(FIRST_BYTE + byte): -100 for byte in (0xE0, 0xF0)},
}


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    path = tmp_path_factory.mktemp("random") / "random.gguf"
    with edge(write_llama(path, Shape(layers=1, width=64, inner=64, heads=2, kv_heads=1))) as target:
        yield target


def ask(client: openai.OpenAI, model: str, schema: Any) -> tuple[str, str]:
    """How an answer ended, and the answer; the code of its refusal instead."""
    try:
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "it"}],
            max_tokens=200,
            temperature=1.0,
            seed=7,
            logit_bias=BIAS,
            response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
        )
    except openai.BadRequestError as refused:
        return "refused", str(refused.code)
    return answer.choices[0].finish_reason, answer.choices[0].message.content or ""


def is_valid(validator: Draft202012Validator, text: str) -> bool:
    try:
        return validator.is_valid(json.loads(text))
    except ValueError:
        return False


def test_every_schema_is_met_or_refused(random_model: Target) -> None:
    schemas = all_schemas()
    client = random_model.openai()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda schema: ask(client, random_model.model, schema), schemas.values()))
    whole: set[str] = set()
    refused: set[str] = set()
    broken: dict[str, str] = {}
    for (name, schema), (end, text) in zip(schemas.items(), answers, strict=True):
        if end == "refused":
            assert text in ("unsupported_schema", "missing_required_parameter"), name
            refused.add(name)
        elif end == "stop":
            validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
            whole.add(name)
            if not is_valid(validator, text):
                broken[name] = text
    assert not broken
    assert len(schemas) >= 200
    assert len(refused) < 50, refused
    assert len(whole) > 230, "so few answers came to an end that this shows nothing"
