"""The base model: from a quantized GGUF to float32 weights, a right tokenizer and the reference GGUF.

The reference is what the source dequantizes to: no better weights exist for this source, and every
comparison says so. Refuses a source whose dequantized tensors do not come back out of the reference.
Works tensor by tensor, so memory does not grow with the number of layers.
"""

import importlib.util
import json
from pathlib import Path

from compile.errors import BadRecipe, UnsupportedBase
from compile.gguf.dequantize import compare, llama_config, write_safetensors
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
    known = vocabulary(header)
    hf = folder / "hf"
    hf.mkdir()
    report(0.05, "tokenizer from the source's vocabulary")
    write_tokenizer(known, hf)
    report(0.1, f"dequantizing {len(header.tensors)} tensors")
    special = {
        "bos_token_id": known.bos,
        "eos_token_id": known.eos,
        "pad_token_id": known.padding,
        "unk_token_id": known.unknown,
    }
    config = llama_config(header, len(known.tokens), special)
    (hf / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_safetensors(source, header, hf)
    report(0.4, "writing the reference GGUF")
    converters.base(hf, folder / REFERENCE)
    report(0.8, "comparing every tensor with the source")
    compare(source, header, folder / REFERENCE, read_header(folder / REFERENCE))
    facts = {"precision": precision(header), "tensors": len(header.tensors), "bytes": source.stat().st_size}
    (folder / "source.json").write_text(json.dumps(facts), encoding="utf-8")
