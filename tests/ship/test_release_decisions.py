"""What comes next for the releases of a device: laws over all ways there, and each decision by itself."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.errors import NoRoom, ProbeFailed, UnfitRelease
from edge_agent.updates.decisions import (
    SETBACKS,
    Setback,
    Way,
    activated,
    committed,
    setback_of,
    way_back,
    way_to,
    withdrawn,
)
from edge_agent.updates.releases import REPORTED_PER_SLOT, Need, NotYet, Releases
from edge_agent.updates.state import Release
from models.digest import Digest
from models.errors import DigestMismatch, EngineError, InvalidManifest, UnsafeFile
from models.manifest import AdapterFacts, File, Kind, Manifest
from sync import update
from sync.errors import BlobMissing, LinkDown, StoreFull, UntrustedRelease
from sync.protocol import Assignment, State

TINY, TICKETS = "model/tiny", "adapter/tickets"
TO_PROBED = (State.FETCHING, State.VERIFIED, State.STAGED, State.PROBED)


def digest(name: str, version: int) -> Digest:
    return Digest.of(f"{name} {version}".encode())


BASES = tuple(digest("tiny", version) for version in range(4))


def manifest(name: str, version: int, checked: Iterable[int] = ()) -> Manifest:
    """Of a base, or of an adapter that was ``checked`` against versions of it."""
    against = tuple(BASES[one] for one in checked)
    facts = AdapterFacts(
        base_name="tiny", trained_on=against[0], checked_against=against, rank=8, targets=("attn_q",)
    ) if against else None  # fmt: skip
    weights = File(path="w.gguf", size=1, sha256=digest(name, version), chunks=(digest(name, version),))
    return Manifest(
        kind=Kind.ADAPTER if against else Kind.MODEL,
        name=name,
        version=f"{version}.0.0",
        format="gguf",
        precision="q8_0",
        files=(weights,),
        adapter=facts,
        license="Apache-2.0",
    )


def assignment(name: str, version: int) -> Assignment:
    kind = Kind.MODEL if name == "tiny" else Kind.ADAPTER
    target = f"releases/{name}-{version}"
    return Assignment(
        kind=kind, name=name, version=f"{version}.0.0", release=digest(name, version), target_path=target
    )


def underway(state: State, now: float = 1.0) -> update.Progress:
    """A base on its way, as far as ``state``."""
    progress = update.offer(assignment("tiny", 1), now)
    for step in TO_PROBED:
        if progress.state is not state:
            progress = update.advance(progress, step, now)
    return progress


def probed(name: str, version: int, now: float, checked: Iterable[int] = ()) -> Release:
    """A release that is about to become active."""
    progress = update.offer(assignment(name, version), now)
    for state in TO_PROBED:
        progress = update.advance(progress, state, now)
    return Release(progress, manifest(name, version, checked))


def serving(
    *versions: int, name: str = "tiny", now: float = 0.0, releases: Releases = Releases()
) -> Releases:
    """Releases of which each was activated over the one before, and all but the last committed."""
    for version in versions:
        now += 1
        before = releases.current(f"model/{name}")
        if before is not None and before.progress.state is State.ACTIVE:
            fallback = releases.before(before)
            assert fallback is not None
            releases = releases.with_changed(*committed(before, fallback, now))
        releases = releases.with_changed(*activated(probed(name, version, now), None, releases, now))
    return releases


def states(releases: Releases, slot: str = TINY) -> dict[str, State]:
    return {one.progress.assignment.version: one.progress.state for one in releases.in_slot(slot)}


class Walk:
    """A device that does what is decided, as a fleet and its people want it."""

    def __init__(self) -> None:
        self.releases = Releases()
        self.now = 0.0

    def change(self, rows: Iterable[Release]) -> None:
        changed = list(rows)
        assert len({row.digest for row in changed}) == len(changed)  # they are stored in one transaction
        self.releases = self.releases.with_changed(*changed)

    def want(self, name: str, version: int, gets_on: bool, checked: Iterable[int]) -> None:
        way, release = way_to(assignment(name, version), self.releases, paused=False, now=self.now)
        if release is not self.releases.get(release.digest):
            self.change([release])
        slot, known = release.progress.slot, release.manifest or manifest(name, version, checked)
        current = self.releases.current(slot)
        if way is Way.THERE:
            assert current is release
        elif way is Way.BACK:
            assert current is not None and self.releases.before(current) == release
            self.leave(slot, hold=False)
            assert self.releases.current(slot) == self.releases.get(release.digest)
        elif way is Way.ON:
            self.go_on(replace(release, manifest=known), gets_on)
        else:
            assert not update.may_retry(release.progress)

    def go_on(self, release: Release, gets_on: bool) -> None:
        progress = release.progress
        try:
            base = self.releases.base_for(release.manifest, ()).digest if release.manifest.adapter else None
        except (NotYet, UnfitRelease):
            return
        for state in TO_PROBED[progress.state is State.FETCHING :]:
            progress = update.advance(progress, state, self.now)
        if not gets_on:
            self.change([replace(release, progress=update.roll_back(progress, "why", False, self.now))])
            return
        self.change(activated(replace(release, progress=progress), base, self.releases, self.now))
        assert self.releases.current(progress.slot).digest == release.digest

    def commit(self, slot: str) -> None:
        for release in self.releases.in_slot(slot):
            if release.progress.state is State.ACTIVE:
                before = self.releases.before(release)
                assert before is not None
                self.change(committed(release, before, self.now))

    def leave(self, slot: str, hold: bool) -> None:
        current = self.releases.current(slot)
        if current is None:
            return
        way = way_back(current, "why", self.releases, hold=hold, now=self.now)
        self.change(way.changes)
        there_now = self.releases.current(slot)
        assert (there_now.digest if there_now else None) == (way.before.digest if way.before else None)
        for rider in way.riders:
            assert self.releases.rows[rider.digest].base == way.before.digest

    def withdraw(self, slot: str) -> None:
        in_slot = self.releases.in_slot(slot)
        self.change([withdrawn(one, self.now) for one in in_slot if one.progress.state in update.SERVING])
        assert self.releases.current(slot) is None


slots = st.sampled_from([TINY, TICKETS])
wants = st.tuples(
    st.just("want"), st.sampled_from(["tiny", "tickets"]), st.integers(0, 3), st.booleans(),
    st.sets(st.integers(0, 3), min_size=1).map(sorted),
)  # fmt: skip
steps = st.one_of(
    wants,
    wants,
    st.tuples(st.just("commit"), slots),
    st.tuples(st.just("leave"), slots, st.booleans()),
    st.tuples(st.just("withdraw"), slots),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, min_size=12, max_size=40))
def test_on_no_way_is_a_slot_in_two_minds_or_without_a_way_back(path: list[tuple]) -> None:
    walk = Walk()
    for what, *arguments in path:
        walk.now += 1
        if what == "want":
            name, version, gets_on, checked = arguments
            walk.want(name, version, gets_on, checked if name == "tickets" else ())
        else:
            getattr(walk, what)(*arguments)
        releases = walk.releases
        for slot in (TINY, TICKETS):
            found = list(states(releases, slot).values())
            assert found.count(State.ACTIVE) <= found.count(State.COMMITTED) <= 1
        for one in releases.in_states(update.SERVING):
            assert one.manifest is not None
            assert (one.base is None) is (one.manifest.adapter is None)
            if one.manifest.adapter is not None:
                assert one.base in one.manifest.adapter.checked_against
                assert one.base in releases.rows
            assert Need(one.base or one.digest, one.digest if one.base else None) in releases.needs()
        kept = {one.digest for one in releases.kept(())}
        assert {need.base for need in releases.needs()} <= kept
        assert {one.digest for one in releases.in_states(update.SERVING | update.UNDERWAY)} <= kept


# The way to a release


def test_what_was_never_here_is_offered_and_what_serves_is_there() -> None:
    way, release = way_to(assignment("tiny", 1), Releases(), paused=False, now=5.0)
    assert (way, release.progress.state, release.progress.at) == (Way.ON, State.OFFERED, {State.OFFERED: 5.0})
    releases = serving(1, 2)
    assert states(releases) == {"1.0.0": State.COMMITTED, "2.0.0": State.ACTIVE}
    assert way_to(assignment("tiny", 2), releases, paused=True, now=9.0)[0] is Way.THERE
    assert way_to(assignment("tiny", 1), releases, paused=True, now=9.0)[0] is Way.BACK


@pytest.mark.parametrize("paused", [True, False])
def test_what_was_given_up_is_tried_again_after_its_pause_and_what_is_held_is_not(paused: bool) -> None:
    tried = probed("tiny", 1, 1.0)
    for hold, way in ((False, Way.WAIT if paused else Way.ON), (True, Way.WAIT)):
        given_up = replace(tried, progress=update.roll_back(tried.progress, "why", hold, 2.0))
        found = way_to(assignment("tiny", 1), Releases({tried.digest: given_up}), paused=paused, now=3.0)
        assert found[0] is way
        assert found[1].progress.state is (State.OFFERED if way is Way.ON else State.ROLLED_BACK)


@pytest.mark.parametrize("state", sorted(update.UNDERWAY))
def test_what_was_cut_off_starts_over_but_need_not_be_offered_twice(state: State) -> None:
    progress = underway(state)
    releases = Releases({progress.assignment.release: Release(progress)})
    way, release = way_to(assignment("tiny", 1), releases, paused=False, now=2.0)
    assert way is Way.ON
    untouched = state in (State.OFFERED, State.FETCHING)
    assert release.progress.state is (state if untouched else State.OFFERED)
    assert release.progress.attempts == progress.attempts


def test_what_used_up_its_attempts_waits() -> None:
    release = probed("tiny", 1, 1.0)
    release = replace(release, progress=replace(release.progress, attempts=update.MAX_ATTEMPTS))
    way, found = way_to(assignment("tiny", 1), Releases({release.digest: release}), paused=False, now=2.0)
    assert (way, found.progress.state) == (Way.WAIT, State.ROLLED_BACK)
    assert "3 times" in (found.progress.reason or "")


# Failures


@pytest.mark.parametrize(
    ("error", "setback"),
    [
        (NotYet("waits for a base"), Setback.STALLED),
        (LinkDown("cut"), Setback.STALLED),
        (BlobMissing(digest("tiny", 1)), Setback.STALLED),
        (StoreFull("no disk"), Setback.STALLED),
        (UntrustedRelease("expired"), Setback.STALLED),
        (DigestMismatch("other bytes"), Setback.STALLED),
        (EngineError("killed by signal 9"), Setback.GIVEN_UP),
        (NoRoom("needs 600 MB of 500 MB"), Setback.GIVEN_UP),
        (UnfitRelease("made for sm_80"), Setback.HELD),
        (ProbeFailed("similarity 0.1"), Setback.HELD),
        (UnsafeFile("cut off"), Setback.HELD),
        (InvalidManifest("name"), Setback.HELD),
    ],
)
def test_what_a_failure_means(error: Exception, setback: Setback) -> None:
    assert isinstance(error, SETBACKS)
    found, reason = setback_of(error)
    assert found is setback
    assert reason == (str(error) if isinstance(error, NotYet) else f"{type(error).__name__}: {error}")


# Becoming active, being left


def test_the_first_release_of_a_slot_is_committed_at_once_and_a_third_leaves_one_way_back() -> None:
    assert states(serving(1)) == {"1.0.0": State.COMMITTED}
    releases = serving(1, 2)
    releases = releases.with_changed(*activated(probed("tiny", 3, 9.0), None, releases, 9.0))
    assert states(releases) == {"1.0.0": State.COMMITTED, "2.0.0": State.SUPERSEDED, "3.0.0": State.ACTIVE}
    current = releases.current(TINY)
    assert current is not None
    assert releases.before(current) == releases.get(BASES[1])


def with_adapter(releases: Releases, base: int, checked: Iterable[int]) -> Releases:
    adapter = probed("tickets", 1, 50.0, checked)
    return releases.with_changed(*activated(adapter, BASES[base], releases, 50.0))


def test_an_adapter_moves_with_its_base_where_it_was_checked_and_stays_where_it_was_not() -> None:
    both = with_adapter(serving(1), 1, (1, 2))
    both = both.with_changed(*activated(probed("tiny", 2, 60.0), None, both, 60.0))
    rider = both.get(digest("tickets", 1))
    assert rider is not None and rider.base == BASES[2]
    new = both.get(BASES[2])
    assert new is not None
    way = way_back(new, "probation: slow", both, hold=True, now=70.0)
    assert [one.digest for one in way.riders] == [rider.digest]
    left, before, moved = way.changes
    assert (left.progress.state, left.progress.hold) == (State.ROLLED_BACK, True)
    assert (before.digest, moved.base) == (BASES[1], BASES[1])

    alone = with_adapter(serving(1), 1, (1,))
    alone = alone.with_changed(*activated(probed("tiny", 2, 60.0), None, alone, 60.0))
    stayed = alone.get(digest("tickets", 1))
    assert stayed is not None and stayed.base == BASES[1]
    assert Need(BASES[1], stayed.digest) in alone.needs()

    later = with_adapter(serving(1, 2), 2, (2,))
    (new,) = later.in_states({State.ACTIVE})
    way = way_back(new, "probation: slow", later, hold=True, now=70.0)
    assert way.riders == ()
    assert Need(BASES[2], digest("tickets", 1)) in later.with_changed(*way.changes).needs()


def test_without_a_release_before_there_is_nothing_to_go_back_to() -> None:
    releases = serving(1)
    (only,) = releases
    way = way_back(only, "rolled back at the device", releases, hold=True, now=9.0)
    assert (way.before, way.riders, [one.progress.state for one in way.changes]) == (
        None,
        (),
        [State.ROLLED_BACK],
    )


def test_what_was_superseded_serves_again_when_its_successor_is_left() -> None:
    releases = serving(1, 2)
    (new,) = releases.in_states({State.ACTIVE})
    (old,) = releases.in_states({State.COMMITTED})
    releases = releases.with_changed(*committed(new, old, 8.0))
    assert states(releases) == {"1.0.0": State.SUPERSEDED, "2.0.0": State.COMMITTED}
    (new,) = releases.in_states({State.COMMITTED})
    way = way_back(new, "rolled back at the device", releases, hold=True, now=9.0)
    assert states(releases.with_changed(*way.changes)) == {
        "1.0.0": State.COMMITTED,
        "2.0.0": State.ROLLED_BACK,
    }


def test_what_is_withdrawn_says_so_and_may_come_again() -> None:
    releases = serving(1)
    (only,) = releases
    gone = withdrawn(only, 9.0)
    assert (gone.progress.state, gone.progress.reason) == (State.SUPERSEDED, "withdrawn by the hub")
    way, _ = way_to(assignment("tiny", 1), releases.with_changed(gone), paused=False, now=10.0)
    assert way is Way.ON


# The base of an adapter


def test_an_adapter_waits_for_a_base_that_is_to_come_and_is_refused_for_any_other() -> None:
    adapter = manifest("tickets", 1, (2,))
    with pytest.raises(NotYet, match="waits for a base tiny"):
        Releases().base_for(adapter, ())
    with pytest.raises(NotYet):
        serving(1).base_for(adapter, {BASES[2]})
    with pytest.raises(UnfitRelease, match=r"tickets 1\.0\.0 was not checked against tiny 1\.0\.0"):
        serving(1).base_for(adapter, ())
    assert serving(2).base_for(adapter, ()).digest == BASES[2]
    with pytest.raises(UnfitRelease, match="no adapter"):
        serving(1).base_for(manifest("tiny", 1), ())


# What stays, what is told


def test_files_stay_of_what_serves_of_what_it_falls_back_to_and_of_what_is_tried_again() -> None:
    releases = serving(0, 1, 2)  # 0 superseded, 1 committed, 2 on probation
    given_up = probed("tiny", 3, 20.0)
    given_up = replace(given_up, progress=update.roll_back(given_up.progress, "crashed", False, 21.0))
    releases = releases.with_changed(given_up)

    def kept(*wanted: Digest) -> set[Digest]:
        return {one.digest for one in releases.kept(wanted)}

    assert kept() == {BASES[0], BASES[1], BASES[2]}
    assert kept(BASES[3]) == set(BASES)


def versions(releases: Releases) -> Iterator[str]:
    return (report.version for report in releases.report())


@given(st.integers(0, 2 * REPORTED_PER_SLOT))
def test_a_report_holds_what_serves_however_often_something_else_was_tried_since(tries: int) -> None:
    releases = serving(1, 2)
    for number in range(tries):
        tried = probed("tiny", 10 + number, 100.0 + number)
        tried = replace(tried, progress=update.roll_back(tried.progress, "bad", True, 100.5 + number))
        releases = releases.with_changed(tried)
    reported = list(versions(releases))
    assert reported[-2:] == ["2.0.0", "1.0.0"]
    latest = [f"{10 + number}.0.0" for number in reversed(range(tries))]
    assert reported[:-2] == latest[: REPORTED_PER_SLOT - 2]


def test_bases_are_told_before_adapters() -> None:
    releases = with_adapter(serving(1), 1, (1,))
    assert releases.slots() == [TINY, TICKETS]
    assert [report.name for report in releases.report()] == ["tiny", "tickets"]
