"""How much memory an engine will take, and how large it may be where so much is free.

Refuses measuring, and deciding who gets the memory (``edge_agent.engines.residence``).
"""

from dataclasses import replace

from edge_agent.engines.files import EngineFiles
from edge_agent.engines.settings import EngineSettings
from models.engines.llama_cpp.context import context_bytes
from models.engines.llama_cpp.encoder import EncoderSizes
from models.engines.onnx_genai import check_folder
from models.forecast import OVERHEADS, memory_needed
from models.gguf import read_header
from models.workloads import workload_of

PLENTY = 4
"""Times what an engine with KV cells apart would take in all: so much memory has to be free for it."""


def settled(files: EngineFiles, settings: EngineSettings, free: int) -> EngineSettings:
    """The same, with ``kv`` as ``free`` bytes allow if it was left open. Raises ``UnsafeFile``."""
    if settings.kv != "auto":
        return settings
    apart = replace(settings, kv="apart")
    fits = _may_be_apart(files) and PLENTY * forecast_bytes(files, apart) <= free
    return apart if fits else replace(settings, kv="unified")


def _may_be_apart(files: EngineFiles) -> bool:
    if files.format != "gguf" or files.encoder is not None:
        return False
    header = read_header(files.path)
    return not header.integer(f"{header.architecture}.attention.sliding_window")  # which has one pool always


def forecast_bytes(files: EngineFiles, settings: EngineSettings = EngineSettings()) -> int:
    """What loading it with ``settings`` will take, from headers. Raises ``UnsafeFile``."""
    if files.format == "gguf":
        header = read_header(files.path)
        sizes = settings.for_llama()
        load = workload_of(files.path, "", settings.context_tokens)
        if files.encoder is not None and files.encoder.engine.text is not None:
            encodes = EncoderSizes.of(header, sizes, files.encoder.engine.text.max_tokens)
            return int(memory_needed(replace(load, kv_bytes=0)) + encodes.context_bytes(header))
        sizes = sizes.fitted(header.integer(f"{header.architecture}.context_length") or 0)
        base = int(memory_needed(replace(load, context_tokens=sizes.cache_tokens, sequences=1)))
        adapters = (settings.contexts - 1) * context_bytes(sizes, header)
        sight = files.projector.stat().st_size if files.projector else 0
        return base + adapters + sizes.parked_bytes + sight
    if files.format == "onnx-genai":
        trained = int(check_folder(files.path).config["model"]["context_length"])
        return int(memory_needed(workload_of(files.path, "", min(settings.context_tokens, trained))))
    overhead = OVERHEADS[files.format]
    return int(overhead.fixed + overhead.per_weight * files.bytes_on_disk())
