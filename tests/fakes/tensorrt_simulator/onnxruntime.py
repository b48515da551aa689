"""ONNX Runtime with a TensorRT provider that builds nothing: found before the real one, which computes.

It keeps the provider's promises that we rely on: it writes an engine, its profile and its timings into the
folder it is given unless the engine is there, reads what is there, takes no shape outside the profile, and
leaves a graph to other providers without an error (``SIMULATED_TENSORRT=refuses``). ``SIMULATED_BUILDS``
names a file that gets a line of JSON, the provider's options, for each engine that is built.
"""

import hashlib
import json
import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
TENSORRT, CPU = "TensorrtExecutionProvider", "CPUExecutionProvider"

spec = PathFinder.find_spec("onnxruntime", [one for one in sys.path if Path(one).resolve() != HERE])
runtime = sys.modules["onnxruntime"] = module_from_spec(spec)
spec.loader.exec_module(runtime)


def shapes_of(text: str) -> dict[str, list[int]]:
    return {
        name: list(map(int, shape.split("x"))) for name, shape in (one.split(":") for one in text.split(","))
    }


class Session(runtime.InferenceSession):
    def __init__(self, path, options, providers, enable_fallback):
        name, asked = providers[0]
        assert (name, enable_fallback) == (TENSORRT, 0)
        self._took = os.environ.get("SIMULATED_TENSORRT") != "refuses"
        self._low, self._high = (shapes_of(asked[f"trt_profile_{which}_shapes"]) for which in ("min", "max"))
        if self._took:
            self._build_or_read(Path(path).read_bytes(), Path(asked["trt_engine_cache_path"]), asked)
        super().__init__(path, options, providers=[CPU])

    def _build_or_read(self, graph: bytes, folder: Path, asked: dict[str, str]) -> None:
        engine = folder / "TensorrtExecutionProvider_graph_sm87.engine"
        right = hashlib.sha256(graph).digest()
        if not engine.exists():
            engine.write_bytes(right)
            engine.with_suffix(".profile").write_text(asked["trt_profile_opt_shapes"])
            (folder / "TensorrtExecutionProvider_cache_sm87.timing").write_bytes(b"timings")
            with Path(os.environ["SIMULATED_BUILDS"]).open("a", encoding="utf-8") as log:
                log.write(json.dumps(asked) + "\n")
        elif engine.read_bytes() != right:
            raise RuntimeError("the engine answers for another graph")

    def get_providers(self):
        return [TENSORRT, CPU] if self._took else [CPU]

    def run(self, names, feeds):
        for name, array in feeds.items():
            bounds = zip(self._low[name], array.shape, self._high[name], strict=True)
            if not all(low <= size <= high for low, size, high in bounds):
                raise RuntimeError(f"{name}: {array.shape} is outside of the profile")
        return super().run(names, feeds)


runtime.__file__ = str(HERE / "package" / "__init__.py")
runtime.InferenceSession = Session
runtime.get_available_providers = lambda: [TENSORRT, CPU]
runtime.preload_dlls = lambda: None
