"""Releases of tiny ONNX models, of several files each, with probes that hold."""

import re
from pathlib import Path

from onnx_graphs import write_anomaly, write_embedder, write_tokenizer
from pictures import plain

from models.engines.onnx_encoder import open_encoder, probe_answer
from models.engines.onnx_files import files_of_release
from models.manifest import AnomalyFacts, Engine, ImageInput, Kind, Manifest, Probe, TextInput
from models.store import describe_file, write_release

INSPECT = Engine(
    task="inspect",
    image=ImageInput(width=8, height=8),
    anomaly=AnomalyFacts(threshold=0.5, false_reject_rate=0.01, calibrated_on=100),
)
EMBED = Engine(task="embed", text=TextInput(max_tokens=8, pooling="mean"))


def write_onnx_release(
    folder: Path,
    needs: Engine,
    seed: int = 0,
    version: str = "1.0.0",
    expected: str | None = None,
    profiles: tuple[str, ...] = (),
) -> Manifest:
    """A release of an inspection or of an embedder, weights beside the graph, with a probe that holds."""
    made = folder.parent / f"{folder.name}-made"
    paths = {"model.onnx": made / "model.onnx"}
    if needs.image is not None:
        write_anomaly(paths["model.onnx"])
        paths["probes/part.png"] = made / "probes" / "part.png"
        paths["probes/part.png"].parent.mkdir()
        paths["probes/part.png"].write_bytes(plain("black"))
        probe = Probe(image="probes/part.png", expected="{}", tolerance=0.99)
    else:
        options = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0}
        write_embedder(paths["model.onnx"], seed=seed, **options)
        paths["model.onnx.data"] = made / "model.onnx.data"
        paths["tokenizer.json"] = write_tokenizer(made / "tokenizer.json")
        probe = Probe(text="pump is hot", expected="{}", tolerance=0.999)
    manifest = Manifest(
        kind=Kind.MODEL,
        name=re.sub(r"[-_].*", "", folder.name),
        version=version,
        format="onnx",
        precision="fp32",
        files=tuple(describe_file(path, name) for name, path in paths.items()),
        profiles=profiles,
        engine=needs,
        license="MIT",
    )
    engine = open_encoder(files_of_release(made, manifest))
    expected = expected or probe_answer(engine, probe, made)
    manifest = manifest.model_copy(update={"probes": (probe.model_copy(update={"expected": expected}),)})
    write_release(folder, manifest, paths)
    return manifest
