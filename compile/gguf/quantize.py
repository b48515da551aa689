"""Quantization by llama.cpp's own ``llama_model_quantize``, in a process of its own.

The library prints a line per tensor and aborts on some errors: a child process keeps both away from the
build. ``python -m compile.gguf.quantize`` reads one JSON job on stdin and is that child. The result is
written beside the target and renamed when it is whole and its header checks; a full disk leaves nothing.
Memory: rows are converted in slabs, and the source is unmapped tensor by tensor.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.errors import ToolFailed, UnsupportedBase
from compile.gguf.importance import describe
from compile.gguf.mixture import IMPORTANCE_TEXT, IMPORTANCE_TOKENS, Override, check_kind, designed
from models.errors import UnsafeFile
from models.gguf import GgufHeader, TensorType, check_model, read_header

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_SLAB_BYTES = 64 << 20
"""Rows of a tensor held at once, with their result."""


def quantize(
    source: Path,
    target: Path,
    kind: str,
    threads: int,
    importance: Path | None = None,
    overrides: Sequence[Override] = (),
) -> None:
    """Write ``source`` (F32 GGUF) to ``target`` as ``kind``, such as ``Q8_0``.

    ``importance`` is a file of ``compile.gguf.importance``, named in the result's metadata; ``overrides``
    give tensors types of their own. Raises ``UnsafeFile`` for a source that is not sound, ``BadRecipe``
    for a type that is unknown or lacks its importance matrix, ``UnsupportedBase`` for a source that is
    quantized already, and ``ToolFailed``.
    """
    header = check_model(source)
    check_kind(kind, importance is not None)
    packed = next((t for t in header.tensors if t.type not in _PLAIN and len(t.shape) > 1), None)
    if packed is not None:
        raise UnsupportedBase(
            f"{source.name}: {packed.name} is {packed.type.name} already; quantizing twice loses twice. "
            "Import the base first"
        )
    types: Mapping[str, TensorType] = {}
    if overrides:
        # With some types given, llama.cpp counts layers differently for the others: so all are given.
        types = designed(header, kind, importance is not None, overrides)
    unfinished = target.with_name(f".{target.name}.unfinished")
    job = {
        "source": str(source),
        "target": str(unfinished),
        "kind": kind,
        "threads": threads,
        "importance": None if importance is None else str(importance),
        "types": {name: int(one) for name, one in types.items()},
    }
    if importance is not None:
        facts = describe(importance)
        job |= {"text": facts.text, "tokens": facts.tokens}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "compile.gguf.quantize"],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            raise ToolFailed(f"quantizing to {kind} failed with {done.returncode}:\n{done.stderr[-2000:]}")
        _check_result(header, unfinished, kind)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


_PLAIN = frozenset({TensorType.F32, TensorType.F16, TensorType.BF16, TensorType.F64})


def _check_result(source: GgufHeader, written: Path, kind: str) -> None:
    try:
        result = read_header(written)
    except UnsafeFile as error:
        raise ToolFailed(f"quantizing to {kind} wrote a file that is not whole: {error}") from error
    shapes = {tensor.name: tensor.shape for tensor in result.tensors}
    if shapes != {tensor.name: tensor.shape for tensor in source.tensors}:
        raise ToolFailed(f"quantizing to {kind} did not write the tensors of its source")


def _child(job: Mapping[str, Any]) -> int:
    import ctypes

    import llama_cpp

    kind = job["kind"]
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = job["threads"]
    parameters.ftype = getattr(
        llama_cpp, "LLAMA_FTYPE_ALL_F32" if kind == "F32" else f"LLAMA_FTYPE_MOSTLY_{kind}"
    )
    parameters.max_buf_size = _SLAB_BYTES
    if job["types"]:
        given = (llama_cpp.llama_model_tensor_override * (len(job["types"]) + 1))()
        for at, (name, one) in enumerate(job["types"].items()):
            given[at].pattern = f"^{name.replace('.', '[.]')}$".encode()
            given[at].type = one
        parameters.tt_overrides = given
    if job["importance"] is not None:
        columns = _columns(Path(job["importance"]))
        weights = (llama_cpp.llama_model_imatrix_data * (len(columns) + 1))()
        for at, (name, values) in enumerate(columns.items()):
            weights[at].name = name.encode()
            weights[at].data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            weights[at].size = values.size
        parameters.imatrix = weights
        lineage: Any = (llama_cpp.llama_model_kv_override * 3)()
        lineage[0].tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR
        lineage[0].key = IMPORTANCE_TEXT.encode()
        lineage[0].value.val_str = job["text"].encode()
        lineage[1].tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT
        lineage[1].key = IMPORTANCE_TOKENS.encode()
        lineage[1].value.val_i64 = job["tokens"]
        parameters.kv_overrides = lineage
    result: int = llama_cpp.llama_model_quantize(
        job["source"].encode(), job["target"].encode(), ctypes.byref(parameters)
    )
    return result


def _columns(path: Path) -> "dict[str, npt.NDArray[np.float32]]":
    import numpy as np
    from safetensors.numpy import load_file

    return {name: np.ascontiguousarray(values) for name, values in load_file(path).items()}


if __name__ == "__main__":
    sys.exit(_child(json.load(sys.stdin)))
