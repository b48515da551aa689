"""One precision of an encoder line: what stays in float, found by measuring, and the graph written."""

import json
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.data.rows import read_splits, spread
from compile.errors import ToolFailed
from compile.evaluate import vectors
from compile.lines.encoder import (
    MADE,
    PREPARED,
    RANGES,
    Folders,
    Recipe,
    calibration_rows,
    engine_of,
    sensitivity_rows,
)
from compile.onnx import files as onnx_files
from compile.onnx.export import TOKENIZER
from compile.onnx.files import MODEL, size_of
from compile.recipe.encoder import EncoderVariant, Mixed
from compile.steps import Report, own_peak_ram
from models.engines.onnx_files import EncoderFiles
from models.manifest import Fallback

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

_BATCH = 16


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
