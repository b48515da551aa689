"""Counters of this device in Prometheus' text form (exposition format 0.0.4).

What vLLM counts too has vLLM's name after ``outpost_``, and its label ``model_name``. Labels are names of
models, endpoints and statuses, never content. ``FAMILIES`` is the whole list.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from edge_agent.catalog import Outcome, Served
from models.engines.base import Load, Usage

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds."""

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: what it counts, for people."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str


REQUESTS = Family("outpost_http_requests_total", "counter", "HTTP requests by route and status.")
SUCCESS = Family("outpost_request_success_total", "counter", "Calls answered completely, by who served them.")
PROMPT = Family(
    "outpost_prompt_tokens_total", "counter", "Prompt tokens of complete answers, reused ones too."
)
CACHED = Family(
    "outpost_prompt_tokens_cached_total", "counter", "Prompt tokens that were reused from the KV cells."
)
GENERATED = Family("outpost_generation_tokens_total", "counter", "Generated tokens of complete answers.")
FIRST_TOKEN = Family(
    "outpost_time_to_first_token_seconds", "histogram", "Seconds from admission to the first text."
)
INTER_TOKEN = Family(
    "outpost_inter_token_latency_seconds", "histogram", "Seconds between two texts of one answer."
)
LATENCY = Family(
    "outpost_e2e_request_latency_seconds", "histogram", "Seconds of a local answer from prompt to end."
)
FAILURES = Family("outpost_engine_failures_total", "counter", "Local answers that failed in the engine.")
VIOLATIONS = Family("outpost_schema_violations_total", "counter", "Complete answers off their schema.")
IN_FLIGHT = Family("outpost_requests_in_flight", "gauge", "Calls admitted and not yet answered.")
MODELS = Family("outpost_models", "gauge", "Models published on this device.")
LOADED = Family("outpost_engine_loaded", "gauge", "1 while the engine's process is there, 0 while it is not.")
LOADS = Family("outpost_engine_loads_total", "counter", "How often the engine was loaded, restarts included.")
RESTARTS = Family("outpost_engine_restarts_total", "counter", "Restarts of the engine after crashes.")
RUNNING = Family("outpost_num_requests_running", "gauge", "Requests that the engine is computing.")
WAITING = Family("outpost_num_requests_waiting", "gauge", "Requests that wait for a place in the engine.")
KV_USAGE = Family(
    "outpost_kv_cache_usage_perc", "gauge", "Part of the KV cells promised to what runs; 1 is all of them."
)
KV_CELLS = Family("outpost_kv_cells", "gauge", "KV cells: all, filled with tokens (kept prefixes too).")

FAMILIES = (
    REQUESTS,
    SUCCESS,
    PROMPT,
    CACHED,
    GENERATED,
    FIRST_TOKEN,
    INTER_TOKEN,
    LATENCY,
    FAILURES,
    VIOLATIONS,
    IN_FLIGHT,
    MODELS,
    LOADED,
    LOADS,
    RESTARTS,
    RUNNING,
    WAITING,
    KV_USAGE,
    KV_CELLS,
)

Samples = Mapping[Family, Mapping[Labels, float]]


@runtime_checkable
class Watched(Protocol):
    """An engine in a process of its own, as monitoring sees it."""

    @property
    def load(self) -> Load:
        """What it has to do."""

    @property
    def pid(self) -> int | None:
        """Its process; None while there is none."""

    @property
    def loads(self) -> int:
        """How often it was loaded."""

    @property
    def restarts(self) -> int:
        """How often it came back after a crash."""


class Metrics:
    """Counts in memory; they start at nothing with the process, as Prometheus expects."""

    def __init__(self) -> None:
        self._values: dict[Family, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._seconds: dict[Family, dict[Labels, list[float]]] = defaultdict(dict)

    def http(self, route: str, status: int) -> None:
        """One HTTP request was answered; ``route`` is its pattern, not its path."""
        self._add(REQUESTS, 1, route=route, status=str(status))

    def answered(self, model: str, served_by: str, usage: Usage, first_text: float | None) -> None:
        """One call was answered completely."""
        self._add(SUCCESS, 1, model_name=model, served_by=served_by)
        self._add(PROMPT, usage.prompt_tokens, model_name=model)
        self._add(CACHED, usage.cached_tokens, model_name=model)
        self._add(GENERATED, usage.completion_tokens, model_name=model)
        if first_text is not None:
            self._time(FIRST_TOKEN, first_text, model_name=model)

    def outcome(self, outcome: Outcome) -> None:
        """One local answer turned out well or badly."""
        model = outcome.served.model_id
        self._time(LATENCY, outcome.seconds, model_name=model)
        if not outcome.ok:
            self._add(FAILURES, 1, model_name=model)
        if outcome.violated_schema:
            self._add(VIOLATIONS, 1, model_name=model)

    def text_after(self, model: str, seconds: float) -> None:
        """More text of an answer came ``seconds`` after the text before it."""
        self._time(INTER_TOKEN, seconds, model_name=model)

    def text(self, in_flight: int, served: Iterable[Served]) -> str:
        """Everything, in the text form."""
        models = tuple(served)
        now: Samples = {
            IN_FLIGHT: {(): float(in_flight)},
            MODELS: {(): float(len(models))},
            **_of_engines(models),
        }
        lines = []
        for family in FAMILIES:
            lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
            for labels, value in sorted({**self._values.get(family, {}), **now.get(family, {})}.items()):
                lines.append(_sample(family.name, labels, value))
            for labels, counts in sorted(self._seconds.get(family, {}).items()):
                lines += _histogram(family.name, labels, counts)
        return "\n".join(lines) + "\n"

    def _add(self, family: Family, amount: float, **labels: str) -> None:
        self._values[family][tuple(labels.items())] += amount

    def _time(self, family: Family, seconds: float, **labels: str) -> None:
        counts = self._seconds[family].setdefault(tuple(labels.items()), [0.0] * (len(_BUCKETS) + 2))
        for index, bound in enumerate(_BUCKETS):
            counts[index] += seconds <= bound
        counts[-2] += 1
        counts[-1] += seconds


def _of_engines(models: Iterable[Served]) -> Samples:
    """What engines say of themselves, under the name of their base: adapters share it."""
    samples: dict[Family, dict[Labels, float]] = defaultdict(dict)
    for served in models:
        engine, name = served.engine, ("model_name", served.model_id.partition(":")[0])
        if not isinstance(engine, Watched):
            continue
        load = engine.load
        samples[LOADED][(name,)] = float(engine.pid is not None)
        samples[LOADS][(name,)] = engine.loads
        samples[RESTARTS][(name,)] = engine.restarts
        samples[RUNNING][(name,)] = load.running
        samples[WAITING][(name,)] = load.waiting
        if load.cells:
            samples[KV_USAGE][(name,)] = load.promised / load.cells
            cells = {"all": load.cells, "filled": load.filled}
            samples[KV_CELLS] |= {(name, ("kind", kind)): float(count) for kind, count in cells.items()}
    return samples


def _histogram(name: str, labels: Labels, counts: list[float]) -> list[str]:
    bounds = [*map(str, _BUCKETS), "+Inf"]
    buckets = [
        _sample(f"{name}_bucket", (*labels, ("le", bound)), count)
        for bound, count in zip(bounds, counts[:-1], strict=True)
    ]
    return [
        *buckets,
        _sample(f"{name}_sum", labels, counts[-1]),
        _sample(f"{name}_count", labels, counts[-2]),
    ]


def _sample(name: str, labels: Labels, value: float) -> str:
    inside = ",".join(f'{key}="{_escape(item)}"' for key, item in labels)
    return f"{name}{{{inside}}} {value:.10g}" if inside else f"{name} {value:.10g}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
