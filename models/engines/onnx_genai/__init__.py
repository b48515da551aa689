"""ONNX Runtime GenAI as a text engine: a folder as its model builder writes it, adapters over one base."""

from models.engines.onnx_genai.adapters import Slots, lora_slots
from models.engines.onnx_genai.engine import GenaiEngine
from models.engines.onnx_genai.folder import CONFIG_FILE, MODEL_FILE, Folder, check_folder, parameters_of
from models.engines.onnx_genai.settings import GenaiSettings

__all__ = [
    "CONFIG_FILE",
    "MODEL_FILE",
    "Folder",
    "GenaiEngine",
    "GenaiSettings",
    "Slots",
    "check_folder",
    "lora_slots",
    "parameters_of",
]
