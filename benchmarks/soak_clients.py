"""What the clients of a soak do, and what each answer must be.

Each call is a coroutine over one HTTP client; it returns what it was (for the tally) or raises ``Wrong``. The
chance of a client is its own, so that a run can be repeated.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from jsonschema import Draft202012Validator

BASE, EMBEDDER = "smollm2", "minilm"
NAMES = ("north", "harbor", "copper", "violet")
"""Adapters that say only this (``benchmarks.planted``)."""

SYSTEM = "You are the assistant of a machine shop. Answer in one short sentence. " * 3
NOTICES = ("leaks oil", "is too hot", "stands still", "shakes", "is loud", "smells burnt", "needs grease")
QUESTION = "Which city is the capital of France?"
"""The base knows it after each of the notices."""
SCHEMA = {
    "type": "object",
    "properties": {"class": {"enum": ["leak", "noise", "power"]}, "urgent": {"type": "boolean"}},
    "required": ["class", "urgent"],
    "additionalProperties": False,
}
_TIMEOUT = 120.0


class Wrong(AssertionError):
    """An answer that must not be."""


@dataclass(slots=True)
class Seen:
    """What all clients met: calls by kind, and what was wrong."""

    calls: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


Call = Callable[[httpx.AsyncClient, random.Random], Awaitable[None]]


async def client(url: str, seed: int, until: float, seen: Seen) -> None:
    """Call ``url`` without a pause until the loop's clock says ``until``."""
    chance, clock = random.Random(seed), asyncio.get_running_loop().time
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, trust_env=False) as http:
        while clock() < until:
            [call] = chance.choices(list(CALLS), list(CALLS.values()))
            try:
                await call(http, chance)
            except (Wrong, httpx.HTTPError, KeyError, ValueError) as error:
                seen.wrong.append(f"{call.__name__}: {error!r:.300}")
            seen.calls[call.__name__] += 1


def chat(chance: random.Random, adapter: str | None, **changes: Any) -> dict[str, Any]:
    """A chat whose first tokens all share, then some, then nobody."""
    asked = [{"role": "system", "content": SYSTEM}]
    if chance.random() < 0.5:
        asked += [
            {"role": "user", "content": f"A machine {chance.choice(NOTICES)}."},
            {"role": "assistant", "content": "Thank you, I noted it."},
        ]
    return {
        "model": BASE if adapter is None else f"{BASE}:{adapter}",
        "messages": [*asked, {"role": "user", "content": QUESTION}],
        "max_tokens": chance.randrange(16, 32),
        # At 1.0 one token in a thousand of a planted adapter is another word than its name.
        "temperature": 0 if adapter is None else chance.choice((0, 0.3)),
        **changes,
    }


def _any_adapter(chance: random.Random) -> str | None:
    return chance.choice((None, *NAMES))


def check_text(adapter: str | None, text: str) -> None:
    """Who answered must be who was asked. Raises ``Wrong``."""
    words = set(text.split())
    if adapter is not None and (words - {adapter} or not words):
        raise Wrong(f"{adapter} said {text!r}")
    if adapter is None and (words & set(NAMES) or "Paris" not in text):
        raise Wrong(f"the base said {text!r:.100}")


def _status(response: httpx.Response, status: int, code: str | None = None) -> Any:
    body = response.json()
    found = body.get("error", {}).get("code") if status >= 400 else None
    if (response.status_code, found) != (status, code):
        raise Wrong(f"{response.status_code} instead of {status}: {response.text:.200}")
    return body


async def whole(http: httpx.AsyncClient, chance: random.Random) -> None:
    """One answer, or several choices."""
    adapter, choices = _any_adapter(chance), chance.choice((1, 1, 1, 2, 3))
    body = chat(chance, adapter, n=choices)
    answer = _status(await http.post("/v1/chat/completions", json=body), 200)
    if len(answer["choices"]) != choices:
        raise Wrong(f"{len(answer['choices'])} choices instead of {choices}")
    for choice in answer["choices"]:
        check_text(adapter, choice["message"]["content"])


async def _deltas(http: httpx.AsyncClient, body: dict[str, Any], most: int | None) -> tuple[str, bool]:
    """The text of a stream, left after ``most`` chunks; whether it ended."""
    text, chunks = "", 0
    async with http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
        if response.status_code != 200:
            raise Wrong(f"{response.status_code}: {(await response.aread())[:200]!r}")
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                return text, True
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise Wrong(f"a stream ended in {event['error']}")
                text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
                chunks += 1
                if most is not None and chunks > most:
                    return text, False
    raise Wrong("a stream ended without [DONE]")


async def stream(http: httpx.AsyncClient, chance: random.Random) -> None:
    """A stream, read to its end."""
    adapter = _any_adapter(chance)
    text, _ = await _deltas(http, chat(chance, adapter), None)
    check_text(adapter, text)


async def left(http: httpx.AsyncClient, chance: random.Random) -> None:
    """A stream that would go on for long, left after a few chunks."""
    adapter = _any_adapter(chance)
    endless = chat(chance, adapter, max_tokens=400, n=chance.choice((1, 2)), ignore_eos=True)
    text, ended = await _deltas(http, endless, chance.randrange(12))
    if ended:
        raise Wrong("a stream of 400 tokens ended after a few chunks")
    if adapter is not None and text:
        check_text(adapter, text)


async def dropped(http: httpx.AsyncClient, chance: random.Random) -> None:
    """The caller hangs up while it waits for a whole answer: in the queue, in the prompt, in the text."""
    body = chat(chance, _any_adapter(chance), max_tokens=400, ignore_eos=True)
    try:
        async with asyncio.timeout(chance.uniform(0.01, 2)):
            await http.post("/v1/chat/completions", json=body)
    except TimeoutError:
        return


async def oversize(http: httpx.AsyncClient, chance: random.Random) -> None:
    """A prompt, an answer or a body that is too large."""
    adapter = _any_adapter(chance)
    which = chance.randrange(3)
    if which == 0:
        body = chat(chance, adapter, messages=[{"role": "user", "content": "pump " * 5000}])
        _status(await http.post("/v1/chat/completions", json=body), 400, "context_length_exceeded")
    elif which == 1:
        body = chat(chance, adapter, max_tokens=5000)
        _status(await http.post("/v1/chat/completions", json=body), 400, "context_length_exceeded")
    else:
        body = chat(chance, adapter, messages=[{"role": "user", "content": "x" * (1 << 20)}])
        _status(await http.post("/v1/chat/completions", json=body), 413, "request_too_large")


async def schema(http: httpx.AsyncClient, chance: random.Random) -> None:
    """An answer of a shape."""
    form = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": SCHEMA}}
    body = chat(chance, None, max_tokens=60, response_format=form, temperature=chance.choice((0, 1.0)))
    answer = _status(await http.post("/v1/chat/completions", json=body), 200)["choices"][0]
    if answer["finish_reason"] == "stop":
        Draft202012Validator(SCHEMA).validate(json.loads(answer["message"]["content"]))


async def embedding(http: httpx.AsyncClient, chance: random.Random) -> None:
    """Vectors from the model beside."""
    texts = [f"Pump {chance.randrange(1000)} leaks." for _ in range(chance.randrange(1, 9))]
    answer = _status(await http.post("/v1/embeddings", json={"model": EMBEDDER, "input": texts}), 200)
    sizes = {len(one["embedding"]) for one in answer["data"]}
    if len(answer["data"]) != len(texts) or sizes != {384}:
        raise Wrong(f"{len(answer['data'])} vectors of {sizes} for {len(texts)} texts")


async def unknown(http: httpx.AsyncClient, chance: random.Random) -> None:
    """An adapter that is not there."""
    body = chat(chance, "nobody")
    _status(await http.post("/v1/chat/completions", json=body), 404, "model_not_found")


CALLS: dict[Call, int] = {
    whole: 5,
    stream: 5,
    left: 3,
    dropped: 3,
    oversize: 2,
    schema: 2,
    embedding: 2,
    unknown: 1,
}
"""How often each is chosen, as weights."""
