"""A small world for the tests of shipping: keys, releases, a repository, a device, an engine.

The engine is a fake behind the real interface: what it answers is what is written in the bytes that were
shipped, so a test that reads an answer knows which release really serves.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from edge_agent.catalog import Catalog, Outcome
from edge_agent.engines.files import EngineFiles
from edge_agent.updates.activation import Activator
from edge_agent.updates.figures import Footprint
from edge_agent.updates.staging import Stage
from edge_agent.updates.state import MIGRATIONS, ReleaseTable
from models.digest import Digest
from models.engines.base import Event, Finish, GenerateRequest, ModelFacts, Sampling, Usage
from models.errors import EngineError
from models.forecast import Workload
from models.manifest import AdapterFacts, Engine, Kind, Manifest, Probe
from models.profiles import Machine
from models.store import BlobStore, describe_file, write_release
from sync.database import Database
from sync.errors import BlobMissing, LinkDown
from sync.protocol import Assignment, Desired, ProbationTerms
from sync.repository import Published, Repository, keys_init, sign_release
from sync.signing import sign
from sync.tuf_client import TufClient

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DEVICE = "press-4"
ASK = ({"role": "user", "content": "belt squeals"},)


class FolderFetcher(FetcherInterface):
    """A repository folder as the network would show it. ``replace`` puts other bytes at a path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.replace: dict[str, bytes | Iterator[bytes]] = {}
        self.down = False

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = url.removeprefix("https://hub/tuf/")
        if self.down:
            raise DownloadError("no route to the hub")
        found = self.replace.get(path)
        if found is None:
            if not (self.folder / path).is_file():
                raise DownloadHTTPError("not found", 404)
            found = (self.folder / path).read_bytes()
        return iter([found]) if isinstance(found, bytes) else found


class FolderSource:
    """Blobs out of a repository. ``cuts`` says after how many reads the link goes down, once each."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.reads: list[tuple[int, int]] = []
        self.cuts: list[int] = []

    async def read(self, digest: Digest, offset: int, length: int) -> bytes:
        if self.cuts and len(self.reads) >= self.cuts[0]:
            self.cuts.pop(0)
            raise LinkDown("the link was cut")
        self.reads.append((offset, length))
        path = self.repository.blob(digest)
        if not path.exists():
            raise BlobMissing(digest)
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(min(length, 128 * 1024))


class World:
    """The hub's side: offline keys, a repository, a director's key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.offline = folder / "offline"
        keys_init(self.offline, 1, NOW)
        self.repository = Repository(folder / "repository")
        self.repository.create(self.offline / "hub", NOW)
        self.director = Ed25519PrivateKey.generate()
        self.version = 0

    def release(
        self,
        name: str,
        version: str,
        content: dict[str, object],
        *,
        base: tuple[Digest, ...] = (),
        expected: str | None = None,
        padding: int = 0,
        profiles: tuple[str, ...] = (),
        **engine: object,
    ) -> Published:
        """Write, sign and publish a release. With ``base`` it is an adapter."""
        folder = self.folder / "releases" / f"{name}-{version}"
        folder.mkdir(parents=True)
        weights = folder / "weights.gguf"
        weights.write_bytes(json.dumps(content).encode() + b" " * padding)
        adapter = AdapterFacts(
            base_name="tiny", trained_on=base[0], checked_against=base, rank=8, targets=("attn_q",)
        ) if base else None  # fmt: skip
        probes = (Probe(messages=ASK, max_tokens=16, expected=expected, tolerance=0.9),) if expected else ()
        manifest = Manifest(
            kind=Kind.ADAPTER if base else Kind.MODEL,
            name=name,
            version=version,
            format="gguf",
            precision="q8_0",
            files=(describe_file(weights, "weights.gguf"),),
            profiles=profiles,
            engine=Engine.model_validate(engine),
            adapter=adapter,
            probes=probes,
            license="Apache-2.0",
        )
        write_release(folder, manifest, {"weights.gguf": weights})
        key = self.offline / "targets-1.pem"
        sign_release(folder, self.offline / "targets.json", [key], NOW)
        return self.repository.publish(folder, self.offline / "targets.json", NOW)

    def desire(self, *wanted: Published, terms: ProbationTerms = ProbationTerms()) -> bytes:
        """A signed desired state with the next version."""
        self.version += 1
        desired = Desired(
            device=DEVICE,
            version=self.version,
            issued_at=NOW.timestamp(),
            assignments=tuple(assignment(one) for one in wanted),
            probation=terms,
        )
        return sign(self.director, "desired", desired.to_bytes())


def assignment(one: Published) -> Assignment:
    """What the director writes to have a release on a device."""
    return Assignment.of(one.release, one.manifest)


class FakeEngine:
    """Answers what the attached file says. ``note`` is told of each thing it does."""

    def __init__(self, model: Path, note: Callable[[str], None]) -> None:
        note("load")
        self._note = note
        self._files: dict[str | None, dict[str, str]] = {None: _read(model)}
        if "crash" in self._files[None]:
            raise EngineError("killed by signal 9")
        self.facts = ModelFacts("llama", "tiny", 1, 2048, 512, 100, "<s>", "</s>", "{{ messages }}", 1)
        self.closed = False
        self.pid = None

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        self._note("generate")
        await asyncio.sleep(0.001)  # long enough to be timed
        if self.closed:
            raise EngineError("the engine has been closed")
        yield Event(request.id, self._files[request.adapter]["says"], usage=Usage(3, 1))
        await asyncio.sleep(0.001)
        yield Event(request.id, finish=Finish.STOP, usage=Usage(3, 2))

    async def attach(self, key: str, path: Path) -> None:
        self._note("attach")
        self._files[key] = _read(path)

    async def detach(self, key: str) -> None:
        self._note("detach")
        del self._files[key]

    async def close(self) -> None:
        self.closed = True


def _read(weights: Path) -> dict[str, str]:
    return json.loads(weights.read_bytes())


class Device:
    """The edge's side, over a home folder that outlives it. Build it inside an event loop."""

    def __init__(
        self,
        world: World,
        home: Path,
        note: Callable[[str], None] = lambda what: None,
        machine: Machine = Machine("x86-64-avx2", 2, 4_000_000_000),
    ) -> None:
        self.catalog = Catalog()
        self.loads = 0
        self.clock = NOW.timestamp()
        self.free = 1 << 40
        self.disk = 1 << 40
        self.fetcher = FolderFetcher(world.repository.metadata.parent)
        self.source = FolderSource(world.repository)
        self.note = note
        home.mkdir(exist_ok=True)
        self.database = Database.open(home / "state.db", MIGRATIONS)
        self.store = store = BlobStore(home / "store", lambda folder: self.disk)
        tuf = TufClient(home / "tuf", "https://hub/tuf", world.repository.root, self.fetcher)

        async def vouch(path: str):
            note("vouch")
            return tuf.vouch(path, datetime.fromtimestamp(self.clock, UTC))

        def source(file):
            note("fetch")
            return self.source

        self.activator = Activator(
            device=DEVICE,
            machine=machine,
            director=world.director.public_key(),
            table=ReleaseTable(self.database),
            store=store,
            catalog=self.catalog,
            stage=Stage(
                store, self.catalog, self._start, EngineFiles.bytes_on_disk, lambda: self.free, self._weigh
            ),
            vouch=vouch,
            source=source,
            now=lambda: self.clock,
            monotonic=lambda: self.clock,
            changed=lambda: note("changed"),
        )

    async def _start(self, files: EngineFiles) -> FakeEngine:
        self.loads += 1
        return FakeEngine(files.path, self.note)

    def _weigh(self, files: EngineFiles, precision: str, facts: ModelFacts, pid: int | None) -> Footprint:
        load = Workload("gguf", precision, 1000, files.path.stat().st_size, 4, facts.context_tokens)
        return Footprint(load, threads=1, peak_ram_bytes=5_000_000)

    async def ask(self, model: str) -> str:
        """One answer as the API would get it; the catalog hears how it turned out."""
        with self.catalog.lease(model) as served:
            request = GenerateRequest("r", "p", Sampling(16), served.adapter_key)
            text = "".join([event.text async for event in served.engine.generate(request)])
            broken = served.output_schema is not None and not text.startswith("{")
            self.catalog.record(Outcome(served, not text.startswith("!"), 0.2, 2, broken))
            return text

    def where(self) -> dict[str, str]:
        """State by name and version."""
        return {f"{r.name} {r.version}": r.state.value for r in self.activator.report()}

    def why(self, name: str) -> str | None:
        """The reason that is reported of a release."""
        return next(r.reason for r in self.activator.report() if f"{r.name} {r.version}" == name)

    async def close(self) -> None:
        await self.activator.close()
        await self.database.close()
