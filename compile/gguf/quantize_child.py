"""The child of ``compile.gguf.quantize``: loads llama.cpp's library while its parent checks the source.

Quantizing takes a small model half a second, so nothing is imported that is not needed: of llama-cpp-python
the bindings alone, NumPy only for an importance matrix.
"""

import ctypes
import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compile.child import main, say
from compile.gguf.importance_file import read_columns
from compile.gguf.mixture import IMPORTANCE_TEXT, IMPORTANCE_TOKENS

_SLAB_BYTES = 64 << 20
"""Rows of a tensor held at once, with their result."""


def _bindings() -> Any:
    """``llama_cpp.llama_cpp`` without ``llama_cpp``, which spends most of its import on a chat layer."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None:
        sys.exit("llama-cpp-python is missing: pip install 'outpost[compile]'")
    sys.modules["llama_cpp"] = importlib.util.module_from_spec(spec)  # a package that was never executed
    return importlib.import_module("llama_cpp.llama_cpp")


def _listen(lib: Any) -> Any:
    """Tell of each tensor as the library says that it begins; all that it says stays on stderr.

    Returns what must live as long as the library speaks.
    """

    def heard(level: int, text: bytes, data: Any) -> None:
        line = text.decode("utf-8", "replace")
        sys.stderr.write(line)
        if found := re.match(r"\[ *(\d+)/ *(\d+)\] +(\S+)", line):
            say((int(found[1]) - 1) / int(found[2]), f"quantizing {found[3]}")

    callback = lib.llama_log_callback(heard)
    lib.llama_log_set(callback, None)
    return callback


def _quantize(lib: Any, job: Mapping[str, Any]) -> int:
    """Carry out a job of ``compile.gguf.quantize``; llama.cpp's own exit code."""
    kind = job["kind"]
    parameters = lib.llama_model_quantize_default_params()
    parameters.nthread = job["threads"]
    parameters.ftype = getattr(lib, "LLAMA_FTYPE_ALL_F32" if kind == "F32" else f"LLAMA_FTYPE_MOSTLY_{kind}")
    parameters.max_buf_size = _SLAB_BYTES
    if job["types"]:
        given = (lib.llama_model_tensor_override * (len(job["types"]) + 1))()
        for at, (name, one) in enumerate(job["types"].items()):
            given[at].pattern = f"^{name.replace('.', '[.]')}$".encode()
            given[at].type = one
        parameters.tt_overrides = given
    importance = job["importance"]
    if importance is not None:
        columns = read_columns(Path(importance["file"]))
        weights = (lib.llama_model_imatrix_data * (len(columns) + 1))()
        for at, (name, values) in enumerate(columns.items()):
            weights[at].name = name.encode()
            weights[at].data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            weights[at].size = values.size
        parameters.imatrix = weights
        lineage: Any = (lib.llama_model_kv_override * 3)()
        lineage[0].tag = lib.LLAMA_KV_OVERRIDE_TYPE_STR
        lineage[0].key = IMPORTANCE_TEXT.encode()
        lineage[0].value.val_str = importance["text"].encode()
        lineage[1].tag = lib.LLAMA_KV_OVERRIDE_TYPE_INT
        lineage[1].key = IMPORTANCE_TOKENS.encode()
        lineage[1].value.val_i64 = importance["tokens"]
        parameters.kv_overrides = lineage
    listening = _listen(lib)
    result: int = lib.llama_model_quantize(
        job["source"].encode(), job["target"].encode(), ctypes.byref(parameters)
    )
    del listening
    return result


if __name__ == "__main__":
    loaded = _bindings()
    main(lambda job: _quantize(loaded, job))
