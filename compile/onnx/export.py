"""Models to ONNX by optimum and nothing else, text encoders, and whether to believe what it wrote.

optimum compares too, and calls a wide difference a success with a warning. Here the exported graph and the
torch model read the same batch of real texts, and a difference beyond the tolerance is refused with its size.
``vision_pretrained`` does so with pictures.
Refuses weights that are not safetensors. Downloads nothing.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compile.errors import Refused, ToolFailed, UnsupportedBase
from compile.onnx.files import MODEL, open_model, size_of, write_model
from compile.steps import Report, own_peak_ram
from models.safetensors import read_header

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TOKENIZER = "tokenizer.json"
EXPORTED = "export.json"
_TASKS = {"embed": "feature-extraction", "classify": "text-classification"}


@dataclass(frozen=True)
class ExportSettings:
    """``opset`` is recorded; both tolerances hold over the whole batch."""

    opset: int = 17
    max_difference: float = 1e-3
    min_cosine: float = 0.99999


@dataclass(frozen=True)
class Parity:
    """How far two outputs on the same batch are apart. ``cosine`` is the smallest over the rows."""

    max_difference: float
    cosine: float
    rows: int


def export_encoder(
    source: Path,
    task: Literal["embed", "classify"],
    settings: ExportSettings,
    texts: Sequence[str],
    max_tokens: int,
    target: Path,
    scratch: Path,
    report: Report,
) -> Parity:
    """Leave ``model.onnx``, ``tokenizer.json`` and ``export.json`` in ``target``.

    ``source`` is a Hugging Face folder. Raises ``UnsupportedBase`` for a folder without safetensors or a
    tokenizer, ``ToolFailed`` when optimum fails, ``Refused`` when the graph does not answer as torch does.
    """
    check_folder(source)
    made = scratch / "optimum"
    report(0.05, "exporting with optimum")
    run_optimum(source, _TASKS[task], settings.opset, made)
    report(0.6, "checking what it wrote")
    write_model(open_model(made / MODEL), target / MODEL)
    shutil.copyfile(made / TOKENIZER, target / TOKENIZER)
    shutil.rmtree(made)
    report(0.7, f"comparing with torch on {len(texts)} texts")
    parity = compare(source, task, target / MODEL, texts, max_tokens)
    check_parity(parity, settings, source.name)
    write_exported(target, parity, settings.opset)
    return parity


def run_optimum(source: Path, task: str, opset: int, made: Path) -> None:
    """Leave ``model.onnx`` and what belongs to it in ``made``. Raises ``ToolFailed``."""
    from optimum.exporters.onnx import main_export

    shutil.rmtree(made, ignore_errors=True)
    try:
        main_export(
            str(source),
            made,
            task=task,
            opset=opset,
            device="cpu",
            dtype="fp32",
            framework="pt",
            library_name="transformers",
            local_files_only=True,
            do_validation=False,
            monolith=True,
        )
    except (RuntimeError, ValueError, KeyError, OSError, NotImplementedError, AttributeError) as error:
        raise ToolFailed(f"optimum cannot export {source}: {error}") from error


def write_exported(target: Path, parity: Parity, opset: int) -> None:
    """Write ``export.json`` beside the graph."""
    written = asdict(parity) | {
        "opset": opset,
        "bytes": size_of(target / MODEL),
        "peak_ram_bytes": own_peak_ram(),
    }
    (target / EXPORTED).write_text(json.dumps(written), encoding="utf-8")


def check_folder(source: Path, needed: Sequence[str] = ("config.json", TOKENIZER)) -> None:
    """Raises ``UnsupportedBase``, or ``UnsafeFile`` for weights that are no sound safetensors."""
    weights = sorted(source.glob("*.safetensors"))
    if not weights:
        raise UnsupportedBase(f"{source}: no safetensors; other weights may run code and are not opened")
    for file in weights:
        read_header(file)
    for name in needed:
        if not (source / name).is_file():
            raise UnsupportedBase(f"{source}: {name} is missing")


def compare(
    source: Path, task: Literal["embed", "classify"], graph: Path, texts: Sequence[str], max_tokens: int
) -> Parity:
    """Run torch and onnxruntime on one padded batch of ``texts``."""
    import numpy as np
    import onnxruntime
    import torch
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    kind = AutoModel if task == "embed" else AutoModelForSequenceClassification
    model = kind.from_pretrained(source, local_files_only=True, use_safetensors=True).eval()
    kept: Any = AutoTokenizer
    tokenizer = kept.from_pretrained(source, local_files_only=True)
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="np")
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    wanted = {one.name for one in session.get_inputs()}
    feeds = {name: np.asarray(value, dtype=np.int64) for name, value in batch.items() if name in wanted}
    ours = session.run(None, feeds)[0]
    with torch.inference_mode():
        answer: Any = model(**{name: torch.from_numpy(value) for name, value in feeds.items()})
    theirs = (answer.last_hidden_state if task == "embed" else answer.logits).numpy()
    if task == "embed":  # what stands at a padded place is never read
        real = np.asarray(batch["attention_mask"], dtype=bool)
        ours, theirs = ours[real], theirs[real]
    return parity_of(ours, theirs)


def parity_of(ours: "npt.NDArray[np.float32]", theirs: "npt.NDArray[np.float32]") -> Parity:
    """The distance between two arrays of the same shape. Raises ``ToolFailed`` for other shapes."""
    import numpy as np

    if ours.shape != theirs.shape:
        raise ToolFailed(f"the graph answers with the shape {ours.shape}, torch with {theirs.shape}")
    left = ours.reshape(-1, ours.shape[-1]).astype(np.float64)
    right = theirs.reshape(-1, theirs.shape[-1]).astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines = (left * right).sum(axis=1) / np.maximum(norms, 1e-30)
    return Parity(float(np.abs(left - right).max()), float(cosines.min()), len(left))


def check_parity(parity: Parity, settings: ExportSettings, name: str) -> None:
    """Raises ``Refused``, with the numbers, for a graph that does not answer as torch does."""
    if not (parity.max_difference <= settings.max_difference and parity.cosine >= settings.min_cosine):
        raise Refused(
            f"{name}: the exported graph does not answer as torch does: largest difference "
            f"{parity.max_difference:.3g} (allowed {settings.max_difference:.3g}), smallest cosine "
            f"{parity.cosine:.7f} (allowed {settings.min_cosine:.7f}) over {parity.rows} rows"
        )
