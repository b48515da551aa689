"""Quantization by llama.cpp's own ``llama_model_quantize``, in a process of its own.

The library prints a line per tensor and aborts on some errors: a child, ``compile.gguf.quantize_child``,
keeps both away from the build. It loads the library while the source's header is checked here, and is shown
the source when that is done. The result is written beside the target and renamed when it is whole and its
header checks; a full disk leaves nothing. Memory: rows are converted in slabs, and the source is unmapped
tensor by tensor.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.child import started
from compile.errors import ToolFailed, UnsupportedBase
from compile.gguf.importance_file import describe
from compile.gguf.mixture import Override, check_kind, designed
from models.errors import UnsafeFile
from models.gguf import GgufHeader, TensorType, check_model, read_header

if TYPE_CHECKING:
    from compile.steps import Report

_PLAIN = frozenset({TensorType.F32, TensorType.F16, TensorType.BF16, TensorType.F64})


def quantize(
    source: Path,
    target: Path,
    kind: str,
    threads: int,
    importance: Path | None = None,
    overrides: Sequence[Override] = (),
    report: "Report" = lambda done, note: None,
) -> None:
    """Write ``source`` (F32 GGUF) to ``target`` as ``kind``, such as ``Q8_0``.

    ``importance`` is a file of ``compile.gguf.importance``, named in the result's metadata; ``overrides``
    give tensors types of their own. Raises ``UnsafeFile`` for a source that is not sound, ``BadRecipe``
    for a type that is unknown or lacks its importance matrix, ``UnsupportedBase`` for a source that is
    quantized already, and ``ToolFailed``.
    """
    check_kind(kind, importance is not None)
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        with started("compile.gguf.quantize_child") as child:
            header = _check_source(source)
            job = {
                "source": str(source),
                "target": str(unfinished),
                "kind": kind,
                "threads": threads,
                "importance": None if importance is None else _importance(importance),
                "types": _types(header, kind, importance is not None, overrides),
            }
            child.run(job, report, f"quantizing to {kind}")
        _check_result(header, unfinished, kind)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _check_source(path: Path) -> GgufHeader:
    header = check_model(path)
    packed = next((t for t in header.tensors if t.type not in _PLAIN and len(t.shape) > 1), None)
    if packed is not None:
        raise UnsupportedBase(
            f"{path.name}: {packed.name} is {packed.type.name} already; quantizing twice loses twice. "
            "Import the base first"
        )
    return header


def _importance(path: Path) -> dict[str, Any]:
    facts = describe(path)
    return {"file": str(path), "text": facts.text, "tokens": facts.tokens}


def _types(header: GgufHeader, kind: str, importance: bool, overrides: Sequence[Override]) -> dict[str, int]:
    """The type of every matrix, by name; empty where nothing is overridden.

    With some types given, llama.cpp counts layers differently for the others: so all are given, or none.
    """
    wanted = designed(header, kind, importance, overrides) if overrides else {}
    return {name: int(one) for name, one in wanted.items()}


def _check_result(source: GgufHeader, written: Path, kind: str) -> None:
    try:
        result = read_header(written)
    except UnsafeFile as error:
        raise ToolFailed(f"quantizing to {kind} wrote a file that is not whole: {error}") from error
    shapes = {tensor.name: tensor.shape for tensor in result.tensors}
    if shapes != {tensor.name: tensor.shape for tensor in source.tensors}:
        raise ToolFailed(f"quantizing to {kind} did not write the tensors of its source")
