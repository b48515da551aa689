"""Sizes of an engine's process, and how long it is waited for."""

from dataclasses import dataclass
from typing import Literal

from models.engines.llama_cpp.settings import LlamaSettings
from models.engines.onnx_session import Device

Kv = Literal["auto", "unified", "apart"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Sizes of an engine's process. ``threads`` 0: all cores for a GGUF, else all but one.

    ``silence_seconds``: how long a process that owes an answer may say nothing before it is taken for hung
    and replaced. It speaks after every step, so a step has to fit in, and so has loading an adapter.
    ``load_seconds``: how long it may take to load a model, besides a second for each 20 MB of its file, as
    slow flash reads it. ``device``: see ``models.engines.onnx_session``; llama.cpp's is that of its build.
    ``contexts``: KV caches at once, of a GGUF's base and its adapters; the one asked longest ago makes room.
    ``kv``: whether the sequences of one share its cells or have cells apart (``LlamaSettings.kv_unified``);
    auto: apart where there is plenty of memory (``edge_agent.engines.sizes``).
    ``prefixes``: the folder in which what many prompts begin with is kept from one run to the next;
    ``engine_cache``: the one for TensorRT engines, None: each load builds its own.
    """

    threads: int = 0
    device: Device = "auto"
    context_tokens: int = 2048  # positions of one sequence, prompt and answer together
    max_sequences: int = 16  # answered at once, for the base and for each adapter
    batch_tokens: int = 256  # computed in one step
    contexts: int = 4
    kv: Kv = "auto"
    encoder_batch: int = 32  # texts or pictures that an encoder computes in one step
    silence_seconds: float = 60.0
    load_seconds: float = 120.0
    prefixes: str | None = None
    engine_cache: str | None = None

    def for_llama(self) -> LlamaSettings:
        """What llama.cpp is told of them."""
        return LlamaSettings(
            threads=self.threads or 1,
            context_tokens=self.context_tokens,
            max_sequences=self.max_sequences,
            batch_tokens=self.batch_tokens,
            contexts=self.contexts,
            kv_unified=self.kv != "apart",
            gpu=self.device != "cpu",
        )
