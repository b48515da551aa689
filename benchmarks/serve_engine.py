"""The text engine alone, in a process of its own, stepped as fast as it goes: what the agent is measured by.

``python -m benchmarks.serve_engine GGUF THREADS`` says a line when it is ready, then answers each line of
stdin with one: ``{"conversations": [[[MESSAGE, ...], ...], ...], "max_tokens": N}``, what
``serve_load.converse`` takes, with ``{"wall": S, "calls": [{"arrivals": [...], ...}]}``. Sizes are those of
the agent's engines.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serve_load import Call, Load, Message
from edge_agent.engines.files import of_path
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.sizes import settled
from models.engines.base import Event, GenerateRequest, Sampling, Usage
from models.engines.llama_cpp import LlamaEngine
from models.machine import free_memory
from models.prompts import ChatTemplate

ROOT = Path(__file__).resolve().parent.parent


class Direct(AbstractContextManager["Direct"]):
    """The process, from the side of who asks."""

    def __init__(self, gguf: Path, threads: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serve_engine", str(gguf), str(threads)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._line()

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)

    def converse(self, conversations: Sequence[Sequence[Sequence[Message]]], max_tokens: int) -> Load:
        """See ``serve_load.converse``: the same without HTTP."""
        if self._process.stdin is None:
            raise RuntimeError("the process has no stdin")
        job = {"conversations": conversations, "max_tokens": max_tokens}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        said = json.loads(self._line())
        calls = (Call(**one | {"arrivals": tuple(one["arrivals"])}) for one in said["calls"])
        return Load(tuple(calls), said["wall"], cost=0.0)

    def _line(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise SystemExit(f"the engine's process ended with {self._process.wait()}")
        return line


@dataclass(slots=True)
class _Running:
    """A call of a client, and those that follow it."""

    began: float
    following: list[Sequence[Message]]
    arrivals: list[float] = field(default_factory=list)
    usage: Usage = field(default=Usage())

    def finished(self) -> dict[str, Any]:
        """As a ``Call``."""
        counts = {
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
        }
        return {"arrivals": self.arrivals, **counts}


class _Loop:
    """The engine, its template, and who waits for an answer."""

    def __init__(self, gguf: Path, threads: int) -> None:
        sizes = settled(of_path(gguf), EngineSettings(threads=threads), free_memory())  # as the agent has it
        self._engine = LlamaEngine(gguf, sizes.for_llama())
        facts = self._engine.facts
        if facts.chat_template is None:
            raise SystemExit(f"{gguf.name} has no chat template")
        self._template = ChatTemplate(facts.chat_template, facts.bos, facts.eos, facts.control_tokens)
        self._count = 0

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Answer all calls of all clients."""
        began = time.perf_counter()
        running: dict[str, _Running] = {}
        finished: list[dict[str, Any]] = []
        for first, *following in job["conversations"]:
            self._submit(first, following, job["max_tokens"], running)
        while running:
            for event in self._engine.step():
                one = running[event.id]
                self._note(event, one)
                if event.done:
                    finished.append(running.pop(event.id).finished())
                    if one.following:
                        self._submit(one.following[0], one.following[1:], job["max_tokens"], running)
        return {"wall": time.perf_counter() - began, "calls": finished}

    def _submit(
        self,
        messages: Sequence[Message],
        following: list[Sequence[Message]],
        max_tokens: int,
        running: dict[str, _Running],
    ) -> None:
        began = time.perf_counter()
        prompt = self._template.prompt(messages)
        self._count += 1
        name = str(self._count)
        sampling = Sampling(max_tokens=max_tokens)
        self._engine.submit(GenerateRequest(name, prompt.text, sampling, literal=prompt.literal))
        running[name] = _Running(began, following)

    @staticmethod
    def _note(event: Event, one: _Running) -> None:
        if event.error is not None:
            raise event.error
        one.usage = event.usage
        if event.text:
            one.arrivals.append(time.perf_counter() - one.began)


def main(gguf: Path, threads: int) -> None:
    """Load, say so, answer until stdin ends."""
    loop = _Loop(gguf, threads)
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(loop.run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
