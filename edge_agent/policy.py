"""Where a request may run: on this device, at the hub, or nowhere.

Pure. A ``Decision`` is proof that this module looked at a request: nothing else can make one, and
``edge_agent.egress`` sends nothing without one. It names the digest of the bytes that it covers, so
that a permission given for one body cannot carry another.
"""

from dataclasses import InitVar, dataclass
from enum import StrEnum

from edge_agent.errors import PolicyViolation
from models.data_class import DataClass, classify
from models.digest import Digest

VERSION = "builtin-1"
"""Stands on receipts; changes whenever a rule below changes."""


class RunAt(StrEnum):
    """Where a request runs."""

    EDGE = "edge"
    HUB = "hub"
    REFUSE = "refuse"


class Reason(StrEnum):
    """Why a request runs where it runs."""

    LOCAL_FIRST = "local-first"
    RESTRICTED_STAYS = "restricted-stays"
    HEAVY = "heavy"
    NOT_HERE = "not-here"
    UNKNOWN_MODEL = "unknown-model"
    RESTRICTED_NOT_HERE = "restricted-not-here"


@dataclass(frozen=True, slots=True)
class PolicyInput:
    """What the decision rests on.

    ``declared`` is the caller's header as it came, None without one. ``body`` is the digest of what
    would be sent. ``heavy_tokens``: prompt and answer together from which the hub is asked; None for
    never. Tokens of the prompt are an estimate.
    """

    declared: str | None
    default: DataClass
    body: Digest
    prompt_tokens: int
    max_tokens: int
    model_known_locally: bool
    hub_allowed: bool
    heavy_tokens: int | None = None


_PROOF = object()


@dataclass(frozen=True, slots=True)
class Decision:
    """Made by ``decide`` alone; altered copies and look-alikes raise.

    ``local_fallback``: this device may answer instead when the hub cannot.
    """

    data_class: DataClass
    run_at: RunAt
    reason: Reason
    body: Digest
    local_fallback: bool
    proof: InitVar[object]

    def __post_init__(self, proof: object) -> None:
        if proof is not _PROOF:
            raise PolicyViolation("a decision is made by the policy and by nothing else")


def decide(given: PolicyInput) -> Decision:
    """Law: a ``restricted`` request never gets ``RunAt.HUB``."""
    data_class = classify(given.declared, given.default)
    run_at, reason = _place(given, data_class)
    return Decision(
        data_class=data_class,
        run_at=run_at,
        reason=reason,
        body=given.body,
        local_fallback=run_at is RunAt.HUB and given.model_known_locally,
        proof=_PROOF,
    )


def _place(given: PolicyInput, data_class: DataClass) -> tuple[RunAt, Reason]:
    if data_class is DataClass.RESTRICTED:
        if given.model_known_locally:
            return RunAt.EDGE, Reason.RESTRICTED_STAYS
        return RunAt.REFUSE, Reason.RESTRICTED_NOT_HERE
    if not given.model_known_locally:
        return (RunAt.HUB, Reason.NOT_HERE) if given.hub_allowed else (RunAt.REFUSE, Reason.UNKNOWN_MODEL)
    tokens = given.prompt_tokens + given.max_tokens
    if given.hub_allowed and given.heavy_tokens is not None and tokens >= given.heavy_tokens:
        return RunAt.HUB, Reason.HEAVY
    return RunAt.EDGE, Reason.LOCAL_FIRST
