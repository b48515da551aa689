"""A native context: KV cells under sequence ids, and the batch that is computed next. It decides nothing."""

import ctypes
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from models.engines.llama_cpp.library import last_error
from models.engines.llama_cpp.settings import LlamaSettings
from models.engines.llama_cpp.threads import Threads
from models.engines.prefixes import Change, Copy, Drop, Share
from models.errors import EngineError
from models.gguf import GgufHeader

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_LOGIT = 4
"""Bytes; llama.cpp computes logits in float32."""


def context_bytes(settings: LlamaSettings, header: GgufHeader) -> int:
    """What a context takes: its KV cells, and the logits of a batch in and out of the compute buffer."""
    rows = settings.batch_tokens + settings.ids
    return settings.cache_tokens * header.kv_bytes_per_token + rows * header.vocabulary * _LOGIT


def decode(lib: Any, handle: Any, batch: Any, threads: Threads) -> None:
    """Have a ``llama_batch`` computed, and ``threads`` told what it took. Raises ``EngineError``."""
    lib.llama_set_n_threads(handle, threads.now, threads.now)
    began, used = time.perf_counter(), time.process_time()
    status = lib.llama_decode(handle, batch)
    threads.took(time.perf_counter() - began, time.process_time() - used)
    if status:
        raise EngineError(f"llama.cpp could not compute a batch ({status}): {last_error()}")


class Context:
    """Over a loaded model, with at most one adapter, computed by ``threads`` as it is told what they took.
    ``width``: of the embeddings that it is shown; 0: none.

    ``observe`` is shown every computed node: a ``ggml_backend_sched_eval_callback``, kept alive by the
    caller. Raises ``EngineError`` when llama.cpp cannot make it.
    """

    def __init__(
        self,
        lib: Any,
        model: Any,
        settings: LlamaSettings,
        threads: Threads,
        adapter: Any,
        observe: Any,
        width: int = 0,
    ) -> None:
        self._lib, self._threads = lib, threads
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = settings.cache_tokens
        # llama.cpp aborts when one token of each sequence id does not fit a batch.
        parameters.n_batch = parameters.n_ubatch = max(settings.batch_tokens, settings.ids)
        parameters.n_seq_max = settings.ids
        parameters.n_threads = parameters.n_threads_batch = threads.most
        parameters.kv_unified = self._unified = settings.kv_unified
        parameters.swa_full = True  # a sliding window would lose the prefix that is to be reused
        parameters.no_perf = True
        if observe is not None:
            parameters.cb_eval = observe
        self.handle = lib.llama_init_from_model(model, parameters)
        if not self.handle:
            raise EngineError(last_error())
        if adapter is not None:
            adapters = (lib.llama_adapter_lora_p_ctypes * 1)(adapter)
            if lib.llama_set_adapters_lora(self.handle, adapters, 1, (ctypes.c_float * 1)(1.0)):
                lib.llama_free(self.handle)
                raise EngineError(f"the adapter cannot be used in a context: {last_error()}")
        self._memory = lib.llama_get_memory(self.handle)
        self._batch = Batch(lib, settings.batch_tokens)
        self._shown = Batch(lib, settings.batch_tokens, width) if width else None

    def add(self, id: int, start: int, tokens: Sequence[int], outputs: int) -> int:
        """Put tokens at positions from ``start`` on into the batch; return the row of the last one.

        Logits are computed for the last ``outputs`` of them.
        """
        return self._batch.add(id, start, tokens, outputs)

    def compute(self) -> None:
        """Compute the batch, and empty it. Raises ``EngineError``; the cells are in doubt then."""
        self._decode(self._batch)

    def show(
        self, id: int, start: int, embeddings: "npt.NDArray[np.float32]", outputs: int, causal: bool
    ) -> int:
        """Compute embeddings at positions from ``start`` on, at once; else as ``add`` and ``compute``.

        Unless ``causal`` each of them attends to all of them.
        """
        if self._shown is None:
            raise EngineError("this context is not made for embeddings")
        row = self._shown.add(id, start, embeddings, outputs)
        self._lib.llama_set_causal_attn(self.handle, causal)
        try:
            self._decode(self._shown)
        finally:
            self._lib.llama_set_causal_attn(self.handle, True)
        return row

    def _decode(self, batch: "Batch") -> None:
        decode(self._lib, self.handle, batch.take(), self._threads)

    def carry_out(self, changes: Iterable[Change]) -> None:
        """Do to the cells what the tree of prefixes decided. Raises ``EngineError``.

        The tree's books are compared with the cells before anything is shared: if they ever differed, a
        request would answer from what another one asked.
        """
        for change in changes:
            if isinstance(change, Drop):
                self._drop(change.id, change.first, change.last)
                continue
            if (held := self.length(change.source)) < change.last:
                raise EngineError(f"sequence {change.source} holds {held} tokens, not {change.last}")
            if not self._unified:
                self._copy_apart(change, held)
                continue
            first = 0
            if isinstance(change, Share):
                first = change.first
                self._drop(change.target, first, change.last)
            self._lib.llama_memory_seq_cp(self._memory, change.source, change.target, first, change.last)

    def _copy_apart(self, change: Copy | Share, held: int) -> None:
        """Between cells that nothing can share: what two sequences hold is there twice."""
        if isinstance(change, Copy):
            if not self.write_state(change.target, self.read_state(change.source), held):
                raise EngineError(f"llama.cpp could not copy sequence {change.source}: {last_error()}")
            self._drop(change.target, change.last)

    def _drop(self, id: int, first: int, last: int = -1) -> None:
        if not self._lib.llama_memory_seq_rm(self._memory, id, first, last):
            raise EngineError(f"llama.cpp could not drop cells of sequence {id}")

    def clear(self) -> None:
        """Forget every cell, and what was put into the batch."""
        self._lib.llama_memory_clear(self._memory, False)
        self._batch.take()

    def length(self, id: int) -> int:
        """How many positions a sequence id holds, if it holds all from the first one on."""
        last: int = self._lib.llama_memory_seq_pos_max(self._memory, id)
        return last + 1

    def state_bytes(self, id: int) -> int:
        """How many bytes ``read_state`` will return."""
        size: int = self._lib.llama_state_seq_get_size(self.handle, id)
        return size

    def read_state(self, id: int) -> bytearray:
        """The cells of a sequence id, as llama.cpp writes them; empty when it cannot."""
        state = bytearray(self.state_bytes(id))
        if not state:
            return state
        buffer = (ctypes.c_uint8 * len(state)).from_buffer(state)
        written = self._lib.llama_state_seq_get_data(self.handle, buffer, len(state), id)
        return state if written == len(state) else bytearray()

    def write_state(self, id: int, state: bytearray, tokens: int) -> bool:
        """Put the cells of ``tokens`` tokens that ``read_state`` returned into a sequence id.

        Whether llama.cpp took them; if not, the cells are in doubt.
        """
        lib = self._lib
        buffer = (ctypes.c_uint8 * len(state)).from_buffer(state)
        if lib.llama_state_seq_set_data(self.handle, buffer, len(state), id) != len(state):
            return False
        first = lib.llama_memory_seq_pos_min(self._memory, id)
        return bool(first == 0 and self.length(id) == tokens)

    def close(self) -> None:
        """Free everything native."""
        self._lib.llama_free(self.handle)


class Batch:
    """A ``llama_batch`` over arrays of our own, filled by slices: ctypes is slow element by element.

    Of token ids, or of embeddings of ``width`` numbers.
    """

    def __init__(self, lib: Any, size: int, width: int = 0) -> None:
        self._values, given = _floats(size, width) if width else _tokens(size)
        self._positions = (ctypes.c_int32 * size)()
        self._ids = (ctypes.c_int32 * size)()
        self._outputs = (ctypes.c_int8 * size)()
        one_each = (ctypes.c_int32 * size)(*[1] * size)
        id_type = ctypes.POINTER(ctypes.c_int32)
        first, step = ctypes.addressof(self._ids), ctypes.sizeof(ctypes.c_int32)
        id_lists = (id_type * size)(*(ctypes.cast(first + step * row, id_type) for row in range(size)))
        self._native = lib.llama_batch(
            **given, pos=self._positions, n_seq_id=one_each, seq_id=id_lists, logits=self._outputs
        )
        self._rows = 0

    def add(self, id: int, start: int, values: Any, outputs: int) -> int:
        """See ``Context.add``."""
        size, first = len(values), self._rows
        self._rows = last = first + size
        self._values[first:last] = values
        self._positions[first:last] = list(range(start, start + size))
        self._ids[first:last] = [id] * size
        self._outputs[first:last] = [*[0] * (size - outputs), *[1] * outputs]
        return last - 1

    def take(self) -> Any:
        """The native batch; what is added next begins another."""
        self._native.n_tokens, self._rows = self._rows, 0
        return self._native


def _tokens(size: int) -> tuple[Any, dict[str, Any]]:
    """An array of token ids, and what a batch is given of it."""
    array = (ctypes.c_int32 * size)()
    return array, {"token": array}


def _floats(size: int, width: int) -> tuple[Any, dict[str, Any]]:
    """An array of embeddings [size, width], and what a batch is given of it."""
    import numpy as np

    array = np.zeros((size, width), dtype=np.float32)
    return array, {"embd": array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))}
