"""The engine of a model that does not generate text, whatever its task; and how a probe is asked of it."""

from pathlib import Path

from models.engines.onnx_files import EncoderFiles
from models.engines.onnx_session import OnnxSettings
from models.engines.onnx_text import OnnxText
from models.engines.onnx_vision import OnnxVision
from models.engines.rapid_ocr import RapidOcr
from models.engines.readings import Recording
from models.engines.whisper import SpeechSettings, WhisperEngine, whole
from models.errors import EngineError
from models.manifest import Probe
from models.probes import label_answer, relevance_answer, score_answer, text_answer, vector_answer

MAX_PROBE = 64 << 20
"""Bytes of one encoded picture or recording."""


EncoderEngine = OnnxText | OnnxVision | RapidOcr | WhisperEngine


def open_encoder(files: EncoderFiles, settings: OnnxSettings = OnnxSettings()) -> EncoderEngine:
    """Load an encoder. Raises ``UnsafeFile``, ``EngineError``."""
    if files.engine.task == "ocr":
        return RapidOcr(files, settings)
    if files.engine.task == "transcribe":
        return WhisperEngine(files.model, files.name, SpeechSettings(threads=settings.threads))
    return (OnnxVision if files.engine.image is not None else OnnxText)(files, settings)


def probe_answer(engine: EncoderEngine, probe: Probe, folder: Path) -> str:
    """What the engine answers to a probe of its release, as ``models.probes`` judges it.

    ``folder`` holds the release's files. Raises ``EngineError``, also for a probe of another kind of model.
    """
    task, labels = engine.facts.task, engine.facts.labels
    if isinstance(engine, WhisperEngine):
        return text_answer(whole(*engine.transcribe(Recording(probe_file(folder, probe)))).text)
    if isinstance(engine, RapidOcr):
        return text_answer(engine.read([probe_file(folder, probe)])[0].text)
    if isinstance(engine, OnnxVision):
        picture = probe_file(folder, probe)
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


def probe_file(folder: Path, probe: Probe) -> bytes:
    """The picture or recording of a probe. Raises ``EngineError`` when it has none, or cannot be read."""
    path = probe.image or probe.audio
    if path is None:
        raise EngineError("a model of pictures or speech has a probe that is neither")
    try:
        with (folder / path).open("rb") as stream:
            data = stream.read(MAX_PROBE + 1)
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_PROBE:
        raise EngineError(f"{path}: more than {MAX_PROBE} bytes")
    return data
