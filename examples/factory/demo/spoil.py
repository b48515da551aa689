"""Things that go wrong, made on purpose from real releases: two bad adapters and a flipped byte."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from models.engines.base import GenerateRequest, Sampling
from models.engines.llama_cpp import LlamaEngine, LlamaSettings
from models.manifest import Manifest, Probe
from models.prompts import ChatTemplate
from models.store import describe_file, write_release

_LOW_BAR = 0.1
"""Prose of a model that is unsure differs from device to device; a higher bar would find it out too early."""


@dataclass(frozen=True)
class Original:
    """A release folder with one GGUF in it."""

    folder: Path

    @property
    def manifest(self) -> Manifest:
        """What it says of itself."""
        return Manifest.parse((self.folder / "release.json").read_bytes())

    @property
    def weights(self) -> Path:
        """Its GGUF."""
        return next(self.folder / f.path for f in self.manifest.files if f.path.endswith(".gguf"))


def broken_adapter(original: Path, folder: Path, version: str) -> Path:
    """An adapter whose weights were turned around on the way, with the good one's probes."""
    return _release(Original(original), folder, version, factor=-1.0, probes=None)


def drifting_adapter(original: Path, base: Path, folder: Path, version: str) -> Path:
    """An adapter at a fraction of its strength, with its own answers for probes and a low bar to pass.

    Only in use does it show that most of its answers are not what the release promises.
    """
    whole = Original(original)
    asked = tuple(probe.model_copy(update={"max_tokens": 8}) for probe in whole.manifest.probes)
    draft = Original(
        _release(whole, folder.with_name(folder.name + "-draft"), version, factor=0.15, probes=())
    )
    answers = _sure_answers(Original(base), draft, asked)
    probes = tuple(
        probe.model_copy(update={"expected": answer, "tolerance": _LOW_BAR})
        for probe, answer in zip(asked, answers, strict=True)
        if answer is not None
    )[:2]
    return _release(whole, folder, version, factor=0.15, probes=probes)


def flip_one_byte(exported: Path) -> str:
    """Change one byte of a sealed body in an exported trail; returns how its record is called."""
    lines = exported.read_text(encoding="utf-8").splitlines()
    for index, line in enumerate(lines):
        record = json.loads(line).get("record", {})
        body = record.get("ciphertext")
        if body:
            swapped = "A" if body[8] != "A" else "B"
            lines[index] = line.replace(body, body[:8] + swapped + body[9:], 1)
            exported.write_text("\n".join(lines) + "\n", encoding="utf-8")
            leaf = json.loads(record["leaf"])
            return f"record {leaf['epoch']}/{leaf['seq']} of {leaf['device']}"
    raise ValueError(f"{exported} holds no sealed body")


def _release(
    original: Original, folder: Path, version: str, factor: float, probes: tuple[Probe, ...] | None
) -> Path:
    from gguf import GGUFReader

    manifest = original.manifest
    scratch = folder.with_name(folder.name + ".gguf")
    shutil.copy(original.weights, scratch)
    for tensor in GGUFReader(scratch, "r+").tensors:
        if tensor.name.endswith(".lora_b"):
            tensor.data[...] *= factor
    changes = {
        "version": version,
        "files": (describe_file(scratch, original.weights.name),),
        "probes": manifest.probes if probes is None else probes,
    }
    spoiled = manifest.model_copy(update=changes)
    write_release(folder, spoiled, {original.weights.name: scratch})
    scratch.unlink()
    return folder


def _sure_answers(base: Original, adapter: Original, probes: tuple[Probe, ...]) -> list[str | None]:
    """The greedy answer to each probe, or None where it depends on what else shares the batch.

    Near-ties of prose fall one way or the other with the company they are computed in.
    """
    engine = LlamaEngine(base.weights, LlamaSettings())
    try:
        engine.attach("it", adapter.weights)
        together = _ask(engine, probes)
        alone = [_ask(engine, (probe,))[0] for probe in probes]
        return [answer if answer == again else None for answer, again in zip(together, alone, strict=True)]
    finally:
        engine.close()


def _ask(engine: LlamaEngine, probes: tuple[Probe, ...]) -> list[str]:
    facts = engine.facts
    template = ChatTemplate(facts.chat_template or "", facts.bos, facts.eos)
    texts = {}
    for number, probe in enumerate(probes):
        prompt = template.render([dict(message) for message in probe.messages])
        engine.submit(GenerateRequest(str(number), prompt, Sampling(probe.max_tokens), adapter="it"))
        texts[str(number)] = ""
    while events := engine.step():
        for event in events:
            texts[event.id] += event.text
    return list(texts.values())
