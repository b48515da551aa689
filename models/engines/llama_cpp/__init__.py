"""llama.cpp as a text engine: continuous batching over many sequences, adapters over shared weights; and as
an encoder, for embedders and rerankers.
"""

from models.engines.llama_cpp.encoder import LlamaEncoder
from models.engines.llama_cpp.engine import LlamaEngine
from models.engines.llama_cpp.saved import SavedPrefixes
from models.engines.llama_cpp.settings import LlamaSettings

__all__ = ["LlamaEncoder", "LlamaEngine", "LlamaSettings", "SavedPrefixes"]
