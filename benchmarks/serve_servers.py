"""The servers that are measured beside each other: how each is started, when it is ready, what it takes.

All serve the same file with the same number of threads. Refuses to guess: a server that is missing or does
not come up is an error with its last words.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

ROOT = Path(__file__).resolve().parent.parent
MODEL = "smollm2"
CONTEXT_TOKENS = 2048
"""Of one sequence, prompt and answer together: the agent's default."""

LLAMA_SERVER = ROOT / ".cache" / "llama-server-0.3.36" / "build" / "bin" / "llama-server"
LLAMA_CPP_SERVER = ROOT / ".cache" / "llama-cpp-server-0.3.36"
OUTPOST, NATIVE, PYTHON = "outpost-edge", "llama-server", "llama_cpp.server"
START_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Server:
    """A command that serves on ``port``; ready when ``health`` answers 200."""

    name: str
    command: tuple[str, ...]
    port: int
    health: str
    environment: Mapping[str, str] = field(default_factory=dict)


def outpost(models: Sequence[tuple[str, Path]], threads: int) -> Server:
    """The agent, as an application programmer starts it."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "edge_agent.cli",
        "serve",
        "--port",
        str(port),
        "--threads",
        str(threads),
    ]
    for name, path in models:
        command += ["--model", f"{name}={path}"]
    return Server(OUTPOST, tuple(command), port, "/readyz")


def peers(gguf: Path, threads: int, slots: int) -> dict[str, Server]:
    """llama.cpp's two servers, by name; what differs from their defaults is in their commands."""
    if not LLAMA_SERVER.is_file() or not LLAMA_CPP_SERVER.is_dir():
        raise SystemExit("the servers to compare with are missing: scripts/llama_server makes them")
    ports = free_port(), free_port()
    native = [str(LLAMA_SERVER), "--model", str(gguf), "--alias", MODEL, "--port", str(ports[0])]
    native += ["--threads", str(threads), "--threads-batch", str(threads), "--parallel", str(slots)]
    native += ["--ctx-size", str(slots * CONTEXT_TOKENS), "--offline"]
    python = [sys.executable, "-m", "llama_cpp.server", "--model", str(gguf), "--model_alias", MODEL]
    python += ["--port", str(ports[1]), "--host", "127.0.0.1", "--n_ctx", str(CONTEXT_TOKENS)]
    python += ["--n_threads", str(threads), "--n_threads_batch", str(threads)]
    python += ["--interrupt_requests", "false", "--verbose", "false"]
    return {
        NATIVE: Server(NATIVE, tuple(native), ports[0], "/health"),
        PYTHON: Server(PYTHON, tuple(python), ports[1], "/v1/models", {"PYTHONPATH": str(LLAMA_CPP_SERVER)}),
    }


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Running(AbstractContextManager["Running"]):
    """A started server and all processes below it; ended with the block."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the block)
        self._process = subprocess.Popen(
            server.command,
            cwd=ROOT,
            env=os.environ | server.environment,
            stdout=self._log,
            stderr=self._log,
            stdin=subprocess.DEVNULL,
        )

    def __enter__(self) -> Self:
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        processes = self._processes()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            for process in processes:
                process.kill()
            self._process.wait()
        self._log.close()

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self._process.pid

    def memory(self) -> int:
        """Resident bytes of all its processes."""
        total = 0
        for process in self._processes():
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total

    def busy(self) -> float:
        """Processor seconds that all its processes have used since they started."""
        total = 0.0
        for process in self._processes():
            try:
                used = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += used.user + used.system
        return total

    def _processes(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _wait(self) -> None:
        url = f"http://127.0.0.1:{self.server.port}{self.server.health}"
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        self._log.seek(0)
        words = self._log.read().decode(errors="replace")[-2000:]
        raise SystemExit(f"{self.server.name} does not serve:\n{words}")
