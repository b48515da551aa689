"""Which upstream answers a request of the gateway: a pure choice over models, load and failures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cloud_hub.errors import NotFound, NoUpstream

COOL_DOWN = 1.0
"""Seconds an upstream rests after its first failure; each further failure doubles it."""
MAX_COOL_DOWN = 60.0


@dataclass(frozen=True, slots=True)
class Upstream:
    """An OpenAI-compatible server. ``model`` is what it calls the model; ``accepts`` are further
    names under which clients may ask for it (``*``: any name)."""

    name: str
    url: str
    model: str
    accepts: tuple[str, ...] = ()
    key_file: str | None = None

    def rank(self, model: str) -> int | None:
        """How well this upstream fits a requested model, best first; None when it does not."""
        if model == self.model:
            return 0
        if model in self.accepts:
            return 1
        return 2 if "*" in self.accepts else None


@dataclass(frozen=True, slots=True)
class Health:
    """What the gateway has seen of an upstream: requests in flight, failures in a row, rest until."""

    in_flight: int = 0
    failures: int = 0
    rest_until: float = 0.0

    def after_failure(self, now: float) -> "Health":
        """Health after a connection that failed at ``now`` (seconds, any monotonic clock)."""
        rest = min(COOL_DOWN * 2.0**self.failures, MAX_COOL_DOWN)
        return Health(self.in_flight, min(self.failures + 1, 16), now + rest)

    def after_answer(self) -> "Health":
        """Health after the upstream answered, whatever it answered."""
        return Health(self.in_flight)


def choose(
    model: str, upstreams: Iterable[Upstream], health: Mapping[str, Health], now: float
) -> tuple[Upstream, ...]:
    """The upstreams to try, best first: closest model name, then fewest requests in flight.

    Raises ``NotFound`` when none serves the model, ``NoUpstream`` when all that do are resting.
    """
    fitting = [(each.rank(model), each) for each in upstreams]
    serving = [(rank, each) for rank, each in fitting if rank is not None]
    if not serving:
        raise NotFound(f"no upstream serves the model {model!r:.100}")
    awake = [pair for pair in serving if health.get(pair[1].name, Health()).rest_until <= now]
    if not awake:
        raise NoUpstream(f"every upstream for {model!r:.100} failed a moment ago")
    awake.sort(key=lambda pair: (pair[0], health.get(pair[1].name, Health()).in_flight, pair[1].name))
    return tuple(upstream for _, upstream in awake)
