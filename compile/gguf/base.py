"""The base model: from a quantized GGUF to float32 weights, a right tokenizer and the reference GGUF.

The reference is what the source dequantizes to: no better weights exist for this source, and every
comparison says so. Refuses a source whose dequantized tensors do not come back out of the reference.
"""

import importlib.util
import json
from pathlib import Path

from compile.errors import BadRecipe, UnsupportedBase
from compile.gguf.files import Converters, precision, vocabulary
from compile.gguf.tokenizer import write_tokenizer
from compile.recipe.schema import BaseSource
from compile.steps import Report
from models.engines.llama_cpp import read_header

REFERENCE = "reference-f32.gguf"


def find_source(base: BaseSource, beside: Path) -> Path:
    """The GGUF that a recipe names. Raises ``BadRecipe`` when it is not there."""
    if base.package is None:
        path = beside / base.file
    else:
        spec = importlib.util.find_spec(base.package)
        if spec is None or not spec.submodule_search_locations:
            raise BadRecipe(f"base.package: the package {base.package!r} is not installed")
        path = Path(next(iter(spec.submodule_search_locations))) / base.file
    if not path.is_file():
        raise BadRecipe(f"base.file: {path} is not there")
    return path


def import_base(source: Path, folder: Path, converters: Converters, report: Report) -> None:
    """Write ``hf/`` (safetensors, tokenizer) and the reference GGUF into ``folder``.

    Raises ``UnsafeFile``, ``UnsupportedBase``, ``ToolFailed``.
    """
    header = read_header(source)
    if header.architecture != "llama":
        raise UnsupportedBase(f"architecture {header.architecture!r}; 'llama' is what can be trained here")
    hf = folder / "hf"
    hf.mkdir()
    report(0.05, "tokenizer from the source's vocabulary")
    write_tokenizer(vocabulary(header), hf)
    report(0.1, f"dequantizing {len(header.tensors)} tensors")
    _dequantize(source, hf)
    report(0.7, "writing the reference GGUF")
    converters.base(hf, folder / REFERENCE)
    report(0.85, "comparing every tensor with the source")
    _compare(source, folder / REFERENCE)
    facts = {"precision": precision(header), "tensors": len(header.tensors), "bytes": source.stat().st_size}
    (folder / "source.json").write_text(json.dumps(facts), encoding="utf-8")


def _dequantize(source: Path, hf: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, local_files_only=True
    )
    model.config._name_or_path = ""
    model.save_pretrained(hf)


def _compare(source: Path, reference: Path) -> None:
    """Every tensor of the reference is bit for bit what the source dequantizes to."""
    import numpy
    from gguf import GGUFReader
    from gguf.quants import dequantize

    there = {tensor.name: tensor for tensor in GGUFReader(reference).tensors}
    for tensor in GGUFReader(source).tensors:
        other = there.get(tensor.name)
        if other is None:
            raise UnsupportedBase(f"the reference lost the tensor {tensor.name}")
        wanted = dequantize(tensor.data, tensor.tensor_type)
        if not numpy.array_equal(wanted, dequantize(other.data, other.tensor_type)):
            raise UnsupportedBase(f"the tensor {tensor.name} of the reference is not that of the source")
