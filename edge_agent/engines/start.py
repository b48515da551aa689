"""Any engine that a device runs, by what its files are, sized for the memory that is there."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from edge_agent.engines.encoder_process import EncoderProcess
from edge_agent.engines.files import EngineFiles
from edge_agent.engines.residence import forecast_bytes
from edge_agent.engines.supervised import Gate
from edge_agent.engines.text_process import EngineProcess
from edge_agent.engines.wire import EngineSettings
from models.machine import free_memory

PLENTY = 4
"""Times what an engine with KV cells apart would take in all: so much memory has to be free for it."""


async def start_engine(
    files: EngineFiles,
    settings: EngineSettings,
    gate: Gate | None = None,
    free: Callable[[], int] = free_memory,
) -> EngineProcess | EncoderProcess:
    """Load ``files`` in a supervised process. Raises ``UnsafeFile``, ``EngineError``.

    ``free``: bytes that the machine can still give, by which ``kv="auto"`` is settled.
    """
    if files.encoder is not None:
        return await EncoderProcess.start(files, settings, gate)
    sized = await asyncio.to_thread(settled, files, settings, free())
    return await EngineProcess.start(files, sized, gate=gate)


def settled(files: EngineFiles, settings: EngineSettings, free: int) -> EngineSettings:
    """The same, with ``kv`` as ``free`` bytes allow if it was left open. Raises ``UnsafeFile``."""
    if settings.kv != "auto":
        return settings
    apart = replace(settings, kv="apart")
    fits = files.format == "gguf" and PLENTY * forecast_bytes(files, apart) <= free
    return apart if fits else replace(settings, kv="unified")
