"""The engine of an encoder or vision model, whatever its task; and how a probe is asked of it."""

from pathlib import Path

from models.engines.onnx_files import EncoderFiles
from models.engines.onnx_session import OnnxSettings
from models.engines.onnx_text import OnnxText
from models.engines.onnx_vision import OnnxVision
from models.errors import EngineError
from models.manifest import Probe
from models.probes import label_answer, score_answer, vector_answer

MAX_PICTURE = 64 << 20
"""Bytes of one encoded picture."""


def open_encoder(files: EncoderFiles, settings: OnnxSettings = OnnxSettings()) -> OnnxText | OnnxVision:
    """Load an encoder. Raises ``UnsafeFile``, ``EngineError``."""
    return (OnnxVision if files.engine.image is not None else OnnxText)(files, settings)


def probe_answer(engine: OnnxText | OnnxVision, probe: Probe, folder: Path) -> str:
    """What the engine answers to a probe of its release, as ``models.probes`` judges it.

    ``folder`` holds the release's files. Raises ``EngineError``, also for a probe of another kind of model.
    """
    task, labels = engine.facts.task, engine.facts.labels
    if isinstance(engine, OnnxVision):
        picture = probe_picture(folder, probe)
        if task == "inspect":
            (found,) = engine.inspect([picture])
            return score_answer(found.score, found.is_defect)
        return label_answer(labels, engine.classify([picture])[0].tolist())
    if probe.text is None:
        raise EngineError(f"a model that is made to {task} has a probe that is no text")
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
