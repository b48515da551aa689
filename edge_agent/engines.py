"""Any engine that a device runs, by what its files are."""

from edge_agent.encoder_process import EncoderProcess
from edge_agent.engine_files import EngineFiles
from edge_agent.engine_process import EngineProcess
from edge_agent.engine_wire import EngineSettings


async def start_engine(files: EngineFiles, settings: EngineSettings) -> EngineProcess | EncoderProcess:
    """Load ``files`` in a supervised process. Raises ``UnsafeFile``, ``EngineError``."""
    if files.encoder is not None:
        return await EncoderProcess.start(files, settings)
    return await EngineProcess.start(files, settings)
