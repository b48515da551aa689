"""The processes that quantize: what they load, and that none is left behind."""

import json
import subprocess
import sys

from gguf_models import Shape, write_llama

from compile.gguf.quantize import quantize
from models.gguf import read_header

HEAVY = ("torch", "numpy", "pydantic", "transformers", "jinja2", "safetensors")
"""Half a second of imports, which is as long as it takes to quantize a small model."""


def loaded(stderr: str) -> set[str]:
    """The top-level packages in what ``python -X importtime`` says."""
    lines = [line for line in stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


def test_neither_process_loads_what_quantizing_does_not_need(tmp_path):
    source = write_llama(tmp_path / "f32.gguf", Shape(layers=1))
    code = (
        "import sys; from pathlib import Path; from compile.gguf.quantize import quantize\n"
        "quantize(Path(sys.argv[1]), Path(sys.argv[2]), 'Q8_0', 1)"
    )
    parent = [sys.executable, "-X", "importtime", "-c", code, source, tmp_path / "q8.gguf"]
    done = subprocess.run(parent, capture_output=True, text=True, check=True)
    assert "compile" in loaded(done.stderr) and not loaded(done.stderr).intersection(HEAVY)
    job = {"source": str(source), "target": str(tmp_path / "child.gguf"), "kind": "Q8_0", "threads": 1}
    child = [sys.executable, "-X", "importtime", "-m", "compile.gguf.quantize_child"]
    done = subprocess.run(
        child,
        input=json.dumps(job | {"importance": None, "types": {}}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "llama_cpp" in loaded(done.stderr) and not loaded(done.stderr).intersection(HEAVY)
    assert (tmp_path / "child.gguf").read_bytes() == (tmp_path / "q8.gguf").read_bytes()


def test_it_says_which_tensor_it_is_at(tmp_path):
    told = []
    source = write_llama(tmp_path / "f32.gguf", Shape(layers=1))
    quantize(source, tmp_path / "q8.gguf", "Q8_0", 1, report=lambda done, note: told.append((done, note)))
    names = [tensor.name for tensor in read_header(source).tensors]
    assert sorted(note for _, note in told) == sorted(f"quantizing {name}" for name in names)
    assert [done for done, _ in told] == [round(at / len(names), 3) for at in range(len(names))]


def test_a_refused_source_leaves_no_process_and_no_file(tmp_path):
    """The child has started by then: it loads its library while the source is checked."""
    (tmp_path / "cut.gguf").write_bytes(b"GGUF")
    code = (
        "import os, sys; from pathlib import Path; from compile.gguf.quantize import quantize\n"
        "from models.errors import UnsafeFile\n"
        "try:\n    quantize(Path(sys.argv[1]), Path(sys.argv[2]), 'Q8_0', 1)\n"
        "except UnsafeFile as error:\n    print(error)\n"
        "try:\n    os.waitpid(-1, os.WNOHANG)\n"
        "except ChildProcessError:\n    print('nobody is left')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "cut.gguf", tmp_path / "q8.gguf"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[1:] == ["nobody is left"] and "cut.gguf" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["cut.gguf"]
