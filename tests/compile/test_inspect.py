"""``inspect`` and ``verify`` on files of every format, real and made here."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from genai_folders import exported
from onnx_graphs import write_anomaly, write_embedder, write_text_classifier, write_tokenizer
from pictures import plain
from safetensors.numpy import save_file

from compile.cli import main
from models.engines.onnx_encoder import open_encoder, probe_answer
from models.engines.onnx_files import files_of_release
from models.manifest import AnomalyFacts, Engine, ImageInput, Kind, Manifest, Probe, TextInput
from models.store import describe_file, write_release

EMBED = Engine(task="embed", text=TextInput(max_tokens=8, pooling="mean", normalize=True))
CLASSIFY = Engine(task="classify", labels=("good", "bad"), text=TextInput(max_tokens=8))
INSPECT = Engine(
    task="inspect",
    image=ImageInput(width=8, height=8),
    anomaly=AnomalyFacts(threshold=0.5, false_reject_rate=0.01, calibrated_on=100),
)


def run(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def inspected(path: Path) -> dict:
    done = run("inspect", path, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def release(folder: Path, needs: Engine, tolerance: float = 0.99) -> Path:
    """A release whose probes expect what the engine answered when it was made."""
    made = folder.parent / f"{folder.name}-made"
    made.mkdir(parents=True)
    paths = {"model.onnx": made / "model.onnx"}
    if needs.image is None:
        (write_embedder if needs.task == "embed" else write_text_classifier)(paths["model.onnx"])
        paths["tokenizer.json"] = write_tokenizer(made / "tokenizer.json")
        probes = [Probe(text="pump is bad", expected="{}", tolerance=tolerance)]
    else:
        write_anomaly(paths["model.onnx"])
        paths["probes/part.png"] = made / "part.png"
        paths["probes/part.png"].write_bytes(plain("black"))
        probes = [Probe(image="probes/part.png", expected="{}", tolerance=tolerance)]
    manifest = Manifest(
        kind=Kind.MODEL,
        name=folder.name,
        version="1.0.0",
        format="onnx",
        precision="fp32",
        files=tuple(describe_file(path, name) for name, path in paths.items()),
        engine=needs,
        license="MIT",
    )
    engine = open_encoder(files_of_release(made, manifest))
    (made / "probes").mkdir()
    shutil.copyfile(made / "part.png", made / "probes" / "part.png") if needs.image else None
    told = tuple(probe.model_copy(update={"expected": probe_answer(engine, probe, made)}) for probe in probes)
    write_release(folder, manifest.model_copy(update={"probes": told}), paths)
    return folder


@pytest.mark.parametrize("needs", [EMBED, CLASSIFY, INSPECT], ids=lambda needs: needs.task)
def test_probes_of_encoders_are_replayed_through_their_engines(tmp_path: Path, needs: Engine):
    folder = release(tmp_path / "tiny", needs)
    done = run("verify", folder, "--json")
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert [probe["passed"] for probe in result["probes"]] == [True] and result["unasked"] == 0
    # Another seed's weights under a manifest that was made anew: the bytes hold and the promise does not.
    other = tmp_path / "other.onnx"
    if needs.task == "embed":
        write_embedder(other, seed=1)
        manifest = Manifest.parse((folder / "release.json").read_bytes())
        files = {file.path: folder / file.path for file in manifest.files} | {"model.onnx": other}
        changed = manifest.model_copy(
            update={"files": tuple(describe_file(path, name) for name, path in files.items())}
        )
        write_release(tmp_path / "changed", changed, files)
        done = run("verify", tmp_path / "changed")
        assert done.exit_code == 3 and "1 of 1 probes fail" in done.stderr


def test_a_format_without_an_engine_here_is_hashed_and_says_so(tmp_path: Path):
    weights = write_embedder(tmp_path / "model.onnx")
    manifest = Manifest(
        kind=Kind.MODEL,
        name="tiny",
        version="1.0.0",
        format="tensorrt-recipe",
        precision="int8",
        files=(describe_file(weights, "model.onnx"),),
        engine=EMBED,
        probes=(Probe(text="x", expected="{}", tolerance=1),),
        license="MIT",
    )
    write_release(tmp_path / "out", manifest, {"model.onnx": weights})
    result = json.loads(run("verify", tmp_path / "out", "--json").stdout)
    assert (result["probes"], result["unasked"]) == ([], 1)


def test_a_release_is_described_with_what_its_weights_say(tmp_path: Path):
    found = inspected(release(tmp_path / "tiny", INSPECT))
    assert (found["what"], found["format"], found["probes"]) == ("release", "onnx", 1)
    assert found["engine"]["anomaly"]["threshold"] == 0.5
    assert found["files"]["probes/part.png"] > 0 and found["bytes"] == sum(found["files"].values())
    (contents,) = found["contents"]
    assert contents["inputs"] == {"pixel_values": "float32 [batch, 3, 8, 8]"}


def test_people_read_lines_and_no_json(tmp_path: Path):
    told = run("inspect", release(tmp_path / "tiny", INSPECT)).stdout
    assert "\nfiles: model.onnx " in told and "\ncontents:\n  what ONNX model, file model.onnx" in told
    assert not set('{}"') & set(told)


def test_an_onnx_file_and_a_folder_are_described(tmp_path: Path):
    folder = tmp_path / "embedder"
    write_embedder(
        folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    found = inspected(folder / "model.onnx")
    assert (found["what"], found["parameters"], found["operators"]) == ("ONNX model", 88, {"Gather": 1})
    assert found["beside"] == {"model.onnx.data": 352}
    assert inspected(folder)["served"].startswith("no: ")
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 8}))
    write_tokenizer(folder / "tokenizer.json")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    found = inspected(folder)
    assert (found["served"], found["task"], found["text"]["pooling"]) == ("yes", "embed", "mean")


def test_adapters_are_described_before_they_are_converted(tmp_path: Path):
    config = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({"a.lora_A": np.zeros((8, 4), np.float32)}, tmp_path / "adapter_model.safetensors")
    found = inspected(tmp_path)
    assert (found["what"], found["r"], found["files"][0]["parameters"]) == ("PEFT adapter", 8, 32)
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    assert "no safetensors beside" in run("inspect", tmp_path).stderr


@pytest.mark.parametrize("name", ["recipe.yaml", "notes", "model.xml"])
def test_a_file_of_another_kind_is_no_broken_model(tmp_path: Path, name: str):
    (tmp_path / name).write_text("hello: world")
    assert "none of GGUF, ONNX, safetensors and ONNX adapters" in run("inspect", tmp_path / name).stderr


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "model.gguf", "weights.pt"])
def test_a_pickle_is_named_and_not_opened(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"w": [1.0]}, 4))
    done = run("inspect", path)
    assert done.exit_code == 1 and name in done.stderr and "pickle" in done.stderr


def test_a_folder_of_pickles_or_of_nothing_is_named(tmp_path: Path):
    assert "neither a release nor" in run("inspect", tmp_path).stderr
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert "pytorch_model.bin" in run("inspect", tmp_path).stderr


@pytest.mark.model
@pytest.mark.slow
def test_a_genai_folder_and_its_release_are_described_and_verified(tmp_path: Path):
    folder = exported("int4", slots=True)
    found = inspected(folder)
    assert found["what"] == "ONNX Runtime GenAI folder" and found["adapter_slots"]["max_rank"] == 8
    files = {path.name: path for path in sorted(folder.iterdir())}
    probe = Probe(messages=({"role": "user", "content": "hi"},), max_tokens=4, expected="?", tolerance=0)
    manifest = Manifest(
        kind=Kind.MODEL,
        name="tiny",
        version="1.0.0",
        format="onnx-genai",
        precision="int4",
        files=tuple(describe_file(path, name) for name, path in files.items()),
        probes=(probe,),
        license="MIT",
    )
    write_release(tmp_path / "tiny", manifest, files)
    assert inspected(tmp_path / "tiny")["contents"][0]["parameters"] == found["parameters"]
    done = run("verify", tmp_path / "tiny", "--threads", "1", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["probes"][0]["passed"]
