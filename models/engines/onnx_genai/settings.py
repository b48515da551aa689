"""Sizes of an engine."""

from dataclasses import dataclass

from models.engines.onnx_session import Device
from models.errors import EngineError


@dataclass(frozen=True, slots=True)
class GenaiSettings:
    """Sizes of an engine, and where it computes. A step computes at most ``batch_tokens`` of one prompt.

    ``device`` "auto": on the GPU when the folder was exported for CUDA, there is one and this build can.
    """

    threads: int = 1
    context_tokens: int = 2048  # positions of one sequence, prompt and answer together
    max_sequences: int = 8  # running at once; each has its own KV cache
    batch_tokens: int = 256
    device: Device = "cpu"

    def __post_init__(self) -> None:
        if min(self.threads, self.context_tokens, self.max_sequences, self.batch_tokens) < 1:
            raise EngineError(f"every size of an engine is at least 1: {self}")
