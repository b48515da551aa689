"""onnxruntime-genai's model, the adapters loaded beside it, and generators over both."""

import json
from pathlib import Path
from typing import Any

from models.engines.cuda import has_gpu, load_cuda
from models.engines.foreign import converted
from models.engines.onnx_session import Device
from models.errors import EngineError


class NativeModel:
    """``for_cuda``: what the folder was exported for. ``on_gpu`` says where it computes.

    Raises ``EngineError`` when the library is missing or cannot load a folder, or has no CUDA and must.
    """

    def __init__(self, folder: Path, threads: int, device: Device, for_cuda: bool) -> None:
        self._og = _library()
        able = self._og.is_cuda_available()  # asks how it was built, not what the machine has
        if device == "cuda" and not able:
            raise EngineError("this ONNX Runtime GenAI has no CUDA: install onnxruntime-genai-cuda instead")
        self.on_gpu = device == "cuda" or (device == "auto" and able and for_cuda and has_gpu())
        options = {"session_options": {"intra_op_num_threads": threads}}
        with converted(f"{folder.name} cannot be loaded"):
            config = self._og.Config(str(folder))
            config.overlay(json.dumps({"model": {"decoder": options}}))
            config.clear_providers()  # with the options that the folder brought for them
            if self.on_gpu:
                load_cuda()
                config.append_provider("cuda")
            self._model = self._og.Model(config)
            self._adapters = self._og.Adapters(self._model)
        if self.on_gpu and self._model.device_type.upper() != "CUDA":
            raise EngineError(f"{folder.name}: ONNX Runtime GenAI cannot use the GPU")

    def load_adapter(self, name: str, path: Path) -> None:
        """Raises ``EngineError`` when it does not fit."""
        with converted(f"{path.name} does not fit the base"):
            self._adapters.load(str(path), name)

    def unload_adapter(self, name: str) -> None:
        """Free an adapter that no generator holds."""
        self._adapters.unload(name)

    def generator(self, positions: int, adapter: str | None) -> Any:
        """A KV cache of ``positions``, and what fills it. Raises what the library raises."""
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=positions, batch_size=1, num_beams=1)
        generator = self._og.Generator(self._model, parameters)
        if adapter is not None:
            generator.set_active_adapter(self._adapters, adapter)
        return generator

    def close(self) -> None:
        """Free everything native. Safe to call twice; nothing else may follow."""
        self._adapters = self._model = None


def _library() -> Any:
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise EngineError("onnxruntime-genai is missing: pip install 'outpost[edge]'") from error
    return onnxruntime_genai
