"""Rollouts as laws: waves only grow, a wave waits for the one before, a rollback stops everything."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub import rollout
from cloud_hub.errors import WrongUse
from cloud_hub.rollout import Device, Rollout, RolloutState, advance, desired, parse_waves
from models.digest import Digest
from models.manifest import Kind
from sync.protocol import Assignment, Desired, ProbationTerms, ReleaseReport, State


def assignment(name: str, version: str, kind: Kind = Kind.ADAPTER) -> Assignment:
    release = Digest.of(f"{kind}/{name}@{version}".encode())
    path = f"releases/{kind}/{name}/{version}/release.json"
    return Assignment(kind=kind, name=name, version=version, release=release, target_path=path)


def make(number: int = 1, waves: tuple[float, ...] = (0.1, 0.5, 1.0), **changes: object) -> Rollout:
    base = Rollout(number, assignment("tickets", f"1.{number}.0"), "line-1", waves, RolloutState.RUNNING)
    return replace(base, **changes)  # type: ignore[arg-type]


def saying(
    name: str, state: State | None, of: Rollout, reason: str | None = None, told: int = 1, under: int = 1
) -> Device:
    """A device that was told of a release in version ``told`` and reports under version ``under``."""
    if state is None:
        return Device(name, "line-1")
    fields = of.assignment.model_dump(exclude={"target_path"})
    report = ReleaseReport(**fields, state=state, reason=reason)
    given = Desired(device="a", version=told, issued_at=0, assignments=(of.assignment,))
    return Device(name, "line-1", {of.assignment.release: report}, given, under)


def step(current: Rollout, fleet: list[Device]) -> Rollout:
    change = advance(current, fleet)
    if change is None:
        return current
    members = {**current.members, **change.admit}
    return replace(
        current, state=change.state, open_waves=change.open_waves, members=members, reason=change.reason
    )


names = st.lists(st.from_regex(r"[a-z][a-z0-9]{0,6}", fullmatch=True), min_size=1, max_size=25, unique=True)
states = st.sampled_from([None, State.OFFERED, State.STAGED, State.ACTIVE, State.COMMITTED])


@given(names, st.lists(st.lists(states, min_size=25, max_size=25), min_size=1, max_size=8))
def test_a_wave_opens_only_when_all_before_it_settled(
    fleet: list[str], history: list[list[State | None]]
) -> None:
    current = make()
    for said in history:
        devices = [saying(name, state, current) for name, state in zip(fleet, said, strict=False)]
        settled = {name for name, state in zip(fleet, said, strict=False) if state is State.COMMITTED}
        following = step(current, devices)
        if following.open_waves > current.open_waves:
            assert set(current.members) <= settled
            assert following.open_waves == current.open_waves + 1
        assert current.members.items() <= following.members.items()
        room = math.ceil(current.waves[following.open_waves - 1] * len(fleet)) if following.open_waves else 0
        assert len(following.members) <= room
        current = following


old = st.tuples(st.sampled_from([State.COMMITTED, State.SUPERSEDED]), st.integers(1, 4))


@given(names, st.lists(old, min_size=25, max_size=25))
def test_what_a_device_once_made_of_a_release_opens_no_wave_of_its_next_rollout(
    fleet: list[str], history: list[tuple[State, int]]
) -> None:
    current = step(make(), [Device(name, "line-1") for name in fleet])
    devices = [
        saying(name, state, current, told=5, under=4 if state is State.COMMITTED else under)
        for name, (state, under) in zip(fleet, history, strict=False)
    ]
    assert step(step(current, devices), devices) == current
    moved = [saying(name, State.COMMITTED, current, told=5, under=5) for name in fleet]
    assert step(current, moved).open_waves == 2


@given(names)
def test_it_ends_completed_when_every_device_commits(fleet: list[str]) -> None:
    current = make()
    for _ in range(6):
        current = step(current, [saying(name, State.COMMITTED, current) for name in fleet])
    assert current.state is RolloutState.COMPLETED and set(current.members) == set(fleet)


@given(names)
def test_the_smallest_first_wave_is_one_canary(fleet: list[str]) -> None:
    current = step(make(waves=(0.001, 1.0)), [Device(name, "line-1") for name in fleet])
    assert len(current.members) == 1


def test_a_rollback_halts_with_the_devices_reason_until_it_is_excused() -> None:
    fleet = [Device(name, "line-1") for name in ("a", "b", "c", "d")]
    current = step(make(waves=(0.25, 1.0)), fleet)
    (canary,) = current.members
    told = [each for each in fleet if each.id != canary]
    bad = [*told, saying(canary, State.ROLLED_BACK, current, "probe 1 failed")]
    halted = step(current, bad)
    assert (halted.state, halted.reason) == (RolloutState.HALTED, f"{canary}: probe 1 failed")
    assert advance(halted, bad) is None
    onward = step(rollout.resume(halted, bad), bad)
    assert onward.state is RolloutState.RUNNING and len(onward.members) == 4


def test_a_device_that_joins_late_gets_what_its_group_completed() -> None:
    done = make(state=RolloutState.COMPLETED, open_waves=3, members={"a": 1})
    change = advance(done, [Device("a", "line-1"), Device("new", "line-1"), Device("other", "line-2")])
    assert change is not None and dict(change.admit) == {"new": 3}


def test_desired_is_the_latest_that_counts_and_models_come_first() -> None:
    base = make(1, assignment=assignment("smollm2", "1.0.0", Kind.MODEL), members={"a": 1})
    first, second = make(2, members={"a": 1}), make(3, members={"a": 1})
    wanted = desired("a", [second, first, base], None, 5.0)
    assert wanted is not None and wanted.version == 1
    assert [each.release for each in wanted.assignments] == [
        base.assignment.release,
        second.assignment.release,
    ]
    assert desired("a", [second, first, base], wanted, 6.0) is None
    back = desired("a", [rollout.abort(second), first, base], wanted, 7.0)
    assert back is not None and back.version == 2
    assert back.assignments[1].release == first.assignment.release
    assert desired("b", [second, first, base], None, 5.0) is None


@given(st.integers(min_value=1, max_value=10**9))
def test_the_version_only_grows(version: int) -> None:
    previous = Desired(device="a", version=version, issued_at=0, assignments=(), probation=ProbationTerms())
    following = desired("a", [make(members={"a": 1})], previous, 1.0)
    assert following is not None and following.version == version + 1


def test_a_new_rollout_supersedes_only_its_slot_and_group() -> None:
    new = make(9)
    others = [
        make(1),
        make(2, group="line-2"),
        make(3, state=RolloutState.COMPLETED),
        make(4, assignment=assignment("other", "1.0.0")),
        make(5, state=RolloutState.HALTED),
    ]
    assert rollout.superseded_by(new, [*others, new]) == (1, 5)


@pytest.mark.parametrize("text", ["", "5%", "50%,25%,100%", "0%,100%", "a", "100%,100%", "nan,100%"])
def test_waves_out_of_order_are_refused_by_name(text: str) -> None:
    with pytest.raises(WrongUse, match="--waves"):
        parse_waves(text)


def test_waves_are_fractions() -> None:
    assert parse_waves("5%, 25%,100") == (0.05, 0.25, 1.0)
