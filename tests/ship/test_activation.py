"""Activation end to end: real signatures, TUF, transfer, SQLite and catalog; only the engine is a fake."""

import asyncio
import os
import shutil
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from ship_world import Device, World

from edge_agent.updates.state import ReleaseTable
from sync.errors import BadSignature, StaleDesired
from sync.protocol import ProbationTerms
from sync.signing import sign
from sync.transfer import RESERVE

TERMS = ProbationTerms(min_requests=6, max_seconds=600)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "hub")


@pytest.fixture
def base(world):
    return world.release("tiny", "1.0.0", {"says": "base one"}, expected="base one")


def ticket_adapter(world, version, base, says, **more):
    return world.release("tickets", version, {"says": says}, base=(base.release,), expected=says, **more)


@asynccontextmanager
async def device_of(world, home: Path, **more):
    device = Device(world, home, **more)
    try:
        await device.activator.resume()
        yield device
    finally:
        await device.close()


async def test_base_and_adapter_are_fetched_verified_probed_and_served(world, base, tmp_path):
    adapter = ticket_adapter(world, "1.0.0", base, "ticket one")
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(adapter, base))
        await device.activator.step()
        assert await device.ask("tiny") == "base one"
        assert await device.ask("tiny:tickets") == "ticket one"
        assert device.where() == {"tiny 1.0.0": "committed", "tickets 1.0.0": "committed"}
        assert device.activator.desired_version == 1


async def test_a_restart_without_link_serves_what_served(world, base, tmp_path):
    adapter = ticket_adapter(world, "1.0.0", base, "ticket one")
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(base, adapter))
        await device.activator.step()
    async with device_of(world, tmp_path / "d") as device:
        device.fetcher.down = True
        device.clock += 10 * 365 * 86_400  # every signature has expired
        await device.activator.step()
        assert await device.ask("tiny:tickets") == "ticket one"
        with pytest.raises(StaleDesired):
            world.version = 0
            await device.activator.desire(world.desire(base))


async def test_what_the_probes_took_is_reported_and_outlives_a_restart(world, base, tmp_path):
    adapter = ticket_adapter(world, "1.0.0", base, "ticket one")
    silent = world.release("other", "1.0.0", {"says": "nobody asked"})
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(base, adapter, silent))
        await device.activator.step()
        told = {report.name: report.figures for report in device.activator.report()}
    assert told["tiny"].load_seconds > 0 and told["tiny"].peak_ram_bytes == 5_000_000
    assert told["tiny"].decode_per_second > 0 and told["tiny"].prefill_per_second > 0
    assert told["tickets"].decode_per_second > 0 and told["tickets"].load_seconds is None  # it was attached
    assert told["other"].load_seconds > 0 and told["other"].decode_per_second is None  # it has no probes
    async with device_of(world, tmp_path / "d") as device:
        assert {report.name: report.figures for report in device.activator.report()} == told


async def test_what_does_not_fit_is_refused_with_numbers_before_it_is_fetched(world, base, tmp_path):
    strange = world.release("tiny", "1.1.0", {"says": "for others"}, profiles=("sm_80", "jetson-thor"))
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(base))
        await device.activator.step()
        device.source.reads.clear()
        await device.activator.desire(world.desire(strange))
        await device.activator.step()
        assert device.source.reads == []
        assert device.why("tiny 1.1.0") == (
            "UnfitRelease: tiny 1.1.0 is made for sm_80, jetson-thor; this device is x86-64-avx2 with 4.0 GB "
            "of memory"
        )
        assert await device.ask("tiny") == "base one"
        assert device.where() == {"tiny 1.0.0": "committed", "tiny 1.1.0": "rolled_back"}


async def test_an_adapter_is_swapped_without_loading_the_base_again(world, base, tmp_path):
    first = ticket_adapter(world, "1.0.0", base, "ticket one")
    second = ticket_adapter(world, "2.0.0", base, "ticket two")
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(base, first))
        await device.activator.step()
        with device.catalog.lease("tiny:tickets") as old:
            await device.activator.desire(world.desire(base, second, terms=TERMS))
            await device.activator.step()
            assert await device.ask("tiny:tickets") == "ticket two"
            assert old.adapter_key in device.activator.engines[base.release]._files  # still finishing
        assert device.where()["tickets 2.0.0"] == "active"
        for _ in range(TERMS.min_requests):
            await device.ask("tiny:tickets")
        await device.activator.step()
        assert device.where()["tickets 2.0.0"] == "committed"
        assert device.where()["tickets 1.0.0"] == "superseded"
        assert old.adapter_key not in device.activator.engines[base.release]._files
        assert device.loads == 1


async def test_failed_probes_refuse_a_release_and_hold(world, base, tmp_path):
    good = ticket_adapter(world, "1.0.0", base, "ticket one")
    bad = world.release(
        "tickets", "2.0.0", {"says": "gibberish"}, base=(base.release,), expected="ticket two"
    )
    notes: list[str] = []
    async with device_of(world, tmp_path / "d", note=notes.append) as device:
        await device.activator.desire(world.desire(base, good))
        await device.activator.step()
        for _ in range(3):
            await device.activator.desire(world.desire(base, bad))
            await device.activator.step()
        notes.clear()
        await device.activator.step()
        assert notes == []  # nothing is stored or reported again
        assert await device.ask("tiny:tickets") == "ticket one"
        assert device.where()["tickets 2.0.0"] == "rolled_back"
        assert "probe 1 of 1" in device.why("tickets 2.0.0")
        (report,) = [r for r in device.activator.report() if r.version == "2.0.0"]
        assert report.attempts == 1


@pytest.mark.parametrize(("says", "reason"), [("!error", "failed"), ("no json", "broke the output schema")])
async def test_a_release_that_degrades_in_probation_is_rolled_back(world, base, tmp_path, says, reason):
    schema = {"type": "object"}
    good = ticket_adapter(world, "1.0.0", base, '{"a":1}', output_schema=schema)
    bad = world.release("tickets", "2.0.0", {"says": says}, base=(base.release,), output_schema=schema)
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(base, good))
        await device.activator.step()
        for _ in range(20):
            await device.ask("tiny:tickets")
        await device.activator.desire(world.desire(base, bad, terms=TERMS))
        await device.activator.step()
        for _ in range(6):
            await device.ask("tiny:tickets")
            await device.activator.step()
        assert await device.ask("tiny:tickets") == '{"a":1}'
        assert device.where()["tickets 2.0.0"] == "rolled_back"
        assert reason in device.why("tickets 2.0.0")
        await device.activator.desire(world.desire(base, bad, terms=TERMS))
        await device.activator.step()
        assert device.where()["tickets 2.0.0"] == "rolled_back"  # it holds


async def test_a_release_that_only_fails_is_rolled_back_though_nothing_was_asked_before(
    world, base, tmp_path
):
    bad = world.release("tiny", "2.0.0", {"says": "!error"})
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(base))
        await device.activator.step()
        await device.activator.desire(world.desire(bad, terms=TERMS))
        await device.activator.step()
        for _ in range(7):
            assert await device.ask("tiny") == "!error"
            await device.activator.step()
        assert device.where()["tiny 2.0.0"] == "rolled_back"
        assert await device.ask("tiny") == "base one"


@pytest.mark.parametrize("activates", [True, False])
async def test_a_power_cut_does_not_forget_how_what_serves_has_answered(world, base, tmp_path, activates):
    second = world.release("tiny", "2.0.0", {"says": "base two"})
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(base))
        await device.activator.step()
        for _ in range(3):
            await device.ask("tiny")
        if activates:
            await device.activator.desire(world.desire(second))
        else:
            device.clock += 61
        await device.activator.step()
        rows = {row.digest: row for row in await ReleaseTable(device.database).all()}  # as a start finds them
        assert rows[base.release].window.requests == 3


async def test_what_memory_has_no_room_for_beside_what_serves_is_not_loaded(world, base, tmp_path):
    second = world.release("tiny", "2.0.0", {"says": "base two"}, expected="base two")
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(base))
        await device.activator.step()
        device.free = 10
        await device.activator.desire(world.desire(second))
        await device.activator.step()
        reason = device.why("tiny 2.0.0")
        assert "no memory to load tiny 2.0.0 beside what runs: it needs about 0 MB, 0 MB are free" in reason
        assert (device.loads, await device.ask("tiny")) == (1, "base one")


async def test_an_engine_that_crashes_while_staging_is_tried_three_times(world, base, tmp_path):
    broken = world.release("tiny", "2.0.0", {"crash": True})
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(base))
        await device.activator.step()
        for _ in range(6):
            await device.activator.desire(world.desire(broken))
            await device.activator.step()
            device.clock += 3600
        assert device.loads == 1 + 3
        assert await device.ask("tiny") == "base one"
        (report,) = [r for r in device.activator.report() if r.version == "2.0.0"]
        assert (report.state, report.attempts) == ("rolled_back", 3)


async def test_a_new_base_takes_the_adapters_that_were_checked_against_it(world, base, tmp_path):
    second = world.release("tiny", "2.0.0", {"says": "base two"})
    both = world.release("tickets", "1.0.0", {"says": "t"}, base=(base.release, second.release), expected="t")
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(base, both))
        await device.activator.step()
        await device.activator.desire(world.desire(second, both, terms=TERMS))
        await device.activator.step()
        assert device.catalog.resolve("tiny:tickets").release == second.release
        await device.activator.roll_back("model/tiny")
        await device.activator.step()
        assert device.catalog.resolve("tiny:tickets").release == base.release
        assert await device.ask("tiny:tickets") == "t"
        assert set(device.activator.engines) == {base.release}
        await device.activator.release_hold("model/tiny")
        await device.activator.step()
        assert device.where()["tiny 2.0.0"] == "active"


async def test_an_adapter_that_is_committed_while_its_base_is_left_rides_on_the_base_before(
    world, base, tmp_path
):
    new_base = world.release("tiny", "2.0.0", {"says": "!"})
    both = (base.release, new_base.release)
    old = world.release("tickets", "1.0.0", {"says": "ticket one"}, base=both)
    new = world.release("tickets", "2.0.0", {"says": "ticket two"}, base=both)
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(base, old))
        await device.activator.step()
        for _ in range(4 * TERMS.min_requests):
            await device.ask("tiny")
            await device.ask("tiny:tickets")
        await device.activator.desire(world.desire(new_base, new, terms=TERMS))
        await device.activator.step()
        for _ in range(TERMS.min_requests):
            await device.ask("tiny")
            await device.ask("tiny:tickets")
        await device.activator.step()
        assert device.where()["tiny 2.0.0"] == "rolled_back"
        assert device.where()["tickets 2.0.0"] == "committed"
        await device.activator.step()
        assert await device.ask("tiny:tickets") == "ticket two"
        assert list(device.activator.engines) == [base.release]


async def test_an_adapter_for_another_base_is_refused(world, base, tmp_path):
    other = world.release("tiny", "0.9.0", {"says": "an older base"})
    adapter = ticket_adapter(world, "1.0.0", other, "ticket one")
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(base, adapter))
        await device.activator.step()
        assert device.where() == {"tiny 1.0.0": "committed", "tickets 1.0.0": "rolled_back"}
        assert "not checked against tiny 1.0.0" in device.why("tickets 1.0.0")


async def test_either_key_alone_moves_nothing(world, base, tmp_path):
    async with device_of(world, tmp_path / "d") as device:
        stolen = World(tmp_path / "thief")
        with pytest.raises(BadSignature):
            await device.activator.desire(stolen.desire(base))
        unsigned = stolen.release("tiny", "6.6.6", {"says": "evil"})
        await device.activator.desire(world.desire(unsigned))
        await device.activator.step()
        assert "UntrustedRelease" in device.why("tiny 6.6.6")
        assert device.catalog.list() == ()
        with pytest.raises(StaleDesired):
            other = world.desire(base)
            await device.activator.desire(other)
            world.version -= 1
            await device.activator.desire(world.desire())
        payload = b'{"device":"press-4"}'
        with pytest.raises(BadSignature):
            await device.activator.desire(sign(world.director, "reported", payload))


async def test_a_cut_link_stalls_and_goes_on_where_it_was(world, base, tmp_path):
    big = world.release("tiny", "2.0.0", {"says": "big"}, padding=3 << 20)
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(base))
        await device.activator.step()
        device.source.cuts = [len(device.source.reads) + 12]
        await device.activator.desire(world.desire(big))
        await device.activator.step()
        assert device.where()["tiny 2.0.0"] == "fetching"
        assert "LinkDown" in device.why("tiny 2.0.0")
        before = len(device.source.reads)
        device.clock += 20
        await device.activator.step()
        assert await device.ask("tiny") == "big"
        assert device.source.reads[before][0] == 1 << 20  # the first chunk was not asked for again


async def test_a_newer_desire_ends_a_fetch_that_is_underway(world, base, tmp_path):
    big = world.release("tiny", "2.0.0", {"says": "big"}, padding=3 << 20)
    async with device_of(world, tmp_path / "d") as device:
        later = world.desire(big), world.desire(base)
        read = device.source.read

        async def read_while_the_hub_changes_its_mind(digest, offset, length):
            if offset == 1 << 20:
                await device.activator.desire(later[1])
            return await read(digest, offset, length)

        device.source.read = read_while_the_hub_changes_its_mind
        await device.activator.desire(later[0])
        await device.activator.step()
        assert max(offset for offset, _ in device.source.reads) == 1 << 20
        await device.activator.step()
        assert await device.ask("tiny") == "base one"
        assert device.where()["tiny 2.0.0"] == "rolled_back"
        assert device.why("tiny 2.0.0") == "another release is wanted"


async def test_a_release_that_does_not_fit_the_disk_stalls_and_writes_nothing(world, base, tmp_path):
    big = world.release("tiny", "2.0.0", {"says": "big"}, padding=3 << 20)
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(base))
        await device.activator.step()
        device.disk, reads = RESERVE + (3 << 20), len(device.source.reads)
        await device.activator.desire(world.desire(big))
        await device.activator.step()
        assert device.where()["tiny 2.0.0"] == "fetching"
        assert "the disk has 259 MiB" in device.why("tiny 2.0.0")
        assert len(device.source.reads) == reads
        assert await device.ask("tiny") == "base one"
        device.disk, device.clock = 1 << 40, device.clock + 20
        await device.activator.step()
        assert await device.ask("tiny") == "big"


async def test_files_that_nothing_would_load_are_deleted_and_fetched_again_when_wanted(world, base, tmp_path):
    releases = [base] + [world.release("tiny", f"{n}.0.0", {"says": f"base {n}"}) for n in (2, 3)]
    terms = ProbationTerms(min_requests=1)
    async with device_of(world, tmp_path / "d") as device:

        async def stored() -> list[bool]:
            await device.activator.step()
            device.clock += 60
            return [device.store.has(one.manifest.files[0].sha256) for one in releases]

        async def activate(release) -> list[bool]:
            await device.activator.desire(world.desire(release, terms=terms))
            return await stored()

        async def commit() -> list[bool]:
            await device.ask("tiny")
            return await stored()

        assert await activate(releases[0]) == [True, False, False]
        assert await activate(releases[1]) == await commit() == [True, True, False]
        assert await activate(releases[2]) == [True, True, True]  # what may be gone back to has one, too
        assert await commit() == [False, True, True]
        assert await activate(releases[0]) == [True, True, True]
        assert await commit() == [True, False, True]
        assert await device.ask("tiny") == "base one"


async def test_what_arrived_of_a_release_that_was_given_up_is_deleted(world, base, tmp_path):
    big = world.release("tiny", "2.0.0", {"says": "big"}, padding=3 << 20)
    async with device_of(world, tmp_path / "d") as device:
        partial = device.store.partial(big.manifest.files[0].sha256)
        await device.activator.desire(world.desire(base))
        await device.activator.step()
        device.source.cuts = [len(device.source.reads) + 12]
        await device.activator.desire(world.desire(big))
        await device.activator.step()
        assert partial.exists()
        await device.activator.desire(world.desire(base))
        await device.activator.step()
        assert not partial.exists()


async def test_what_the_director_no_longer_wants_is_withdrawn(world, base, tmp_path):
    async with device_of(world, tmp_path / "d") as device:
        await device.activator.desire(world.desire(base))
        await device.activator.step()
        await device.activator.desire(world.desire())
        await device.activator.step()
        assert device.catalog.list() == ()
        assert device.activator.engines == {}


async def test_run_follows_desires_until_cancelled(world, base, tmp_path):
    served = asyncio.Event()
    async with device_of(world, tmp_path / "d", note=lambda what: served.set()) as device:
        running = asyncio.create_task(device.activator.run())
        await device.activator.desire(world.desire(base))
        async with asyncio.timeout(5):
            while not device.catalog.list():
                await served.wait()
                served.clear()
        running.cancel()


def test_kill_9_anywhere_in_an_activation_leaves_old_or_new(world, base, tmp_path):
    """A child is killed at the Nth thing that it does while v2 replaces v1, for every N there is."""
    first = ticket_adapter(world, "1.0.0", base, "ticket one")
    second = ticket_adapter(world, "2.0.0", base, "ticket two")
    wanted_first, wanted_second = world.desire(base, first), world.desire(base, second)

    async def settle_on_first(home: Path) -> None:
        async with device_of(world, home) as device:
            await device.activator.desire(wanted_first)
            await device.activator.step()

    async def replace_until_killed(home: Path, at: int) -> None:
        count = 0

        def note(what: str) -> None:
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

        device = Device(world, home, note=note)
        await device.activator.resume()
        await device.activator.desire(wanted_second)
        await device.activator.step()

    async def answers_after_restart(home: Path) -> tuple[str, str]:
        """Without a link, and with one."""
        async with device_of(world, home) as device:
            offline = await device.ask("tiny:tickets")
            await device.activator.desire(wanted_second)
            await device.activator.step()
            return offline, await device.ask("tiny:tickets")

    asyncio.run(settle_on_first(tmp_path / "settled"))
    answers = []
    for at in range(1, 200):
        home = shutil.copytree(tmp_path / "settled", tmp_path / f"killed-{at}")
        pid = os.fork()
        if pid == 0:
            failed = 1
            try:
                asyncio.run(replace_until_killed(home, at))
                failed = 0
            finally:
                os._exit(failed)
        _, status = os.waitpid(pid, 0)
        offline, online = asyncio.run(answers_after_restart(home))
        answers.append(offline)
        assert online == "ticket two"
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break
    assert answers == sorted(answers)  # old up to some point, new from there on, never neither
    assert set(answers) == {"ticket one", "ticket two"}
    assert len(answers) > 8
