"""The importance matrix: how strongly each input column of each weight matrix is excited by real text.

For every matrix the mean over tokens of ``x_i ** 2`` of the activations ``x`` that it multiplies, which is
llama.cpp's definition (``tools/imatrix``): quantization then rounds the columns that matter with more care.
The activations are read from the engine while it computes, through ggml's evaluation callback, so what is
seen is what is served, for any architecture and without the weights in another format; a reading in torch
serves the tests as the second opinion. Refuses a ggml whose tensors are laid out otherwise than known here.

``python -m compile.gguf.importance`` is the child that measures, one JSON job on stdin.
"""

import ctypes
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.child import main, say, started
from compile.errors import BadData, ToolFailed, UnsupportedBase
from compile.gguf.importance_file import ImportanceFacts, describe, write
from compile.gguf.mixture import is_quantized
from compile.steps import Report
from models.errors import EngineError
from models.gguf import check_model
from models.store import digest_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_LEAST_TOKENS = 16
_MUL_MAT = b"MUL_MAT"


def importance(
    model: Path,
    text: Path,
    target: Path,
    threads: int,
    tokens: int,
    window: int = 512,
    report: Report = lambda done, note: None,
) -> ImportanceFacts:
    """Measure ``model`` on the first ``tokens`` tokens of ``text``, in windows; write ``target``.

    Special tokens in the text are read as such, so chats may be given as their template renders them.
    Raises ``UnsafeFile``, ``BadData`` for a text that is too short, ``UnsupportedBase``, ``ToolFailed``.
    """
    header = check_model(model)
    if any(len(tensor.shape) > 2 for tensor in header.tensors):
        raise UnsupportedBase(f"{model.name}: importance of stacked experts cannot be measured yet")
    try:
        text.read_text(encoding="utf-8")
    except ValueError as error:
        raise BadData(f"{text}: calibration text is UTF-8: {error}") from error
    unfinished = target.with_name(f".{target.name}.unfinished")
    adds_bos = header.metadata.get("tokenizer.ggml.add_bos_token") is True
    job = {
        "bos": header.integer("tokenizer.ggml.bos_token_id") if adds_bos else None,
        "model": str(model),
        "text": str(text),
        "target": str(unfinished),
        "threads": threads,
        "tokens": tokens,
        "window": window,
        "matrices": [tensor.name for tensor in header.tensors if is_quantized(tensor)],
        "digests": {"text": digest_of(text), "model": digest_of(model)},
    }
    try:
        _run(job, report)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return describe(target)


def _run(job: Mapping[str, Any], report: Report) -> None:
    with started("compile.gguf.importance") as child:
        code, said = child.attempt(job, report)
    if code == _TOO_SHORT:
        raise BadData(f"{job['text']}: {said.strip()}")
    if code != 0:
        name = Path(job["model"]).name
        raise ToolFailed(f"measuring the importance of {name} failed with {code}:\n{said}")


_TOO_SHORT = 3


class _Tensor(ctypes.Structure):
    """``ggml_tensor`` (ggml.h); held against the library's own accessors before it is believed."""


_Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]


class Observer:
    """Sums squares of the inputs of named matrices while an engine computes.

    ``callback`` goes to ``LlamaEngine(observe=...)``. An exception cannot cross C: the first one stops the
    computation and is kept in ``failed``.
    """

    def __init__(self, matrices: frozenset[str]) -> None:
        from llama_cpp import llama_cpp

        self._matrices = matrices
        self._checked = False
        self.sums: dict[str, npt.NDArray[np.float64]] = {}
        self.counts: dict[str, int] = {}
        self.failed: ToolFailed | None = None
        lib = llama_cpp._lib  # its ggml answers for the tensors that it made
        self._name_of, self._op_of = lib.ggml_get_name, lib.ggml_op_desc
        self._read, self._bytes_of = lib.ggml_backend_tensor_get, lib.ggml_nbytes
        self._name_of.restype, self._name_of.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        self._op_of.restype, self._op_of.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
        self._bytes_of.restype, self._bytes_of.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
        self._read.restype = None
        self._read.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._observe)

    def means(self) -> "dict[str, npt.NDArray[np.float32]]":
        """Per matrix the mean of the squares."""
        return {name: (sums / self.counts[name]).astype("float32") for name, sums in self.sums.items()}

    def _observe(self, address: int, asking: bool, _: Any) -> bool:
        try:
            return self._see(address, asking)
        except ToolFailed as error:
            self.failed = error
            return False

    def _see(self, address: int, asking: bool) -> bool:
        node = ctypes.cast(address, ctypes.POINTER(_Tensor)).contents
        if not self._checked:
            self._check(address)
        if self._op_of(address) != _MUL_MAT:
            return not asking
        name = node.src[0].contents.name.decode("utf-8", "replace")
        if "#" in name:  # a copy on another device: "CUDA0#blk.0.attn_q.weight#0"
            name = name.split("#")[1]
        if name not in self._matrices:
            return not asking
        if not asking:
            self._add(name, node.src[1])
        return True

    def _check(self, address: int) -> None:
        """The library's accessors and the layout above agree on a tensor that is computed now."""
        if self._name_of(address) != address + _Tensor.name.offset:
            raise ToolFailed(
                "ggml lays its tensors out otherwise than is known here (llama-cpp-python 0.3.36)"
            )
        self._checked = True

    def _add(self, name: str, pointer: Any) -> None:
        import numpy as np

        tensor = pointer.contents
        address = ctypes.addressof(tensor)
        columns, rows = tensor.ne[0], tensor.ne[1] * tensor.ne[2] * tensor.ne[3]
        size = self._bytes_of(address)
        if tensor.type != 0 or tensor.nb[0] != 4 or size != columns * rows * 4:
            raise ToolFailed(f"the input of {name} is not a plain float32 tensor")
        values = np.empty((rows, columns), dtype=np.float32)
        self._read(address, values.ctypes.data, 0, size)
        squares = np.einsum("ij,ij->j", values, values, dtype=np.float64)
        if not np.isfinite(squares).all():
            raise ToolFailed(f"the input of {name} is not finite")
        self.sums[name] = self.sums.get(name, 0.0) + squares
        self.counts[name] = self.counts.get(name, 0) + rows


def windows_of(tokens: list[int], window: int, bos: int | None) -> list[list[int]]:
    """Full windows of the text, each begun with BOS where the model expects it; a short text is one."""
    head = [] if bos is None else [bos]
    size = window - len(head)
    parts = [tokens[at : at + size] for at in range(0, len(tokens), size)]
    return [head + part for part in parts if len(part) == size or len(parts) == 1]


def _child(job: Mapping[str, Any], say: Callable[[float, str], None]) -> int:
    from models.engines.llama_cpp import LlamaEngine, LlamaSettings

    observer = Observer(frozenset(job["matrices"]))
    window = job["window"]
    settings = LlamaSettings(
        threads=job["threads"], context_tokens=window, max_sequences=1, batch_tokens=256, cache_tokens=window
    )
    engine = LlamaEngine(Path(job["model"]), settings, observer.callback)
    text = Path(job["text"]).read_text(encoding="utf-8")
    tokens = engine.tokenize(text, False, True)[: job["tokens"]]
    if len(tokens) < _LEAST_TOKENS:
        sys.stderr.write(f"{len(tokens)} tokens of calibration text; at least {_LEAST_TOKENS} are needed")
        return _TOO_SHORT
    whole = windows_of(tokens, min(window, engine.facts.context_tokens), job["bos"])
    for number, part in enumerate(whole):
        try:
            engine.score(part)  # every row, or the last layer would compute but one
        except EngineError as error:
            raise observer.failed or error from error
        say((number + 1) / len(whole), f"window {number + 1} of {len(whole)} of calibration text")
    engine.close()
    means = observer.means()
    missing = sorted(set(job["matrices"]) - set(means) - {"token_embd.weight"})
    if missing:
        raise ToolFailed(f"the engine never multiplied by {', '.join(missing[:5])}")
    facts = ImportanceFacts(tokens=sum(map(len, whole)), window=window, **job["digests"])
    write(Path(job["target"]), means, facts)
    return 0


if __name__ == "__main__":
    main(lambda job: _child(job, say))
