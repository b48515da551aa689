"""Laws of the update state machine, of probation and of probes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.digest import Digest
from models.manifest import Kind, Probe
from models.probes import judge, similarity
from sync import update
from sync.errors import IllegalTransition
from sync.protocol import Assignment, ProbationTerms, State
from sync.update import Observation, Verdict, Window, fisher_greater, judge_probation, mostly

ASSIGNMENT = Assignment(
    kind=Kind.MODEL, name="tiny", version="1.0.0", release=Digest.of(b"r"), target_path="releases/r"
)
TERMS = ProbationTerms(min_requests=20, max_seconds=3600)
FORWARD = (State.FETCHING, State.VERIFIED, State.STAGED, State.PROBED, State.ACTIVE, State.COMMITTED)

steps = st.one_of(
    st.sampled_from(State).map(lambda to: ("advance", to)),
    st.booleans().map(lambda hold: ("roll_back", hold)),
    st.sampled_from(["offer_again", "interrupted"]).map(lambda name: (name, None)),
)


def apply(progress, step, now):
    what, argument = step
    if what == "advance":
        return update.advance(progress, argument, now)
    if what == "roll_back":
        return update.roll_back(progress, "why", argument, now)
    if what == "offer_again":
        return update.offer_again(progress, now)
    return update.interrupted(progress, now)


@given(st.lists(steps, max_size=60))
def test_no_path_breaks_the_rules(path):
    progress = update.offer(ASSIGNMENT, 0.0)
    staged_since_duty = 0
    for now, step in enumerate(path, start=1):
        before = progress
        try:
            progress = apply(progress, step, float(now))
        except IllegalTransition:
            assert progress is before
            continue
        if before.state is State.SUPERSEDED and progress.state is State.OFFERED:
            staged_since_duty = 0
        staged_since_duty += step == ("advance", State.VERIFIED)
        assert progress.attempts <= update.MAX_ATTEMPTS
        assert staged_since_duty <= update.MAX_ATTEMPTS
        if progress.state is State.ACTIVE and before.state is not State.ACTIVE:
            assert before.state is State.PROBED  # nothing is active that was not probed
        if before.state is State.ROLLED_BACK and before.hold:
            assert progress.state is State.ROLLED_BACK  # a hold holds
        assert progress.assignment is ASSIGNMENT
        assert before.at.items() <= {**progress.at, **before.at}.items()


def test_the_straight_way_and_the_word_that_releases_a_hold():
    progress = update.offer(ASSIGNMENT, 0.0)
    for now, state in enumerate(FORWARD, start=1):
        progress = update.advance(progress, state, float(now))
    assert progress.attempts == 1
    assert list(progress.at.values()) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    progress = update.roll_back(progress, "by hand", hold=True, now=9.0)
    with pytest.raises(IllegalTransition):
        update.offer_again(progress, 10.0)
    assert update.offer_again(update.release_hold(progress), 10.0).state is State.OFFERED


def window(size, failures=0, violations=0, pace=0.01):
    return Window(
        tuple(Observation(i < failures, failures <= i < failures + violations, pace) for i in range(size))
    )


def test_fisher_agrees_with_the_tea_lady():
    assert fisher_greater(3, 4, 1, 4) == pytest.approx(17 / 70)  # Fisher 1935, section 5
    assert fisher_greater(4, 4, 0, 4) == pytest.approx(1 / 70)
    assert fisher_greater(0, 10, 5, 10) == 1.0
    assert fisher_greater(5, 5, 0, 0) == 1.0


sizes = st.integers(0, 60)


@given(sizes, sizes, sizes, sizes)
def test_fisher_is_a_chance_and_more_harm_is_never_less_suspicious(size, hits, size_before, hits_before):
    hits, hits_before = min(hits, size), min(hits_before, size_before)
    p = fisher_greater(hits, size, hits_before, size_before)
    assert 0 <= p <= 1 + 1e-12
    if hits < size:
        assert fisher_greater(hits + 1, size, hits_before, size_before) <= p + 1e-12


@given(sizes, sizes, st.integers(0, 60), st.floats(0, 7200))
def test_a_release_without_harm_is_never_rolled_back(before, size, failures_before, elapsed):
    judgement = judge_probation(window(before, min(failures_before, before)), window(size), TERMS, elapsed)
    done = size >= TERMS.min_requests or elapsed >= TERMS.max_seconds
    assert judgement.verdict is (Verdict.COMMIT if done else Verdict.CONTINUE)


@given(sizes, sizes, st.integers(0, 59))
def test_one_more_failure_never_turns_a_rollback_into_a_commit(before, size, failures):
    failures = min(failures, max(size - 1, 0))
    first = judge_probation(window(before), window(size, failures), TERMS, 0)
    second = judge_probation(window(before), window(size, min(failures + 1, size)), TERMS, 0)
    if first.verdict is Verdict.ROLL_BACK:
        assert second.verdict is Verdict.ROLL_BACK


@given(st.integers(0, 19), sizes, sizes, st.floats(0, 1e9), st.booleans())
def test_what_mostly_fails_is_never_committed_blindly(before, size, harmless, elapsed, violates):
    harmed = size - min(harmless, max(size - 1, 0) // 2)  # more than half, from the first answer on
    current = window(size, violations=harmed) if violates else window(size, failures=harmed)
    for earlier in (window(before), window(before, failures=before), window(before, violations=before)):
        judgement = judge_probation(earlier, current, TERMS, elapsed)
        assert size == 0 or judgement.verdict is not Verdict.COMMIT
        if harmed == size >= 11:  # 2 ** -11 is below a quarter of alpha shared over 20 looks
            assert judgement.verdict is Verdict.ROLL_BACK


def test_even_odds_agree_with_pascal_s_triangle():
    assert [mostly(hits, 4) for hits in range(5)] == [1.0, 15 / 16, 11 / 16, 5 / 16, 1 / 16]
    assert mostly(0, 0) == 1.0


def test_probation_names_what_went_wrong():
    healthy = window(40)
    early = judge_probation(healthy, window(5, violations=5), TERMS, 1)
    assert early.verdict is Verdict.ROLL_BACK
    assert "5 of 5 answers broke the output schema, 0 of 40 before" in early.reason
    assert judge_probation(healthy, window(1, failures=1), TERMS, 1).verdict is Verdict.CONTINUE
    alone = judge_probation(window(0), window(20, failures=20), TERMS, 1)
    assert "20 of 20 answers failed, and only 0 before to compare with" in alone.reason
    slow = judge_probation(healthy, window(20, pace=0.03), TERMS, 1)
    assert (slow.verdict, "30.0 ms a token" in slow.reason) == (Verdict.ROLL_BACK, True)
    assert judge_probation(healthy, window(20, pace=0.015), TERMS, 1).verdict is Verdict.COMMIT


def test_a_window_keeps_the_latest():
    full = Window().add([Observation(failed=True)] * 10).add([Observation()] * update.WINDOW)
    assert (full.requests, full.failures) == (update.WINDOW, 0)


def test_probes_see_the_same_json_as_the_same_answer():
    assert similarity('{"a": 1, "b": 2.0}', ' {"b":2,"a":1}\n') == 1.0
    assert similarity("belt worn", "belt worn") == 1.0
    assert similarity('{"class":"tooling-fixture"}', '{"class":"electrical-power"}') < 0.8
    assert similarity("a", '{"a": 1, "a": 2}') < 0.5
    probe = Probe(messages=({"role": "user", "content": "x"},), max_tokens=4, expected="stop", tolerance=0.8)
    assert judge(probe, "stop.").passed
    assert not judge(probe, "go on").passed


@given(st.text(max_size=40), st.text(max_size=40))
def test_similarity_is_a_share_and_sees_itself(left, right):
    assert 0 <= similarity(left, right) <= 1
    assert similarity(left, left) == 1
