"""What is measured of servers of text: levels of load, a shared prefix, what the agent adds to its engine.

Servers run side by side and take turns within a round, so that what else the machine does meets all of them.
Every figure is kept for every round; ``serve_page`` makes medians and ratios of them. Prompts differ between
clients, calls and rounds, so that no server answers from what it computed before, except where that is what
is measured.
"""

import asyncio
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.serve_engine import Direct
from benchmarks.serve_load import Load, Message, converse, percentile
from benchmarks.serve_servers import MODEL, OUTPOST, Running, Server, outpost, peers

SUBJECTS = ("pump", "conveyor", "press", "boiler", "robot arm", "fuse box", "gearbox", "valve", "oven")
STATES = ("leaks oil", "hums at idle", "runs hot", "stalls twice an hour", "drifts out of tolerance")
ACTIONS = ("The shift lead was called.", "A spare part is on order.", "It was reset by hand.")
Conversations = list[list[list[Message]]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is asked."""

    gguf: Path
    threads: int
    slots: int  # of llama-server
    rounds: int
    clients: tuple[int, ...]
    calls: int = 4  # of each client, one after the other
    answer_tokens: int = 64
    first_calls: int = 40  # of a round, for the time to the first byte


def report(chance: random.Random, sentences: int) -> str:
    """Some lines of a shift book: about 24 tokens each."""
    return " ".join(
        f"On day {chance.randint(1, 999)} the {chance.choice(SUBJECTS)} of line {chance.randint(1, 99)} "
        f"{chance.choice(STATES)}. {chance.choice(ACTIONS)}"
        for _ in range(sentences)
    )


def own_prompts(seed: str, clients: int, calls: int) -> Conversations:
    """A prompt of about 100 tokens for each call, different from its first words on."""
    chance = random.Random(seed)
    return [
        [
            [{"role": "user", "content": f"{report(chance, 4)} Write a long and detailed story about this."}]
            for _ in range(calls)
        ]
        for _ in range(clients)
    ]


def shared_prompts(seed: str, wave: str, clients: int) -> Conversations:
    """The same 500 tokens before a question of each client; the next wave asks other questions."""
    rules = "You answer the shift. This is the book: " + report(random.Random(seed), 20)
    chance = random.Random(f"{seed} {wave}")
    return [
        [
            [
                {"role": "system", "content": rules},
                {"role": "user", "content": f"What about line {chance.randint(1, 9999)}? Tell all."},
            ]
        ]
        for _ in range(clients)
    ]


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """All of them, whoever begins changing."""
    shift = number % len(names)
    return [*names[shift:], *names[:shift]]


def ask(running: Running, conversations: Conversations, max_tokens: int) -> dict[str, float]:
    """The figures of one run, with the most memory that the server had in it."""

    async def watched() -> tuple[Load, int]:
        load = asyncio.create_task(converse(running.server.port, MODEL, conversations, max_tokens))
        most = running.memory()
        while not (await asyncio.wait((load,), timeout=1))[0]:
            most = max(most, running.memory())
        return load.result(), max(most, running.memory())

    busy = running.busy()
    load, memory = asyncio.run(watched())
    busy = running.busy() - busy
    for call in load.calls:
        if call.error:
            print(f"{running.server.name}: {call.error}", flush=True)
    figures = load.figures()
    spent = 1e3 * busy / max(1, figures["completion_tokens"])
    return figures | {"cpu_ms_per_token": spent, "rss_mb": memory / 1e6}


class Figures:
    """Figures by place, a list with one value for each round."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(list))
        )

    def add(self, server: str, place: str, figures: dict[str, float]) -> None:
        """One round's."""
        for name, value in figures.items():
            self.values[server][place][name].append(round(value, 4))
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"{place:>12} {server:<16} {shown}", flush=True)


def _started(stack: ExitStack, servers: Sequence[Server]) -> dict[str, Running]:
    running = {server.name: stack.enter_context(Running(server)) for server in servers}
    for one in running.values():  # pages in, buffers made
        ask(one, own_prompts("warm up", 2, 1), 8)
    return running


def levels(sizes: Sizes) -> dict[str, Any]:
    """Throughput and times at each number of clients."""
    figures = Figures()
    servers = [outpost([(MODEL, sizes.gguf)], sizes.threads)]
    servers += peers(sizes.gguf, sizes.threads, sizes.slots).values()
    with ExitStack() as stack:
        running = _started(stack, servers)
        order = product(range(sizes.rounds), sizes.clients)
        for turn, (number, clients) in enumerate(order):
            prompts = own_prompts(f"round {number} of {clients}", clients, sizes.calls)
            for name in in_turn(list(running), turn):
                figures.add(name, str(clients), ask(running[name], prompts, sizes.answer_tokens))
    return {"servers": {one.name: _shown(one) for one in servers}, "values": figures.values}


def prefix(sizes: Sizes, clients: int = 8) -> dict[str, Any]:
    """A system prompt that all share: a wave when nobody has seen it, and one when it is known."""
    figures = Figures()
    servers = [outpost([(MODEL, sizes.gguf)], sizes.threads)]
    servers += peers(sizes.gguf, sizes.threads, sizes.slots).values()
    with ExitStack() as stack:
        running = _started(stack, servers)
        for number in range(sizes.rounds):
            for name in in_turn(list(running), number):
                for wave in ("cold", "warm"):
                    prompts = shared_prompts(f"book {number}", wave, clients)
                    figures.add(name, wave, ask(running[name], prompts, 16))
    return {"clients": clients, "values": figures.values}


def overhead(sizes: Sizes, clients: int = 8) -> dict[str, Any]:
    """The agent against its engine without HTTP, policy and the process between."""
    figures = Figures()
    again = [{"role": "user", "content": "Say yes."}]
    with ExitStack() as stack:
        running = _started(stack, [outpost([(MODEL, sizes.gguf)], sizes.threads)])[OUTPOST]
        engine = stack.enter_context(Direct(sizes.gguf, sizes.threads))
        asking = {
            OUTPOST: lambda prompts, tokens: asyncio.run(
                converse(running.server.port, MODEL, prompts, tokens)
            ),
            "engine": engine.converse,
        }
        for who in asking.values():
            who([[again]], 1)
        for number in range(sizes.rounds):
            # A call of each client at a time: what the machine does meanwhile changes faster than a round.
            loads: dict[str, list[Load]] = defaultdict(list)
            for turn in range(sizes.calls):
                prompts = own_prompts(f"round {number} call {turn}", clients, 1)
                for name in in_turn(list(asking), turn):
                    loads[name].append(asking[name](prompts, sizes.answer_tokens))
            for name, several in loads.items():
                figures.add(name, "throughput", Load.of(several).figures())
            # One prompt again and again: all but a token of it is known, so that little time is the model's.
            first: dict[str, list[float]] = defaultdict(list)
            for turn in range(sizes.first_calls // 5):
                for name in in_turn(list(asking), turn):
                    calls = asking[name]([[again] * 5], 2).calls  # a stream, not an answer in one piece
                    first[name] += [call.arrivals[0] * 1e3 for call in calls if not call.error]
            for name, times in first.items():
                middle = {"ttft_p50_ms": percentile(times, 0.5), "ttft_p99_ms": percentile(times, 0.99)}
                figures.add(name, "first", middle)
    return {"clients": clients, "values": figures.values}


def _shown(server: Server) -> str:
    """The command as a person would type it, files by their names alone."""
    command = re.sub(r"(?<![^ =])/\S*/", "", " ".join(server.command))
    return command.replace(f" --port {server.port}", "")
