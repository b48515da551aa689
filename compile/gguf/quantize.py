"""Quantization by llama.cpp's own ``llama_model_quantize``, in a process of its own.

The library prints a line per tensor and aborts on some errors: a child process keeps both away from the
build. ``python -m compile.gguf.quantize SOURCE TARGET TYPE THREADS`` is that child.
"""

import subprocess
import sys
from pathlib import Path

from compile.errors import ToolFailed


def quantize(source: Path, target: Path, kind: str, threads: int) -> None:
    """Write ``source`` (F32 GGUF) to ``target`` as ``kind``, such as ``Q8_0``. Raises ``ToolFailed``."""
    done = subprocess.run(
        [sys.executable, "-m", "compile.gguf.quantize", str(source), str(target), kind, str(threads)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise ToolFailed(f"quantizing to {kind} failed with {done.returncode}:\n{done.stderr[-2000:]}")


def _child(source: str, target: str, kind: str, threads: str) -> int:
    import ctypes

    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = int(threads)
    parameters.ftype = getattr(
        llama_cpp, "LLAMA_FTYPE_ALL_F32" if kind == "F32" else f"LLAMA_FTYPE_MOSTLY_{kind}"
    )
    result: int = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters))
    return result


if __name__ == "__main__":
    sys.exit(_child(*sys.argv[1:]))
