"""Bringing a device to its desired state, one durable step at a time.

The async shell around ``edge_agent.updates.decisions`` and ``sync.update``: fetch, verify, stage, probe, make
the release active by a pointer change in the catalog, watch it, commit it or go back. Every state is stored
before the step that it announces, every step may be done again, so kill -9 anywhere leaves the old release
serving or the new one. What serves never depends on the link, on fresh metadata or on the hub: they are asked
only before something new is activated. One event loop owns an activator.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edge_agent.catalog import Catalog, Outcome, Served
from edge_agent.errors import ReleaseRefused, UnfitRelease, UnknownModel
from edge_agent.updates import decisions
from edge_agent.updates.decisions import SETBACKS, Setback, Way, setback_of
from edge_agent.updates.fetching import Fetcher, Vouch
from edge_agent.updates.records import Records
from edge_agent.updates.releases import Releases
from edge_agent.updates.staging import Engine, Stage
from edge_agent.updates.state import Release, ReleaseTable, verified
from models.digest import Digest
from models.errors import EngineError, UnsafeFile
from models.manifest import File, Kind, Manifest
from models.profiles import Machine
from models.store import BlobStore
from sync import update
from sync.errors import InvalidMessage, StaleDesired, SyncError, VerificationFailed
from sync.protocol import Assignment, Desired, ReleaseReport, State
from sync.transfer import BlobSource
from sync.trust import Accepted, accept_desired
from sync.update import Observation, Verdict

_log = logging.getLogger(__name__)

IDLE, BUSY = 30.0, 1.0
"""Seconds between steps when nothing wakes the activator; ``BUSY`` while something is underway or watched."""

_UNLOADABLE = (EngineError, ReleaseRefused, UnsafeFile)
"""Why a release that served cannot be loaded again."""


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
        self._director = director
        self._table = table
        self._stage = stage
        self._fetcher = Fetcher(machine, store, vouch, source, lambda: self.desired_version)
        self._records = Records(table, now, monotonic, changed)
        self._now = now
        self._changed = changed
        self._serving: set[Digest] = set()
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
        return self._releases.report()

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
        for release in self._releases.in_states(update.UNDERWAY):
            self._records.end_pause(release.digest)
        self._wake.set()
        self._changed()

    async def roll_back(self, slot: str) -> None:
        """Go back to the release before, on a person's word at the device; it holds.

        Raises ``UnknownModel`` when nothing serves the slot, ``EngineError`` when the release before cannot
        be loaded; then nothing has changed.
        """
        async with self._steps:
            current = self._releases.current(slot)
            if current is None:
                raise UnknownModel(f"nothing serves {slot}")
            await self._go_back(current, "rolled back at the device", hold=True)

    async def release_hold(self, slot: str) -> None:
        """Let the releases of a slot that are on hold be tried again."""
        async with self._steps:
            held = [release for release in self._releases.in_slot(slot) if release.progress.hold]
            await self._records.save(*(replace(r, progress=update.release_hold(r.progress)) for r in held))
        self._wake.set()

    # What drives it

    async def resume(self) -> None:
        """After a start: take up what was stored, and serve again what served. Needs no link."""
        async with self._steps:
            await self._records.load()
            stored = await self._table.desired()
            if stored is not None:
                self._accepted, envelope = stored
                try:
                    self._desired, _ = accept_desired(envelope, self._director, self._device, self._accepted)
                except (VerificationFailed, InvalidMessage) as error:
                    # What serves goes on; the director will have to say anew what it wants.
                    _log.warning("the stored desired state is not believed: %s", error)
            cut = self._releases.in_states(update.UNDERWAY)
            now = self._now()
            await self._records.save(*(replace(r, progress=update.interrupted(r.progress, now)) for r in cut))
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
                for release in self._releases.in_states({State.ACTIVE}):
                    await self._judge(desired, release.digest)
                await self._withdraw_unwanted(desired)
                for assignment in sorted(desired.assignments, key=lambda one: one.kind is not Kind.MODEL):
                    await self._pursue(desired, assignment)
            await self._records.store_answers_in_time()
            releases = self._releases
            await self._stage.collect(releases.needs())
            await asyncio.to_thread(self._fetcher.keep, releases.kept(self._wanted), releases)

    async def close(self) -> None:
        """Store what was learned of the releases that serve, and unload everything."""
        async with self._steps:
            await self._records.store_answers()
            await self._stage.close()

    # From wanted to active

    async def _pursue(self, desired: Desired, assignment: Assignment) -> None:
        paused = self._records.is_paused(assignment.release)
        way, release = decisions.way_to(assignment, self._releases, paused=paused, now=self._now())
        if release is not self._releases.get(assignment.release):
            await self._records.save(release)
        if way is Way.WAIT:
            return
        await self._abandon_others(release)
        if way is Way.BACK:
            current = self._releases.current(release.progress.slot)
            if current is not None:
                await self._try_to_go_back(current, "the hub went back to the release before", hold=False)
        elif way is Way.ON:
            try:
                await self._attempt(desired, assignment)
            except StaleDesired:
                return  # a newer desired state came meanwhile; the next step follows that one
            except SETBACKS as error:
                await self._records.set_back(release.digest, *setback_of(error))

    async def _attempt(self, desired: Desired, assignment: Assignment) -> None:
        records = self._records
        release = self._releases.rows[assignment.release]
        if release.progress.state is State.OFFERED:
            release = await records.advance(release, State.FETCHING)
        manifest = await self._fetcher.manifest(assignment, desired)
        if manifest.kind is Kind.ADAPTER:
            self._releases.base_for(manifest, self._wanted)
        # Known from here on, so that what arrives can be found and deleted if it is given up.
        release = replace(release, manifest=manifest)
        await records.save(release)
        await self._fetcher.files(manifest, desired)
        release = await records.advance(release, State.VERIFIED)
        staged = await self._load_new(release)
        release = await records.advance(release, State.STAGED)
        figures = [await self._stage.replay(served, promised) for served, promised in staged]
        release = await records.advance(replace(release, figures=figures[0]), State.PROBED)
        await self._activate(release, [served for served, _ in staged])

    async def _load_new(self, release: Release) -> list[tuple[Served, Manifest]]:
        """Load a release, and with a base the adapters that will ride on it; each with its manifest."""
        manifest = verified(release)
        if manifest.kind is Kind.ADAPTER:
            base = self._releases.base_for(manifest, self._wanted)
            return [(await self._stage.load_adapter(release, base), manifest)]
        loaded = [(await self._stage.load_base(release), manifest)]
        for rider in self._releases.riders(release):
            loaded.append((await self._stage.load_adapter(rider, release), verified(rider)))
        return loaded

    async def _activate(self, release: Release, staged: list[Served]) -> None:
        """Store the new order of things in one transaction, then turn the pointers."""
        base = staged[0].release if verified(release).kind is Kind.ADAPTER else None
        changes = decisions.activated(release, base, self._releases, self._now())
        self._records.forget_answers(release.digest)
        await self._records.save(*changes)
        self._publish(staged)

    # Probation, and the ways back

    async def _judge(self, desired: Desired, digest: Digest) -> None:
        release = self._releases.rows[digest]  # as it is now: a base that was left has moved its riders
        before = self._releases.before(release)
        if before is None:
            return
        judgement = update.judge_probation(
            self._records.window(before),
            self._records.window(release),
            desired.probation,
            self._now() - release.progress.at[State.ACTIVE],
        )
        if judgement.verdict is Verdict.COMMIT:
            await self._records.save(*decisions.committed(release, before, self._now()))
        elif judgement.verdict is Verdict.ROLL_BACK:
            await self._try_to_go_back(release, f"probation: {judgement.reason}", hold=True)

    async def _go_back(self, release: Release, reason: str, hold: bool) -> None:
        """From ``release``, which serves, to the one before it; to nothing when there is none.

        The one before is loaded first, so that there is no moment without an answer.
        """
        way = decisions.way_back(release, reason, self._releases, hold=hold, now=self._now())
        loaded: list[Served] = []
        if way.before is not None:
            loaded.append(await self._load_again(way.before))
            for rider in way.riders:
                loaded.append(await self._stage.load_adapter(rider, way.before))
        await self._records.save(*way.changes)
        if not loaded:
            self._withdraw(release)
        self._publish(loaded)

    async def _try_to_go_back(self, release: Release, reason: str, hold: bool) -> None:
        if self._records.is_paused(release.digest):
            return
        try:
            await self._go_back(release, reason, hold)
        except _UNLOADABLE as error:
            why = f"{reason}; the release before cannot be loaded: {error}"
            await self._records.set_back(release.digest, Setback.STALLED, why)

    async def _load_again(self, release: Release) -> Served:
        """Load a release that served before: no probes, no repository, no link."""
        if verified(release).kind is Kind.MODEL:
            return await self._stage.load_base(release)
        base = self._releases.get(release.base)
        if base is None:
            raise UnfitRelease(f"the base that {release.progress.slot} rides on is not known any more")
        return await self._stage.load_adapter(release, base)

    async def _restore(self) -> None:
        """Serve what should serve and does not: after a start, and after an engine refused to load."""
        for slot in self._releases.slots():
            while (current := self._releases.current(slot)) is not None:
                if current.digest in self._serving or self._records.is_paused(current.digest):
                    break
                try:
                    self._publish([await self._load_again(current)])
                except _UNLOADABLE as error:
                    in_probation = current.progress.state is State.ACTIVE
                    setback = Setback.GIVEN_UP if in_probation else Setback.STALLED
                    await self._records.set_back(current.digest, setback, f"cannot be loaded again: {error}")

    async def _withdraw_unwanted(self, desired: Desired) -> None:
        """Stop serving slots to which the director assigns nothing any more."""
        wanted = {f"{assignment.kind}/{assignment.name}" for assignment in desired.assignments}
        for release in self._releases:
            if release.progress.slot in wanted:
                continue
            if release.progress.state in update.SERVING:
                await self._records.save(decisions.withdrawn(release, self._now()))
                self._withdraw(release)
            elif release.progress.state in update.UNDERWAY:
                await self._records.set_back(release.digest, Setback.GIVEN_UP, "not wanted any more")

    async def _abandon_others(self, release: Release) -> None:
        for other in self._releases.in_slot(release.progress.slot):
            if other.digest != release.digest and other.progress.state in update.UNDERWAY:
                await self._records.set_back(other.digest, Setback.GIVEN_UP, "another release is wanted")

    # What is known

    @property
    def _releases(self) -> Releases:
        return self._records.releases

    @property
    def _wanted(self) -> set[Digest]:
        return {a.release for a in self._desired.assignments} if self._desired is not None else set()

    def _is_busy(self) -> bool:
        wanted = self._wanted
        return self._stage.waiting or any(
            release.progress.state in update.UNDERWAY | {State.ACTIVE}
            or (release.digest in wanted and self._records.was_set_back(release.digest))
            for release in self._releases
        )

    # What serves

    def _publish(self, loaded: list[Served]) -> None:
        for served in loaded:
            release = self._releases.get(served.adapter_release or served.release)
            if release is not None:
                self._serving -= {other.digest for other in self._releases.in_slot(release.progress.slot)}
                self._serving.add(release.digest)
                self._records.end_pause(release.digest)
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
        for digest in (outcome.served.adapter_release, outcome.served.release):
            release = self._releases.get(digest)
            if release is None:
                continue
            self._records.count(release, observation)
            if release.progress.state is State.ACTIVE:
                self._wake.set()
                break
