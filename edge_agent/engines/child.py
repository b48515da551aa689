"""The engine's process: ``python -m edge_agent.engines.child FD PARENT_PID``.

Owns one engine and steps it in its only thread; speaks ``edge_agent.engines.wire`` over the socket
FD. Ends when the socket does, and is killed by the kernel when its parent dies. Refuses to run apart
from an ``edge_agent.engines.text_process``. A native crash ends this process only.
"""

import ctypes
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from edge_agent.engines import wire
from edge_agent.engines.desks import Desk, TextDesk, Told
from edge_agent.engines.encoder_desk import EncoderDesk
from edge_agent.engines.files import EngineFiles
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.speech_desk import SpeechDesk
from models.engines.llama_cpp import LlamaEncoder, LlamaEngine, SavedPrefixes
from models.engines.onnx_encoder import open_encoder
from models.engines.onnx_genai import GenaiEngine, GenaiSettings
from models.engines.onnx_session import OnnxSettings
from models.engines.whisper import WhisperEngine
from models.errors import ModelsError

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
        rest = self._exactly(sum(wire.HEAD.unpack(head))) if head else None
        return wire.unframe(head, rest) if head and rest is not None else None

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


def serve(channel: Channel, desk: Desk) -> None:
    """Send what happened, take what came in, step; until the other end goes."""
    busy, told, said = False, Told(), None
    while True:
        # An empty message, too, tells that a step has ended.
        if busy or told.events or told.replies or desk.load != said:
            said = desk.load
            events = [wire.event_to_wire(event) for event in told.events]
            channel.send({"events": events, "replies": told.replies, "load": wire.load_to_wire(said)})
        told = Told()
        while not busy or channel.waiting():
            message = channel.receive()
            if message is None:
                return
            for verb, *arguments in message["do"]:
                desk.obey(verb, arguments, told)
            busy = True
        busy = desk.step(told)


def _load(message: Mapping[str, Any]) -> Desk:
    settings = EngineSettings(**message["settings"])
    files = EngineFiles.from_wire(message["files"])
    cores = len(os.sched_getaffinity(0))
    threads = settings.threads or max(1, cores - 1)
    if files.format != "gguf":
        # Threads that wait by spinning take the cores from whoever they wait for; llama.cpp's are watched for
        # that (``models.engines.llama_cpp.threads``). OpenMP reads this when it is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if files.encoder is not None and files.format != "gguf":
        cache = Path(settings.engine_cache) if settings.engine_cache else None
        sized = OnnxSettings(threads=threads, device=settings.device, engine_cache=cache)
        engine = open_encoder(files.encoder, sized)
        if isinstance(engine, WhisperEngine):
            return SpeechDesk(engine)
        return EncoderDesk(engine, settings.encoder_batch)
    if files.format == "onnx-genai":
        genai = GenaiSettings(
            threads=threads,
            context_tokens=settings.context_tokens,
            max_sequences=settings.max_sequences,
            batch_tokens=settings.batch_tokens,
            device=settings.device,
        )
        return TextDesk(GenaiEngine(files.path, genai))
    # It gives up cores that others want, so that all may be given to it.
    llama = replace(settings, threads=settings.threads or cores).for_llama()
    if files.encoder is not None:
        return EncoderDesk(LlamaEncoder(files.encoder, llama), settings.encoder_batch)
    saved = None
    if settings.prefixes and files.weights:
        saved = SavedPrefixes(Path(settings.prefixes), files.weights)
    return TextDesk(LlamaEngine(files.path, llama, saved=saved, projector=files.projector))


def _die_with(parent: int) -> None:
    """Be killed when the parent ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        sys.exit(1)


def main(fd: int, parent: int) -> None:
    """Load, report, serve."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    # An abort must not start a debugger. One thread steps the engine; tokenizers would start as many as there
    # are cores.
    os.environ.update(GGML_NO_BACKTRACE="1", TOKENIZERS_PARALLELISM="false")
    channel = Channel(socket.socket(fileno=fd))
    message = channel.receive()
    if message is None:
        return
    try:
        desk = _load(message["load"])
    except ModelsError as error:
        channel.send({"failed": wire.error_to_wire(error)})
        return
    try:
        channel.send({"loaded": asdict(desk.facts)})
        serve(channel, desk)
    except (BrokenPipeError, ConnectionResetError):
        return  # nobody is left to answer
    finally:
        desk.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
