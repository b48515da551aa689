"""``docs/serving_benchmark.md`` and its plots, from the figures that ``benchmarks.serve`` left.

``python -m benchmarks.serve_page`` draws them again. Every figure is the median of the rounds with its range;
a ratio is made within a round, where both met the same machine.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import serve_plots
from benchmarks.serve_servers import NATIVE, OUTPOST, PYTHON, ROOT

COLUMNS = {
    "tokens_per_second": "tokens/s",
    "ttft_p50_ms": "first token p50, ms",
    "ttft_p99_ms": "p99, ms",
    "itl_p50_ms": "between tokens p50, ms",
    "itl_p99_ms": "p99, ms",
    "cpu_ms_per_token": "CPU, ms/token",
    "rss_mb": "RSS, MB",
}

Values = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
Results = Mapping[str, Any]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def shown(value: float) -> str:
    """Three digits, more only where whole numbers have them."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ranged(values: Sequence[float]) -> str:
    """Median and range as text."""
    middle, low, high = map(shown, (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


@dataclass(frozen=True, slots=True)
class Goal:
    """What was promised of one figure, and the figure's value in every round."""

    text: str
    bound: float
    at_least: bool
    values: Sequence[float]
    unit: str = ""

    def row(self) -> str:
        """A row of the table."""
        sign = "≥" if self.at_least else "≤"
        said = f"| {self.text} | {sign} {self.bound:g}{self.unit} |"
        if not self.values:
            return f"{said} | not measured |"
        return f"{said} {ranged(self.values)}{self.unit} | {self.verdict()} |"

    def verdict(self) -> str:
        """By the median, and whether every round says the same."""
        met = [value >= self.bound if self.at_least else value <= self.bound for value in self.values]
        if all(met):
            return "met"
        middle = statistics.median(self.values)
        at_median = middle >= self.bound if self.at_least else middle <= self.bound
        return "met at the median" if at_median else "**not met**"


def goals(results: Results) -> list[Goal]:
    """All of them, measured or not."""
    found: list[Goal] = []

    def ratio(part: str, place: str, figure: str, other: str, here: str = OUTPOST) -> list[float]:
        values: Values = results.get(part, {}).get("values", {})
        try:
            return ratios(values[here][place][figure], values[other][place][figure])
        except KeyError:
            return []

    for clients in ("1", "4", "8", "16"):
        against = ratio("levels", clients, "tokens_per_second", NATIVE)
        found.append(
            Goal(f"tokens/s over llama-server's, {_clients(clients)}", 0.95, at_least=True, values=against)
        )
    speed = ratio("levels", "8", "tokens_per_second", PYTHON)
    found.append(Goal("tokens/s over llama_cpp.server's, 8 clients", 1.4, at_least=True, values=speed))
    first = ratio("levels", "8", "ttft_p99_ms", PYTHON)
    found.append(
        Goal("first token p99 over llama_cpp.server's, 8 clients", 0.25, at_least=False, values=first)
    )
    for wave, bound in (("cold", 0.2), ("warm", 1.05)):
        against = ratio("prefix", wave, "ttft_p50_ms", NATIVE)
        text = f"shared prefix, {wave}: first token p50 over llama-server's"
        found.append(Goal(text, bound, at_least=False, values=against))
    kept = ratio("overhead", "throughput", "tokens_per_second", "engine")
    lost = [100 * (1 - one) for one in kept]
    found.append(Goal("throughput that the agent takes from its engine", 3, False, lost, " %"))
    first_byte = [a - b for a, b in _both(results, "overhead", "first", "ttft_p50_ms")]
    found.append(Goal("time that the agent adds to the first token, p50", 2, False, first_byte, " ms"))
    for place, bound in (("1", 0.95), ("16", 2.0)):
        found.append(
            Goal(f"texts/s over a bare loop's, {_clients(place)}", bound, True, _over_loop(results, place))
        )
    served: Values = results.get("inspect", {}).get("values", {})
    pictures = served.get(OUTPOST, {}).get("16", {}).get("per_second", [])
    found.append(Goal("pictures/s, INT8 backbone, 16 clients", 15, True, pictures))
    return found


def _both(results: Results, part: str, place: str, figure: str) -> list[tuple[float, float]]:
    values: Values = results.get(part, {}).get("values", {})
    if not values:
        return []
    return list(zip(values[OUTPOST][place][figure], values["engine"][place][figure], strict=True))


def _over_loop(results: Results, place: str) -> list[float]:
    values: Values = results.get("embed", {}).get("values", {})
    if not values:
        return []
    return ratios(values[OUTPOST][place]["per_second"], values["loop"]["loop"]["per_second"])


def _clients(count: str) -> str:
    return "1 client" if count == "1" else f"{count} clients"


def table(values: Values, place: str) -> list[str]:
    """The servers at one level of load."""
    lines = [
        f"| {' | '.join(('server', *COLUMNS.values(), 'failures'))} |",
        "|" + "---|" * (len(COLUMNS) + 2),
    ]
    for server in values:
        figures = values[server][place]
        cells = [ranged(figures[name]) for name in COLUMNS]
        failures = f"{sum(figures['failures']):.0f} of {sum(figures['calls']):.0f}"
        lines.append(f"| {' | '.join((server, *cells, failures))} |")
    return lines


def levels_section(part: Mapping[str, Any]) -> list[str]:
    """Throughput and times by number of clients."""
    values: Values = part["values"]
    lines = ["## Levels of load", "", "![tokens per second](plots/serving-throughput.svg)", ""]
    lines += ["![time to the first token](plots/serving-first-token.svg)", ""]
    for place in values[OUTPOST]:
        lines += [f"### {_clients(place)}", "", *table(values, place), ""]
        speeds = {server: values[server][place]["tokens_per_second"] for server in values}
        native, python = (ranged(ratios(speeds[OUTPOST], speeds[peer])) for peer in (NATIVE, PYTHON))
        lines += [f"Our tokens/s over {NATIVE}'s: {native}; over {PYTHON}'s: {python}.", ""]
    cores = [
        value for server in values.values() for figures in server.values() for value in figures["load_cores"]
    ]
    lines += [f"The clients themselves took {100 * max(cores):.1f} % of a core at most.", ""]
    return [*lines, "```text", *part["servers"].values(), "```", "", circumstances(part), ""]


def prefix_section(part: Mapping[str, Any]) -> list[str]:
    """The shared system prompt."""
    values: Values = part["values"]
    lines = ["## A system prompt that all share", ""]
    lines += [
        f"{part['clients']} clients at once, 16 tokens of answer each, about 500 tokens in common: cold, when"
    ]
    lines += ["no server has seen them, then warm, with other questions.", ""]
    lines += ["![shared prefix](plots/serving-prefix.svg)", ""]
    for wave in ("cold", "warm"):
        lines += [f"### {wave.capitalize()}", "", *table(values, wave), ""]
    return [*lines, circumstances(part), ""]


def overhead_section(part: Mapping[str, Any]) -> list[str]:
    """The agent over its engine."""
    values: Values = part["values"]
    lines = ["## What the agent adds to its engine", ""]
    lines += [
        "The same engine is stepped in a process of its own, without HTTP, policy, or a process between."
    ]
    lines += [
        f"Throughput at {part['clients']} clients; the first token of one client, whose prompt is known but"
    ]
    lines += ["for a token, so that little of the time is the model's.", ""]
    lines += ["| | tokens/s | first token p50, ms | p99, ms |", "|---|---|---|---|"]
    for name in (OUTPOST, "engine"):
        first = values[name]["first"]
        cells = [ranged(values[name]["throughput"]["tokens_per_second"])]
        cells += [ranged(first["ttft_p50_ms"]), ranged(first["ttft_p99_ms"])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", circumstances(part), ""]


def encoder_section(title: str, what: str, unit: str) -> Callable[[Mapping[str, Any]], list[str]]:
    """A section with the loop first."""

    def section(part: Mapping[str, Any]) -> list[str]:
        values: Values = part["values"]
        loop = values["loop"]["loop"]["per_second"]
        lines = [f"## {title}", "", what, "", f"| | {unit} | over the loop |", "|---|---|---|"]
        lines.append(f"| loop | {ranged(loop)} | |")
        for place, figures in values[OUTPOST].items():
            if "per_second" in figures:
                speed = figures["per_second"]
                over = ranged(ratios(speed, loop))
                lines.append(f"| {OUTPOST}, {_clients(place)} | {ranged(speed)} | {over} |")
        memory = values[OUTPOST]["memory"]["rss_mb"][-1]
        return [*lines, "", f"RSS of the agent and its engine: {memory:.0f} MB.", "", circumstances(part), ""]

    return section


SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "levels": levels_section,
    "prefix": prefix_section,
    "overhead": overhead_section,
    "embed": encoder_section(
        "Encoders",
        "all-MiniLM-L6-v2 in float32, one text a call, beside a loop over tokenizers and ONNX Runtime alone.",
        "texts/s",
    ),
    "inspect": encoder_section(
        "Inspection",
        "`/v1/inspect` with the release of examples/textile (INT8 backbone), a JPEG of 250 x 250 a call,\n"
        "beside a loop over Pillow and ONNX Runtime alone.",
        "pictures/s",
    ),
}


def circumstances(part: Mapping[str, Any]) -> str:
    """When and where, in a line."""
    return (
        f"{part['date']}, commit {part['commit']}, {part['rounds']} rounds, {part['threads']} threads for "
        f"each server on {part['cores']} cores ({part['processor']}); load before: {part['load']}."
    )


HEAD = """\
# Serving, measured

SmolLM2-135M-Instruct (Q4_1, the same file for all) on one machine. Servers run side by side and take turns in
every round, whoever begins changing; a figure is the median of the rounds with their range, a ratio is made
within a round. Answers are greedy, streamed and 64 tokens long; every prompt is another one, of about 130
tokens. Each client asks four calls one after the other, and all begin at once: the first wave of prompts is
the worst case, a shift's begin. Made by `scripts/bench`; a part of it alone by
`python -m benchmarks.serve --only levels`.

## Goals
"""


TAIL = """\
This machine changes its own speed, by a quarter from minute to minute and at times by half: a ratio is worth
more than the figures that it is made of, and its range more than its middle. What to know about the goals:

- llama-server's figures jump between rounds; a reason may be that llama.cpp computes sequences together only
  where their slots lie side by side, to which ours are moved ([serving_engine.md](serving_engine.md)).
- The last of eight prompts that come at once is answered when all have been read, and reading takes the time
  that it takes: the agent adds that answers which have begun go on meanwhile. llama-server reads all waiting
  prompts before it goes on with any answer.
- What all share is read once, in about the time that llama.cpp needs for it: the cold wave of a shared prompt
  waits for that and for nothing else.
- Of what the agent adds to the first token, the client that measures it has a fifth; the rest is Python that
  runs after the engine's weights have passed through the same caches.
- A text of MiniLM takes 6 ms in a bare loop; HTTP, policy and the process between take another 3 to 5, while
  the model of a single caller rests. A batch is not cheaper a text than one text on these cores, so that
  batching texts gains nothing here.
"""


def write(results: Results, page: Path) -> None:
    """The page, and its plots beside it."""
    lines = [
        HEAD,
        "| | goal | measured | |",
        "|---|---|---|---|",
        *(goal.row() for goal in goals(results)),
        "",
        TAIL,
    ]
    for name, section in SECTIONS.items():
        if name in results:
            lines += section(results[name])
    page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    serve_plots.draw(results, page.parent / "plots")


if __name__ == "__main__":
    results = ROOT / "benchmarks" / "results" / "serve.json"
    write(json.loads(results.read_text(encoding="utf-8")), ROOT / "docs" / "serving_benchmark.md")
