"""The engine of a model on ONNX Runtime, whatever its task; and how a probe is asked of it."""

from pathlib import Path

from models.engines.onnx_files import EncoderFiles
from models.engines.onnx_session import OnnxSettings
from models.engines.onnx_text import OnnxText
from models.engines.onnx_vision import OnnxVision
from models.engines.rapid_ocr import RapidOcr
from models.errors import EngineError
from models.manifest import Probe
from models.probes import label_answer, relevance_answer, score_answer, text_answer, vector_answer

MAX_PICTURE = 64 << 20
"""Bytes of one encoded picture."""


OnnxEngine = OnnxText | OnnxVision | RapidOcr


def open_encoder(files: EncoderFiles, settings: OnnxSettings = OnnxSettings()) -> OnnxEngine:
    """Load an encoder. Raises ``UnsafeFile``, ``EngineError``."""
    if files.engine.task == "ocr":
        return RapidOcr(files, settings)
    return (OnnxVision if files.engine.image is not None else OnnxText)(files, settings)


def probe_answer(engine: OnnxEngine, probe: Probe, folder: Path) -> str:
    """What the engine answers to a probe of its release, as ``models.probes`` judges it.

    ``folder`` holds the release's files. Raises ``EngineError``, also for a probe of another kind of model.
    """
    task, labels = engine.facts.task, engine.facts.labels
    if isinstance(engine, RapidOcr):
        return text_answer(engine.read([probe_picture(folder, probe)])[0].text)
    if isinstance(engine, OnnxVision):
        picture = probe_picture(folder, probe)
        if task == "inspect":
            (found,) = engine.inspect([picture])
            return score_answer(found.score, found.is_defect)
        return label_answer(labels, engine.classify([picture])[0].tolist())
    if probe.text is None:
        raise EngineError(f"a model that is made to {task} has a probe that is no text")
    if task == "rerank":
        return relevance_answer(float(engine.rerank(probe.query or "", [probe.text])[0]))
    if task == "embed":
        return vector_answer(engine.embed([probe.text])[0].tolist())
    return label_answer(labels, engine.classify([probe.text])[0].tolist())


def probe_picture(folder: Path, probe: Probe) -> bytes:
    """The picture of a probe. Raises ``EngineError`` when it has none, or none that can be read."""
    if probe.image is None:
        raise EngineError("a vision model has a probe that is no picture")
    try:
        with (folder / probe.image).open("rb") as stream:
            data = stream.read(MAX_PICTURE + 1)
    except OSError as error:
        raise EngineError(f"{probe.image}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_PICTURE:
        raise EngineError(f"{probe.image}: more than {MAX_PICTURE} bytes")
    return data
