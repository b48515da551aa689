"""The trail from a call to an auditor's eyes: durable, sealed, receipted, erasable."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sync import signing, verify
from sync.audit import Frontier, check_segment, erased_keys
from sync.database import Database
from sync.errors import AuditBroken, InvalidMessage, StoreFull
from sync.protocol import MAX_PAYLOAD, AuditSegment, IngestReceipt
from sync.trail import MIGRATIONS, Trail, TrailIdentity

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
AUDITOR = X25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
KEYS = {"dev-a": {1: KEY.public_key()}}


def open_trail(folder: Path, clock=lambda: 1_795_000_000.0):
    database = Database.open(folder / "trail.db", MIGRATIONS)
    identity = TrailIdentity("dev-a", KEY, AUDITOR.public_key())
    return Trail(database, identity, now=clock, random_bytes=os.urandom), database


class HubOnPaper:
    """What a hub does with segments: believe, keep, acknowledge."""

    def __init__(self):
        self.tree, self.lines, self.ring, self.wire = Frontier(), [verify.header_line("dev-a", 1)], {}, b""

    def ingest(self, segment: AuditSegment) -> IngestReceipt:
        payload = signing.sign(KEY, "audit-segment", segment.to_bytes())
        assert len(payload) <= MAX_PAYLOAD
        self.wire += segment.to_bytes()
        self.tree, leaves = check_segment(segment, self.tree, KEY.public_key())
        self.lines += [verify.record_line(record) for record in segment.records]
        self.lines.append(verify.checkpoint_line(segment.checkpoint))
        self.ring |= {entry["key_id"]: entry["sealed"] for entry in segment.ring}
        for leaf in leaves:
            for key_id in erased_keys(leaf) if leaf else ():
                self.ring.pop(key_id, None)
        return IngestReceipt(device="dev-a", epoch=1, size=self.tree.size, root=self.tree.root.hex(), at=2.0)

    async def drain(self, trail: Trail, **limit) -> int:
        segments = 0
        while segment := await trail.next_segment(**limit):
            await trail.acknowledge(self.ingest(segment))
            segments += 1
        return segments

    def export(self, path: Path) -> Path:
        path.write_bytes(b"".join(self.lines))
        return path


async def call(trail, number, data_class="internal", subject="anna", body=None):
    body = body or f"the ticket of call {number}".encode()
    for kind in ("intent", "result"):
        last = await trail.append(kind, f"req-{number}", data_class, subject, {"model": "base"}, body)
    return last


async def test_from_calls_to_an_auditor_who_trusts_nobody(tmp_path):
    trail, database = open_trail(tmp_path)
    await asyncio.gather(*(call(trail, n) for n in range(20)))
    await call(trail, 20, "restricted", body=b"canary of a restricted call")
    await call(trail, 21, body=b"long " * 60_000)
    assert (await trail.report()).model_dump() == {"epoch": 1, "size": 44, "acknowledged": 0}
    hub = HubOnPaper()
    assert await hub.drain(trail) >= 1
    assert (await trail.report()).acknowledged == 44
    assert b"canary" not in hub.wire
    assert b"ticket" not in hub.wire

    path = hub.export(tmp_path / "trail.jsonl")
    facts = verify.verify_file(path, KEYS)
    assert (facts.records, facts.withheld, facts.root) == (44, 2, hub.tree.root.hex())
    opened = list(verify.open_trail(path, KEYS, hub.ring, AUDITOR))
    bodies = [record.body for record in opened if record.body]
    assert sorted(set(bodies)) == sorted(f"the ticket of call {n}".encode() for n in range(20))
    assert [record.why for record in opened if not record.body] == ["kept on the device"] * 2
    with pytest.raises(AuditBroken, match="this auditor's key"):
        list(verify.open_trail(path, KEYS, hub.ring, X25519PrivateKey.generate()))
    left = await database.read(lambda c: c.execute("SELECT pushed FROM trail_records").fetchall())
    assert sorted(left) == [(1,), (1,), (2,), (2,)]  # what stays is only what never left
    await database.close()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 9000), min_size=1, max_size=12), st.integers(0, 20_000))
async def test_segments_of_any_size_carry_everything_once_and_keep_their_limit(
    tmp_path_factory, sizes, limit
):
    trail, database = open_trail(tmp_path_factory.mktemp("t"))
    for number, size in enumerate(sizes):
        await trail.append("intent", f"r{number}", "internal", f"s{number % 3}", {}, b"x" * size)
    hub = HubOnPaper()
    while segment := await trail.next_segment(limit):
        assert len(segment.records) == 1 or len(segment.to_bytes()) <= limit
        assert await trail.next_segment(limit) == segment  # Ed25519 is deterministic
        await trail.acknowledge(hub.ingest(segment))
    assert hub.tree.size == len(sizes)
    await database.close()


async def test_a_receipt_that_lies_deletes_nothing_and_an_old_one_changes_nothing(tmp_path):
    trail, database = open_trail(tmp_path)
    await call(trail, 1)
    segment = await trail.next_segment()
    good = HubOnPaper().ingest(segment)
    for lie in ({"root": "0" * 64}, {"size": 1}, {"size": 5}, {"device": "dev-b"}, {"epoch": 2}):
        with pytest.raises(AuditBroken):
            await trail.acknowledge(good.model_copy(update=lie))
    assert await trail.next_segment() == segment
    await trail.acknowledge(good)
    await trail.acknowledge(good)
    assert await trail.next_segment() is None
    await database.close()


async def test_erasing_a_person_destroys_keys_everywhere_and_every_proof_still_verifies(tmp_path):
    trail, database = open_trail(tmp_path)
    await call(trail, 1, subject="anna")
    await call(trail, 2, subject="ben")
    hub = HubOnPaper()
    await hub.drain(trail)
    sealed = dict(hub.ring)
    assert await trail.erase("anna") == 4
    await call(trail, 3, subject="anna")
    await hub.drain(trail)
    gone = set(sealed) - set(hub.ring)
    assert len(gone) == 1
    files = b"".join(path.read_bytes() for path in tmp_path.glob("trail.db*"))
    for key_id in sealed:
        assert (sealed[key_id].encode() in files) == (key_id not in gone)
    path = hub.export(tmp_path / "trail.jsonl")
    assert verify.verify_file(path, KEYS).erased_keys == gone
    opened = list(verify.open_trail(path, KEYS, hub.ring, AUDITOR))
    assert [record.body is None for record in opened] == [True, True, False, False, True, False, False]
    assert "erased" in opened[0].why
    await database.close()


async def test_a_full_disk_refuses_the_record_and_keeps_the_others(tmp_path):
    trail, database = open_trail(tmp_path)
    await call(trail, 1)
    await database.write(lambda conn: conn.execute("PRAGMA max_page_count = 20").fetchone())
    with pytest.raises(StoreFull):
        await call(trail, 2, body=b"x" * 90_000)
    with pytest.raises(InvalidMessage):
        await trail.append("intent", "r", "internal", "anna", {"huge": "x" * 20_000}, b"")
    assert (await trail.report()).size == 2
    hub = HubOnPaper()
    await hub.drain(trail)
    assert hub.tree.size == 2
    await database.close()


CHILD = """
import asyncio, sys
from pathlib import Path
from test_trail import open_trail

async def main():
    trail, _ = open_trail(Path(sys.argv[1]))
    async def forever(name):
        while True:
            print(await trail.append("intent", name, "internal", "anna", {}, b"x" * 500), flush=True)
    await asyncio.gather(*(forever(f"r{n}") for n in range(8)))
asyncio.run(main())
"""


async def test_unsent_records_survive_kill_nine_and_verify(tmp_path):
    for _ in range(2):
        child = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", CHILD, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{Path.cwd()}:{Path(__file__).parent}"},
        )
        promised = [int(child.stdout.readline()) for _ in range(60)]
        child.send_signal(signal.SIGKILL)
        promised += [int(line) for line in child.stdout.read().splitlines() if line]
        child.wait(10)
    trail, database = open_trail(tmp_path)
    assert (await trail.report()).size > max(promised) >= 100
    hub = HubOnPaper()
    await hub.drain(trail)
    opened = verify.open_trail(hub.export(tmp_path / "t.jsonl"), KEYS, hub.ring, AUDITOR)
    assert {record.body for record in opened} == {b"x" * 500}
    await database.close()
