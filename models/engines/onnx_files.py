"""Which files an encoder consists of and what it needs to be right: from a release, or from a folder.

A folder is read as optimum and sentence-transformers write it (``config.json``, ``model.onnx``,
``tokenizer.json``, ``1_Pooling/config.json``, ``preprocessor_config.json``). What is missing is named.
Refuses guessing: a folder that does not say how it pools or resizes is not served.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from models.errors import UnsafeFile
from models.manifest import Engine, ImageInput, Manifest, Task, TextInput
from models.onnx import OnnxModel, read_model
from models.tensorrt_recipe import RECIPE_FILE

MODEL, TOKENIZER = "model.onnx", "tokenizer.json"
OCR_FILES = ("detection.onnx", "direction.onnx", "recognition.onnx", "characters.txt")
"""What reads text in pictures, see ``models.engines.rapid_ocr``."""
MAX_CONFIG = 4 << 20
"""Bytes of a JSON file that describes a model."""

_BILINEAR, _BICUBIC = 2, 3
"""Pillow's numbers for ways to resize, which preprocessors are described by."""


@dataclass(frozen=True, slots=True)
class EncoderFiles:
    """An encoder's graph, or the folder of one that has several; its tokenizer if it reads text; and what the
    engine needs to be right. ``through_tensorrt``: the recipe of its engine lies beside the graph.
    """

    model: Path
    engine: Engine
    tokenizer: Path | None = None
    name: str = ""
    through_tensorrt: bool = False


def files_of_release(folder: Path, manifest: Manifest) -> EncoderFiles:
    """The files of a release of ONNX, TensorRT or CTranslate2. Raises ``UnsafeFile``, saying what is missing.

    Weights beside the graph must be files of the release too: nobody has vouched for others.
    """
    paths = {file.path for file in manifest.files}
    name = f"{manifest.name} {manifest.version}"
    if manifest.format == "ctranslate2":
        return EncoderFiles(folder, manifest.engine, None, name)
    if manifest.format == "onnx" and manifest.engine.task == "ocr":
        if missing := [one for one in OCR_FILES if one not in paths]:
            raise UnsafeFile(f"{manifest.name}: {missing[0]} is no file of the release")
        return EncoderFiles(folder, manifest.engine, None, name)
    graphs = sorted(path for path in paths if path.endswith(".onnx"))
    through_tensorrt = manifest.format == "tensorrt-recipe"
    if through_tensorrt and RECIPE_FILE not in paths:
        raise UnsafeFile(f"{manifest.name}: {RECIPE_FILE} is no file of the release")
    readable = manifest.format in ("onnx", "tensorrt-recipe")
    if not readable or len(graphs) != 1 or manifest.engine.task is None:
        raise UnsafeFile(
            f"{manifest.name}: an ONNX release holds one .onnx file and says its task; this one is of format "
            f"{manifest.format}, holds {len(graphs)} and its task is {manifest.engine.task}"
        )
    if manifest.engine.text is not None and TOKENIZER not in paths:
        raise UnsafeFile(
            f"{manifest.name}: a model that reads text holds a {TOKENIZER}; this release does not"
        )
    inside = PurePosixPath(graphs[0]).parent
    for weights in read_model(folder / graphs[0]).files:
        if str(inside / weights) not in paths:
            raise UnsafeFile(f"{manifest.name}: its weights lie in {weights!r:.200}, no file of the release")
    return EncoderFiles(
        folder / graphs[0],
        manifest.engine,
        folder / TOKENIZER if manifest.engine.text is not None else None,
        name,
        through_tensorrt,
    )


def files_of_folder(folder: Path) -> EncoderFiles:
    """The files of an encoder as optimum writes it. Raises ``UnsafeFile`` that says what is missing."""
    if (folder / OCR_FILES[0]).is_file():
        return EncoderFiles(folder, Engine(task="ocr"), None, folder.resolve().name)
    graphs = sorted(folder.glob("*.onnx"))
    graph = folder / MODEL if folder / MODEL in graphs else graphs[0] if len(graphs) == 1 else None
    if graph is None:
        found = ", ".join(path.name for path in graphs) or "none"
        raise UnsafeFile(f"{folder}: which file is the model? {MODEL} is expected; of .onnx there is {found}")
    config = _read(folder / "config.json")
    if config is None:
        raise UnsafeFile(f"{folder}: config.json is missing, which says what the model is for")
    model = read_model(graph)
    task = _task(folder, config, model)
    try:
        if task in ("embed", "classify", "rerank"):
            if not (folder / TOKENIZER).is_file():
                raise UnsafeFile(f"{folder}: {TOKENIZER} is missing, without which no text can be read")
            text = _text(folder, config, model, task)
            engine = Engine(
                task=task, text=text, labels=_labels(folder, config) if task == "classify" else ()
            )
            return EncoderFiles(graph, engine, folder / TOKENIZER, folder.resolve().name)
        engine = Engine(task=task, image=_image(folder, model), labels=_labels(folder, config))
        return EncoderFiles(graph, engine, None, folder.resolve().name)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UnsafeFile(f"{folder}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def missing_beside(graph: Path) -> str:
    """What a bare ONNX file lacks, in words, so that its owner knows what to bring."""
    return (
        f"{graph.name} alone does not say what it is for: give its folder, with config.json and, for text, "
        f"{TOKENIZER} and 1_Pooling/config.json, for pictures preprocessor_config.json"
    )


def _task(folder: Path, config: Mapping[str, Any], model: OnnxModel) -> Task:
    architectures = config.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    inputs, outputs = {value.name for value in model.inputs}, {value.name for value in model.outputs}
    if "pixel_values" in inputs:
        if "logits" in outputs:
            return "classify-image"
    elif "input_ids" in inputs:
        if "ForSequenceClassification" in architecture:
            one_class = set(config.get("id2label") or {}) == {"0"}  # one logit: of a cross-encoder
            return "rerank" if one_class else "classify"
        if outputs & {"last_hidden_state", "token_embeddings", "sentence_embedding"}:
            return "embed"
    raise UnsafeFile(
        f"{folder}: neither an embedder nor a classifier: {architecture or 'its architecture is not named'}, "
        f"inputs {sorted(inputs)}, outputs {sorted(outputs)}"
    )


def _text(folder: Path, config: Mapping[str, Any], model: OnnxModel, task: Task) -> TextInput:
    limits = [
        (_read(folder / "sentence_bert_config.json") or {}).get("max_seq_length"),
        (_read(folder / "tokenizer_config.json") or {}).get("model_max_length"),
        config.get("max_position_embeddings"),
    ]
    # Tokenizers without a limit say 1e30.
    counts = [int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit <= 1 << 20]
    if not counts:
        raise UnsafeFile(f"{folder}: no file says how many tokens the model reads (max_position_embeddings)")
    longest = min(counts)
    if task in ("classify", "rerank") or "sentence_embedding" in {value.name for value in model.outputs}:
        return TextInput(max_tokens=longest, normalize=False)
    pooling = _read(folder / "1_Pooling" / "config.json")
    if pooling is None:
        raise UnsafeFile(
            f"{folder}: 1_Pooling/config.json is missing, which says how tokens become one vector"
        )
    modes = {name for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True}
    if modes == {"pooling_mode_mean_tokens"}:
        how = "mean"
    elif modes == {"pooling_mode_cls_token"}:
        how = "cls"
    else:
        raise UnsafeFile(f"{folder}: pools by {sorted(modes)}; the mean or the first token is read here")
    steps = _read_list(folder / "modules.json")
    normalize = any(str(step.get("type", "")).endswith("Normalize") for step in steps)
    return TextInput.model_validate({"max_tokens": longest, "pooling": how, "normalize": normalize})


def _labels(folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("id2label")
    if not isinstance(named, dict) or {str(number) for number in range(len(named))} != named.keys():
        raise UnsafeFile(f"{folder}: config.json names no labels (id2label from 0 on)")
    return tuple(str(named[str(number)]) for number in range(len(named)))


def _image(folder: Path, model: OnnxModel) -> ImageInput:
    """What an image processor's description means. Raises ``UnsafeFile`` for what is not done here."""
    described = _read(folder / "preprocessor_config.json")
    if described is None:
        raise UnsafeFile(
            f"{folder}: preprocessor_config.json is missing, which says how pictures are resized"
        )
    if described.get("do_rescale", True) is not True or described.get("do_resize", True) is not True:
        raise UnsafeFile(
            f"{folder}: pictures that are not resized, or not scaled to [0, 1], are not read here"
        )
    method = described.get("resample", _BILINEAR)
    if method not in (_BILINEAR, _BICUBIC):
        raise UnsafeFile(f"{folder}: resample {method!r:.40} is not done here; bilinear and bicubic are")
    size, crop = described.get("size"), described.get("crop_size")
    size = {"height": size, "width": size} if isinstance(size, int) else size or {}
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop or {}
    does_crop = described.get("do_center_crop", bool(crop)) is True
    means = described.get("do_normalize", True) is True
    facts: dict[str, Any] = {
        "interpolation": "bicubic" if method == _BICUBIC else "bilinear",
        "mean": described.get("image_mean", [0.5] * 3) if means else [0.0] * 3,
        "std": described.get("image_std", [0.5] * 3) if means else [1.0] * 3,
    }
    if "shortest_edge" in size:
        target = crop if does_crop else {"height": size["shortest_edge"], "width": size["shortest_edge"]}
        facts |= {"resize": "shorter-side", "resize_to": size["shortest_edge"]}
    elif does_crop:
        raise UnsafeFile(f"{folder}: pictures that are stretched and then cut are not read here")
    else:
        target = size
    return ImageInput.model_validate(facts | {"height": target.get("height"), "width": target.get("width")})


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object, None when there is no such file. Raises ``UnsafeFile`` for what is no object."""
    value = _json(path)
    if value is not None and not isinstance(value, dict):
        raise UnsafeFile(f"{path}: no JSON object")
    return value


def _read_list(path: Path) -> list[dict[str, Any]]:
    value = _json(path)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _json(path: Path) -> Any:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_CONFIG + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnsafeFile(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_CONFIG:
        raise UnsafeFile(f"{path}: more than {MAX_CONFIG} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnsafeFile(f"{path}: is no JSON: {error}") from error
