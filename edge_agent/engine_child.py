"""The engine's process: ``python -m edge_agent.engine_child FD PARENT_PID``.

Owns one ``LlamaEngine`` and steps it in its only thread; speaks ``edge_agent.engine_wire`` over the socket
FD. Ends when the socket does, and is killed by the kernel when its parent dies. Refuses to run apart
from an ``edge_agent.engine_process``. A native crash ends this process only.
"""

import ctypes
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_agent import engine_wire as wire
from models.engines.base import Event
from models.engines.llama_cpp import LlamaEngine, LlamaSettings
from models.errors import EngineError, ModelsError

_PR_SET_PDEATHSIG = 1


class Channel:
    """Blocking frames over a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)
        self._poll = select.poll()  # select() cannot watch descriptors from 1024 on
        self._poll.register(sock, select.POLLIN)

    def waiting(self) -> bool:
        """Whether something has come in, or the other end has gone."""
        return bool(self._poll.poll(0))

    def receive(self) -> dict[str, Any] | None:
        """The next message; ``None`` once the other end has gone."""
        head = self._exactly(wire.HEAD.size)
        body = self._exactly(wire.HEAD.unpack(head)[0]) if head else None
        if body is None:
            return None
        message: dict[str, Any] = json.loads(body)
        return message

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message. Raises ``OSError`` once the other end has gone."""
        self._sock.sendall(wire.frame(message))

    def _exactly(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            part = self._file.read(size - len(data))
            if not part:
                return None
            data += part
        return bytes(data)


def serve(channel: Channel, engine: LlamaEngine) -> None:
    """Take what came in, step, send what happened; until the other end goes."""
    busy = False
    while True:
        events: list[Event] = []
        replies: list[list[Any]] = []
        while not busy or channel.waiting():
            message = channel.receive()
            if message is None:
                return
            for verb, *arguments in message["do"]:
                _obey(engine, verb, arguments, events, replies)
            busy = True
        happened = engine.step()
        busy = bool(happened)
        events += [event for event in happened if event.text or event.done]
        if busy or events or replies:  # an empty message, too, tells that a step has ended
            channel.send({"events": [wire.event_to_wire(event) for event in events], "replies": replies})


def _obey(
    engine: LlamaEngine, verb: str, arguments: Sequence[Any], events: list[Event], replies: list[list[Any]]
) -> None:
    if verb == "cancel":
        engine.cancel(arguments[0])
    elif verb == "submit":
        request = wire.request_from_wire(arguments[0])
        try:
            engine.submit(request)
        except EngineError as error:
            events.append(Event(request.id, error=error))
    else:
        call, name, *path = arguments
        try:
            if verb == "attach":
                engine.attach(name, Path(path[0]))
            elif verb == "detach":
                engine.detach(name)
            else:
                raise ValueError(f"unknown verb {verb!r}")
        except ModelsError as error:
            replies.append([call, wire.error_to_wire(error)])
        else:
            replies.append([call, None])


def _load(message: Mapping[str, Any]) -> LlamaEngine:
    settings = wire.EngineSettings(**message["settings"])
    return LlamaEngine(
        Path(message["model"]),
        LlamaSettings(
            threads=settings.threads or max(1, len(os.sched_getaffinity(0)) - 1),
            context_tokens=settings.context_tokens,
            max_sequences=settings.max_sequences,
            batch_tokens=settings.batch_tokens,
        ),
    )


def _die_with(parent: int) -> None:
    """Be killed when the parent ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        sys.exit(1)


def main(fd: int, parent: int) -> None:
    """Load, report, serve."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    # Threads that wait by spinning take the cores from whoever they wait for. OpenMP reads this when
    # the library is loaded; an abort must not start a debugger.
    os.environ.update(OMP_WAIT_POLICY="passive", GGML_NO_BACKTRACE="1")
    channel = Channel(socket.socket(fileno=fd))
    message = channel.receive()
    if message is None:
        return
    try:
        engine = _load(message["load"])
    except ModelsError as error:
        channel.send({"failed": wire.error_to_wire(error)})
        return
    try:
        channel.send({"loaded": asdict(engine.facts)})
        serve(channel, engine)
    except (BrokenPipeError, ConnectionResetError):
        return  # nobody is left to answer
    finally:
        engine.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
