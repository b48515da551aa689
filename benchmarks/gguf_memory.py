"""Peak memory of GGUF conversion and quantization over models of several depths.

Random Llamas of the same width and growing depth are made, converted, quantized, and imported back, each step
in a process of its own whose peak resident memory (of it and of all that it starts) the kernel reports. A
least-squares line says how many bytes each further megabyte of weights costs: it is to be near zero.

    .venv/bin/python benchmarks/gguf_memory.py [--layers 4,12,24] [--hidden 512] [--out FILE.json]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAKE = ROOT / "examples" / "small_llama" / "make.py"
CONVERTERS = ROOT / ".cache" / "llama.cpp-0.3.36"

STEPS = {
    "convert (safetensors to F32 GGUF)": (
        "from compile.gguf.files import Converters; from pathlib import Path; "
        "Converters(Path({converters!r})).base(Path({folder!r}) / 'hf', Path({folder!r}) / 'f32.gguf')"
    ),
    "quantize Q4_K_M": (
        "from compile.gguf.quantize import quantize; from pathlib import Path; "
        "quantize(Path({folder!r}) / 'f32.gguf', Path({folder!r}) / 'q4.gguf', 'Q4_K_M', 1)"
    ),
    "quantize Q8_0": (
        "from compile.gguf.quantize import quantize; from pathlib import Path; "
        "quantize(Path({folder!r}) / 'f32.gguf', Path({folder!r}) / 'q8.gguf', 'Q8_0', 1)"
    ),
    "dequantize (Q8_0 GGUF to safetensors)": (
        "from compile.gguf.dequantize import write_safetensors; from pathlib import Path; "
        "from models.gguf import read_header; source = Path({folder!r}) / 'q8.gguf'; "
        "target = Path({folder!r}) / 'back'; target.mkdir(); "
        "write_safetensors(source, read_header(source), target)"
    ),
}


def peak_of(code: str) -> int:
    """Bytes: the most that a process running ``code``, or one it started, had resident."""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed with {process.returncode}: {code}")
    return used.ru_maxrss * 1024


def slope(points: list[tuple[float, float]]) -> float:
    """Of the least-squares line through ``points``."""
    n = len(points)
    x, y = sum(p[0] for p in points) / n, sum(p[1] for p in points) / n
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--layers", default="4,12,24")
    options.add_argument("--hidden", type=int, default=512)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    rows = []
    for layers in (int(part) for part in chosen.layers.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            subprocess.run(
                [
                    *(sys.executable, MAKE, "--out", folder / "hf", "--untrained", "--layers", str(layers)),
                    *("--hidden", str(chosen.hidden), "--intermediate", str(4 * chosen.hidden)),
                    *("--heads", str(chosen.hidden // 64), "--kv-heads", str(chosen.hidden // 64)),
                ],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            peaks = {
                step: peak_of(code.format(folder=str(folder), converters=str(CONVERTERS)))
                for step, code in STEPS.items()
            }
            size = (folder / "f32.gguf").stat().st_size
        rows.append({"layers": layers, "f32_bytes": size, "peak_bytes": peaks})
        shown = ", ".join(f"{step}: {peak / 1e6:.0f} MB" for step, peak in peaks.items())
        print(f"{layers} layers, {size / 1e6:.0f} MB of weights: {shown}", flush=True)
    result = {
        "largest_matrix_bytes": 16 * chosen.hidden**2,
        "models": rows,
        "peak_bytes_per_weight_byte": {
            step: round(slope([(row["f32_bytes"], row["peak_bytes"][step]) for row in rows]), 4)
            for step in STEPS
        },
    }
    for step, value in result["peak_bytes_per_weight_byte"].items():
        print(f"{step}: {value:+.4f} bytes of peak memory for each further byte of weights")
    if chosen.out:
        chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
