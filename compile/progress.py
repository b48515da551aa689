"""Progress on stderr: which step, how far, how long still."""

import time
from typing import TextIO


class Progress:
    """One line per step on a pipe, a line that rewrites itself on a terminal."""

    def __init__(self, stream: TextIO, total_steps: int) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._total = total_steps
        self._index = 0
        self._name = ""
        self._began = 0.0
        self._shown = 0.0

    def cached(self, name: str) -> None:
        """A step whose result is there already."""
        self._index += 1
        self._stream.write(f"[{self._index}/{self._total}] {name}: cached\n")
        self._stream.flush()

    def start(self, name: str, expected_seconds: float) -> None:
        """A step begins."""
        self._index += 1
        self._name, self._began, self._shown = name, time.monotonic(), 0.0
        self._stream.write(f"[{self._index}/{self._total}] {name}: about {_span(expected_seconds)}\n")
        self._stream.flush()

    def report(self, done: float, note: str) -> None:
        """How far the running step is; shown every half second on a terminal, every ten on a pipe."""
        now = time.monotonic()
        if now - self._shown < (0.5 if self._live else 10.0) and done < 1:
            return
        self._shown = now
        spent = now - self._began
        left = f", {_span(spent / done - spent)} left" if 0.02 < done < 1 else ""
        text = f"    {self._name} {done:4.0%}{left}: {note}"
        self._stream.write(f"\r\x1b[K{text[:150]}" if self._live else text + "\n")
        self._stream.flush()

    def finish(self) -> None:
        """The running step is done."""
        start = "\r\x1b[K" if self._live else ""
        self._stream.write(f"{start}    {self._name}: done in {_span(time.monotonic() - self._began)}\n")
        self._stream.flush()


def _span(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
