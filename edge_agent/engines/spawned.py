"""An engine's process as its parent sees it: started, told to load, listened to, ended.

Owns the socket to it and its last words. Refuses deciding whether it is started again
(``edge_agent.engines.supervised``).
"""

import asyncio
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from dataclasses import asdict
from typing import Any, Self

from edge_agent.engines import wire
from edge_agent.engines.files import EngineFiles
from edge_agent.engines.settings import EngineSettings
from edge_agent.errors import EngineCrashed
from models.engines.base import EncoderFacts, ModelFacts

GRACE = 5.0
"""Seconds that a child gets to end by itself."""
SLOW_DISK = 20e6
"""Bytes a second that any disk reads; more time than that takes is no reason to kill a child that loads."""


class Spawned:
    """One operating-system process and the socket to it."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.process, self._reader, self.writer = process, reader, writer
        self._last_words = asyncio.create_task(self._read_stderr())
        self.reason = "no reason given"
        self.heard = 0

    @classmethod
    async def spawn(cls) -> Self:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "edge_agent.engines.child", str(theirs.fileno()), str(os.getpid())),
                pass_fds=[theirs.fileno()],
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=PIPE,
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(process, reader, writer)

    async def load(self, files: EngineFiles, settings: EngineSettings) -> ModelFacts | EncoderFacts:
        """Have the model loaded. Raises ``EngineError``; kills a child that takes too long."""
        limit = settings.load_seconds + (await asyncio.to_thread(files.bytes_on_disk)) / SLOW_DISK
        self.writer.write(wire.frame({"load": {"files": files.to_wire(), "settings": asdict(settings)}}))
        try:
            async with asyncio.timeout(limit):
                message = await self.receive()
        except TimeoutError as error:
            self.process.kill()
            raise EngineCrashed(f"the engine had not loaded {files.shown} after {limit:.0f} s") from error
        except (TypeError, ValueError) as error:
            raise EngineCrashed(f"the engine's process sent what is no message: {error!r:.200}") from error
        if message is None:
            await self.end()
            raise EngineCrashed(f"the engine's process ended while loading {files.shown}: {self.reason}")
        if "failed" in message:
            raise wire.error_from_wire(message["failed"])
        try:
            return wire.facts_from_wire(message["loaded"])
        except (KeyError, TypeError, ValueError) as error:
            raise EngineCrashed(f"the engine's process sent what is no message: {error!r:.200}") from error

    async def receive(self) -> dict[str, Any] | None:
        """The next message; ``None`` when there will be none."""
        try:
            head = await self._reader.readexactly(wire.HEAD.size)
            message = wire.unframe(head, await self._reader.readexactly(sum(wire.HEAD.unpack(head))))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        self.heard += 1
        return message

    async def end(self) -> None:
        """Close the socket, which ends the child; kill it if it does not. Leaves a ``reason``."""
        self.writer.close()
        try:
            async with asyncio.timeout(GRACE):
                code = await self.process.wait()
        except TimeoutError:
            self.process.kill()
            code = await self.process.wait()
        words = await self._last_words
        self.reason = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
        if words:
            self.reason += f" ({words})"

    async def _read_stderr(self) -> str:
        """The last line that the child wrote, which says more than its exit status."""
        last = b""
        if self.process.stderr is not None:
            while part := await self.process.stderr.read(4096):
                last = (last + part)[-4096:]
        lines = last.decode("utf-8", "replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
