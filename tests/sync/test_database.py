"""The durable store: group commit, isolation of failures, and survival of kill -9."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sync.database import Database, Migration
from sync.errors import StoreFull, StoreUnusable

CREATE = Migration("create", lambda db: db["t"].create({"id": int, "body": bytes}, pk="id"))


def count(conn):
    return conn.execute("SELECT count(*) FROM t").fetchone()[0]


def insert(number, size=1):
    return lambda conn: conn.execute("INSERT INTO t VALUES (?, zeroblob(?))", (number, size)).lastrowid


async def test_writers_that_arrive_together_all_commit_and_a_failing_one_fails_alone(tmp_path: Path):
    db = Database.open(tmp_path / "a.db", [CREATE])
    jobs = [db.write(insert(n % 90)) for n in range(100)]  # ten of them break the primary key
    results = await asyncio.gather(*jobs, return_exceptions=True)
    assert sum(isinstance(r, StoreUnusable) for r in results) == 10
    assert await db.read(count) == 90

    def half(conn):
        insert(500)(conn)
        raise KeyError("mine")

    with pytest.raises(KeyError):
        await db.write(half)
    assert await db.read(count) == 90
    await db.close()
    with pytest.raises(StoreUnusable, match="closed"):
        await db.write(count)


async def test_a_full_disk_is_named_and_what_was_durable_stays(tmp_path: Path):
    db = Database.open(tmp_path / "a.db", [CREATE])
    await db.write(insert(1))
    await db.write(lambda conn: conn.execute("PRAGMA max_page_count = 10").fetchone())
    results = await asyncio.gather(
        db.write(insert(2)), db.write(insert(3, 1_000_000)), return_exceptions=True
    )
    assert any(isinstance(r, StoreFull) for r in results)
    assert await db.read(count) == 1 + sum(isinstance(r, int) for r in results)
    await db.write(insert(4))  # there is room again for something small
    await db.close()


async def test_reading_cannot_change_anything(tmp_path: Path):
    db = Database.open(tmp_path / "a.db", [CREATE])
    with pytest.raises(StoreUnusable, match="readonly"):
        await db.read(insert(1))
    await db.close()


async def test_migrations_run_once_in_order_and_a_newer_file_is_refused(tmp_path: Path):
    path = tmp_path / "a.db"
    await Database.open(path, [CREATE]).close()
    second = Migration("add note", lambda db: db["t"].add_column("note", str))
    db = Database.open(path, [CREATE, second])
    assert await db.read(lambda c: [r[1] for r in c.execute("PRAGMA table_info(t)")]) == [
        "id",
        "body",
        "note",
    ]
    await db.close()
    with pytest.raises(StoreUnusable, match="newer"):
        Database.open(path, [CREATE])

    def broken(db):
        db["t"].add_column("other", str)
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        Database.open(path, [CREATE, second, Migration("broken", broken)])
    db = Database.open(path, [CREATE, second])
    assert len(await db.read(lambda c: c.execute("PRAGMA table_info(t)").fetchall())) == 3
    await db.close()


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path):
    path = tmp_path / "a.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StoreUnusable):
        Database.open(path, [CREATE])
    assert path.read_bytes() == b"not a database" * 100


CHILD = """
import asyncio, sys
from pathlib import Path
from sync.database import Database
from test_database import CREATE, insert

async def main():
    db = Database.open(Path(sys.argv[1]), [CREATE])
    async def one(n):
        await db.write(insert(n, 2000))
        print(n, flush=True)
    n = 0
    while True:
        await asyncio.gather(*(one(n + i) for i in range(8)))
        n += 8
asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_kill_nine(tmp_path: Path):
    path = tmp_path / "a.db"
    child = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", CHILD, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{Path.cwd()}:{Path(__file__).parent}"},
    )
    acknowledged = [int(child.stdout.readline()) for _ in range(100)]
    child.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in child.stdout.read().splitlines() if line]
    child.wait(10)
    db = Database.open(path, [CREATE])
    there = await db.read(lambda c: {row[0] for row in c.execute("SELECT id FROM t")})
    assert set(acknowledged) <= there
    await db.close()
