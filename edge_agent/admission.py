"""How many requests may run and wait on this device, how large, and when the next one should come back.

Small state machines without a clock: whoever carries out the work says how long it took. Refuses: queueing
itself (the engine batches and queues), I/O.
"""

import math
from dataclasses import dataclass

from edge_agent.errors import Overloaded

_SMOOTHING = 0.2
"""Weight of the newest duration in the moving average (exponential smoothing)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one device takes on. ``running`` is the engine's batch, ``waiting`` the queue behind it."""

    running: int = 8
    waiting: int = 64
    max_body_bytes: int = 1 << 20
    max_picture_bytes: int = 32 << 20  # of a body that carries pictures
    max_bodies_bytes: int = 128 << 20  # of all that are here at once: read, being read, being answered

    def __post_init__(self) -> None:
        if min(self.running, self.max_body_bytes, self.max_picture_bytes) < 1 or self.waiting < 0:
            raise ValueError("limits: running and the sizes of bodies are at least 1, waiting at least 0")
        if self.max_bodies_bytes < max(self.max_body_bytes, self.max_picture_bytes):
            raise ValueError("limits: all bodies together have room for one")

    @property
    def capacity(self) -> int:
        """Requests that may be inside at once."""
        return self.running + self.waiting


class Bodies:
    """Counts the bytes of requests that are here. Law: ``0 <= held <= limits.max_bodies_bytes``.

    Most clients that send pictures send few at a time. Many who do so at once would fill the memory that the
    models need, though each of them keeps within what one may send.
    """

    def __init__(self, limits: Limits) -> None:
        self._most = limits.max_bodies_bytes
        self.held = 0

    def take(self, size: int, retry_after: int) -> None:
        """Hold ``size`` more bytes, to be given back by ``give_back``. Raises ``Overloaded``."""
        if self.held + size > self._most:
            raise Overloaded(retry_after, "too many large requests are here at once")
        self.held += size

    def give_back(self, size: int) -> None:
        """They are gone."""
        self.held -= size


class Admission:
    """Counts the requests inside. Law: ``0 <= inside <= limits.capacity``."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._inside = 0
        self._mean_seconds = 1.0

    @property
    def inside(self) -> int:
        """Requests that run or wait now."""
        return self._inside

    @property
    def capacity(self) -> int:
        """Requests that may be inside at once."""
        return self._limits.capacity

    @property
    def remaining(self) -> int:
        """How many more would be admitted now."""
        return self._limits.capacity - self._inside

    def enter(self, places: int = 1) -> None:
        """Take places, to be given back by ``leave``. Raises ``Overloaded`` when there are too few."""
        if self.remaining < places:
            raise Overloaded(self.retry_after())
        self._inside += places

    def leave(self, seconds: float, places: int = 1) -> None:
        """Give places back after ``seconds`` of work."""
        self._inside -= places
        self._mean_seconds += _SMOOTHING * (max(seconds, 0.0) - self._mean_seconds)

    def retry_after(self) -> int:
        """Whole seconds, 1 to 60, until about a batch of the queue will have been worked off."""
        batches = max(1.0, self._inside / self._limits.running)
        return min(60, max(1, math.ceil(self._mean_seconds * batches / 2)))
