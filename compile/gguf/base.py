"""The base model: from a quantized GGUF to float32 weights, a right tokenizer and the reference GGUF.

The reference is what the source dequantizes to: no better weights exist for this source, and every
comparison says so. Refuses a source whose dequantized tensors do not come back out of the reference.
Works tensor by tensor, so memory does not grow with the number of layers.
"""

import json
from pathlib import Path

from compile.errors import UnsupportedBase
from compile.gguf.dequantize import compare, llama_config, write_safetensors
from compile.gguf.files import Converters, precision, vocabulary
from compile.gguf.folder import HF, REFERENCE
from compile.gguf.tokenizer import write_tokenizer
from compile.steps import Report
from models.gguf import read_header


def import_base(source: Path, folder: Path, converters: Converters, report: Report) -> None:
    """Write ``hf/`` (safetensors, tokenizer) and the reference GGUF into ``folder``.

    Raises ``UnsafeFile``, ``UnsupportedBase``, ``ToolFailed``.
    """
    header = read_header(source)
    if header.architecture != "llama":
        raise UnsupportedBase(f"architecture {header.architecture!r}; 'llama' is what can be trained here")
    known = vocabulary(header)
    hf = folder / HF
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
