"""Operating-system processes of the demo: started, awaited by what they answer, stopped for certain."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
BIN = Path(sys.executable).parent


class StepFailed(Exception):
    """A step of the demo did not come out as it must; the message says what was seen."""


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(*argv: str | Path, expect: int | None = 0, timeout: float = 1800, show: bool = False) -> str:
    """Run one of Outpost's commands to its end; returns its stdout, or stderr where a failure is expected.

    Raises ``StepFailed`` with the command's own words when its exit code is not ``expect``.
    """
    command = [str(BIN / str(argv[0])), *map(str, argv[1:])]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=None if show else subprocess.PIPE, text=True, timeout=timeout
    )
    if expect is not None and done.returncode != expect:
        said = (done.stderr or "") + done.stdout
        raise StepFailed(f"{' '.join(map(str, argv))}: exit {done.returncode}, not {expect}\n{said[-2000:]}")
    return done.stderr if expect else done.stdout


def run_json(*argv: str | Path, expect: int | None = 0, show: bool = False) -> Any:
    """Like ``run`` with ``--json``, parsed."""
    return json.loads(run(*argv, "--json", expect=expect, show=show))


def at_once(*actions: Callable[[], T]) -> list[T]:
    """Run several commands side by side; their results in order, or the first failure."""
    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(action) for action in actions]]


def wait_until(what: str, look: Callable[[], T | None], seconds: float) -> T:
    """Poll ``look`` until it returns something true; raises ``StepFailed`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise StepFailed(f"waited {seconds:.0f} s in vain for: {what}")
        time.sleep(0.1)


@dataclass
class Processes:
    """Every process the demo starts; all are gone when the ``with`` block ends."""

    logs: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *argv: str | Path, env: Mapping[str, str] | None = None) -> None:
        """Start a command in the background in its own process group; its output goes to a log."""
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [str(BIN / str(argv[0])), *map(str, argv[1:])],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **(env or {})},
            )

    def stop(self, name: str, how: int = signal.SIGTERM, seconds: float = 20) -> None:
        """Send ``how`` to a process and wait; what is left of its group is killed."""
        process = self.running.pop(name)
        if process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()

    def alive(self, name: str) -> bool:
        """Whether a process is running; raises ``StepFailed`` with its last words when it died."""
        code = self.running[name].poll()
        if code is None:
            return True
        tail = (self.logs / f"{name}.log").read_text(errors="replace")[-2000:]
        raise StepFailed(f"{name} ended with {code}:\n{tail}")

    def stop_all(self) -> None:
        """Stop everything, newest first."""
        for name in reversed(list(self.running)):
            self.stop(name)


@contextmanager
def processes(logs: Path) -> Iterator[Processes]:
    """The demo's processes, stopped whatever happens."""
    everything = Processes(logs)
    try:
        yield everything
    finally:
        everything.stop_all()


async def record(listen: int, target: int, into: Path) -> None:
    """Forward TCP on loopback and write every byte the target receives to a file."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, copy: bool) -> None:
        try:
            while data := await reader.read(65536):
                if copy:
                    with into.open("ab") as file:
                        file.write(data)
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, up_writer, True), pump(up_reader, writer, False))

    server = await asyncio.start_server(serve, "127.0.0.1", listen)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(record(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
