"""The folder that GenAI's model builder writes, checked before a native library sees a file of it.

Its configuration may name files, providers and libraries. Refuses all but files beside it, for the CPU or
CUDA; what it says of the provider beyond its name is never used.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import UnsafeFile, unreadable
from models.onnx import OnnxModel, read_model
from models.pickles import refuse_pickle

CONFIG_FILE = "genai_config.json"
MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE, TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"
MAX_JSON = 64 << 20
"""Bytes of one JSON file; a tokenizer of 256,000 tokens has some 20 MB."""

_LIBRARIES = re.compile(r"\.(so|dll|dylib|py|pyc|exe|sh)(\.\d+)*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Folder:
    """A checked folder: its configuration, its graph, its tokenizer as JSON, its size in bytes.

    ``for_cuda``: its graph was written for CUDA's kernels, else for the CPU's.
    """

    config: Mapping[str, Any]
    model: OnnxModel
    tokenizer: Mapping[str, Any]
    template: str | None
    bytes: int
    for_cuda: bool


def check_folder(folder: Path) -> Folder:
    """Check every file of a GenAI folder. Raises ``UnsafeFile``."""
    size = _check_files(folder)
    config = _json(folder / CONFIG_FILE)
    decoder = _check_config(config)
    model = read_model(folder / decoder["filename"])
    for_cuda = bool(decoder.get("session_options", {}).get("provider_options"))
    return Folder(config, model, _json(folder / TOKENIZER_FILE), _template(folder), size, for_cuda)


def parameters_of(model: OnnxModel) -> int:
    """Weights, counted as they were before they were packed: four bits are two to a byte."""
    counted = 0
    for tensor in model.initializers:
        if not tensor.name.endswith(("_scale", "_zp", "_cache")):
            counted += tensor.elements * (2 if "_Q4G" in tensor.name else 1)
    return counted


def _check_files(folder: Path) -> int:
    """How many bytes they have."""
    size = 0
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from error
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise UnsafeFile(f"{folder.name}: {path.name} is a link or a folder; only files are taken")
        if _LIBRARIES.search(path.name):
            raise UnsafeFile(f"{folder.name}: {path.name} is code, which is not taken")
        refuse_pickle(path)
        size += path.stat().st_size
    return size


def _template(folder: Path) -> str | None:
    path = folder / TEMPLATE_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    if not (folder / TOKENIZER_CONFIG).is_file():
        return None
    text = _json(folder / TOKENIZER_CONFIG).get("chat_template")
    if text is not None and not isinstance(text, str):
        raise UnsafeFile(f"{folder.name}: the chat template is no text")
    return text


def _check_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    model = config.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(decoder, dict):
        raise UnsafeFile(f"{CONFIG_FILE}: names no decoder")
    for key in ("encoder", "vision", "speech", "embedding", "decoder_pipeline"):
        if key in model:
            raise UnsafeFile(f"{CONFIG_FILE}: model.{key}: only plain language models are taken")
    if "pipeline" in decoder:
        raise UnsafeFile(f"{CONFIG_FILE}: a decoder of several parts is not taken")
    for where, name in _file_names(config, ""):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise UnsafeFile(f"{CONFIG_FILE}: {where}: {name!r:.100} is not the name of a file beside it")
    options = decoder.get("session_options", {})
    if not isinstance(options, dict):
        raise UnsafeFile(f"{CONFIG_FILE}: session_options is no object")
    allowed = {"log_id", "provider_options", "intra_op_num_threads", "inter_op_num_threads"}
    if unknown := sorted(set(options) - allowed):
        # custom_ops_library and its like load code; a profile or a dump writes files.
        raise UnsafeFile(f"{CONFIG_FILE}: session_options.{unknown[0]} is not taken")
    providers = options.get("provider_options") or []
    names = [name for one in providers for name in one] if _is_list_of_objects(providers) else None
    if names not in ([], ["cuda"]):
        raise UnsafeFile(f"{CONFIG_FILE}: it was exported for another provider than the CPU or CUDA")
    for key in ("context_length", "vocab_size", "eos_token_id"):
        if key not in model:
            raise UnsafeFile(f"{CONFIG_FILE}: model.{key} is missing")
    if not isinstance(decoder.get("filename"), str):
        raise UnsafeFile(f"{CONFIG_FILE}: model.decoder.filename is missing")
    return decoder


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _file_names(value: Any, where: str) -> list[tuple[str, str]]:
    """Every setting of the configuration that names a file."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        path = f"{where}.{key}" if where else str(key)
        if isinstance(inner, str) and ("file" in str(key) or "library" in str(key) or "path" in str(key)):
            found.append((path, inner))
        found += _file_names(inner, path)
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON:
            raise UnsafeFile(f"{path.name}: larger than {MAX_JSON} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    if not isinstance(value, dict):
        raise UnsafeFile(f"{path.name}: holds no object")
    return value
