"""Release folders: what was measured and where it came from, beside the bytes, under one digest.

Bases come first: an adapter names the digests of the bases that it was checked against.
"""

from collections.abc import Sequence
from pathlib import Path

from models.digest import Digest
from models.engines.llama_cpp import read_header
from models.manifest import AdapterFacts, Manifest, Probe
from models.store import describe_file, write_release

WEIGHTS = "model.gguf"
ADAPTER_WEIGHTS = "adapter.gguf"


def package_base(folder: Path, weights: Path, manifest: Manifest) -> Manifest:
    """Write a base's release. ``manifest`` is whole but for its files. Returns what was written."""
    whole = manifest.model_copy(update={"files": (describe_file(weights, WEIGHTS),)})
    return _written(folder, whole, {WEIGHTS: weights})


def package_adapter(folder: Path, weights: Path, template: Manifest, probes: Sequence[Probe]) -> Manifest:
    """Write an adapter's release around any GGUF LoRA file; returns its manifest.

    ``template`` gives everything but the files and the probes: ``release.model_copy(update={...})`` of an
    existing release does. Raises ``UnsafeFile`` for a file that is no sound GGUF, ``InvalidManifest`` when
    ``template`` is not an adapter's.
    """
    read_header(weights)
    whole = template.model_copy(
        update={"files": (describe_file(weights, ADAPTER_WEIGHTS),), "probes": tuple(probes)}
    )
    return _written(folder, whole, {ADAPTER_WEIGHTS: weights})


def adapter_facts(
    weights: Path, base_name: str, trained_on: Digest, checked_against: Sequence[Digest]
) -> AdapterFacts:
    """Rank and targets as the GGUF has them, so that they cannot differ from what is shipped."""
    header = read_header(weights)
    halves = [tensor for tensor in header.tensors if tensor.name.endswith(".lora_a")]
    targets = sorted({tensor.name.split(".")[2] for tensor in halves if tensor.name.startswith("blk.")})
    return AdapterFacts(
        base_name=base_name,
        trained_on=trained_on,
        checked_against=tuple(checked_against),
        rank=max(tensor.shape[1] for tensor in halves),
        targets=tuple(targets),
    )


def _written(folder: Path, manifest: Manifest, files: dict[str, Path]) -> Manifest:
    # Parsed again: copying with changes does not validate, and what is written must be sound.
    sound = Manifest.parse(manifest.to_bytes())
    write_release(folder, sound, files)
    return sound
