"""Any engine that a device runs, by what its files are."""

import asyncio
from collections.abc import Callable

from edge_agent.engines.encoder_process import EncoderProcess
from edge_agent.engines.files import EngineFiles
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.sizes import settled
from edge_agent.engines.supervised import Gate
from edge_agent.engines.text_process import EngineProcess
from models.machine import free_memory


async def start_engine(
    files: EngineFiles,
    settings: EngineSettings,
    gate: Gate | None = None,
    free: Callable[[], int] = free_memory,
) -> EngineProcess | EncoderProcess:
    """Load ``files`` in a supervised process. Raises ``UnsafeFile``, ``EngineError``.

    ``gate`` settles what the settings leave open whenever the engine is loaded. Without one that is done
    here, by the bytes of memory that are ``free``.
    """
    if gate is None:
        settings = await asyncio.to_thread(settled, files, settings, free())
    kind = EngineProcess if files.encoder is None else EncoderProcess
    return await kind.start(files, settings, gate=gate)
