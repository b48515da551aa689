"""Trail files: the golden one still verifies and opens, and no byte of it can change unseen.

``PYTHONPATH=. python tests/sync/test_verify.py`` writes the golden files anew, after a deliberate change.
"""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_trail import AUDITOR, KEY, KEYS, HubOnPaper, call, open_trail

from sync import verify
from sync.errors import AuditBroken, InvalidMessage
from sync.identity import encode_public

GOLDEN = Path(__file__).parent.parent / "golden" / "audit"
TRAIL, RING = GOLDEN / "trail.jsonl", GOLDEN / "ring.jsonl"


@pytest.fixture(scope="module")
def lines():
    return TRAIL.read_bytes().splitlines(keepends=True)


def test_the_golden_trail_verifies_and_opens():
    facts = verify.verify_file(TRAIL, KEYS)
    assert (facts.device, facts.epoch, facts.records, facts.withheld, facts.checkpoints) == (
        "dev-a",
        1,
        7,
        2,
        2,
    )
    assert len(facts.erased_keys) == 1
    opened = list(verify.open_trail(TRAIL, KEYS, verify.read_ring(RING), AUDITOR))
    assert [record.body for record in opened] == [b"the ticket of call 1"] * 2 + [None] * 3
    assert [record.leaf.kind for record in opened] == ["intent", "result", "intent", "result", "erasure"]


@given(st.data())
def test_no_bit_of_a_trail_file_can_change_unseen(lines, data):
    content = bytearray(b"".join(lines))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(AuditBroken, match=r"record|line"):
        verify.verify_trail(bytes(content).splitlines(keepends=True), KEYS)


@given(st.integers(0, 8), st.integers(0, 8))
@example(8, 8)
def test_lines_cannot_be_dropped_moved_or_cut_off(lines, first, second):
    without = lines[:first] + lines[first + 1 :]
    # A trail that ends at an earlier checkpoint is a whole earlier trail; anything else is broken.
    if without[-1].startswith(b'{"checkpoint"') and first >= len(lines) - 1:
        verify.verify_trail(without, KEYS)
    elif first != 5:  # the checkpoint in the middle: the last one covers its records too
        with pytest.raises(AuditBroken):
            verify.verify_trail(without, KEYS)
    if first != second:
        moved = list(lines)
        moved[first], moved[second] = moved[second], moved[first]
        with pytest.raises(AuditBroken):
            verify.verify_trail(moved, KEYS)


def test_a_changed_record_is_named(lines):
    changed = list(lines)
    changed[2] = changed[2].replace(b"req-1", b"req-9")
    with pytest.raises(AuditBroken, match="record 1/1 of dev-a"):
        verify.verify_trail(changed, KEYS)
    for keys in ({}, {"dev-a": {2: KEY.public_key()}}):
        with pytest.raises(AuditBroken, match="no public key"):
            verify.verify_trail(lines, keys)
    with pytest.raises(AuditBroken, match="no checkpoint"):
        verify.verify_trail(lines[:3], KEYS)
    with pytest.raises(AuditBroken):
        verify.verify_trail([], KEYS)


def test_files_of_keys_are_read_or_refused_by_name(tmp_path):
    path = tmp_path / "keys.json"
    path.write_text(f'{{"dev-a":{{"1":"{encode_public(KEY.public_key())}"}}}}')
    assert verify.read_device_keys(path) == KEYS
    for wrong in ('{"dev-a":"AAAA"}', '{"dev-a":{"1":"AAAA"}}', '{"dev-a":{"one":"AAAA"}}'):
        path.write_text(wrong)
        with pytest.raises(InvalidMessage, match="dev-a"):
            verify.read_device_keys(path)
    with pytest.raises(InvalidMessage, match="line 1"):
        verify.read_ring(path)
    with pytest.raises(InvalidMessage, match="cannot be read"):
        verify.verify_file(tmp_path / "absent", KEYS)
    with pytest.raises(InvalidMessage, match="PEM"):
        verify.read_auditor_key(path)


async def renew(folder: Path) -> None:
    trail, database = open_trail(folder)
    hub = HubOnPaper()
    await call(trail, 1)
    await call(trail, 2, "restricted")
    await hub.drain(trail)
    await call(trail, 3, subject="ben")
    await trail.erase("ben")
    await hub.drain(trail)
    await database.close()
    hub.export(TRAIL)
    RING.write_bytes(b"".join(verify.ring_line(key_id, sealed) for key_id, sealed in hub.ring.items()))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(renew(Path(folder)))
