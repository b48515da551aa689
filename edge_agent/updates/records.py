"""The releases of a device as they are stored, and what is known of them beyond that.

Owns: that every change is durable when its method returns, the answers counted since the last time, and
until when a release is left alone. Refuses: deciding (``edge_agent.updates.decisions``).
"""

from collections.abc import Callable
from dataclasses import replace

from edge_agent.updates.decisions import Setback
from edge_agent.updates.releases import Releases
from edge_agent.updates.state import Release, ReleaseTable
from models.digest import Digest
from sync import update
from sync.protocol import State
from sync.update import Observation, Progress, Window

STALLED_AGAIN = 15.0
"""Seconds after which a release that could not be fetched, verified or loaded is tried again."""

WINDOWS_STORED = 60.0
"""Seconds between two times that the answers seen of what serves are stored: a power cut costs no more."""


class Records:
    """``now`` and ``monotonic`` as in ``Activator``; ``changed`` is called after every stored change."""

    def __init__(
        self,
        table: ReleaseTable,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self._table = table
        self._now = now
        self._monotonic = monotonic
        self._changed = changed
        self._windows: dict[Digest, Window] = {}
        self._windows_due = 0.0
        self._not_before: dict[Digest, float] = {}
        self.releases = Releases()

    async def load(self) -> None:
        """Read all that is stored."""
        rows = await self._table.all()
        self.releases = Releases({release.digest: release for release in rows})
        self._windows = {release.digest: release.window for release in rows}

    # Changes

    async def save(self, *releases: Release) -> None:
        """Store what is not stored yet: the same row again would wear flash, and its report say nothing."""
        latest = [replace(release, window=self.window(release)) for release in releases]
        rows = [row for row in latest if row != self.releases.get(row.digest)]
        if not rows:
            return
        await self._table.save(*rows)
        self.releases = self.releases.with_changed(*rows)
        self._changed()

    async def move(self, release: Release, progress: Progress) -> Release:
        """Store where it stands now."""
        moved = replace(release, progress=progress)
        await self.save(moved)
        return moved

    async def advance(self, release: Release, to: State) -> Release:
        """Store that it has come to its next state."""
        return await self.move(release, update.advance(release.progress, to, self._now()))

    async def set_back(self, digest: Digest, setback: Setback, reason: str) -> None:
        """Store that a release does not move on, or is given up; and leave it alone for a while."""
        release = self.releases.rows[digest]
        if setback is Setback.STALLED:
            self._not_before[digest] = self._monotonic() + STALLED_AGAIN
            await self.move(release, update.stall(release.progress, reason))
            return
        hold = setback is Setback.HELD
        rolled_back = update.roll_back(release.progress, reason, hold, self._now())
        self._not_before.pop(digest, None)
        if update.may_retry(rolled_back):
            self._not_before[digest] = self._monotonic() + update.backoff(rolled_back.attempts)
        await self.move(release, rolled_back)

    # Pauses

    def is_paused(self, release: Digest) -> bool:
        """Whether it is not to be tried yet."""
        return self._monotonic() < self._not_before.get(release, 0.0)

    def was_set_back(self, release: Digest) -> bool:
        """Whether it was, and has not come through since."""
        return release in self._not_before

    def end_pause(self, release: Digest) -> None:
        """Let it be tried at once."""
        self._not_before.pop(release, None)

    # Answers

    def window(self, release: Release) -> Window:
        """Its latest answers, also those that are not stored yet."""
        return self._windows.get(release.digest, Window())

    def forget_answers(self, release: Digest) -> None:
        """Begin to count anew."""
        self._windows[release] = Window()

    def count(self, release: Release, answer: Observation) -> None:
        """Count an answer, in memory."""
        self._windows[release.digest] = self.window(release).add([answer])

    async def store_answers_in_time(self) -> None:
        """Store them if the last time is long ago."""
        if self._monotonic() >= self._windows_due:
            self._windows_due = self._monotonic() + WINDOWS_STORED
            await self.store_answers()

    async def store_answers(self) -> None:
        """Store what was counted of all that serves."""
        await self.save(*self.releases.in_states(update.SERVING))
