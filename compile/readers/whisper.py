"""Whisper models of CTranslate2 from one type of weights to another, by the library's own quantizer.

Owns how a ``model.bin`` becomes the library's specification again, and the ledger. Refuses weights that are
quantized already: what was lost does not come back.
"""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.errors import ToolFailed, UnsupportedBase
from compile.readers.ledger import Ledger
from compile.recipe.reading import WeightType
from models.ctranslate2 import MODEL_FILE, Header, Variable, read_header
from models.engines.whisper import CONFIG_FILE, TOKENIZER_FILE, VOCABULARIES, check_folder
from models.manifest import Fallback

if TYPE_CHECKING:
    import numpy.typing as npt

BESIDE = (CONFIG_FILE, TOKENIZER_FILE, *VOCABULARIES, "preprocessor_config.json")
"""What lies beside the weights, where a model has it."""
_FLOATS = ("float32", "float16", "bfloat16")
_LAYER = re.compile(r"(encoder|decoder)/layer_(\d+)/")


def check_source(folder: Path) -> Header:
    """A model whose weights are all in float. Raises ``UnsafeFile``, ``UnsupportedBase``."""
    header = check_folder(folder)
    quantized = [one.name for one in header.variables if len(one.shape) > 1 and one.type not in _FLOATS]
    if quantized:
        raise UnsupportedBase(f"{folder.name}: {quantized[0]} is quantized already; bring the model in float")
    return header


def convert(source: Path, target: Path, type: WeightType) -> Ledger:
    """Write the model in folder ``source`` into ``target``, weights in ``type``.

    Raises ``UnsafeFile``, ``UnsupportedBase``, ``ToolFailed``.
    """
    header = check_source(source)
    specification = _specification(source / MODEL_FILE, header)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        try:
            specification.register_vocabulary(_vocabulary(source))
            specification.validate()
            specification.optimize(quantization=type)
            specification.save(scratch)
        except (ValueError, AttributeError, RuntimeError) as error:
            raise ToolFailed(f"{source.name} cannot be written in {type}: {error}") from error
        (Path(scratch) / MODEL_FILE).rename(target / MODEL_FILE)
    for name in BESIDE:  # the model's own: what the library would write has its defaults
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    held = [one for one in read_header(target / MODEL_FILE).variables if len(one.shape) > 1]
    fallen = (
        Fallback(tensor=one.name, asked="INT8", got="F32" if one.type == "float32" else "F16")
        for one in held
        if type.startswith("int8") and one.type in _FLOATS
    )
    return Ledger(len(held), tuple(fallen))


def _specification(path: Path, header: Header) -> Any:
    """The library's description of the model at ``path``, with its weights."""
    from ctranslate2.specs import WhisperSpec
    from ctranslate2.specs.model_spec import index_spec

    by_name = {one.name: one for one in header.variables}
    weights = {name: _array(path, one) for name, one in by_name.items()}
    weights |= {alias: weights[name] for alias, name in header.aliases.items()}
    layers = {
        side: {at for part, at in map(_layer, weights) if part == side} for side in ("encoder", "decoder")
    }
    try:
        heads = [int(weights[f"{side}/num_heads"]) for side in ("encoder", "decoder")]
        specification = WhisperSpec(len(layers["encoder"]), heads[0], len(layers["decoder"]), heads[1])
        for name, value in weights.items():
            scope, _, attribute = name.rpartition("/")
            setattr(index_spec(specification, scope), attribute, value)
    except (KeyError, AttributeError, IndexError, ValueError, TypeError) as error:
        raise UnsupportedBase(f"{path}: not as CTranslate2 writes a Whisper: {error}") from error
    return specification


def _layer(name: str) -> tuple[str, int]:
    found = _LAYER.match(name)
    return (found[1], int(found[2])) if found else ("", 0)


def _array(path: Path, variable: Variable) -> "npt.NDArray[Any]":
    """The values of a variable; bfloat16, which numpy does not know, as float32 (exact)."""
    import numpy as np

    with path.open("rb") as stream:
        stream.seek(variable.offset)
        data = stream.read(variable.size)
    if variable.type == "bfloat16":
        bits: np.ndarray = np.frombuffer(data, dtype="<u2").astype("<u4") << 16
        return bits.view("<f4").reshape(variable.shape)
    return np.frombuffer(data, dtype=np.dtype(variable.type).newbyteorder("<")).reshape(variable.shape)


def _vocabulary(folder: Path) -> list[str]:
    listed = folder / "vocabulary.json"
    if listed.is_file():
        return [str(token) for token in json.loads(listed.read_text(encoding="utf-8"))]
    return (folder / "vocabulary.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
