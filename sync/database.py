"""The durable store of a device: SQLite in WAL mode, one writer thread, group commit.

Owns: connections, transactions, migrations, and the meaning of "durable": when ``write`` returns, the
change has been fsynced. Refuses: knowing what is stored, and creating folders.

Writers that arrive together share one transaction and one fsync; each runs under its own savepoint, so
a failing one is undone alone. ``pysqlite3`` carries the SQLite: Debian 12's has the WAL-reset bug.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pysqlite3
import sqlite_utils

from sync.errors import StoreFull, StoreUnusable, SyncError

Connection = Any
"""A ``pysqlite3.Connection`` (the library has no types). Rows are tuples."""

T = TypeVar("T")

_BATCH = 256
"""Writers that share one transaction at most: bounds how long the first of them waits."""

_BUSY_MS = 5000
"""How long to wait for a lock that another process holds."""

_NO_ROOM = frozenset({"SQLITE_FULL", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_SHMMAP"})


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered step of a schema. A list of migrations only ever grows at its end.

    ``apply`` runs inside a transaction and must not commit.
    """

    name: str
    apply: Callable[[sqlite_utils.Database], object]


@dataclass(slots=True)
class _Job:
    work: Callable[[Connection], Any]
    alone: bool
    """Runs outside any transaction (for statements that SQLite allows only there)."""
    future: "Future[Any]" = field(default_factory=Future)

    def settle(self, result: Any, error: BaseException | None) -> None:
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Database:
    """One SQLite file. Made by ``open``; used from one event loop; ``close`` ends its threads.

    Law: what ``write`` has returned survives kill -9 and power loss (as far as fsync is honest).
    """

    def __init__(self, writer: Connection, reader: Connection) -> None:
        self._reader = reader
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="db-reader")
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(
            target=_serve_writes, args=(writer, self._jobs), name="db-writer", daemon=True
        )
        self._thread.start()

    @classmethod
    def open(cls, path: Path, migrations: Sequence[Migration]) -> "Database":
        """Open or create the file and bring its schema up to date. Blocking, brief.

        Raises ``StoreFull``, or ``StoreUnusable`` for a file that is not ours, is corrupt, or was
        written by a newer version.
        """
        writer = _connect(path)
        try:
            _prepare(writer, migrations)
            reader = _connect(path)
            reader.execute("PRAGMA query_only = ON")
        except pysqlite3.Error as error:
            writer.close()
            raise _converted(error, str(path)) from error
        except SyncError:
            writer.close()
            raise
        return cls(writer, reader)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on the writer's connection; its result, once the change is durable.

        ``work`` must be brief and must not begin, commit or roll back. What it raises undoes its own
        changes and is raised here, SQLite's own errors as ``StoreFull`` or ``StoreUnusable``. A caller
        that is cancelled may find its change made or not made, never half made.
        """
        result: T = await self._submit(_Job(work, alone=False))
        return result

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` on a connection that sees all that ``write`` returned, and cannot change it."""
        if self._closed:
            raise StoreUnusable("the database is closed")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    async def checkpoint(self) -> None:
        """Move the log into the main file and empty it, so that erased bytes are gone from both."""
        await self._submit(
            _Job(lambda conn: conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall(), alone=True)
        )

    async def close(self) -> None:
        """Finish what was submitted, then close. Calling it again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._readers.shutdown)
        self._reader.close()

    async def _submit(self, job: _Job) -> Any:
        with self._lock:
            if self._closed:
                raise StoreUnusable("the database is closed")
            self._jobs.put(job)
        return await asyncio.wrap_future(job.future)

    def _read(self, work: Callable[[Connection], T]) -> T:
        try:
            return work(self._reader)
        except pysqlite3.Error as error:
            raise _converted(error, "read") from error


def _connect(path: Path) -> Connection:
    try:
        connection = pysqlite3.connect(str(path), isolation_level=None, check_same_thread=False)
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        # Erased keys must not linger in free pages.
        connection.execute("PRAGMA secure_delete = ON")
    except pysqlite3.Error as error:
        raise _converted(error, str(path)) from error
    return connection


def _prepare(connection: Connection, migrations: Sequence[Migration]) -> None:
    """Apply the migrations that the file has not seen, all in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL)"
        )
        applied = [
            name for (name,) in connection.execute("SELECT name FROM schema_migrations ORDER BY number")
        ]
        known = [migration.name for migration in migrations]
        if applied != known[: len(applied)]:
            raise StoreUnusable(f"the schema is of another or newer version: {applied} against {known}")
        schema = sqlite_utils.Database(connection)
        for number, migration in enumerate(migrations[len(applied) :], start=len(applied) + 1):
            migration.apply(schema)
            connection.execute("INSERT INTO schema_migrations VALUES (?, ?)", (number, migration.name))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _serve_writes(connection: Connection, jobs: "queue.SimpleQueue[_Job | None]") -> None:
    """The writer thread: take what is waiting, commit it together, tell the waiters; until ``None``."""
    ending = False
    while not ending:
        batch: list[_Job] = []
        job = jobs.get()
        while True:
            if job is None:
                ending = True
                break
            if job.future.set_running_or_notify_cancel():
                if job.alone:
                    _commit(connection, batch)
                    batch = []
                    _run_alone(connection, job)
                else:
                    batch.append(job)
            if len(batch) >= _BATCH or jobs.empty():
                break
            job = jobs.get()
        _commit(connection, batch)
    connection.close()


def _commit(connection: Connection, batch: Sequence[_Job]) -> None:
    if not batch:
        return
    outcomes: list[tuple[Any, BaseException | None]] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        for job in batch:
            outcomes.append(_attempt(connection, job))
        connection.execute("COMMIT")
    except pysqlite3.Error as error:
        _roll_back(connection)
        # SQLite gave up the whole transaction (disk full does that): nobody's change was made.
        for job in batch:
            lost = _converted(error, "write")
            lost.__cause__ = error
            job.settle(None, lost)
        return
    for job, (result, failure) in zip(batch, outcomes, strict=True):
        job.settle(result, failure)


def _attempt(connection: Connection, job: _Job) -> tuple[Any, BaseException | None]:
    """Run one job under a savepoint. Raises SQLite's error when the transaction itself was lost."""
    connection.execute("SAVEPOINT job")
    try:
        result = job.work(connection)
    except BaseException as error:  # it belongs to the waiter and is raised there
        if isinstance(error, pysqlite3.Error) and not connection.in_transaction:
            raise
        connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")
        if isinstance(error, pysqlite3.Error):
            converted = _converted(error, "write")
            converted.__cause__ = error
            return None, converted
        return None, error
    connection.execute("RELEASE job")
    return result, None


def _run_alone(connection: Connection, job: _Job) -> None:
    try:
        result = job.work(connection)
    except pysqlite3.Error as error:
        converted = _converted(error, "write")
        converted.__cause__ = error
        job.settle(None, converted)
    else:
        job.settle(result, None)


def _roll_back(connection: Connection) -> None:
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _converted(error: Exception, where: str) -> SyncError:
    name = getattr(error, "sqlite_errorname", "")
    if name in _NO_ROOM:
        return StoreFull(f"{where}: {error}")
    return StoreUnusable(f"{where}: {error} {f'({name})' if name else ''}".rstrip())
