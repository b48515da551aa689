"""The hub's database: its tables, its numbered migrations, and transactions on SQLite or PostgreSQL.

Owns the connection and the schema. Refuses to hold a decision: what the rows mean belongs to the
modules that read them. Migrations are append-only; a number that was released is never edited.
"""

import asyncio
import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from cloud_hub.errors import StorageFailed, WrongUse

T = TypeVar("T")

_METADATA = MetaData()

TOKENS = Table(
    "api_token",
    _METADATA,
    Column("id", Text, primary_key=True),
    Column("secret_sha256", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
)
SESSIONS = Table(
    "console_session",
    _METADATA,
    Column("secret_sha256", Text, primary_key=True),
    Column("token_id", Text, nullable=False),
    Column("expires_at", Double, nullable=False),
)
ENROLMENTS = Table(
    "enrolment",
    _METADATA,
    Column("secret_sha256", Text, primary_key=True),
    Column("group_name", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("used_at", Double),
    Column("device", Text),
)
DEVICES = Table(
    "device",
    _METADATA,
    Column("id", Text, primary_key=True),
    Column("group_name", Text, nullable=False),
    Column("public_key", LargeBinary, nullable=False),  # raw Ed25519
    Column("enrolled_at", Double, nullable=False),
    Column("revoked_at", Double),
    Column("desired", LargeBinary),  # canonical bytes of the last Desired
    Column("desired_version", BigInteger, nullable=False),
    Column("reported", LargeBinary),  # canonical bytes of the last Reported
    Column("status", LargeBinary),  # canonical bytes of the last Status
    Column("heard_at", Double),  # when the hub last received a live message, by the hub's clock
)
DEVICE_KEYS = Table(
    "device_key",
    _METADATA,
    Column("device", Text, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("public_key", LargeBinary, nullable=False),  # raw Ed25519
    Column("enrolled_at", Double, nullable=False),
)
RELEASES = Table(
    "release",
    _METADATA,
    Column("digest", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("target_path", Text, nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    Column("published_at", Double, nullable=False),
)
ROLLOUTS = Table(
    "rollout",
    _METADATA,
    Column("id", Integer, primary_key=True),
    Column("release_digest", Text, nullable=False),
    Column("group_name", Text, nullable=False),
    Column("waves", Text, nullable=False),  # JSON: fractions, growing, the last is 1
    Column("probation", Text, nullable=False),  # JSON of ProbationTerms
    Column("state", Text, nullable=False),
    Column("open_waves", Integer, nullable=False),
    Column("excused", Text, nullable=False),  # JSON: devices whose rollback an operator has accepted
    Column("reason", Text),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
)
ROLLOUT_MEMBERS = Table(
    "rollout_member",
    _METADATA,
    Column("rollout", Integer, primary_key=True),
    Column("device", Text, primary_key=True),
    Column("wave", Integer, nullable=False),
)
AUDIT_EPOCHS = Table(
    "audit_epoch",
    _METADATA,
    Column("device", Text, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("root", Text, nullable=False),
    Column("checkpoint", Text, nullable=False),
    Column("frontier", Text, nullable=False),  # JSON of the Merkle frontier over the stored leaves
    Column("updated_at", Double, nullable=False),
)
AUDIT_RECORDS = Table(
    "audit_record",
    _METADATA,
    Column("device", Text, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("leaf_hash", Text, nullable=False),
    Column("leaf", Text),
    Column("salt", Text),
    Column("ciphertext", Text),
)
AUDIT_RING = Table(
    "audit_ring",
    _METADATA,
    Column("device", Text, primary_key=True),
    Column("key_id", Text, primary_key=True),
    Column("entry", Text, nullable=False),  # JSON as the device sealed it
)
AUDIT_EVIDENCE = Table(
    "audit_evidence",
    _METADATA,
    Column("id", Integer, primary_key=True),
    Column("device", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("kept", Text),  # the checkpoint that the hub had accepted
    Column("offered", LargeBinary, nullable=False),  # the signed envelope that contradicts it
    Column("found_at", Double, nullable=False),
)
UPSTREAMS = Table(
    "upstream",
    _METADATA,
    Column("name", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("accepts", Text, nullable=False),  # JSON: further model names that are sent here
    Column("key_file", Text),
)
FIGURES = Table(
    "figure",
    _METADATA,
    Column("device", Text, primary_key=True),
    Column("release_digest", Text, primary_key=True),
    Column("profile", Text),
    Column("figures", LargeBinary, nullable=False),  # canonical bytes of the last Figures
    Column("reported_at", Double, nullable=False),
)

# Types that the two dialects spell differently are written {serial} and {bytes}.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE api_token (id TEXT PRIMARY KEY, secret_sha256 TEXT NOT NULL, name TEXT NOT NULL,"
        " role TEXT NOT NULL, created_at DOUBLE PRECISION NOT NULL, expires_at DOUBLE PRECISION,"
        " revoked_at DOUBLE PRECISION)",
        "CREATE TABLE console_session (secret_sha256 TEXT PRIMARY KEY, token_id TEXT NOT NULL,"
        " expires_at DOUBLE PRECISION NOT NULL)",
        "CREATE TABLE enrolment (secret_sha256 TEXT PRIMARY KEY, group_name TEXT NOT NULL,"
        " created_at DOUBLE PRECISION NOT NULL, expires_at DOUBLE PRECISION NOT NULL,"
        " used_at DOUBLE PRECISION, device TEXT)",
        "CREATE TABLE device (id TEXT PRIMARY KEY, group_name TEXT NOT NULL, public_key {bytes} NOT NULL,"
        " enrolled_at DOUBLE PRECISION NOT NULL, revoked_at DOUBLE PRECISION, desired {bytes},"
        " desired_version BIGINT NOT NULL, reported {bytes}, status {bytes}, heard_at DOUBLE PRECISION)",
        "CREATE TABLE release (digest TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL,"
        " version TEXT NOT NULL, target_path TEXT NOT NULL, manifest {bytes} NOT NULL,"
        " published_at DOUBLE PRECISION NOT NULL, UNIQUE (kind, name, version))",
        "CREATE TABLE rollout (id {serial}, release_digest TEXT NOT NULL REFERENCES release (digest),"
        " group_name TEXT NOT NULL, waves TEXT NOT NULL, probation TEXT NOT NULL, state TEXT NOT NULL,"
        " open_waves INTEGER NOT NULL, excused TEXT NOT NULL, reason TEXT,"
        " created_at DOUBLE PRECISION NOT NULL, updated_at DOUBLE PRECISION NOT NULL)",
        "CREATE TABLE rollout_member (rollout INTEGER NOT NULL REFERENCES rollout (id), device TEXT NOT NULL,"
        " wave INTEGER NOT NULL, PRIMARY KEY (rollout, device))",
        "CREATE TABLE audit_epoch (device TEXT NOT NULL, epoch BIGINT NOT NULL, size BIGINT NOT NULL,"
        " root TEXT NOT NULL, checkpoint TEXT NOT NULL, frontier TEXT NOT NULL,"
        " updated_at DOUBLE PRECISION NOT NULL, PRIMARY KEY (device, epoch))",
        "CREATE TABLE audit_record (device TEXT NOT NULL, epoch BIGINT NOT NULL, seq BIGINT NOT NULL,"
        " leaf_hash TEXT NOT NULL, leaf TEXT, salt TEXT, ciphertext TEXT, PRIMARY KEY (device, epoch, seq))",
        "CREATE TABLE audit_ring (device TEXT NOT NULL, key_id TEXT NOT NULL, entry TEXT NOT NULL,"
        " PRIMARY KEY (device, key_id))",
        "CREATE TABLE audit_evidence (id {serial}, device TEXT NOT NULL, epoch BIGINT NOT NULL,"
        " seq BIGINT NOT NULL, reason TEXT NOT NULL, kept TEXT, offered {bytes} NOT NULL,"
        " found_at DOUBLE PRECISION NOT NULL)",
        "CREATE TABLE upstream (name TEXT PRIMARY KEY, url TEXT NOT NULL, model TEXT NOT NULL,"
        " accepts TEXT NOT NULL, key_file TEXT)",
    ),
    (
        "CREATE TABLE device_key (device TEXT NOT NULL, epoch BIGINT NOT NULL, public_key {bytes} NOT NULL,"
        " enrolled_at DOUBLE PRECISION NOT NULL, PRIMARY KEY (device, epoch))",
        # Until here every device began at epoch 1, and its last key is the only one that was kept.
        "INSERT INTO device_key (device, epoch, public_key, enrolled_at)"
        " SELECT id, 1, public_key, enrolled_at FROM device",
    ),
    (
        "CREATE TABLE figure (device TEXT NOT NULL, release_digest TEXT NOT NULL REFERENCES release (digest),"
        " profile TEXT, figures {bytes} NOT NULL, reported_at DOUBLE PRECISION NOT NULL,"
        " PRIMARY KEY (device, release_digest))",
    ),
)

_SPELLINGS = {
    "sqlite": {"serial": "INTEGER PRIMARY KEY AUTOINCREMENT", "bytes": "BLOB"},
    "postgresql": {"serial": "INTEGER GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY", "bytes": "BYTEA"},
}


class Database:
    """Transactions over one SQLite file or one PostgreSQL database; safe to share between threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def open(cls, url: str) -> "Database":
        """Over an SQLAlchemy URL (``sqlite:///path`` or ``postgresql://...``).

        Raises ``WrongUse`` for a URL of another kind; nothing is read or written yet.
        """
        try:
            parsed = make_url(url)
            if parsed.get_backend_name() == "sqlite":
                # Debian's own SQLite has the WAL-reset bug; pysqlite3 carries a current one.
                module = importlib.import_module("pysqlite3.dbapi2")
                engine = create_engine(parsed, module=module, connect_args={"timeout": 10.0})
                event.listen(engine, "connect", _prepare_sqlite)
                event.listen(engine, "begin", _begin_sqlite)
            elif parsed.get_backend_name() == "postgresql":
                engine = create_engine(
                    parsed.set(drivername="postgresql+psycopg"),
                    pool_pre_ping=True,
                    connect_args={"connect_timeout": parsed.query.get("connect_timeout", 10)},
                )
            else:
                raise WrongUse(f"--database: SQLite or PostgreSQL, not {parsed.get_backend_name()!r}")
        except (ArgumentError, NoSuchModuleError, ValueError) as error:
            raise WrongUse(f"--database: not a URL that can be opened: {error}") from error
        return cls(engine)

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: all of it is committed, or none. Raises ``StorageFailed``."""
        with self._converted(), self._engine.connect() as connection:
            connection = connection.execution_options(outpost_write=True)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A consistent view for reading. Raises ``StorageFailed``."""
        with self._converted(), self._engine.connect() as connection, connection.begin():
            yield connection

    async def reading(self, function: Callable[[Connection], T]) -> T:
        """``function`` over a read transaction, in a thread."""

        def run() -> T:
            with self.read() as connection:
                return function(connection)

        return await asyncio.to_thread(run)

    async def writing(self, function: Callable[[Connection], T]) -> T:
        """``function`` over a write transaction, in a thread; committed when this returns."""

        def run() -> T:
            with self.write() as connection:
                return function(connection)

        return await asyncio.to_thread(run)

    def migrate(self) -> int:
        """Apply the migrations that are missing, each in its own transaction; returns the version.

        Raises ``StorageFailed`` when the database is newer than this program.
        """
        spellings = _SPELLINGS[self._engine.dialect.name]
        with self.write() as connection:
            connection.execute(text("CREATE TABLE IF NOT EXISTS migration (number INTEGER PRIMARY KEY)"))
        for number, statements in enumerate(MIGRATIONS, start=1):
            with self.write() as connection:
                if self._engine.dialect.name == "postgresql":
                    connection.execute(text("LOCK TABLE migration IN EXCLUSIVE MODE"))
                done = connection.execute(text("SELECT MAX(number) FROM migration")).scalar() or 0
                if done > len(MIGRATIONS):
                    raise StorageFailed(
                        f"the database is at version {done}, this program knows {len(MIGRATIONS)}"
                    )
                if done >= number:
                    continue
                for statement in statements:
                    connection.execute(text(statement.format(**spellings)))
                connection.execute(text("INSERT INTO migration VALUES (:number)"), {"number": number})
        return len(MIGRATIONS)

    def close(self) -> None:
        """Give every connection back."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _converted(self) -> Iterator[None]:
        """One line that names the database and says what the driver says, without its password."""
        try:
            yield
        except SQLAlchemyError as error:
            said = str(error.orig if isinstance(error, DBAPIError) else error)
            where = self._engine.url.set(drivername=self._engine.url.get_backend_name())
            raise StorageFailed(
                f"the database {where.render_as_string(hide_password=True)}: {' '.join(said.split())[:500]}"
            ) from error


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's transactions, not the driver's
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes its lock at once: upgrading a read lock could fail half way through.
    immediate = connection.get_execution_options().get("outpost_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
