"""``outpost-compile inspect``: what a path is, from headers alone. Weights are never loaded.

Refuses, by name, what is never opened here: pickles in whatever dress.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from compile.errors import CompileError
from compile.gguf.files import fallbacks, precision
from models.engines.onnx_files import files_of_folder
from models.engines.onnx_genai import CONFIG_FILE, check_folder, lora_slots
from models.errors import ModelsError, UnsafeFile
from models.gguf import GgufHeader
from models.gguf import read_header as read_gguf
from models.manifest import MANIFEST_FILE, Manifest
from models.onnx import OnnxModel, read_model
from models.pickles import SUFFIXES, refuse_pickle
from models.safetensors import read_header as read_safetensors
from models.store import read_release

Found = dict[str, Any]

PEFT_CONFIG = "adapter_config.json"
_MAX_CONFIG = 1 << 20
_ONNX_ADAPTER_MAGIC, _GGUF_MAGIC = b"TORT", b"GGUF"


def inspect_path(path: Path) -> Found:
    """What ``path`` is. Raises ``UnsafeFile`` for what is unsound, refused or unknown."""
    return _folder(path) if path.is_dir() else _file(path)


def describe(found: Found) -> str:
    """For people: a line per fact; what is itself a list of facts, a line per entry below it."""
    lines = []
    for name, value in found.items():
        title = name.replace("_", " ")
        if isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [f"{title}:", *(f"  {_written(one)}" for one in value)]
        elif not _says_nothing(value):
            lines.append(f"{title}: {_written(value)}")
    return "\n".join(lines)


def _written(value: Any) -> str:
    """In words as far as it goes: no quotes and brackets around what stands alone."""
    match value:
        case dict():
            told = ((name, one) for name, one in value.items() if not _says_nothing(one))
            return ", ".join(f"{name} {_nested(one)}" for name, one in told)
        case list() | tuple():
            return ", ".join(map(_nested, value))
        case float():
            return f"{value:.4g}"
        case bool():
            return "yes" if value else "no"
    return str(value)


def _nested(value: Any) -> str:
    """Inside of another: in brackets, so that it is seen where it ends."""
    return f"({_written(value)})" if isinstance(value, (dict, list, tuple)) else _written(value)


def _says_nothing(value: Any) -> bool:
    return value is None or value == [] or value == {}


def _folder(folder: Path) -> Found:
    if (folder / MANIFEST_FILE).is_file():
        return _release(folder)
    if (folder / CONFIG_FILE).is_file():
        return {"what": "ONNX Runtime GenAI folder"} | _genai(folder)
    if (folder / PEFT_CONFIG).is_file():
        return {"what": "PEFT adapter"} | _peft(folder)
    graphs, tensors = sorted(folder.glob("*.onnx")), sorted(folder.glob("*.safetensors"))
    if graphs:
        return {"what": "ONNX folder"} | _encoder(folder) | {"files": [_onnx(graph) for graph in graphs]}
    if tensors:
        return {"what": "safetensors folder", "files": [_safetensors(file) for file in tensors]}
    pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    if pickles:
        raise UnsafeFile(f"{folder}: holds {', '.join(pickles)}, which may be pickles; they are not opened")
    raise UnsafeFile(f"{folder}: neither a release nor a folder of ONNX, GenAI, PEFT or safetensors files")


def _file(path: Path) -> Found:
    refuse_pickle(path)
    match path.suffix.lower():
        case ".safetensors":
            return {"what": "safetensors"} | _safetensors(path)
        case ".onnx":
            return {"what": "ONNX model"} | _onnx(path)
        case ".onnx_adapter":
            return {"what": "ONNX adapter"} | _onnx_adapter(path)
        case suffix if suffix != ".gguf" and not _begins(path, _GGUF_MAGIC):
            raise UnsafeFile(f"{path}: none of GGUF, ONNX, safetensors and ONNX adapters")
    header = read_gguf(path)
    return {"what": "GGUF adapter" if header.is_adapter else "GGUF model"} | _gguf(path, header)


def _release(folder: Path) -> Found:
    """The manifest without what is long, and what its weights say of themselves."""
    manifest, _ = read_release(folder)
    told = manifest.model_dump(mode="json", exclude={"probes", "files"})
    return {
        "what": "release",
        "digest": str(manifest.digest),
        "bytes": sum(file.size for file in manifest.files),
        **told,
        "files": {file.path: file.size for file in manifest.files},
        "probes": len(manifest.probes),
        "contents": _contents(folder, manifest),
    }


def _contents(folder: Path, manifest: Manifest) -> list[Found]:
    if manifest.format == "onnx-genai" and (folder / CONFIG_FILE).is_file():
        return [_genai(folder)]
    readable = (".gguf", ".onnx", ".onnx_adapter", ".safetensors")
    return [
        {name: value for name, value in _file(folder / file.path).items() if name not in ("license", "name")}
        for file in manifest.files
        if file.path.endswith(readable)
    ]


def _gguf(path: Path, header: GgufHeader) -> Found:
    types = Counter(tensor.type.name for tensor in header.tensors)
    return {
        "file": path.name,
        "architecture": header.architecture,
        "name": header.text("general.name"),
        "license": header.text("general.license"),
        "bytes": path.stat().st_size,
        "parameters": sum(tensor.elements for tensor in header.tensors),
        "precision": precision(header),
        "tensor_types": dict(types),
        "context_length": header.integer(f"{header.architecture}.context_length"),
        "tokenizer": header.text("tokenizer.ggml.model"),
        "chat_template": header.text("tokenizer.chat_template") is not None,
        "fallbacks": _fallbacks(header),
    }


def _fallbacks(header: GgufHeader) -> int | None:
    if header.is_adapter:
        return None
    try:
        return len(fallbacks(header, precision(header)))
    except (KeyError, CompileError):  # a precision that is no target of ours has no ledger
        return None


def _onnx(path: Path) -> Found:
    model = read_model(path)
    beside = {name: (path.parent / name).stat().st_size for name in model.files}
    return {
        "file": path.name,
        "bytes": path.stat().st_size + sum(beside.values()),
        "beside": beside,
        "producer": model.producer,
        "opsets": dict(model.opsets),
        "parameters": model.parameters,
        "weight_bytes": dict(model.weight_types),
        "inputs": _values(model, "inputs"),
        "outputs": _values(model, "outputs"),
        "operators": dict(model.operators),
    }


def _values(model: OnnxModel, which: str) -> dict[str, str]:
    """Type and shape by name, such as ``int64 [batch, sequence]``."""
    return {
        value.name: f"{value.type} [{', '.join('?' if size is None else str(size) for size in value.shape)}]"
        for value in getattr(model, which)
    }


def _encoder(folder: Path) -> Found:
    """What a folder of optimum says of its model's use; what it lacks to be served, in words."""
    try:
        files = files_of_folder(folder)
    except UnsafeFile as error:
        return {"served": f"no: {error}"}
    except ModelsError as error:
        raise UnsafeFile(str(error)) from error
    told = files.engine.model_dump(mode="json", exclude_defaults=True)
    return {"served": "yes", **told}


def _genai(folder: Path) -> Found:
    checked = check_folder(folder)
    slots = lora_slots(checked.model)
    described = checked.config["model"]
    return {
        "bytes": checked.bytes,
        "type": described.get("type"),
        "context_length": described["context_length"],
        "vocabulary": described["vocab_size"],
        "chat_template": checked.template is not None,
        "adapter_slots": None if slots is None else {"max_rank": slots.max_rank, "targets": slots.targets},
        "parameters": checked.model.parameters,
        "weight_bytes": dict(checked.model.weight_types),
        "operators": dict(checked.model.operators),
    }


def _onnx_adapter(path: Path) -> Found:
    if not _begins(path, _ONNX_ADAPTER_MAGIC, at=4):
        raise UnsafeFile(f"{path.name} is no ONNX adapter")
    return {"file": path.name, "bytes": path.stat().st_size}


def _begins(path: Path, magic: bytes, at: int = 0) -> bool:
    """Whether ``magic`` stands at the file's ``at``."""
    try:
        with path.open("rb") as stream:
            return stream.read(at + len(magic))[at:] == magic
    except OSError as error:
        raise UnsafeFile(f"{path.name}: cannot be read: {error}") from error


def _peft(folder: Path) -> Found:
    path = folder / PEFT_CONFIG
    try:
        with path.open("rb") as stream:
            config = json.loads(stream.read(_MAX_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise UnsafeFile(f"{path}: cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise UnsafeFile(f"{path}: is no JSON object")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UnsafeFile(f"{folder}: no safetensors beside {PEFT_CONFIG}; other files are not opened")
    names = ("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules")
    return {name: config.get(name) for name in names} | {"files": [_safetensors(file) for file in weights]}


def _safetensors(path: Path) -> Found:
    header = read_safetensors(path)
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "parameters": header.parameters,
        "tensors": len(header.tensors),
        "tensor_types": dict(Counter(tensor.type for tensor in header.tensors)),
    }
