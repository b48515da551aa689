"""``outpost-compile verify``: a release is what its manifest says, and still answers as it promised.

Every file is hashed; then the probes are asked of the engine that serves the format. Probes that no engine
here can be asked are counted (``unasked``): those of a TensorRT recipe, whose engine is built on the device.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compile.errors import CompileError, Refused
from models.engines.base import Event, GenerateRequest, ModelFacts, Sampling
from models.engines.llama_cpp import LlamaEngine, LlamaSettings
from models.engines.onnx_encoder import open_encoder, probe_answer
from models.engines.onnx_files import files_of_release
from models.engines.onnx_genai import GenaiEngine, GenaiSettings
from models.engines.onnx_session import OnnxSettings
from models.errors import DigestMismatch, InvalidManifest, ModelsError
from models.manifest import MANIFEST_FILE, Kind, Manifest, Probe
from models.probes import judge
from models.prompts import ChatTemplate
from models.store import read_release, unlisted, verify_release

_NAME = "probed"
_CONTEXT = 1024
_SUFFIX = {"gguf": ".gguf", "onnx-genai": ".onnx_adapter"}


def verify_folder(folder: Path, base: Path | None, threads: int) -> dict[str, Any]:
    """Hash and probe. Raises ``Refused`` for what does not hold, ``CompileError`` when no base is found."""
    try:
        manifest = verify_release(folder)
        home, adapter = folder, None
        if manifest.kind is Kind.ADAPTER:
            adapter = _adapter_file(folder, manifest)
            home = base or _find_base(folder, manifest)
            verify_release(home)
    except (DigestMismatch, InvalidManifest) as error:
        raise Refused(str(error)) from error
    try:
        answers = _answers(home, adapter, manifest, threads)
        probes = [] if answers is None else list(map(_judged, manifest.probes, answers))
    except ModelsError as error:
        raise Refused(f"{manifest.name}: {error}") from error
    failed = [probe for probe in probes if not probe["passed"]]
    if failed:
        expected, answer, near = (failed[0][name] for name in ("expected", "answer", "similarity"))
        raise Refused(
            f"{len(failed)} of {len(probes)} probes fail; the first: expected {expected[:300]!r}, "
            f"got {answer[:300]!r} (likeness {near:.2f})"
        )
    return {
        "release": f"{manifest.kind} {manifest.name} {manifest.version}",
        "digest": manifest.digest,
        "probes": probes,
        "unasked": len(manifest.probes) - len(probes),
    }


def _adapter_file(folder: Path, manifest: Manifest) -> Path:
    suffix = _SUFFIX.get(manifest.format, "")
    found = [file.path for file in manifest.files if file.path.endswith(suffix)]
    if not suffix or len(found) != 1:
        raise InvalidManifest(
            f"{manifest.name}: an adapter of format {manifest.format} with {len(found)} weights"
        )
    return folder / found[0]


def _find_base(folder: Path, manifest: Manifest) -> Path:
    """The first release beside ``folder`` that the adapter was checked against."""
    wanted = manifest.adapter.checked_against if manifest.adapter is not None else ()
    for other in sorted(folder.resolve().parent.glob(f"*/{MANIFEST_FILE}")):
        if read_release(other.parent)[0].digest in wanted:
            return other.parent
    raise CompileError(f"{folder}: none of its bases lies beside it; name one with --base")


def _judged(probe: Probe, answer: str) -> dict[str, Any]:
    verdict = judge(probe, answer)
    return {
        "expected": probe.expected,
        "answer": verdict.answer,
        "similarity": verdict.similarity,
        "passed": verdict.passed,
    }


def _answers(home: Path, adapter: Path | None, asked: Manifest, threads: int) -> list[str] | None:
    """What the model in ``home`` answers to the probes of ``asked``; None when no engine here reads it."""
    manifest, _ = read_release(home)
    if manifest.format in ("onnx", "ctranslate2") and manifest.engine.task is not None:
        encoder = open_encoder(files_of_release(home, manifest), OnnxSettings(threads=threads))
        try:
            return [probe_answer(encoder, probe, home) for probe in asked.probes]
        finally:
            encoder.close()
    engine: LlamaEngine | GenaiEngine
    if manifest.format == "gguf":
        settings = LlamaSettings(threads=threads, context_tokens=_CONTEXT, max_sequences=1)
        weights = [file.path for file in manifest.files if file.path.endswith(".gguf")]
        if len(weights) != 1:
            raise InvalidManifest(f"{manifest.name} holds {len(weights)} GGUF files")
        engine = LlamaEngine(home / weights[0], settings)
    elif manifest.format == "onnx-genai":
        if strangers := unlisted(home, manifest):
            raise InvalidManifest(f"{manifest.name}: {strangers[0]} is no file of the release")
        engine = GenaiEngine(home, GenaiSettings(threads=threads, context_tokens=_CONTEXT, max_sequences=1))
    else:
        return None
    try:
        if adapter is not None:
            engine.attach(_NAME, adapter)
        return list(_said(engine, engine.facts, None if adapter is None else _NAME, asked))
    finally:
        engine.close()


def _said(
    engine: LlamaEngine | GenaiEngine, facts: ModelFacts, adapter: str | None, asked: Manifest
) -> Iterator[str]:
    """As the device asks: the release's system prompt opens a chat that has none."""
    if facts.chat_template is None and asked.probes:
        raise Refused(f"{asked.name}: the model has no chat template for its probes")
    template = ChatTemplate(facts.chat_template or "", facts.bos, facts.eos)
    system = asked.engine.system_prompt
    for number, probe in enumerate(asked.probes):
        chat = list(probe.messages)
        if system is not None and all(message.get("role") != "system" for message in chat):
            chat.insert(0, {"role": "system", "content": system})
        prompt, sampling = template.render(chat), Sampling(max_tokens=probe.max_tokens)
        engine.submit(GenerateRequest(str(number), prompt, sampling, adapter))
        yield "".join(event.text for event in _events(engine))


def _events(engine: LlamaEngine | GenaiEngine) -> Iterator[Event]:
    while events := engine.step():
        for event in events:
            if event.error is not None:
                raise event.error
            yield event
