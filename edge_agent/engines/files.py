"""What an engine's process loads: which files, in which format, and the check that they pass before it does.

Owns: from a release folder, a bare file or a folder to files, and which engine reads them. Refuses formats
that no engine here reads, and every file that the parsers of ``models`` have not passed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge_agent.engines.tensorrt import FindTensorRt, find_tensorrt
from edge_agent.errors import UnfitRelease
from models.ctranslate2 import MODEL_FILE
from models.digest import Digest
from models.engines import whisper
from models.engines.llama_cpp.encoder_files import files_of_gguf, is_causal
from models.engines.onnx_files import EncoderFiles, files_of_folder, files_of_release, missing_beside
from models.engines.onnx_genai import CONFIG_FILE, check_folder
from models.engines.onnx_session import recipe_beside
from models.engines.rapid_ocr import check_ocr
from models.errors import EngineError, UnsafeFile
from models.gguf import check_adapter, check_model, check_projector
from models.manifest import Engine, File, Kind, Manifest, Task
from models.onnx import read_model
from models.pickles import refuse_pickle
from models.store import unlisted

Format = Literal["gguf", "onnx", "onnx-genai", "ctranslate2", "tensorrt-recipe"]
SERVED: Mapping[Kind, frozenset[str]] = {
    Kind.MODEL: frozenset({"gguf", "onnx", "onnx-genai", "ctranslate2", "tensorrt-recipe"}),
    Kind.ADAPTER: frozenset({"gguf", "onnx-genai"}),
}
"""Formats that a device serves, by kind of release."""

_TASKS: Mapping[str, frozenset[Task | None]] = {
    "gguf": frozenset({None}),
    "onnx-genai": frozenset({None}),
    "onnx": frozenset({"embed", "classify", "rerank", "classify-image", "inspect", "ocr"}),
    "ctranslate2": frozenset({"transcribe"}),
    "tensorrt-recipe": frozenset({"embed", "classify", "rerank", "classify-image", "inspect"}),
}
"""What a model of each format may be asked."""

CheckAdapter = Callable[[Path], object]
"""Raises ``UnsafeFile``, or ``EngineError`` for an adapter that does not fit."""


@dataclass(frozen=True, slots=True)
class EngineFiles:
    """A model to be loaded. ``path`` is the GGUF file, the graph of an encoder, or the folder of what has
    several files: GenAI, a reader of text or speech. ``encoder``: of what does not generate text, a GGUF file
    too. ``weights``: a GGUF file's digest, where it is known. ``projector``: the GGUF file that lets a GGUF
    model see or hear.
    """

    format: Format
    path: Path
    encoder: EncoderFiles | None = None
    weights: Digest | None = None
    projector: Path | None = None

    @property
    def shown(self) -> str:
        """What a person calls it."""
        return self.path.name

    def bytes_on_disk(self) -> int:
        """How much a process that loads it has to read."""
        if self.path.is_dir():
            return sum(path.stat().st_size for path in self.path.iterdir() if path.is_file())
        if self.encoder is None or self.format == "gguf":
            return sum(path.stat().st_size for path in (self.path, self.projector) if path)
        weights = read_model(self.path).files
        return sum((self.path.parent / name).stat().st_size for name in (self.path.name, *weights))

    def check(self) -> CheckAdapter:
        """Check every file without native code. Returns the check for adapters of this base.

        Raises ``UnsafeFile``, ``EngineError``.
        """
        if self.format == "gguf":
            header = check_model(self.path)
            if self.encoder is None and not is_causal(header):
                raise EngineError(f"{self.shown} is an encoder: it does not generate text")
            if self.projector is not None:
                check_projector(self.projector)
            return lambda path: check_adapter(path, header)
        if self.format == "onnx-genai":
            check_folder(self.path)
        elif self.format == "ctranslate2":
            whisper.check_folder(self.path)
        elif self.encoder is not None and self.encoder.engine.task == "ocr":
            check_ocr(self.path)
        else:
            read_model(self.path)
            if self.encoder is not None and self.encoder.through_tensorrt:
                recipe_beside(self.path)
        return _leave_to_the_engine

    def to_wire(self) -> dict[str, Any]:
        """As JSON, for the process that loads it."""
        if self.encoder is None:
            projector = str(self.projector) if self.projector else None
            known = {"format": self.format, "path": str(self.path), "weights": self.weights}
            return known | {"projector": projector}
        return {
            "format": self.format,
            "path": str(self.path),
            "tokenizer": str(self.encoder.tokenizer) if self.encoder.tokenizer else None,
            "engine": self.encoder.engine.model_dump(mode="json"),
            "name": self.encoder.name,
        }

    @classmethod
    def from_wire(cls, value: Mapping[str, Any]) -> "EngineFiles":
        """The inverse of ``to_wire``."""
        path = Path(value["path"])
        if "engine" not in value:
            weights = value["weights"] and Digest(value["weights"])
            projector = value["projector"] and Path(value["projector"])
            return cls(value["format"], path, weights=weights, projector=projector)
        tokenizer = Path(value["tokenizer"]) if value["tokenizer"] else None
        needs = Engine.model_validate(value["engine"])
        through_tensorrt = value["format"] == "tensorrt-recipe"
        encoder = EncoderFiles(path, needs, tokenizer, value["name"], through_tensorrt)
        return cls(value["format"], path, encoder)


def _leave_to_the_engine(path: Path) -> None:
    """Its parser needs the loaded base's slots, and has no native part."""


def of_encoder(files: EncoderFiles) -> EngineFiles:
    """An encoder's files as what a process loads."""
    if files.through_tensorrt:
        return EngineFiles("tensorrt-recipe", files.model, files)
    return EngineFiles("ctranslate2" if files.engine.task == "transcribe" else "onnx", files.model, files)


def of_release(folder: Path, manifest: Manifest, find: FindTensorRt = find_tensorrt) -> EngineFiles:
    """What is loaded of a model's release whose files lie in ``folder`` under their names.

    Of TensorRT, ``find`` says which the device has. Raises ``UnfitRelease`` for what no engine here serves,
    ``UnsafeFile`` for a release that lacks a file.
    """
    check_served(manifest)
    reads_what_it_finds = manifest.format in ("onnx-genai", "ctranslate2")
    if reads_what_it_finds and (strangers := unlisted(folder, manifest)):
        raise UnfitRelease(f"{manifest.name}: {strangers[0]} is no file of the release")
    if manifest.format == "tensorrt-recipe":
        files = files_of_release(folder, manifest)
        recipe, here = recipe_beside(files.model), find()
        try:
            recipe.plan_for(here.tensorrt)
        except EngineError as error:
            raise UnfitRelease(f"{manifest.name}: {error}") from error
        return of_encoder(files)
    if manifest.format in ("onnx", "ctranslate2"):
        return of_encoder(files_of_release(folder, manifest))
    if manifest.format == "onnx-genai":
        return EngineFiles("onnx-genai", folder)
    weights, projector = weights_of(manifest), projector_of(manifest)
    return EngineFiles(
        "gguf",
        folder / weights.path,
        weights=weights.sha256,
        projector=folder / projector.path if projector else None,
    )


def describes_itself(folder: Path) -> bool:
    """Whether a folder that is no release may hold a model."""
    speech = (folder / MODEL_FILE).is_file() and (folder / whisper.CONFIG_FILE).is_file()
    return (folder / CONFIG_FILE).is_file() or any(folder.glob("*.onnx")) or speech


def of_path(path: Path) -> EngineFiles:
    """What is loaded of a bare GGUF file, or of a folder of optimum, GenAI or CTranslate2.

    Raises ``UnsafeFile``.
    """
    if path.is_dir():
        if (path / CONFIG_FILE).is_file():
            return EngineFiles("onnx-genai", path)
        if (path / MODEL_FILE).is_file():
            return of_encoder(EncoderFiles(path, Engine(task="transcribe"), None, path.resolve().name))
        return of_encoder(files_of_folder(path))
    refuse_pickle(path)
    if path.suffix.lower() == ".onnx":
        raise UnsafeFile(missing_beside(path))
    return EngineFiles("gguf", path, files_of_gguf(path))


def check_served(manifest: Manifest) -> None:
    """Raise ``UnfitRelease`` for a kind or format that no engine here serves."""
    if manifest.format not in SERVED.get(manifest.kind, frozenset()):
        raise UnfitRelease(f"this device cannot activate a {manifest.kind} in format {manifest.format}")
    if manifest.kind is Kind.MODEL and manifest.engine.task not in _TASKS[manifest.format]:
        raise UnfitRelease(
            f"{manifest.name}: a model that is asked to {manifest.engine.task or 'generate'} is not served "
            f"from format {manifest.format}"
        )
    if manifest.kind is Kind.ADAPTER or manifest.format == "gguf":
        weights_of(manifest)
        projector_of(manifest)


def weights_of(manifest: Manifest) -> File:
    """The one file of a GGUF model or of an adapter. Raises ``UnfitRelease`` when there is not just one."""
    suffix = ".gguf" if manifest.format == "gguf" else ".onnx_adapter"
    found = [file for file in manifest.files if file.path.endswith(suffix) and not _is_projector(file)]
    if len(found) != 1:
        raise UnfitRelease(f"a {manifest.kind} holds one {suffix} file; {manifest.name} holds {len(found)}")
    return found[0]


def projector_of(manifest: Manifest) -> File | None:
    """The file that lets a GGUF model see or hear, if it has one. Raises ``UnfitRelease`` for several."""
    found = [file for file in manifest.files if _is_projector(file)]
    if len(found) > 1:
        raise UnfitRelease(f"a model has one projector; {manifest.name} holds {len(found)}")
    return found[0] if found else None


def _is_projector(file: File) -> bool:
    """As llama.cpp's converter names what it writes with ``--mmproj``."""
    name = file.path.rpartition("/")[2]
    return name.startswith("mmproj") and name.endswith(".gguf")
