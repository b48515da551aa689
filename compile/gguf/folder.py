"""A base that comes as a Hugging Face folder: checked, copied, and written as a reference GGUF.

Refuses pickles by name, weights whose headers are not sound, and a folder that lacks a part.
"""

import json
import shutil
from collections import Counter
from pathlib import Path

from compile.errors import UnsupportedBase
from compile.gguf.files import Converters
from compile.steps import Report
from models.errors import UnsafeFile
from models.safetensors import read_header

HF = "hf"
REFERENCE = "reference-f32.gguf"
_NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")
_MORE = ("special_tokens_map.json", "generation_config.json", "chat_template.jinja", "tokenizer.model")
_INDEX = "model.safetensors.index.json"


def import_folder(source: Path, folder: Path, converters: Converters, report: Report) -> None:
    """Write ``hf/``, the reference GGUF and ``source.json`` into ``folder``.

    Raises ``UnsafeFile`` for weights that are not sound, ``UnsupportedBase`` for a folder that lacks a part,
    ``ToolFailed`` when the converter fails.
    """
    missing = [name for name in _NEEDED if not (source / name).is_file()]
    weights = sorted(source.glob("*.safetensors"))
    if missing or not weights:
        pickled = sorted(path.name for path in source.glob("*") if path.suffix in (".bin", ".pt", ".pth"))
        hint = f"; {pickled[0]} may hold a pickle and is never opened" if pickled and not weights else ""
        lacks = ", ".join([*missing, *([] if weights else ["*.safetensors"])])
        raise UnsupportedBase(f"{source}: lacks {lacks}{hint}")
    stored: Counter[str] = Counter()
    tensors = 0
    for file in weights:
        for tensor in read_header(file).tensors:
            stored[tensor.type] += tensor.size
            tensors += 1
    hf = folder / HF
    hf.mkdir()
    report(0.05, "copying the weights")
    for path in (*weights, *(source / name for name in (*_NEEDED, *_MORE, _INDEX))):
        if path.is_file():
            if path.is_symlink():
                raise UnsafeFile(f"{path}: a link; the files of a base lie in its folder")
            shutil.copyfile(path, hf / path.name)
    report(0.4, "writing the reference GGUF")
    converters.base(hf, folder / REFERENCE)
    facts = {
        "precision": stored.most_common(1)[0][0],
        "tensors": tensors,
        "bytes": sum(file.stat().st_size for file in weights),
    }
    (folder / "source.json").write_text(json.dumps(facts), encoding="utf-8")
