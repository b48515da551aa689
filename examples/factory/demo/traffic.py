"""Clients of an agent: one ticket at a time through the openai library, or a steady load of them."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import openai


def client(base_url: str, key: str = "none", http_client: Any = None) -> openai.OpenAI:
    """An openai client for a local agent or for the hub's gateway; it never retries behind our back."""
    return openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=120, http_client=http_client)


def messages(system: str, ticket: str) -> list[Any]:
    """The chat that the adapter was trained on."""
    return [{"role": "system", "content": system}, {"role": "user", "content": ticket}]


@dataclass(frozen=True)
class Answer:
    """One answered ticket: the text, Outpost's receipt, and seconds from asking to the last byte."""

    text: str
    receipt: dict[str, Any]
    seconds: float

    @property
    def as_json(self) -> dict[str, Any] | None:
        """The answer as an object, or None when it is not one."""
        try:
            value = json.loads(self.text)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None


def ask(
    agent: openai.OpenAI,
    model: str,
    system: str,
    ticket: str,
    *,
    data_class: str | None = None,
    max_tokens: int = 64,
    stream: bool = False,
) -> Answer:
    """Ask about one ticket. Raises ``openai.OpenAIError`` when the agent refuses or fails."""
    started = time.monotonic()
    headers = {"x-outpost-data-class": data_class} if data_class else {}
    if stream:
        parts: list[str] = []
        receipt: dict[str, Any] = {}
        for chunk in agent.chat.completions.create(
            model=model,
            messages=messages(system, ticket),
            max_tokens=max_tokens,
            temperature=0,
            stream=True,
            extra_headers=headers,
        ):
            parts += [choice.delta.content or "" for choice in chunk.choices]
            receipt = (chunk.model_extra or {}).get("outpost") or receipt
        return Answer("".join(parts), receipt, time.monotonic() - started)
    done = agent.chat.completions.create(
        model=model,
        messages=messages(system, ticket),
        max_tokens=max_tokens,
        temperature=0,
        extra_headers=headers,
    )
    return Answer(
        done.choices[0].message.content or "",
        (done.model_extra or {}).get("outpost") or {},
        time.monotonic() - started,
    )


@dataclass
class Load:
    """A client per agent that asks without a pause between tickets, until told to stop."""

    agents: dict[str, openai.OpenAI]
    model: str
    system: str
    tickets: list[str]
    answered: list[tuple[str, float, Answer]] = field(default_factory=list)
    failed: list[tuple[str, float, str]] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(name,)) for name in self.agents]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, name: str) -> None:
        turn = 0
        while not self._stop.is_set():
            ticket = self.tickets[turn % len(self.tickets)]
            turn += 1
            try:
                answer = ask(self.agents[name], self.model, self.system, ticket, stream=turn % 3 == 0)
                if not answer.text or not answer.receipt.get("adapter"):
                    raise ValueError(f"an answer without text or receipt: {answer}")
                self.answered.append((name, time.time(), answer))
            except Exception as error:  # noqa: BLE001 - every way of failing counts as a failed request
                self.failed.append((name, time.time(), f"{type(error).__name__}: {error}"))
                time.sleep(0.2)

    def releases_seen(self, name: str) -> list[str]:
        """The adapter releases that answered on one agent, in order of appearance."""
        seen: list[str] = []
        for agent, _, answer in self.answered:
            digest = str(answer.receipt["adapter"])
            if agent == name and digest not in seen:
                seen.append(digest)
        return seen

    def valid_share(self, release: str) -> float:
        """The share of one release's answers that are JSON objects; 0 without answers."""
        texts = [answer for _, _, answer in self.answered if answer.receipt["adapter"] == release]
        return sum(answer.as_json is not None for answer in texts) / max(len(texts), 1)
