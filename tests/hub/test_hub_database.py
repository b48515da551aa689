"""Rows and transactions, the same on SQLite and PostgreSQL: schema, tokens, rollouts, audit ingest."""

import secrets
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import inspect

from cloud_hub import access, control, database, figures, registry
from cloud_hub.access import Role
from cloud_hub.console import Pages
from cloud_hub.database import AUDIT_RING, Database
from cloud_hub.errors import InvalidToken, NotFound, Refused, StorageFailed, WrongUse
from cloud_hub.ingest import Contradiction, Gap, audit_rows, evidence_rows, export_trail, ingest
from cloud_hub.snapshot import read_rows
from cloud_hub.view import device_facts, picture
from models.digest import Digest
from models.manifest import Manifest
from models.profiles import Machine
from sync.audit import TOMBSTONE, Checkpoint, Frontier, Leaf, leaf_hash, origin_of
from sync.errors import BadSignature, InvalidMessage
from sync.protocol import (
    AuditRecord,
    AuditReport,
    AuditSegment,
    Figures,
    IngestReceipt,
    ProbationTerms,
    ReleaseReport,
    Reported,
    State,
)
from sync.signing import open_envelope, sign
from sync.verify import verify_trail

KEY = Ed25519PrivateKey.generate()


def test_the_migrations_make_the_tables_that_the_queries_name(database: Database) -> None:
    with database.read() as connection:
        inspector = inspect(connection)
        for table in registry.DEVICES.metadata.sorted_tables:
            found = {each["name"]: each["nullable"] for each in inspector.get_columns(table.name)}
            assert found.keys() == set(table.columns.keys()), table.name
            wanted = {each.name: each.nullable for each in table.columns if not each.primary_key}
            assert {name: found[name] for name in wanted} == wanted, table.name
    assert database.migrate() == 3


def test_a_newer_database_is_refused_and_a_failed_transaction_leaves_nothing(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.write() as connection:
        access.create_token(connection, Role.ADMIN, "lost", 1.0, secrets.token_bytes)
        raise ZeroDivisionError
    with database.write() as connection:
        rows = connection.exec_driver_sql("SELECT COUNT(*) FROM api_token").scalar()
        assert rows == 0
        connection.exec_driver_sql("INSERT INTO migration VALUES (999)")
    with pytest.raises(StorageFailed, match="999"):
        database.migrate()


def test_urls_of_other_kinds_are_refused() -> None:
    for url in ("mysql://x/y", "nonsense", "postgresql://hub@here:port/x"):
        with pytest.raises(WrongUse, match="--database"):
            Database.open(url)


def test_a_database_that_cannot_be_reached_is_named_in_one_line_without_its_password(tmp_path: Path) -> None:
    for url, shown in (
        ("postgresql://hub:hunter2@127.0.0.1:1/outpost", "postgresql://hub:***@127.0.0.1:1/outpost: "),
        (f"sqlite:///{tmp_path}/nowhere/hub.db", f"sqlite:///{tmp_path}/nowhere/hub.db: unable to open"),
    ):
        with pytest.raises(StorageFailed) as caught:
            Database.open(url).migrate()
        message = str(caught.value)
        assert message.startswith(f"the database {shown}") and "Error)" not in message
        assert "\n" not in message and "hunter2" not in message


def test_tokens_and_sessions_end_together(database: Database) -> None:
    with database.write() as connection:
        token = access.create_token(connection, Role.VIEWER, "wall display", 1.0, secrets.token_bytes, 100.0)
        bearer = access.authenticate(connection, token, 2.0)
        assert (bearer.role, bearer.may(access.Permission.OPERATE)) == (Role.VIEWER, False)
        session = access.begin_session(connection, bearer, 2.0, secrets.token_bytes)
        assert access.resume_session(connection, session, 3.0) == bearer
        for forged in (token[:-1] + "x", token.replace("oph_", "opx_"), "oph__", ""):
            with pytest.raises(InvalidToken):
                access.authenticate(connection, forged, 2.0)
        with pytest.raises(InvalidToken):
            access.authenticate(connection, token, 100.0)
        access.revoke_token(connection, bearer.token_id, 4.0)
        with pytest.raises(InvalidToken):
            access.resume_session(connection, session, 4.0)


def test_of_two_devices_with_one_secret_one_gets_in(database: Database) -> None:
    with database.write() as connection:
        secret = access.create_enrolment(connection, "line-1", 1.0, 100.0, secrets.token_bytes)
    outcomes: list[object] = []

    def enrol(name: str) -> None:
        try:
            with database.write() as connection:
                outcomes.append(access.use_enrolment(connection, secret, name, 2.0))
        except InvalidToken as error:
            outcomes.append(error)

    threads = [threading.Thread(target=enrol, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(("line-1", True)) == 1 and len(outcomes) == 2


def test_an_id_is_not_taken_over_unless_it_was_revoked(database: Database) -> None:
    one, two = (Ed25519PrivateKey.generate().public_key().public_bytes_raw() for _ in range(2))
    with database.write() as connection:
        assert registry.add_device(connection, "a", "g", one, 1.0) == 1
        with pytest.raises(Refused, match="taken"):
            registry.add_device(connection, "a", "g", two, 2.0)
        registry.revoke_device(connection, "a", 3.0)
        with pytest.raises(NotFound):
            registry.device(connection, "a")
        assert registry.add_device(connection, "a", "g", two, 4.0) == 2
        assert registry.device(connection, "a").public_key.public_bytes_raw() == two
        keys = registry.keys_of(connection, "a")
        assert {epoch: key.public_bytes_raw() for epoch, key in keys.items()} == {1: one, 2: two}


def test_devices_of_the_first_schema_keep_their_key_and_their_epoch(database: Database) -> None:
    with database.write() as connection:
        registry.add_device(connection, "a", "g", KEY.public_key().public_bytes_raw(), 1.0)
        for table in ("device_key", "figure"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
        connection.exec_driver_sql("DELETE FROM migration WHERE number >= 2")
    database.migrate()
    with database.read() as connection:
        assert registry.keys_of(connection, "a") == {1: KEY.public_key()}


def release(connection: object, version: str, note: str = "") -> Digest:
    manifest = Manifest.model_validate(
        {
            "kind": "model",
            "name": "m",
            "version": version,
            "format": "gguf",
            "precision": "q8_0",
            "files": [],
            "license": "Apache-2.0",
            "lineage": {"note": note},
        }
    )
    registry.add_release(connection, manifest.digest, manifest.to_bytes(), 1.0)  # type: ignore[arg-type]
    return manifest.digest


def test_rollouts_survive_their_rows_and_move_desired_states(database: Database) -> None:
    with database.write() as connection:
        for name in ("a", "b"):
            key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
            registry.add_device(connection, name, "g", key, 1.0)
        first = release(connection, "1.0.0")
        release(connection, "1.0.0")
    with pytest.raises(Refused, match="never changes"), database.write() as connection:
        release(connection, "1.0.0", "changed")
    with database.write() as connection:
        terms = ProbationTerms(min_requests=3)
        made = control.start_rollout(connection, "m@1.0.0", "g", (1.0,), terms, 1.0)
        assert registry.rollout(connection, made.id) == made
        told = control.tick(connection, 2.0)
        assert [(each.device, each.version, each.probation) for each in told] == [
            ("a", 1, terms),
            ("b", 1, terms),
        ]
        assert control.tick(connection, 3.0) == []
        assert registry.device(connection, "a").desired == told[0]
        assert told[0].assignments[0].release == first
        control.steer_rollout(connection, made.id, "abort", 4.0)
        assert [each.assignments for each in control.tick(connection, 5.0)] == [(), ()]
        with pytest.raises(NotFound):
            registry.find_release(connection, "m@9.9.9")


def measuring(device: str, speeds: dict[str, float], at: float = 1.0) -> Reported:
    """A report of a device that measured releases of these digests."""
    return Reported(
        device=device,
        session="s",
        sequence=1,
        desired_version=0,
        releases=tuple(
            ReleaseReport(
                kind="model",
                name="m",
                version="1.0.0",
                release=digest,
                state=State.COMMITTED,
                figures=Figures(
                    format="gguf", precision="q8_0", parameters=7, weight_bytes=8, decode_per_second=speed
                ),
            )
            for digest, speed in speeds.items()
        ),
        at=at,
        machine=Machine("x86-64-avx2", 2, 8_000_000_000),
    )


def test_the_last_figures_of_each_device_and_release_are_kept(database: Database) -> None:
    with database.write() as connection:
        for name in ("a", "b"):
            registry.add_device(connection, name, "g", KEY.public_key().public_bytes_raw(), 1.0)
        first, second = release(connection, "1.0.0"), release(connection, "2.0.0")
        nowhere = Digest.of(b"never published")
        for report in (
            measuring("a", {first: 10.0, second: 20.0, nowhere: 30.0}),
            measuring("b", {first: 11.0}),
            measuring("a", {first: 12.0}, at=5.0),
            measuring("a", {first: 12.0}, at=9.0),  # nothing new
        ):
            registry.set_reported(connection, report, 1.0)
            figures.keep(connection, report)
    with database.read() as connection:
        rows = {(row.device, row.release): row for row in figures.figure_rows(connection)}
        seen = picture(read_rows(connection), 10.0, 60.0)
    shown, page = seen["devices"][0], Pages("https://hub").fragments(seen, True)["devices"]
    assert "<b>m 1.0.0</b>: 12.0 tokens/s, on 1 thread of x86-64-avx2" in page
    assert {key: row.figures.decode_per_second for key, row in rows.items()} == {
        ("a", first): 12.0,
        ("a", second): 20.0,
        ("b", first): 11.0,
    }
    assert rows["a", first].reported_at == 5.0 and rows["a", first].profile == "x86-64-avx2"
    assert {each["version"]: each["measured"] for each in shown["figures"]} == {
        "1.0.0": "12.0 tokens/s",
        "2.0.0": "20.0 tokens/s",
    }
    assert shown["machine"] == {"profile": "x86-64-avx2", "cores": 2, "memory_bytes": 8_000_000_000}


def saying(device: str, **facts: object) -> Reported:
    return Reported(
        device=device, session="s", sequence=1, desired_version=0, releases=(), facts=facts, at=1.0
    )


def test_a_report_that_could_not_be_read_again_is_refused_and_such_a_row_costs_one_device(
    database: Database,
) -> None:
    with database.write() as connection:
        for name in ("a", "b"):
            key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
            registry.add_device(connection, name, "g", key, 1.0)
        release(connection, "1.0.0")
        control.start_rollout(connection, "m@1.0.0", "g", (1.0,), ProbationTerms(), 1.0)
    arrived = (
        b'{"device":"a","session":"s","sequence":1,"desired_version":0,"releases":[],"at":1,"facts":{"n":['
    )
    long = Reported.from_bytes(arrived + b",".join([b"1e20"] * 15_000) + b"]}}")
    with pytest.raises(InvalidMessage), database.write() as connection:
        registry.set_reported(connection, long, 2.0)
    with database.write() as connection:
        registry.set_reported(connection, saying("b", version="1"), 2.0)
        broken = registry.DEVICES.update().where(registry.DEVICES.c.id == "a")
        connection.execute(broken.values(reported=b"{", desired=b"{", desired_version=7))
        assert [each.device for each in control.tick(connection, 3.0)] == ["b"]
        one, other = registry.devices(connection)
        assert one.unreadable == {"reported", "desired"} and not other.unreadable
        assert "unreadable: desired, reported" in device_facts(one, [], 3.0, 60.0)["why"]


class Log:
    """A device's log that can be told to lie."""

    def __init__(self) -> None:
        self.leaves: list[Leaf] = []

    def add(self, kind: str = "intent", **facts: object) -> None:
        seq = len(self.leaves)
        self.leaves.append(
            Leaf(
                device="a",
                epoch=1,
                seq=seq,
                kind=kind,
                request_id=f"r{seq}",
                at=1.0,
                data_class="internal",
                facts=facts,
                body="none",
                key_id=None,
                commitment=None,
            )
        )

    def segment(self, first: int, end: int, ring: tuple[dict[str, str], ...] = ()) -> bytes:
        hashes = [leaf_hash(leaf.to_bytes()) for leaf in self.leaves]
        tree = Frontier().extend(hashes[:end])
        records = tuple(
            AuditRecord(seq=n, leaf_hash=hashes[n].hex(), leaf=self.leaves[n].to_bytes().decode())
            for n in range(first, end)
        )
        note = Checkpoint(origin_of("a", 1), tree.size, tree.root).sign(KEY)
        segment = AuditSegment(
            device="a", epoch=1, first_seq=first, records=records, checkpoint=note, ring=ring
        )
        return sign(KEY, "audit-segment", segment.to_bytes())


@pytest.fixture
def joined(database: Database) -> Database:
    """A database in which device ``a`` has enrolled with ``KEY``."""
    with database.write() as connection:
        registry.add_device(connection, "a", "g", KEY.public_key().public_bytes_raw(), 1.0)
    return database


def take(database: Database, envelope: bytes) -> IngestReceipt | Contradiction | Gap:
    with database.write() as connection:
        return ingest(connection, "a", KEY.public_key(), envelope, 5.0)


def test_segments_are_committed_once_and_overlaps_are_compared(joined: Database) -> None:
    database = joined
    log = Log()
    for n in range(7):
        log.add(n=n)
    first = take(database, log.segment(0, 3))
    assert isinstance(first, IngestReceipt) and first.size == 3
    assert take(database, log.segment(0, 3)) == first
    more = take(database, log.segment(0, 7))  # the receipt got lost, and more was written meanwhile
    assert isinstance(more, IngestReceipt) and more.size == 7
    assert take(database, log.segment(1, 2)) == more
    with database.read() as connection:
        lines = list(export_trail(connection, "a", 1))
        assert audit_rows(connection)[0].size == 7 and evidence_rows(connection) == []
    assert verify_trail(lines, {"a": {1: KEY.public_key()}}).records == 7


def test_a_device_speaks_in_its_own_epoch_alone(joined: Database) -> None:
    log = Log()
    log.add()
    assert isinstance(take(joined, log.segment(0, 1)), IngestReceipt)
    other = Ed25519PrivateKey.generate()
    with joined.write() as connection:
        registry.revoke_device(connection, "a", 2.0)
        registry.add_device(connection, "a", "g", other.public_key().public_bytes_raw(), 3.0)
    for epoch in (1, 3):  # another's, and one that nobody was given
        segment = AuditSegment.from_bytes(open_envelope(log.segment(0, 1), "audit-segment", KEY.public_key()))
        claimed = sign(other, "audit-segment", segment.model_copy(update={"epoch": epoch}).to_bytes())
        with joined.write() as connection:
            outcome = ingest(connection, "a", other.public_key(), claimed, 5.0)
        assert isinstance(outcome, Contradiction) and f"epoch {epoch} was not given" in outcome.reason


def test_a_rewritten_record_is_kept_as_evidence_and_a_gap_is_none(
    joined: Database,
) -> None:
    database = joined
    honest, liar = Log(), Log()
    for n in range(4):
        honest.add(n=n)
        liar.add(n=n if n != 1 else 99)
    assert isinstance(take(database, honest.segment(0, 3)), IngestReceipt)
    for envelope in (liar.segment(0, 4), liar.segment(3, 4), honest.segment(0, 0)):
        assert isinstance(take(database, envelope), Contradiction)
        assert isinstance(take(database, envelope), Contradiction)
    honest.add()
    gap = take(database, honest.segment(4, 5))
    assert gap == Gap("record 1/3 is next, and 4 came")
    with database.read() as connection:
        reasons = [each.reason for each in evidence_rows(connection)]
        assert len(reasons) == 3 and "record 1/1 of a: came again with another hash" in reasons
        assert audit_rows(connection)[0].size == 3
    assert isinstance(take(database, honest.segment(3, 5)), IngestReceipt)
    with pytest.raises(BadSignature), database.write() as connection:
        ingest(connection, "a", Ed25519PrivateKey.generate().public_key(), honest.segment(3, 5), 5.0)


def test_records_missing_from_a_restored_backup_are_shown_as_such(joined: Database) -> None:
    log = Log()
    for n in range(6):
        log.add(n=n)
    assert isinstance(take(joined, log.segment(0, 2)), IngestReceipt)  # the backup ends here
    assert isinstance(take(joined, log.segment(5, 6)), Gap)
    trail = AuditReport(epoch=1, size=6, acknowledged=5)
    with joined.write() as connection:
        registry.set_reported(connection, saying("a").model_copy(update={"audit": trail}), 2.0)
        (audit,) = picture(read_rows(connection), 3.0, 60.0)["audit"]
    assert (audit["committed"], audit["missing"], audit["contradictions"]) == (2, 3, 0)


def test_an_erased_key_stays_erased_when_old_segments_are_replayed(joined: Database) -> None:
    database = joined
    log = Log()
    log.add()
    old = log.segment(0, 1, ring=({"key_id": "k1", "sealed": "x"}, {"key_id": "k2", "sealed": "y"}))
    take(database, old)
    log.add(TOMBSTONE, key_ids=["k1"])
    take(database, log.segment(1, 2))
    take(database, old)
    with database.read() as connection:
        assert connection.execute(AUDIT_RING.select()).mappings().one()["key_id"] == "k2"


def test_sqlite_is_not_the_systems_own(tmp_path: Path) -> None:
    opened = Database.open(f"sqlite:///{tmp_path}/x.db")
    with opened.write() as connection:
        version = connection.exec_driver_sql("SELECT sqlite_version()").scalar_one()
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    assert tuple(map(int, version.split("."))) >= (3, 51, 3)
    assert len(database.MIGRATIONS) == opened.migrate()
