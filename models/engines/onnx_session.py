"""ONNX Runtime on the CPU or a GPU: a checked model file in, arrays in and out.

Owns the session's options, where it computes, and the one place where the runtime's exceptions become ours.
Refuses a file that ``models.onnx`` has not passed. ``onnxruntime`` and numpy are imported when a session is
made. Computing through TensorRT, from a release's recipe, has not been run on a GPU: untested.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from models.engines.cuda import has_gpu, load_cuda
from models.engines.engine_cache import engine_folder
from models.engines.foreign import converted
from models.engines.tensorrt_machine import TENSORRT_PROVIDER, read_machine
from models.errors import EngineError, UnsafeFile
from models.onnx import OnnxModel, Value, read_model
from models.store import digest_of
from models.tensorrt_recipe import (
    ANY_SIZE,
    MAX_RECIPE,
    RECIPE_FILE,
    Recipe,
    identity_of,
    provider_options,
    read_recipe,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

Device = Literal["auto", "cpu", "cuda"]
"""Where a graph is computed; ``auto``: on the GPU when there is one and this build of the runtime can."""


CALL_TOKENS: Mapping[str, int] = {"cpu": 13, "cuda": 2048}
"""What it costs to begin a run of a text encoder, in tokens that could be computed instead: measured of
MiniLM on an AVX2 core (3.3 ms, and 0.25 ms a token); of a GPU a guess, and `untested`.
"""


@dataclass(frozen=True, slots=True)
class OnnxSettings:
    """Sizes of an engine, and where it computes."""

    threads: int = 1
    device: Device = "cpu"
    batch: int = 16  # texts or pictures computed at once
    batch_tokens: int = 4096  # of one batch of texts, padding included
    truncate: bool = False  # cut texts that are too long, and count them, instead of refusing
    max_pixels: int = 50_000_000  # of one picture, before it is decoded
    engine_cache: Path | None = None  # where TensorRT engines are kept; None: each session builds its own

    def __post_init__(self) -> None:
        if min(self.threads, self.batch, self.batch_tokens, self.max_pixels) < 1:
            raise EngineError(f"every size of an engine is at least 1: {self}")


class OnnxSession:
    """A loaded graph. Raises ``UnsafeFile`` for a file that is not sound, else ``EngineError``.

    On a GPU nodes that it has no kernel for are computed on the CPU, as ONNX Runtime places them; a GPU that
    cannot be used at all is an error, where the runtime alone would only warn. ``through_tensorrt``: the
    graph lies beside a recipe, and TensorRT computes what it takes of it; the engine is built now unless
    ``engine_cache`` has it. Raises ``NoTensorRt`` then where that cannot be.
    """

    def __init__(
        self,
        path: Path,
        threads: int,
        device: Device = "cpu",
        through_tensorrt: bool = False,
        engine_cache: Path | None = None,
    ) -> None:
        self.model: OnnxModel = read_model(path)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 4  # what goes wrong is raised
        # A thread that waits by spinning takes the core from whoever it waits for; one that sleeps at once is
        # woken too late for the next operation. MiniLM, one text on two cores: 8.6 ms asleep, 7.4 ms by the
        # default, 6.3 ms so; beside a busy neighbour 10.9, 13.2 and 10.0 ms.
        options.add_session_config_entry("session.intra_op.spin_duration_us", "20")
        self.name = path.name
        self.file_bytes = path.stat().st_size + sum(
            (path.parent / name).stat().st_size for name in self.model.files
        )
        self._recipe: Recipe | None = recipe_beside(path) if through_tensorrt else None
        begin = partial(_begin, onnxruntime, path, options)
        if self._recipe is not None:
            if device == "cpu":
                raise EngineError(f"{path.name} is made for TensorRT, which does not compute on the CPU")
            self._session: Any = self._with_engine(path, self._recipe, engine_cache, begin)
            self.call_tokens = CALL_TOKENS["cuda"]
        else:
            providers = _providers(onnxruntime, device)
            self._session = begin(providers)
            self.call_tokens = CALL_TOKENS["cpu" if providers[0] == _CPU else "cuda"]
        self.inputs: Mapping[str, Value] = {value.name: value for value in self.model.inputs}
        self.outputs: Mapping[str, Value] = {value.name: value for value in self.model.outputs}

    def _with_engine(
        self, path: Path, recipe: Recipe, cache: Path | None, begin: Callable[[Sequence[Any]], Any]
    ) -> Any:
        machine = read_machine()
        weights = {name: digest_of(path.parent / name) for name in self.model.files}
        identity = identity_of(recipe, machine, digest_of(path), weights)
        try:
            with (
                tempfile.TemporaryDirectory(prefix="outpost-engine-") as passing,
                engine_folder(cache or Path(passing), identity) as folder,
            ):
                return begin([(TENSORRT_PROVIDER, provider_options(identity, folder)), _CUDA, _CPU])
        except OSError as error:
            raise EngineError(f"the engine of {path.name} cannot be kept: {error}") from error

    def sizes(self, axis: int) -> tuple[int, int]:
        """The smallest and the largest size of a dimension of its inputs: 0 rows, 1 tokens."""
        return ANY_SIZE if self._recipe is None else self._recipe.sizes(axis)

    def run(
        self, feeds: Mapping[str, "npt.NDArray[Any]"], wanted: Sequence[str]
    ) -> list["npt.NDArray[np.float32]"]:
        """The outputs ``wanted``, as float32. Raises ``EngineError``, also for what is no finite number."""
        import numpy as np

        with converted(f"{self.name} failed"):
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


def _begin(onnxruntime: Any, path: Path, options: Any, providers: Sequence[Any]) -> Any:
    """A session whose first provider has started. Raises ``EngineError``."""
    first = providers[0] if isinstance(providers[0], str) else providers[0][0]
    with converted(f"{path.name} cannot be loaded"):
        # Left to itself the runtime begins anew without a provider that failed, and says so on stdout.
        session = onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    if session.get_providers()[0] != first:
        raise EngineError(f"{path.name}: ONNX Runtime cannot use the GPU ({first} did not start)")
    return session


def recipe_beside(graph: Path) -> Recipe:
    """The recipe of the engine that is built from a graph. Raises ``UnsafeFile``."""
    try:
        with (graph.parent / RECIPE_FILE).open("rb") as stream:
            return read_recipe(stream.read(MAX_RECIPE + 1))
    except OSError as error:
        raise UnsafeFile(f"{RECIPE_FILE}: cannot be read: {error.strerror}") from error


def _providers(onnxruntime: Any, device: Device) -> list[str]:
    able = _CUDA in onnxruntime.get_available_providers()
    if device == "cuda" and not able:
        raise EngineError("this ONNX Runtime has no CUDA: install onnxruntime-gpu instead of onnxruntime")
    if device == "cpu" or not able or (device == "auto" and not has_gpu()):
        return [_CPU]
    load_cuda()
    return [_CUDA, _CPU]


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
