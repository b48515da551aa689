"""Where a request may run, and that nothing else can say so."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.errors import PolicyViolation
from edge_agent.policy import Decision, PolicyInput, Reason, RunAt, decide
from models.data_class import DataClass, classify
from models.digest import Digest

INPUTS = st.builds(
    PolicyInput,
    declared=st.none()
    | st.sampled_from([*map(str, DataClass), " Restricted", "secret"])
    | st.text(max_size=20),
    default=st.sampled_from(DataClass),
    body=st.binary(max_size=8).map(Digest.of),
    prompt_tokens=st.integers(0, 10_000),
    max_tokens=st.integers(0, 10_000),
    model_known_locally=st.booleans(),
    hub_allowed=st.booleans(),
    heavy_tokens=st.none() | st.integers(0, 20_000),
)


@given(INPUTS)
def test_what_is_restricted_never_leaves(given_: PolicyInput) -> None:
    decision = decide(given_)
    if decision.data_class is DataClass.RESTRICTED:
        assert decision.run_at is not RunAt.HUB
        assert not decision.local_fallback
    assert decision.body == given_.body


@given(INPUTS)
def test_nothing_goes_to_a_hub_that_is_not_allowed_nor_runs_where_the_model_is_not(
    given_: PolicyInput,
) -> None:
    run_at = decide(given_).run_at
    assert run_at is not RunAt.HUB or given_.hub_allowed
    assert run_at is not RunAt.EDGE or given_.model_known_locally


@given(st.text(max_size=30), st.sampled_from(DataClass))
def test_a_caller_can_only_make_it_stricter(said: str, default: DataClass) -> None:
    order = list(DataClass)
    assert order.index(classify(said, default)) >= order.index(default)


def test_a_word_that_nobody_knows_means_restricted() -> None:
    assert classify("confidential", DataClass.PUBLIC) is DataClass.RESTRICTED
    assert classify("", DataClass.PUBLIC) is DataClass.RESTRICTED
    assert classify(" Internal\t", DataClass.PUBLIC) is DataClass.INTERNAL


def test_a_decision_cannot_be_made_or_altered_elsewhere() -> None:
    digest = Digest.of(b"body")
    decision = decide(PolicyInput("restricted", DataClass.PUBLIC, digest, 1, 1, True, True))
    with pytest.raises(PolicyViolation):
        Decision(DataClass.PUBLIC, RunAt.HUB, Reason.HEAVY, digest, True, object())
    with pytest.raises(ValueError, match="proof"):
        dataclasses.replace(decision, run_at=RunAt.HUB)
    with pytest.raises(dataclasses.FrozenInstanceError):
        decision.run_at = RunAt.HUB  # type: ignore[misc]
