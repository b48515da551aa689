"""Release folders: what was measured and where it came from, beside the bytes, under one digest.

Bases come first: an adapter names the digests of the bases that it was checked against.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from models.digest import Digest
from models.gguf import read_header
from models.manifest import AdapterFacts, Manifest
from models.store import describe_file, write_release

WEIGHTS = "model.gguf"
ADAPTER_WEIGHTS = "adapter.gguf"


def package_release(folder: Path, manifest: Manifest, files: Mapping[str, Path]) -> Manifest:
    """Write a release of ``files`` (path inside the release: where it lies); returns what was written.

    ``manifest`` is whole but for its files. Raises ``InvalidManifest`` for one that is not sound.
    """
    described = tuple(describe_file(path, name) for name, path in files.items())
    whole = manifest.model_copy(update={"files": described})
    # Parsed again: copying with changes does not validate, and what is written must be sound.
    sound = Manifest.parse(whole.to_bytes())
    write_release(folder, sound, dict(files))
    return sound


def files_below(folder: Path) -> dict[str, Path]:
    """Every file of a folder by its path inside it, in order."""
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def adapter_facts(
    weights: Path, base_name: str, trained_on: Digest, checked_against: Sequence[Digest]
) -> AdapterFacts:
    """Rank and targets as the GGUF has them, so that they cannot differ from what is shipped.

    Raises ``UnsafeFile`` for a file that is no sound GGUF.
    """
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
