"""What a model file asks of a device, read from its headers: parameters, weights, KV cache.

Owns the way from a file to a ``Workload``; what follows from one is forecast in ``models.forecast``. Refuses
to load weights.
"""

from pathlib import Path

from models.ctranslate2 import MODEL_FILE
from models.ctranslate2 import read_header as read_header_of_speech
from models.engines.llama_cpp import LlamaSettings
from models.engines.onnx_files import OCR_FILES
from models.engines.onnx_genai import check_folder, parameters_of
from models.forecast import Workload
from models.gguf import read_header
from models.onnx import read_model


def held_sequences(format: str, context_tokens: int) -> int:
    """For how many sequences an engine that serves holds a KV cache when one is running.

    llama.cpp's takes all of its cache as it is loaded, GenAI's a sequence's as it comes.
    """
    return max(1, LlamaSettings().cache_tokens // context_tokens) if format == "gguf" else 1


def computes_in(format: str, precision: str) -> str:
    """The type that an engine multiplies in: llama.cpp and GenAI bring activations to that of weights."""
    quantized = precision.startswith(("q", "iq")) if format == "gguf" else precision in ("int8", "int4")
    return "int8" if quantized and format != "onnx" else "f32"


def workload_of(path: Path, precision: str, context_tokens: int) -> Workload:
    """A variant as it is served: a GGUF, an ONNX file, or a folder of several files, from headers alone.

    ``precision`` as a recipe or a manifest says it. Raises ``UnsafeFile``.
    """
    precision = precision.removeprefix("genai-").lower()
    if (path / OCR_FILES[0]).is_file():
        graphs = [read_model(path / name) for name in OCR_FILES if name.endswith(".onnx")]
        weights = sum(tensor.size for graph in graphs for tensor in graph.initializers)
        return Workload("onnx", precision, sum(map(parameters_of, graphs)), weights)
    if (path / MODEL_FILE).is_file():
        speech = read_header_of_speech(path / MODEL_FILE)
        return Workload("ctranslate2", precision, speech.parameters, sum(v.size for v in speech.variables))
    if path.is_dir():
        checked = check_folder(path)
        decoder = checked.config["model"]["decoder"]
        numbers = decoder["num_hidden_layers"] * decoder["num_key_value_heads"] * decoder["head_size"]
        weights = sum(tensor.size for tensor in checked.model.initializers)
        return Workload(
            "onnx-genai",
            precision,
            parameters_of(checked.model),
            weights,
            kv_bytes=2 * numbers * 4,  # GenAI keeps float32 on a CPU
            context_tokens=context_tokens,
            sequences=held_sequences("onnx-genai", context_tokens),
            computes=computes_in("onnx-genai", precision),
        )
    if path.suffix == ".onnx":
        model = read_model(path)
        weights = sum(tensor.size for tensor in model.initializers)
        return Workload("onnx", precision, max(parameters_of(model), 1), weights)
    header = read_header(path)
    return Workload(
        "gguf",
        precision,
        sum(tensor.elements for tensor in header.tensors),
        path.stat().st_size,
        kv_bytes=header.kv_bytes_per_token,
        context_tokens=context_tokens,
        sequences=held_sequences("gguf", context_tokens),
        computes=computes_in("gguf", precision),
    )
