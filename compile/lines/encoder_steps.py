"""What the steps of the encoder line do: small functions from folders to folders.

Knows the names of the files that steps leave for each other; the line knows in which order they run.
"""

import json
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.data.rows import Row, Splits, read_splits, spread
from compile.errors import BadData, BadRecipe, Refused, ToolFailed
from compile.evaluate import tokens, vectors
from compile.onnx import files as onnx_files
from compile.onnx.export import TOKENIZER, ExportSettings, check_folder, export_encoder
from compile.onnx.files import MODEL, files_of, size_of
from compile.recipe.encoder import ClassifyRecipe, EmbedRecipe, EncoderVariant, Mixed
from compile.recipe.tensorrt import TextTensorRt
from compile.recipe.training import FineTune
from compile.steps import Report, own_peak_ram
from models.engines.onnx_files import EncoderFiles
from models.errors import UnsafeFile
from models.manifest import Engine, Fallback, TextInput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

PREPARED, RANGES, MADE = "prepared.onnx", "ranges.json", "made.json"
FACTS, IDS, SAID = "facts.json", "token_ids.json", "said.json"
_SIDE_FILES = ("config.json", "sentence_bert_config.json", "tokenizer_config.json", "modules.json")
_POOLING = "1_Pooling/config.json"
_PARITY_TEXTS = 16
_PARITY_TOKENS = 128
_BATCH = 16

Recipe = EmbedRecipe | ClassifyRecipe
Folders = Mapping[str, Path]


def prepare_data(recipe: Recipe, beside: Path, folder: Path, report: Report) -> None:
    """The data step. Raises ``BadData`` for rows that the task can do nothing with."""
    from compile.data.prepare import prepare

    splits = prepare(recipe.data, beside, folder, report)
    labelled = all(row.label for _, rows in splits.parts() for row in rows)
    if isinstance(recipe, ClassifyRecipe) and not labelled:
        raise BadData("task: classify needs a label on every row (columns.label names the column)")


def finetune(
    source: Path,
    data: Path,
    settings: FineTune,
    folder: Path,
    scratch: Path,
    threads: int,
    report: Report,
) -> None:
    """Train a classifier on the labels of the training rows."""
    from compile.training.classifier import train_classifier

    splits = read_splits(data)
    train_classifier(source, splits, splits.labels, settings, folder, scratch, threads, report)


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


def engine_of(folder: Path) -> Engine:
    """The manifest's section for the engine, as the export step wrote it."""
    return Engine.model_validate_json((folder / FACTS).read_text(encoding="utf-8"))


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


def quantize(
    recipe: Recipe,
    variant: EncoderVariant,
    inputs: Folders,
    folder: Path,
    scratch: Path,
    threads: int,
    report: Report,
) -> None:
    """One precision: ``model.onnx`` and ``made.json`` (ledger, what runs, what stayed in float and why)."""
    work = _Quantizing(recipe, variant, inputs, scratch, threads)
    keep, settings = work.kept(report)
    report(0.95, "quantizing")
    ledger = work.write(folder / MODEL, keep)
    made = {
        "ledger": [one.model_dump() for one in ledger],
        "weights": len(onnx_files.weighted(onnx_files.open_model(work.prepared))),
        "kernels": onnx_files.kernels(folder / MODEL, scratch),
        "settings": settings,
        "peak_ram_bytes": own_peak_ram(),
    }
    (folder / MADE).write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")


def read_made(folder: Path) -> dict[str, Any]:
    """What ``quantize`` wrote down."""
    made: dict[str, Any] = json.loads((folder / MADE).read_text(encoding="utf-8"))
    return made


def measure(recipe: Recipe, inputs: Folders, folder: Path, threads: int, report: Report) -> None:
    """Every text through the engine. Raises ``Refused`` when its token ids are not the reference's."""
    from compile.evaluate.texts import measure_texts, read_measured

    exported = inputs["exported"]
    files = EncoderFiles(inputs["model"] / MODEL, engine_of(exported), exported / TOKENIZER)
    texts = measured_texts(recipe, read_splits(inputs["data"]))
    measure_texts(files, texts, folder, threads, recipe.evaluate.speed_repeats, tokens.CORPUS, report)
    wanted = json.loads((exported / IDS).read_text(encoding="utf-8"))
    check_token_ids(wanted, read_measured(folder).token_ids, tokens.CORPUS)


def measured_texts(recipe: Recipe, splits: Splits) -> list[str]:
    """The rows' texts in order; where rows have answers to be found, those follow."""
    from compile.lines.encoder import evaluated

    rows = evaluated(recipe, splits)
    return [row.text for row in rows] + ([row.answer for row in rows] if seeks_answers(recipe, rows) else [])


def seeks_answers(recipe: Recipe, rows: Sequence[Row]) -> bool:
    """Whether the rows are questions with answers, and an embedder is to find these."""
    return isinstance(recipe, EmbedRecipe) and all(row.answer and not row.label for row in rows)


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
    from compile.lines.encoder import evaluated

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


class _Quantizing:
    """One variant on its way. Exists while its step runs."""

    def __init__(
        self, recipe: Recipe, variant: EncoderVariant, inputs: Folders, scratch: Path, threads: int
    ) -> None:
        self.prepared = inputs["prepared"] / PREPARED
        self._recipe, self._variant, self._scratch, self._threads = recipe, variant, scratch, threads
        self._exported, self._splits = inputs["exported"], read_splits(inputs["data"])
        self._engine = engine_of(self._exported)
        self._float = size_of(self._exported / MODEL)
        self._theirs: Array | None = None
        self._losses = 0

    def kept(self, report: Report) -> tuple[tuple[str, ...], dict[str, Any]]:
        """The nodes that stay in float, and how that was decided."""
        variant, settings = self._variant, self._settings()
        if variant.type == "int8-static":
            self._calibrate(lambda done, note: report(0.3 * done, note))
        keep: tuple[str, ...] = ()
        attention = onnx_files.between_activations(onnx_files.open_model(self.prepared))
        if variant.type == "int8-static" and attention:
            choice = variant.attention
            if choice == "measure":
                from compile.onnx.sensitivity import better

                at, found = better([(), attention], self._measure)
                choice = ("int8", "float")[at]
                settings["attention_measured"] = {"int8": found[0][0], "float": found[1][0]}
            settings["attention"] = choice
            keep = tuple(attention) if choice == "float" else ()
        if variant.mixed is not None:
            keep = self._mixed(variant.mixed, keep, settings, report)
        return keep, settings

    def write(self, target: Path, keep: Collection[str]) -> tuple[Fallback, ...]:
        """Quantize with ``keep`` in float."""
        from compile.onnx import int4
        from compile.onnx import quantize as int8

        variant = self._variant
        if variant.type == "int8-dynamic":
            return int8.quantize_dynamic(
                self.prepared, target, int8.DynamicSettings(variant.reduce_range), keep
            )
        if variant.type == "int8-static":
            return int8.quantize_static(self.prepared, self._scratch / RANGES, target, self._static(), keep)
        settings = int4.BlockSettings(
            bits=8 if variant.type == "int8-blocks" else 4,
            block=variant.block,
            method=variant.method,
            accuracy_level=variant.accuracy_level,
            tables=variant.tables,
        )
        return int4.quantize_blocks(self.prepared, target, settings, keep)

    def _settings(self) -> dict[str, Any]:
        """What the precision does not say."""
        variant = self._variant
        keys = {
            "int8-dynamic": ("reduce_range",),
            "int8-static": ("calibration", "calibration_rows", "reduce_range"),
            "int8-blocks": ("block", "accuracy_level"),
            "int4": ("method", "block", "accuracy_level", "tables"),
        }[variant.type]
        found = {"type": variant.type} | {key: getattr(variant, key) for key in keys}
        return found | ({"symmetric": True} if variant.symmetric else {})

    def _static(self) -> Any:
        from compile.onnx.quantize import StaticSettings

        variant = self._variant
        return StaticSettings(
            variant.calibration, variant.percentile, variant.reduce_range, variant.symmetric
        )

    def _calibrate(self, report: Report) -> None:
        from compile.lines.encoder import calibration_rows
        from compile.onnx.quantize import calibrate

        rows = spread(calibration_rows(self._recipe, self._splits), self._variant.calibration_rows)
        ranges = self._scratch / RANGES
        feeds = self._feeds([row.text for row in rows])
        calibrate(self.prepared, ranges, feeds, self._static(), self._scratch, report, len(rows))

    def _feeds(self, texts: Sequence[str]) -> Iterable[Mapping[str, Any]]:
        """One text at a time: no padding that a range would take for an activation."""
        import numpy as np
        from tokenizers import Tokenizer

        from models.onnx import read_model

        tokenizer = Tokenizer.from_file(str(self._exported / TOKENIZER))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self._engine.text.max_tokens if self._engine.text else 512)
        names = {value.name for value in read_model(self.prepared).inputs}
        for text in texts:
            ids = np.array([tokenizer.encode(text).ids], dtype=np.int64)
            made = {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "token_type_ids": np.zeros_like(ids),
                "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None],
            }
            yield {name: made[name] for name in names}

    def _mixed(
        self, mixed: Mixed, always: tuple[str, ...], settings: dict[str, Any], report: Report
    ) -> tuple[str, ...]:
        from compile.onnx.sensitivity import find_mixture, groups_of

        groups = groups_of(self.prepared, mixed.by, activations=False)
        found = find_mixture(
            groups,
            lambda keep: self._measure((*always, *keep)),
            mixed.max_loss,
            int(mixed.max_size_ratio * self._float),
            lambda done, note: report(0.3 + 0.6 * done, note),
        )
        settings |= {
            "kept_in_float": list(found.groups),
            "loss_on_held_out": found.loss,
            "loss_without": found.trail[0].loss,
            "reached": found.reached,
            "effects": {name: float(f"{loss:.3g}") for name, loss in found.effects[:12]},
        }
        return (*always, *found.nodes)

    def _measure(self, keep: Collection[str]) -> tuple[float, int]:
        """The loss on held-out texts and the bytes with ``keep`` in float."""
        made = self._scratch / "tried"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        self.write(made / MODEL, keep)
        if self._theirs is None:
            self._theirs = self._answers(self._exported / MODEL)
        ours, size = self._answers(made / MODEL), size_of(made / MODEL)
        shutil.rmtree(made)
        if self._engine.task == "embed":
            return float(1.0 - vectors.cosines(ours, self._theirs).mean()), size
        return float(vectors.divergences(ours, self._theirs).mean()), size

    def _answers(self, model: Path) -> "Array":
        from compile.lines.encoder import sensitivity_rows
        from models.engines.onnx_session import OnnxSettings
        from models.engines.onnx_text import OnnxText

        rows = sensitivity_rows(self._recipe, self._splits)
        if not rows:
            raise ToolFailed("there are no validation rows to measure losses on")
        files = EncoderFiles(model, self._engine, self._exported / TOKENIZER)
        engine = OnnxText(files, OnnxSettings(threads=self._threads, batch=_BATCH, truncate=True))
        answers = engine.answer([row.text for row in rows]).values
        engine.close()
        return answers


def release_files(model: Path, exported: Path) -> dict[str, Path]:
    """What a release holds, by its path in it."""
    return files_of(model / MODEL) | {TOKENIZER: exported / TOKENIZER}
