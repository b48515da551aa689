"""Bringing a device to its desired state, one durable step at a time.

The async shell around ``sync.update``: fetch, verify, stage, probe, make the release active by a pointer
change in the catalog, watch it, commit it or go back. Every state is stored before the step that it
announces, every step may be done again, so kill -9 anywhere leaves the old release serving or the new one.
What serves never depends on the link, on fresh metadata or on the hub: they are asked only before something
new is activated. One event loop owns an activator.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_agent.catalog import Catalog, Outcome, Served
from edge_agent.engines.files import check_served
from edge_agent.engines.tensorrt import machine_for
from edge_agent.errors import ReleaseRefused, UnfitRelease, UnknownModel
from edge_agent.updates.staging import Engine, Need, Stage, verified
from edge_agent.updates.state import Release, ReleaseTable
from models.digest import Digest
from models.errors import DigestMismatch, EngineError, InvalidManifest, UnsafeFile
from models.forecast import unfit
from models.manifest import File, Kind, Manifest
from models.profiles import Machine
from models.store import BlobStore
from sync import update
from sync.errors import (
    BlobMissing,
    InvalidMessage,
    LinkDown,
    StaleDesired,
    StoreFull,
    SyncError,
    UntrustedRelease,
    VerificationFailed,
)
from sync.protocol import Assignment, Desired, ReleaseReport, State
from sync.transfer import BlobSource, fetch_blob, require_room
from sync.trust import Accepted, Vouched, accept_desired, agree
from sync.update import Observation, Progress, Verdict, Window

_log = logging.getLogger(__name__)

Vouch = Callable[[str], Awaitable[Vouched]]
"""Asks the repository for the manifest at a target path. Raises ``UntrustedRelease``, ``LinkDown``."""

STALLED_AGAIN = 15.0
"""Seconds after which a release that could not be fetched, verified or loaded is tried again."""

IDLE, BUSY = 30.0, 1.0
"""Seconds between steps when nothing wakes the activator; ``BUSY`` while something is underway or watched."""

WINDOWS_STORED = 60.0
"""Seconds between two times that the answers seen of what serves are stored: a power cut costs no more."""

REPORTED_PER_SLOT = 6
"""Releases of one slot that are reported, latest first: a report must fit one message."""

_VERDICTS = (ReleaseRefused, UnsafeFile, InvalidManifest)
_STALLS = (LinkDown, BlobMissing, StoreFull, UntrustedRelease, DigestMismatch)


class _NotYet(Exception):
    """An adapter whose base is not here yet."""


class Activator:
    """Carries out desired states on one device.

    ``machine`` is what this device is: what does not fit it is refused before it is fetched. ``source``
    chooses where a file's bytes come from. ``now`` is in seconds since the epoch, ``monotonic`` in seconds of
    a clock that never jumps. ``changed`` is called after every stored change, so that the device can report
    it.
    """

    def __init__(
        self,
        *,
        device: str,
        machine: Machine,
        director: Ed25519PublicKey,
        table: ReleaseTable,
        store: BlobStore,
        catalog: Catalog,
        stage: Stage,
        vouch: Vouch,
        source: Callable[[File], BlobSource],
        now: Callable[[], float],
        monotonic: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self._device = device
        self._machine = machine
        self._director = director
        self._table = table
        self._store = store
        self._stage = stage
        self._vouch = vouch
        self._source = source
        self._now = now
        self._monotonic = monotonic
        self._changed = changed
        self._releases: dict[Digest, Release] = {}
        self._windows: dict[Digest, Window] = {}
        self._windows_due = 0.0
        self._serving: set[Digest] = set()
        self._not_before: dict[Digest, float] = {}
        self._accepted: Accepted | None = None
        self._desired: Desired | None = None
        self._steps = asyncio.Lock()
        self._desires = asyncio.Lock()
        self._wake = asyncio.Event()
        catalog.observe(self._observe)

    # What others ask

    @property
    def desired_version(self) -> int:
        """The version of the desired state last accepted, 0 before the first."""
        return self._accepted.version if self._accepted is not None else 0

    @property
    def engines(self) -> dict[Digest, Engine]:
        """The engines that run now, by base release."""
        return self._stage.engines

    def report(self) -> tuple[ReleaseReport, ...]:
        """Where the releases stand, slot by slot, latest first."""
        reports: list[ReleaseReport] = []
        for slot in self._slots():
            latest = sorted(self._in_slot(slot), key=_latest, reverse=True)
            reports += [_report(release) for release in latest[:REPORTED_PER_SLOT]]
        return tuple(reports)

    async def desire(self, envelope: bytes) -> None:
        """Take a signed desired state. Raises ``BadSignature``, ``InvalidMessage``, ``StaleDesired``.

        Returns as soon as it is stored. Repeating one is also the word that the link is back: what stalled
        is tried again at once.
        """
        async with self._desires:
            desired, accepted = accept_desired(envelope, self._director, self._device, self._accepted)
            if accepted != self._accepted:
                await self._table.accept(accepted, envelope)
            self._desired, self._accepted = desired, accepted
        for release in self._releases.values():
            if release.progress.state in update.UNDERWAY:
                self._not_before.pop(release.digest, None)
        self._wake.set()
        self._changed()

    async def roll_back(self, slot: str) -> None:
        """Go back to the release before, on a person's word at the device; it holds.

        Raises ``UnknownModel`` when nothing serves the slot, ``EngineError`` when the release before cannot
        be loaded; then nothing has changed.
        """
        async with self._steps:
            current = self._current(slot)
            if current is None:
                raise UnknownModel(f"nothing serves {slot}")
            await self._go_back(current, "rolled back at the device", hold=True)

    async def release_hold(self, slot: str) -> None:
        """Let the releases of a slot that are on hold be tried again."""
        async with self._steps:
            held = [release for release in self._in_slot(slot) if release.progress.hold]
            await self._save(*(replace(r, progress=update.release_hold(r.progress)) for r in held))
        self._wake.set()

    # What drives it

    async def resume(self) -> None:
        """After a start: take up what was stored, and serve again what served. Needs no link."""
        async with self._steps:
            rows = await self._table.all()
            self._releases = {release.digest: release for release in rows}
            self._windows = {release.digest: release.window for release in rows}
            stored = await self._table.desired()
            if stored is not None:
                self._accepted, envelope = stored
                try:
                    self._desired, _ = accept_desired(envelope, self._director, self._device, self._accepted)
                except (VerificationFailed, InvalidMessage) as error:
                    # What serves goes on; the director will have to say anew what it wants.
                    _log.warning("the stored desired state is not believed: %s", error)
            await self._save(
                *(
                    replace(release, progress=update.interrupted(release.progress, self._now()))
                    for release in rows
                    if release.progress.state in update.UNDERWAY
                )
            )
            await self._restore()

    async def run(self) -> None:
        """Step for ever: at once when something changed, else every so often."""
        while True:
            self._wake.clear()
            try:
                await self.step()
            except (SyncError, EngineError, OSError) as error:
                # A full disk, an engine being restarted: what serves goes on, the next step tries again.
                _log.error("releases cannot be brought forward: %s", error)
            try:
                async with asyncio.timeout(BUSY if self._is_busy() else IDLE):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def step(self) -> None:
        """Judge what is in probation, then bring every slot nearer to the desired state."""
        async with self._steps:
            await self._restore()
            desired = self._desired
            if desired is not None:
                for release in list(self._releases.values()):
                    if release.progress.state is State.ACTIVE:
                        await self._judge(desired, release)
                await self._withdraw_unwanted(desired)
                for assignment in sorted(desired.assignments, key=lambda one: one.kind is not Kind.MODEL):
                    await self._pursue(desired, assignment)
            await self._store_windows()
            await self._stage.collect(self._needs())
            await asyncio.to_thread(self._remove_blobs)

    async def close(self) -> None:
        """Store what was learned of the releases that serve, and unload everything."""
        async with self._steps:
            await self._save(*(r for r in self._releases.values() if r.progress.state in update.SERVING))
            await self._stage.close()

    # From wanted to active

    async def _pursue(self, desired: Desired, assignment: Assignment) -> None:
        release = self._releases.get(assignment.release)
        if release is None:
            release = await self._move(Release(update.offer(assignment, self._now())))
        if release.progress.state in update.SERVING:
            await self._abandon_others(release)
            current = self._current(release.progress.slot)
            if current is not None and current.digest != release.digest:
                await self._try_to_go_back(current, "the hub went back to the release before", hold=False)
            return
        if self._is_too_early(release):
            return
        if update.may_retry(release.progress):
            release = await self._move(release, update.offer_again(release.progress, self._now()))
        elif release.progress.state not in (State.OFFERED, State.FETCHING):
            release = await self._move(release, update.interrupted(release.progress, self._now()))
        if release.progress.state not in update.UNDERWAY:
            return
        await self._abandon_others(release)
        try:
            await self._attempt(desired, assignment)
        except StaleDesired:
            return  # a newer desired state came meanwhile; the next step follows that one
        except _NotYet as error:
            await self._stall(release.digest, str(error))
        except _VERDICTS as error:
            await self._give_up(release.digest, f"{type(error).__name__}: {error}", hold=True)
        except _STALLS as error:
            await self._stall(release.digest, f"{type(error).__name__}: {error}")
        except EngineError as error:
            await self._give_up(release.digest, f"{type(error).__name__}: {error}", hold=False)

    async def _attempt(self, desired: Desired, assignment: Assignment) -> None:
        release = self._releases[assignment.release]
        if release.progress.state is State.OFFERED:
            release = await self._advance(release, State.FETCHING)
        vouched = await self._vouch(assignment.target_path)
        manifest = agree(desired, self.desired_version, assignment, vouched).manifest
        check_served(manifest)  # what cannot be served here is not fetched, nor what does not fit
        machine = await asyncio.to_thread(machine_for, manifest, self._machine)
        if (why := unfit(manifest, machine)) is not None:
            raise UnfitRelease(why)
        if manifest.kind is Kind.ADAPTER:
            self._base_for(manifest)
        # Known from here on, so that what arrives can be found and deleted if it is given up.
        release = await self._move(replace(release, manifest=manifest))
        require_room(manifest.files, self._store)
        for file in manifest.files:
            await fetch_blob(file, self._store, _WhileWanted(self._source(file), self._is_latest(desired)))
        release = await self._advance(release, State.VERIFIED)
        staged = await self._load_new(release)
        release = await self._advance(release, State.STAGED)
        figures = [await self._stage.replay(served, promised) for served, promised in staged]
        release = await self._advance(replace(release, figures=figures[0]), State.PROBED)
        await self._activate(release, [served for served, _ in staged])

    async def _load_new(self, release: Release) -> list[tuple[Served, Manifest]]:
        """Load a release, and with a base the adapters that will ride on it; each with its manifest."""
        manifest = verified(release)
        if manifest.kind is Kind.ADAPTER:
            return [(await self._stage.load_adapter(release, self._base_for(manifest)), manifest)]
        loaded = [(await self._stage.load_base(release), manifest)]
        for rider in self._riders(release):
            loaded.append((await self._stage.load_adapter(rider, release), verified(rider)))
        return loaded

    async def _activate(self, release: Release, staged: list[Served]) -> None:
        """Store the new order of things in one transaction, then turn the pointers."""
        current = self._current(release.progress.slot)
        active = update.advance(release.progress, State.ACTIVE, self._now())
        if current is None:
            # Nothing to be compared with and nothing to go back to: its probes were its probation.
            active = update.advance(active, State.COMMITTED, self._now())
        is_adapter = verified(release).kind is Kind.ADAPTER
        changes = [replace(release, progress=active, base=staged[0].release if is_adapter else None)]
        if current is not None:
            if current.progress.state is State.ACTIVE:
                superseded = update.advance(current.progress, State.SUPERSEDED, self._now())
                current = replace(current, progress=superseded)
            changes.append(current)  # with its latest answers: the new release is held against them
        if not is_adapter:
            changes += [replace(rider, base=release.digest) for rider in self._riders(release)]
        self._windows[release.digest] = Window()
        await self._save(*changes)
        self._publish(staged)

    # Probation, and the ways back

    async def _judge(self, desired: Desired, release: Release) -> None:
        before = self._before(release)
        if before is None:
            return
        judgement = update.judge_probation(
            self._window(before),
            self._window(release),
            desired.probation,
            self._now() - release.progress.at[State.ACTIVE],
        )
        if judgement.verdict is Verdict.COMMIT:
            await self._save(
                replace(release, progress=update.advance(release.progress, State.COMMITTED, self._now())),
                replace(before, progress=update.advance(before.progress, State.SUPERSEDED, self._now())),
            )
        elif judgement.verdict is Verdict.ROLL_BACK:
            await self._try_to_go_back(release, f"probation: {judgement.reason}", hold=True)

    async def _go_back(self, release: Release, reason: str, hold: bool) -> None:
        """From ``release``, which serves, to the one before it; to nothing when there is none.

        The one before is loaded first, so that there is no moment without an answer.
        """
        changes = [replace(release, progress=update.roll_back(release.progress, reason, hold, self._now()))]
        loaded: list[Served] = []
        before = self._before(release)
        if before is not None:
            if before.progress.state is State.SUPERSEDED:
                restored = update.advance(before.progress, State.COMMITTED, self._now())
                before = replace(before, progress=restored)
            loaded = [await self._load_again(before)]
            changes.append(before)
            if verified(before).kind is Kind.MODEL:
                for rider in self._riders(before):
                    if rider.base == release.digest:
                        loaded.append(await self._stage.load_adapter(rider, before))
                        changes.append(replace(rider, base=before.digest))
        await self._save(*changes)
        if not loaded:
            self._withdraw(release)
        self._publish(loaded)

    async def _try_to_go_back(self, release: Release, reason: str, hold: bool) -> None:
        if self._is_too_early(release):
            return
        try:
            await self._go_back(release, reason, hold)
        except (EngineError, ReleaseRefused, UnsafeFile) as error:
            await self._stall(release.digest, f"{reason}; the release before cannot be loaded: {error}")

    async def _load_again(self, release: Release) -> Served:
        """Load a release that served before: no probes, no repository, no link."""
        if verified(release).kind is Kind.MODEL:
            return await self._stage.load_base(release)
        base = self._releases.get(release.base) if release.base is not None else None
        if base is None:
            raise UnfitRelease(f"the base that {release.progress.slot} rides on is not known any more")
        return await self._stage.load_adapter(release, base)

    async def _restore(self) -> None:
        """Serve what should serve and does not: after a start, and after an engine refused to load."""
        for slot in self._slots():
            current = self._current(slot)
            while current is not None and current.digest not in self._serving:
                if self._is_too_early(current):
                    break
                try:
                    self._publish([await self._load_again(current)])
                except (EngineError, ReleaseRefused, UnsafeFile) as error:
                    if current.progress.state is State.ACTIVE:
                        await self._give_up(current.digest, f"cannot be loaded again: {error}", hold=False)
                    else:
                        await self._stall(current.digest, f"cannot be loaded again: {error}")
                current = self._current(slot)

    async def _withdraw_unwanted(self, desired: Desired) -> None:
        """Stop serving slots to which the director assigns nothing any more."""
        wanted = {f"{assignment.kind}/{assignment.name}" for assignment in desired.assignments}
        for release in list(self._releases.values()):
            if release.progress.slot in wanted:
                continue
            if release.progress.state in update.SERVING:
                gone = update.advance(release.progress, State.SUPERSEDED, self._now())
                await self._move(release, update.stall(gone, "withdrawn by the hub"))
                self._withdraw(release)
            elif release.progress.state in update.UNDERWAY:
                await self._give_up(release.digest, "not wanted any more", hold=False)

    async def _abandon_others(self, release: Release) -> None:
        for other in self._in_slot(release.progress.slot):
            if other.digest != release.digest and other.progress.state in update.UNDERWAY:
                await self._give_up(other.digest, "another release is wanted", hold=False)

    # Looking at what is stored

    def _slots(self) -> list[str]:
        """Bases before adapters."""
        slots = {release.progress.slot for release in self._releases.values()}
        return sorted(slots, key=lambda slot: (not slot.startswith(f"{Kind.MODEL}/"), slot))

    def _in_slot(self, slot: str) -> list[Release]:
        return [release for release in self._releases.values() if release.progress.slot == slot]

    def _current(self, slot: str) -> Release | None:
        """What serves a slot: a release in probation, else the committed one."""
        for state in (State.ACTIVE, State.COMMITTED):
            for release in self._in_slot(slot):
                if release.progress.state is state:
                    return release
        return None

    def _before(self, release: Release) -> Release | None:
        """What to go back to: the committed release under one in probation, else the last superseded one."""
        others = [other for other in self._in_slot(release.progress.slot) if other.digest != release.digest]
        committed = [other for other in others if other.progress.state is State.COMMITTED]
        superseded = [other for other in others if other.progress.state is State.SUPERSEDED]
        return max(committed or superseded, key=_latest, default=None)

    def _riders(self, base: Release) -> list[Release]:
        """The adapters that serve now and may ride on ``base``."""
        name, riders = base.progress.assignment.name, []
        for slot in self._slots():
            current = self._current(slot)
            facts = current.manifest.adapter if current is not None and current.manifest is not None else None
            if current is None or facts is None or facts.base_name != name:
                continue
            if base.digest in facts.checked_against:
                riders.append(current)
        return riders

    def _base_for(self, manifest: Manifest) -> Release:
        """The base that an adapter will ride on. Raises ``UnfitRelease``, or ``_NotYet``."""
        facts = manifest.adapter
        if facts is None:
            raise UnfitRelease(f"{manifest.name} is no adapter")
        slot = f"{Kind.MODEL}/{facts.base_name}"
        base = self._current(slot)
        if base is not None and base.digest in facts.checked_against:
            return base
        wanted = [a.release for a in self._desired.assignments] if self._desired is not None else []
        if base is None or set(wanted) & set(facts.checked_against):
            raise _NotYet(f"waits for a base {facts.base_name} that it was checked against")
        raise UnfitRelease(
            f"adapter {manifest.name} {manifest.version} was not checked against {facts.base_name} "
            f"{base.progress.assignment.version}"
        )

    def _needs(self) -> set[Need]:
        """What must stay loaded: all that serves, and what a release in probation would fall back to."""
        return {
            Need(release.digest) if release.base is None else Need(release.base, release.digest)
            for release in self._releases.values()
            if release.progress.state in update.SERVING
        }

    def _remove_blobs(self) -> None:
        """Delete the files of releases that nothing would load; offered again, they are fetched again."""
        releases = self._kept()
        kept = {file.sha256 for release in releases for file in _files(release)}
        whole = {release.digest for release in releases}
        for release in self._releases.values():
            if release.digest not in whole:
                self._store.remove_layout(release.digest)
            for file in _files(release):
                if file.sha256 not in kept:
                    self._store.remove(file.sha256)

    def _kept(self) -> list[Release]:
        """What serves and would be fallen back to, what is underway or tried again, and their bases."""
        wanted = {a.release for a in self._desired.assignments} if self._desired is not None else set()
        kept: list[Release] = []
        for release in self._releases.values():
            progress = release.progress
            if progress.state in update.SERVING:
                before = self._before(release)
                kept += [release] if before is None else [release, before]
            elif progress.state in update.UNDERWAY or (
                release.digest in wanted and update.may_retry(progress)
            ):
                kept.append(release)
        bases = [self._releases.get(release.base) for release in kept if release.base is not None]
        return kept + [base for base in bases if base is not None]

    def _is_latest(self, desired: Desired) -> Callable[[], bool]:
        return lambda: self.desired_version == desired.version

    def _window(self, release: Release) -> Window:
        return self._windows.get(release.digest, Window())

    def _is_too_early(self, release: Release) -> bool:
        return self._monotonic() < self._not_before.get(release.digest, 0.0)

    def _is_busy(self) -> bool:
        watched = update.UNDERWAY | {State.ACTIVE}
        wanted = {a.release for a in self._desired.assignments} if self._desired is not None else set()
        return self._stage.waiting or any(
            release.progress.state in watched
            or (release.digest in self._not_before and release.digest in wanted)
            for release in self._releases.values()
        )

    # Changing what is stored

    async def _save(self, *releases: Release) -> None:
        """Store what is not stored yet: the same row again would wear flash, and its report say nothing."""
        latest = [replace(release, window=self._window(release)) for release in releases]
        rows = [row for row in latest if row != self._releases.get(row.digest)]
        if not rows:
            return
        await self._table.save(*rows)
        self._releases.update({release.digest: release for release in rows})
        self._changed()

    async def _store_windows(self) -> None:
        if self._monotonic() < self._windows_due:
            return
        self._windows_due = self._monotonic() + WINDOWS_STORED
        await self._save(*(r for r in self._releases.values() if r.progress.state in update.SERVING))

    async def _move(self, release: Release, progress: Progress | None = None) -> Release:
        moved = release if progress is None else replace(release, progress=progress)
        await self._save(moved)
        return moved

    async def _advance(self, release: Release, to: State) -> Release:
        return await self._move(release, update.advance(release.progress, to, self._now()))

    async def _stall(self, digest: Digest, reason: str) -> None:
        self._not_before[digest] = self._monotonic() + STALLED_AGAIN
        release = self._releases[digest]
        await self._move(release, update.stall(release.progress, reason))

    async def _give_up(self, digest: Digest, reason: str, hold: bool) -> None:
        release = self._releases[digest]
        rolled_back = update.roll_back(release.progress, reason, hold, self._now())
        self._not_before.pop(digest, None)
        if update.may_retry(rolled_back):
            self._not_before[digest] = self._monotonic() + update.backoff(rolled_back.attempts)
        await self._move(release, rolled_back)

    def _publish(self, loaded: list[Served]) -> None:
        for served in loaded:
            digest = served.adapter_release or served.release
            release = self._releases[digest] if digest is not None else None
            if release is not None:
                self._serving -= {other.digest for other in self._in_slot(release.progress.slot)}
                self._serving.add(release.digest)
                self._not_before.pop(release.digest, None)
            self._stage.publish(served)

    def _withdraw(self, release: Release) -> None:
        manifest = verified(release)
        self._serving.discard(release.digest)
        base = manifest.adapter.base_name + ":" if manifest.adapter is not None else ""
        self._stage.withdraw(base + manifest.name)

    def _observe(self, outcome: Outcome) -> None:
        """Count an answer for its release. An adapter on probation does not speak for its base."""
        pace = outcome.seconds / outcome.completion_tokens if outcome.completion_tokens else None
        observation = Observation(not outcome.ok, outcome.violated_schema, pace)
        judged = [outcome.served.adapter_release, outcome.served.release]
        for digest in judged:
            release = self._releases.get(digest) if digest is not None else None
            if release is None:
                continue
            self._windows[release.digest] = self._window(release).add([observation])
            if release.progress.state is State.ACTIVE:
                self._wake.set()
                break


class _WhileWanted:
    """A blob source that stops between two reads when a newer desired state came: it may want something else.

    What was fetched stays, and is not fetched again if it is still wanted.
    """

    def __init__(self, source: BlobSource, is_latest: Callable[[], bool]) -> None:
        self._source = source
        self._is_latest = is_latest

    async def read(self, digest: Digest, offset: int, length: int) -> bytes:
        """See ``BlobSource``. Raises ``StaleDesired``."""
        if not self._is_latest():
            raise StaleDesired("a newer desired state came while files were fetched")
        return await self._source.read(digest, offset, length)


def _files(release: Release) -> tuple[File, ...]:
    return release.manifest.files if release.manifest is not None else ()


def _latest(release: Release) -> float:
    return max(release.progress.at.values())


def _report(release: Release) -> ReleaseReport:
    progress = release.progress
    assignment = progress.assignment
    return ReleaseReport(
        kind=assignment.kind,
        name=assignment.name,
        version=assignment.version,
        release=assignment.release,
        state=progress.state,
        reason=progress.reason,
        attempts=progress.attempts,
        at=progress.at,
        figures=release.figures,
    )
