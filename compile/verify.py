"""``outpost-compile verify``: a release is what its manifest says, and still answers as it promised."""

from pathlib import Path
from typing import Any

from compile.errors import CompileError, Refused
from models.engines.base import GenerateRequest, Sampling
from models.engines.llama_cpp import LlamaEngine, LlamaSettings
from models.errors import DigestMismatch, InvalidManifest, ModelsError
from models.manifest import MANIFEST_FILE, Kind, Manifest
from models.probes import judge
from models.prompts import ChatTemplate
from models.store import read_release, verify_release

_NAME = "probed"


def verify_folder(folder: Path, base: Path | None, threads: int) -> dict[str, Any]:
    """Hash and probe. Raises ``Refused`` for what does not hold, ``CompileError`` when no base is found."""
    try:
        manifest = verify_release(folder)
        weights = folder / manifest.files[0].path
        adapter = None
        if manifest.kind is Kind.ADAPTER:
            adapter = weights
            home = base or _find_base(folder, manifest)
            weights = home / verify_release(home).files[0].path
    except (DigestMismatch, InvalidManifest) as error:
        raise Refused(str(error)) from error
    probes = _replay(manifest, weights, adapter, threads)
    failed = [probe for probe in probes if not probe["passed"]]
    if failed:
        raise Refused(
            f"{len(failed)} of {len(probes)} probes fail; the first: expected {failed[0]['expected']!r}, "
            f"got {failed[0]['answer']!r} (likeness {failed[0]['similarity']:.2f})"
        )
    return {
        "release": f"{manifest.kind} {manifest.name} {manifest.version}",
        "digest": manifest.digest,
        "probes": probes,
    }


def _find_base(folder: Path, manifest: Manifest) -> Path:
    """The first release beside ``folder`` that the adapter was checked against."""
    wanted = manifest.adapter.checked_against if manifest.adapter is not None else ()
    for other in sorted(folder.resolve().parent.glob(f"*/{MANIFEST_FILE}")):
        if read_release(other.parent)[0].digest in wanted:
            return other.parent
    raise CompileError(f"{folder}: none of its bases lies beside it; name one with --base")


def _replay(manifest: Manifest, weights: Path, adapter: Path | None, threads: int) -> list[dict[str, Any]]:
    engine = LlamaEngine(weights, LlamaSettings(threads=threads, context_tokens=1024, max_sequences=1))
    try:
        if adapter is not None:
            engine.attach(_NAME, adapter)
        facts = engine.facts
        if facts.chat_template is None:
            raise Refused(f"{manifest.name}: the model has no chat template for its probes")
        template = ChatTemplate(facts.chat_template, facts.bos, facts.eos)
        results = []
        for number, probe in enumerate(manifest.probes):
            request = GenerateRequest(
                str(number),
                template.render(probe.messages),
                Sampling(max_tokens=probe.max_tokens),
                None if adapter is None else _NAME,
            )
            verdict = judge(probe, _answer(engine, request))
            results.append(
                {
                    "expected": probe.expected,
                    "answer": verdict.answer,
                    "similarity": verdict.similarity,
                    "passed": verdict.passed,
                }
            )
        return results
    except ModelsError as error:
        raise Refused(f"{manifest.name}: {error}") from error
    finally:
        engine.close()


def _answer(engine: LlamaEngine, request: GenerateRequest) -> str:
    engine.submit(request)
    text = ""
    while events := engine.step():
        for event in events:
            if event.error is not None:
                raise event.error
            text += event.text
    return text
