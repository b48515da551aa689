"""Any engine that a device runs, by what its files are."""

from edge_agent.encoder_process import EncoderProcess
from edge_agent.engine_files import EngineFiles
from edge_agent.engine_process import EngineProcess
from edge_agent.engine_wire import EngineSettings
from edge_agent.supervised import Gate


async def start_engine(
    files: EngineFiles, settings: EngineSettings, gate: Gate | None = None
) -> EngineProcess | EncoderProcess:
    """Load ``files`` in a supervised process. Raises ``UnsafeFile``, ``EngineError``."""
    if files.encoder is not None:
        return await EncoderProcess.start(files, settings, gate)
    return await EngineProcess.start(files, settings, gate=gate)
