"""``outpost-compile inspect``: what a path is, from headers alone. Weights are never loaded.

Refuses, by name, what is never opened here: pickles in whatever dress.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from compile.gguf.files import fallbacks, precision
from models.engines.llama_cpp import read_header
from models.errors import UnsafeFile
from models.manifest import MANIFEST_FILE
from models.store import read_release

_PICKLES = {".pt", ".pth", ".bin", ".pkl", ".ckpt"}
_MAX_SAFETENSORS_HEADER = 100_000_000
"""Bytes; the limit that the format's own library keeps."""


def inspect_path(path: Path) -> dict[str, Any]:
    """What ``path`` is. Raises ``UnsafeFile`` for what is unsound, refused or unknown."""
    if path.is_dir():
        if (path / MANIFEST_FILE).is_file():
            manifest, data = read_release(path)
            return {
                "what": "release",
                "digest": str(manifest.digest),
                "bytes": len(data),
            } | manifest.model_dump(mode="json", exclude={"probes", "files"})
        tensors = sorted(path.glob("*.safetensors"))
        if tensors:
            return {"what": "safetensors folder", "files": [_safetensors(file) for file in tensors]}
        raise UnsafeFile(f"{path}: neither a release nor a folder of safetensors")
    if path.suffix.lower() in _PICKLES:
        raise UnsafeFile(f"{path.name}: may hold a pickle, which runs code when it is read; it is not opened")
    if path.suffix.lower() == ".safetensors":
        return {"what": "safetensors"} | _safetensors(path)
    header = read_header(path)
    types = Counter(tensor.type.name for tensor in header.tensors)
    return {
        "what": "GGUF adapter" if header.is_adapter else "GGUF model",
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
        "fallbacks": _fallbacks(path, header),
    }


def _fallbacks(path: Path, header: Any) -> int | None:
    if header.is_adapter:
        return None
    try:
        return len(fallbacks(header, precision(header)))
    except KeyError:  # a precision that is no target of ours has no ledger
        return None


def describe(found: dict[str, Any]) -> str:
    """For people: a line per fact."""
    lines = []
    for name, value in found.items():
        if value not in (None, [], {}):
            written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines.append(f"{name.replace('_', ' ')}: {written}")
    return "\n".join(lines)


def _safetensors(path: Path) -> dict[str, Any]:
    """The header of one file. Format: https://github.com/huggingface/safetensors#format."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_SAFETENSORS_HEADER):
            raise UnsafeFile(f"{path.name}: a header of {length} bytes in a file of {size}")
        try:
            header = json.loads(stream.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            ends = [entry["data_offsets"][1] for entry in tensors.values()]
            types = Counter(entry["dtype"] for entry in tensors.values())
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise UnsafeFile(f"{path.name}: its header is not sound") from error
    if any(not isinstance(end, int) or not 0 <= end <= size - 8 - length for end in ends):
        raise UnsafeFile(f"{path.name}: a tensor ends past the end of the file")
    return {"file": path.name, "bytes": size, "tensors": len(tensors), "tensor_types": dict(types)}
