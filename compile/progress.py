"""Progress on stderr: which steps run, how far each is, how long still."""

import time
from typing import TextIO

from compile.units import span


class Progress:
    """A line when a step starts and when it ends; between them one that rewrites itself on a terminal.

    ``total_steps`` counts the cached ones too. Not thread-safe: one thread tells.
    """

    def __init__(self, stream: TextIO, total_steps: int) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._total = total_steps
        self._index = 0
        self._running: dict[str, _Running] = {}

    def cached(self, name: str) -> None:
        """A step whose result is there already."""
        self._index += 1
        self._line(f"[{self._index}/{self._total}] {name}: cached")

    def start(self, label: str, name: str, expected_seconds: float) -> None:
        """A step begins: ``label`` is its own, ``name`` is for people."""
        self._index += 1
        self._running[label] = _Running(name, expected_seconds)
        self._line(f"[{self._index}/{self._total}] {name}: about {span(expected_seconds)}")

    def report(self, label: str, done: float, note: str) -> None:
        """How far a step is; shown every half second on a terminal, every ten on a pipe."""
        running = self._running[label]
        now = time.monotonic()
        running.done, running.note = done, note
        if now - running.shown < (0.5 if self._live else 10.0):
            return
        running.shown = now
        parts = [one.text(now) for one in self._running.values()]
        text = "    " + " | ".join(parts)
        self._stream.write(f"\r\x1b[K{text[:150]}" if self._live else f"{text}\n")
        self._stream.flush()

    def finish(self, label: str) -> None:
        """A step is done."""
        running = self._running.pop(label)
        self._line(f"    {running.name}: done in {span(time.monotonic() - running.began)}")

    def _line(self, text: str) -> None:
        self._stream.write(("\r\x1b[K" if self._live else "") + text + "\n")
        self._stream.flush()


class _Running:
    def __init__(self, name: str, expected: float) -> None:
        self.name = name
        self.began = time.monotonic()
        self.shown = self.done = 0.0
        self.note = ""
        self._expected = expected

    def text(self, now: float) -> str:
        spent = now - self.began
        # Before a step has shown its pace, the forecast says how long it takes.
        left = spent / self.done - spent if self.done > 0.02 else self._expected - spent
        tail = f", {span(left)} left" if self.done < 1 else ""
        return f"{self.name} {self.done:4.0%}{tail}: {self.note}"
