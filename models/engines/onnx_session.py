"""ONNX Runtime on the CPU: a checked model file in, arrays in and out.

Owns the session's options and the one place where the runtime's exceptions become ours. Refuses a file that
``models.onnx`` has not passed. ``onnxruntime`` and numpy are imported when a session is made.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import EngineError
from models.onnx import OnnxModel, Value, read_model

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class OnnxSettings:
    """Sizes of an engine."""

    threads: int = 1
    batch: int = 16  # texts or pictures computed at once
    batch_tokens: int = 4096  # of one batch of texts, padding included
    truncate: bool = False  # cut texts that are too long, and count them, instead of refusing
    max_pixels: int = 50_000_000  # of one picture, before it is decoded

    def __post_init__(self) -> None:
        if min(self.threads, self.batch, self.batch_tokens, self.max_pixels) < 1:
            raise EngineError(f"every size of an engine is at least 1: {self}")


class OnnxSession:
    """A loaded graph. Raises ``UnsafeFile`` for a file that is not sound, else ``EngineError``."""

    def __init__(self, path: Path, threads: int) -> None:
        self.model: OnnxModel = read_model(path)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4  # what goes wrong is raised
        # A thread that waits by spinning takes the core from whoever it waits for.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.name = path.name
        self.file_bytes = path.stat().st_size + sum(
            (path.parent / name).stat().st_size for name in self.model.files
        )
        with _foreign(f"{path.name} cannot be loaded"):
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        self.inputs: Mapping[str, Value] = {value.name: value for value in self.model.inputs}
        self.outputs: Mapping[str, Value] = {value.name: value for value in self.model.outputs}

    def run(
        self, feeds: Mapping[str, "npt.NDArray[Any]"], wanted: Sequence[str]
    ) -> list["npt.NDArray[np.float32]"]:
        """The outputs ``wanted``, as float32. Raises ``EngineError``, also for what is no finite number."""
        import numpy as np

        with _foreign(f"{self.name} failed"):
            found = self._session.run(list(wanted), dict(feeds))
        arrays = [np.asarray(array, dtype=np.float32) for array in found]
        for name, array in zip(wanted, arrays, strict=True):
            if not np.isfinite(array).all():
                raise EngineError(f"{self.name}: its output {name!r} holds what is no number")
        return arrays

    def output(self, names: Sequence[str], rank: int) -> str:
        """The output that goes by one of ``names``, else the only one of ``rank`` dimensions.

        Raises ``EngineError`` when there is none.
        """
        for name in names:
            if name in self.outputs:
                return name
        fitting = [name for name, value in self.outputs.items() if len(value.shape) == rank]
        if len(fitting) != 1:
            raise EngineError(
                f"{self.name}: none of its outputs is {' or '.join(map(repr, names))}; it has "
                + ", ".join(f"{name!r} {list(value.shape)}" for name, value in self.outputs.items())
            )
        return fitting[0]

    def close(self) -> None:
        """Free the weights. Safe to call twice."""
        self._session = None


@contextmanager
def _foreign(what: str) -> Iterator[None]:
    """The runtime's exceptions as ``EngineError``; it raises its own, and Python's for what it was given."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds: tuple[type[Exception], ...] = (
        *(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
        *(RuntimeError, ValueError, TypeError, AttributeError, MemoryError),
    )
    try:
        yield
    except kinds as error:
        first = str(error).strip().split("\n")[0]
        raise EngineError(f"{what}: {first[:400] or type(error).__name__}") from error


def sigmoid(logits: "npt.NDArray[np.float32]") -> "npt.NDArray[np.float32]":
    """Of each number, in (0, 1)."""
    import numpy as np

    share: npt.NDArray[np.float32] = (0.5 + 0.5 * np.tanh(0.5 * logits.astype(np.float64))).astype(np.float32)
    return share


def softmax(logits: "npt.NDArray[np.float32]") -> "npt.NDArray[np.float32]":
    """Over the last axis: float32, rows sum to 1."""
    import numpy as np

    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    share: npt.NDArray[np.float32] = (shifted / shifted.sum(axis=-1, keepdims=True)).astype(np.float32)
    return share
