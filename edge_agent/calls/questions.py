"""What is the same of every call: where it may run, why it is refused, what its leaf says.

Pure but for looking into the catalog. Refuses: carrying anything out.
"""

from dataclasses import dataclass
from typing import Any, Literal

from edge_agent import policy
from edge_agent.catalog import Catalog
from edge_agent.errors import EdgeError, PolicyViolation
from edge_agent.policy import Decision, PolicyInput
from models.data_class import DataClass
from models.digest import Digest

BYTES_PER_TOKEN = 3
"""A cautious guess over languages; only the policy's estimate rests on it."""

ANONYMOUS = "anonymous"
"""Subject of a call whose caller names nobody."""

UNKNOWN = "unknown"
"""Stands in leaves for a model that is not published on this device."""

Endpoint = Literal[
    "chat",
    "completions",
    "responses",
    "embeddings",
    "classify",
    "rerank",
    "inspect",
    "ocr",
    "transcriptions",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A call. ``body`` is what the journal keeps; ``outgoing`` what the hub would get, if it may be asked.

    ``unread``: how many bytes of ``body`` are no text.
    """

    id: str
    endpoint: Endpoint
    model: str
    body: bytes
    declared_class: str | None = None
    outgoing: bytes | None = None
    subject: str | None = None
    unread: int = 0


@dataclass(frozen=True, slots=True)
class Rules:
    """What the owner of the device configured. ``heavy_tokens``: from there on the hub is asked."""

    default_class: DataClass = DataClass.INTERNAL
    heavy_tokens: int | None = None


def is_published(question: Question, catalog: Catalog) -> bool:
    """Whether a model of that name answers on this device."""
    return any(served.model_id == question.model for served in catalog.list())


def decide(question: Question, catalog: Catalog, rules: Rules, *, hub: bool, max_tokens: int = 0) -> Decision:
    """Where it may run. ``hub``: whether there is a way to one; ``max_tokens`` of the answer."""
    return policy.decide(
        PolicyInput(
            declared=question.declared_class,
            default=rules.default_class,
            body=Digest.of(question.outgoing or b""),
            prompt_tokens=(len(question.body) - question.unread) // BYTES_PER_TOKEN,
            max_tokens=max_tokens,
            model_known_locally=is_published(question, catalog),
            hub_allowed=hub and question.outgoing is not None,
            heavy_tokens=rules.heavy_tokens,
        )
    )


def refusal(question: Question, decision: Decision, catalog: Catalog, *, hub: bool) -> EdgeError:
    """Why it may not run at all."""
    if decision.reason is policy.Reason.RESTRICTED_NOT_HERE and hub:
        return PolicyViolation(
            f"model {question.model!r:.200} is not here, and a restricted request never leaves this device"
        )
    return catalog.unknown(question.model)


def intent_facts(question: Question, decision: Decision, catalog: Catalog) -> dict[str, Any]:
    """A name that is no model of this device is the caller's text: it stays in the sealed body."""
    return {
        "endpoint": question.endpoint,
        "model": question.model if is_published(question, catalog) else UNKNOWN,
        "run_at": str(decision.run_at),
        "reason": str(decision.reason),
        "policy": policy.VERSION,
    }
