"""What the steps of an encoder line do besides training and quantizing: small functions from folders to
folders.

The line knows in which order they run.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.data.rows import read_splits, spread
from compile.errors import BadData, BadRecipe, Refused
from compile.evaluate import tokens, vectors
from compile.lines.encoder import (
    FACTS,
    IDS,
    PREPARED,
    SAID,
    Folders,
    Recipe,
    engine_of,
    evaluated,
    measured_texts,
    seeks_answers,
)
from compile.onnx.export import TOKENIZER, ExportSettings, check_folder, export_encoder
from compile.onnx.files import MODEL
from compile.recipe.encoder import ClassifyRecipe, EmbedRecipe
from compile.recipe.tensorrt import TextTensorRt
from compile.steps import Report
from models.engines.onnx_files import EncoderFiles
from models.errors import UnsafeFile
from models.manifest import Engine, TextInput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

_SIDE_FILES = ("config.json", "sentence_bert_config.json", "tokenizer_config.json", "modules.json")
_POOLING = "1_Pooling/config.json"
_PARITY_TEXTS = 16
_PARITY_TOKENS = 128


def prepare_data(recipe: Recipe, beside: Path, folder: Path, report: Report) -> None:
    """The data step. Raises ``BadData`` for rows that the task can do nothing with."""
    from compile.data.prepare import prepare

    splits = prepare(recipe.data, beside, folder, report)
    labelled = all(row.label for _, rows in splits.parts() for row in rows)
    if isinstance(recipe, ClassifyRecipe) and not labelled:
        raise BadData("task: classify needs a label on every row (columns.label names the column)")


def export(recipe: Recipe, source: Path, data: Path, folder: Path, scratch: Path, report: Report) -> None:
    """The float graph, its tokenizer, and what the engine needs to be right.

    Raises ``BadData`` for labels that the classifier does not know.
    """
    check_folder(source)
    splits = read_splits(data)
    for name in _SIDE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / _POOLING).is_file():
        (folder / _POOLING).parent.mkdir()
        shutil.copyfile(source / _POOLING, folder / _POOLING)
    texts = [row.text for row in spread(splits.train, _PARITY_TEXTS)]
    settings = ExportSettings(**recipe.export.model_dump())
    tokens_read = min(recipe.text.max_tokens or _PARITY_TOKENS, _PARITY_TOKENS)
    export_encoder(source, recipe.task, settings, texts, tokens_read, folder, scratch, report)
    engine = _engine(recipe, folder)
    if isinstance(recipe, ClassifyRecipe):
        unknown = sorted(set(splits.labels) - set(engine.labels))
        if unknown:
            raise BadData(
                f"labels never seen in training: {', '.join(unknown)}; the model knows "
                f"{', '.join(engine.labels)}"
            )
    (folder / FACTS).write_text(engine.model_dump_json(), encoding="utf-8")
    if engine.text is not None:
        ids = reference_ids(source, tokens.CORPUS, engine.text.max_tokens)
        (folder / IDS).write_text(json.dumps(ids), encoding="utf-8")


def tensorrt_tokens(section: TextTensorRt, exported: Path) -> tuple[int, int, int]:
    """The range of lengths of an engine. Raises ``BadRecipe`` for one that the model cannot read."""
    text = engine_of(exported).text
    longest = text.max_tokens if text is not None else 1
    if section.tokens is None:
        return 1, max(1, longest // 4), longest
    if section.tokens[2] > longest:
        raise BadRecipe(f"tensorrt.tokens: up to {section.tokens[2]}, and the model reads {longest}")
    return section.tokens


def prepare_graph(exported: Path, folder: Path) -> None:
    """The float graph as quantizers want it."""
    from compile.onnx.quantize import prepare

    prepare(exported / MODEL, folder / PREPARED)


def measure(recipe: Recipe, inputs: Folders, folder: Path, threads: int, report: Report) -> None:
    """Every text through the engine. Raises ``Refused`` when its token ids are not the reference's."""
    from compile.evaluate.texts import measure_texts, read_measured

    exported = inputs["exported"]
    files = EncoderFiles(inputs["model"] / MODEL, engine_of(exported), exported / TOKENIZER)
    texts = measured_texts(recipe, read_splits(inputs["data"]))
    measure_texts(files, texts, folder, threads, recipe.evaluate.speed_repeats, tokens.CORPUS, report)
    wanted = json.loads((exported / IDS).read_text(encoding="utf-8"))
    check_token_ids(wanted, read_measured(folder).token_ids, tokens.CORPUS)


def reference_ids(source: Path, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """The token ids that transformers reads with the tokenizer in ``source``, special tokens included."""
    from transformers import AutoTokenizer

    kept: Any = AutoTokenizer
    tokenizer = kept.from_pretrained(source, local_files_only=True)
    return [list(tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]) for text in texts]


def check_token_ids(
    wanted: Sequence[Sequence[int]], ids: Sequence[Sequence[int]], texts: Sequence[str]
) -> None:
    """Raises ``Refused`` at the first text that the engine reads as other tokens than the reference does."""
    for text, ours, theirs in zip(texts, ids, wanted, strict=True):
        if list(ours) != list(theirs):
            raise Refused(
                f"token ids differ for {text!r:.80}: engine {list(ours)[:20]}, reference {list(theirs)[:20]}"
            )


def compare_baselines(recipe: Recipe, data: Path, folder: Path) -> None:
    """What stands beside the variants: for labels the majority and TF-IDF with a linear model, for retrieval
    TF-IDF vectors."""
    splits = read_splits(data)
    rows = evaluated(recipe, splits)
    said: dict[str, list[str]] = {}
    if isinstance(recipe, ClassifyRecipe):
        from compile.evaluate.baselines import baselines

        known, wanted = ([row.text for row in splits.train], [row.label for row in splits.train])
        said = {one.name: list(one.labels) for one in baselines(known, wanted, [row.text for row in rows])}
    found: dict[str, Any] = {"labels": said, "precision": [], "ranks": []}
    if isinstance(recipe, EmbedRecipe):
        from sklearn.feature_extraction.text import TfidfVectorizer

        texts = measured_texts(recipe, splits)
        made = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True).fit_transform(texts)
        table = made.toarray().astype("float32") if len(texts) < 400 else _shrunk(made)
        if seeks_answers(recipe, rows):
            ranked = vectors.retrieve_answers(
                table[: len(rows)], table[len(rows) :], [row.answer for row in rows]
            )
            found["ranks"] = vectors.reciprocal_ranks(ranked)
        elif all(row.label for row in rows):
            found["precision"] = vectors.precision(vectors.retrieve(table), [row.label for row in rows])
    (folder / SAID).write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")


def _shrunk(table: Any) -> "Array":
    """Sparse TF-IDF rows as dense ones whose cosines are nearly the same (truncated SVD)."""
    from sklearn.decomposition import TruncatedSVD

    dense: Array = TruncatedSVD(256, random_state=0).fit_transform(table).astype("float32")
    return dense


def _engine(recipe: Recipe, folder: Path) -> Engine:
    """The base's own files say how it reads and pools; the recipe may say otherwise."""
    from models.engines.onnx_files import files_of_folder

    asked = recipe.text.model_dump(exclude_none=True)
    try:
        found = files_of_folder(folder).engine
    except UnsafeFile as error:
        if not {"max_tokens", "pooling"} <= asked.keys() or isinstance(recipe, ClassifyRecipe):
            raise BadRecipe(f"text: {error}; the recipe can say max_tokens, pooling and normalize") from error
        found = Engine(task="embed", text=TextInput(**asked))
    if found.task != recipe.task:
        raise BadRecipe(f"base: made to {found.task}, and the recipe's task is {recipe.task}")
    text = TextInput.model_validate((found.text or TextInput(max_tokens=1)).model_dump() | asked)
    return Engine(task=recipe.task, labels=found.labels, text=text)
