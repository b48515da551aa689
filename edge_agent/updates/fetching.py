"""From an assignment to a manifest that both keys vouch for, and to its files on this device.

Owns the order: what cannot be served here or does not fit is refused before a byte of it is fetched. Refuses:
keeping account of states (``edge_agent.updates.activation``).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from edge_agent.engines.files import check_served
from edge_agent.engines.tensorrt import machine_for
from edge_agent.errors import UnfitRelease
from edge_agent.updates.state import Release
from models.digest import Digest
from models.forecast import unfit
from models.manifest import File, Manifest
from models.profiles import Machine
from models.store import BlobStore
from sync.errors import StaleDesired
from sync.protocol import Assignment, Desired
from sync.transfer import BlobSource, fetch_blob, require_room
from sync.trust import Vouched, agree

Vouch = Callable[[str], Awaitable[Vouched]]
"""Asks the repository for the manifest at a target path. Raises ``UntrustedRelease``, ``LinkDown``."""


class Fetcher:
    """``machine`` is what this device is; ``source`` chooses where a file's bytes come from; ``latest`` tells
    the version of the desired state last accepted.
    """

    def __init__(
        self,
        machine: Machine,
        store: BlobStore,
        vouch: Vouch,
        source: Callable[[File], BlobSource],
        latest: Callable[[], int],
    ) -> None:
        self._machine = machine
        self._store = store
        self._vouch = vouch
        self._source = source
        self._latest = latest

    async def manifest(self, assignment: Assignment, desired: Desired) -> Manifest:
        """The manifest of what is assigned, if this device can serve it.

        Raises what ``Vouch`` and ``agree`` raise, and ``UnfitRelease``.
        """
        vouched = await self._vouch(assignment.target_path)
        manifest = agree(desired, self._latest(), assignment, vouched).manifest
        check_served(manifest)
        machine = await asyncio.to_thread(machine_for, manifest, self._machine)
        if (why := unfit(manifest, machine)) is not None:
            raise UnfitRelease(why)
        return manifest

    async def files(self, manifest: Manifest, desired: Desired) -> None:
        """Fetch what is not here. Raises ``StaleDesired`` as soon as a newer desired state has come,
        ``StoreFull``, ``LinkDown``, ``BlobMissing``, ``DigestMismatch``.
        """

        def is_wanted() -> bool:
            return self._latest() == desired.version

        require_room(manifest.files, self._store)
        for file in manifest.files:
            await fetch_blob(file, self._store, _WhileWanted(self._source(file), is_wanted))

    def keep(self, kept: Iterable[Release], known: Iterable[Release]) -> None:
        """Delete the files of what is ``known`` but not ``kept``; wanted again, they are fetched again."""
        kept = list(kept)
        whole = {release.digest for release in kept}
        blobs = {file.sha256 for release in kept for file in _files(release)}
        for release in known:
            if release.digest not in whole:
                self._store.remove_layout(release.digest)
            for file in _files(release):
                if file.sha256 not in blobs:
                    self._store.remove(file.sha256)


class _WhileWanted:
    """A blob source that stops between two reads when a newer desired state came: it may want something else.

    What was fetched stays, and is not fetched again if it is still wanted.
    """

    def __init__(self, source: BlobSource, is_wanted: Callable[[], bool]) -> None:
        self._source = source
        self._is_wanted = is_wanted

    async def read(self, digest: Digest, offset: int, length: int) -> bytes:
        """See ``BlobSource``. Raises ``StaleDesired``."""
        if not self._is_wanted():
            raise StaleDesired("a newer desired state came while files were fetched")
        return await self._source.read(digest, offset, length)


def _files(release: Release) -> tuple[File, ...]:
    return release.manifest.files if release.manifest is not None else ()
