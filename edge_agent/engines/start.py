"""Any engine that a device runs, by what its files are."""

from edge_agent.engines.encoder_process import EncoderProcess
from edge_agent.engines.files import EngineFiles
from edge_agent.engines.supervised import Gate
from edge_agent.engines.text_process import EngineProcess
from edge_agent.engines.wire import EngineSettings


async def start_engine(
    files: EngineFiles, settings: EngineSettings, gate: Gate | None = None
) -> EngineProcess | EncoderProcess:
    """Load ``files`` in a supervised process. Raises ``UnsafeFile``, ``EngineError``."""
    if files.encoder is not None:
        return await EncoderProcess.start(files, settings, gate)
    return await EngineProcess.start(files, settings, gate=gate)
