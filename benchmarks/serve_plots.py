"""The plots of ``docs/serving_benchmark.md``, as SVG: medians of the rounds with their range."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.serve_servers import NATIVE, OUTPOST, PYTHON

COLOURS = {OUTPOST: "#1a7f5a", NATIVE: "#1d2733", PYTHON: "#7a8794"}
MARKS = {OUTPOST: "o", NATIVE: "s", PYTHON: "^"}

Values = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]


def draw(results: Mapping[str, Any], folder: Path) -> None:
    """All that the results have figures for."""
    folder.mkdir(exist_ok=True)
    if "levels" in results:
        values = results["levels"]["values"]
        by_clients(values, {"tokens_per_second": "-"}, "tokens/s", folder / "serving-throughput.svg")
        first = {"ttft_p50_ms": "-", "ttft_p99_ms": ":"}
        label = "first token, ms: p50, p99 dotted"
        by_clients(values, first, label, folder / "serving-first-token.svg", logarithmic=True)
    if "prefix" in results:
        waves(results["prefix"]["values"], folder / "serving-prefix.svg")


def by_clients(
    values: Values, figures: Mapping[str, str], label: str, target: Path, *, logarithmic: bool = False
) -> None:
    """Lines over the number of clients; ``figures``: what is drawn, in which style."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(5.8, 3.4))
    for server, places in values.items():
        clients = [int(place) for place in places]
        for number, (name, style) in enumerate(figures.items()):
            middle, reach = spread([places[place][name] for place in places])
            axes.errorbar(
                clients,
                middle,
                yerr=reach,
                fmt=f"{MARKS[server]}{style}",
                color=COLOURS[server],
                capsize=3,
                label=None if number else server,
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(clients, [str(count) for count in clients])
    if logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("clients")
    axes.set_ylabel(label)
    _save(figure, target)


def waves(values: Values, target: Path) -> None:
    """Time to the first token with a prefix that is shared."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(5.8, 2.9))
    width = 0.8 / len(values)
    for number, (server, figures) in enumerate(values.items()):
        seconds = [[one / 1e3 for one in figures[wave]["ttft_p50_ms"]] for wave in ("cold", "warm")]
        middle, reach = spread(seconds)
        places = [place + (number - (len(values) - 1) / 2) * width for place in (0, 1)]
        axes.bar(places, middle, width, yerr=reach, color=COLOURS[server], label=server, capsize=3)
    axes.set_xticks([0, 1], ["cold", "warm"])
    axes.set_yscale("log")
    axes.set_ylabel("first token p50, s")
    _save(figure, target)


def spread(rounds: Sequence[Sequence[float]]) -> tuple[list[float], list[list[float]]]:
    """Medians, and how far the range reaches below and above them."""
    middle = [statistics.median(each) for each in rounds]
    low = [m - min(each) for m, each in zip(middle, rounds, strict=True)]
    high = [max(each) - m for m, each in zip(middle, rounds, strict=True)]
    return middle, [low, high]


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "outpost"
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, target: Path) -> None:
    (axes,) = figure.axes
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(target, format="svg", metadata={"Date": None})
    _pyplot().close(figure)
