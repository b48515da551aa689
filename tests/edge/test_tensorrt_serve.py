"""A release of a TensorRT recipe on a device: refused where it cannot be, else built, kept and asked.

NVIDIA's libraries and the provider are simulated (``nvidia_libraries``, ``tensorrt_simulator``); no GPU has
run this.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nvidia_libraries import build_libraries
from onnx_releases import EMBED, INSPECT, write_onnx_release
from pictures import plain

from compile.onnx.tensorrt import profile_for, write_recipe
from compile.package import files_below, package_release
from edge_agent.engines.encoder_calls import EncoderCall, floats
from edge_agent.engines.encoder_process import EncoderProcess
from edge_agent.engines.files import EngineFiles, check_served, of_release
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.tensorrt import find_tensorrt, machine_for
from edge_agent.errors import UnfitRelease
from edge_agent.serve import read_plan
from models.engines.onnx_files import files_of_release
from models.engines.onnx_session import OnnxSettings
from models.engines.onnx_text import OnnxText
from models.errors import EngineError, NoTensorRt, UnsafeFile
from models.manifest import Engine, Manifest
from models.onnx import read_model
from models.profiles import Machine
from models.store import read_release
from models.tensorrt_recipe import TensorRtMachine

TEXTS = ("pump", "pump leaks", "is fine", "hot", "pump is hot", "good", "bad pump leaks")


def write_release(folder: Path, needs: Engine = EMBED) -> Manifest:
    """A recipe from a plain release that lies beside it: 2 to 4 inputs at once, texts of 4 to 8 tokens."""
    source = folder.parent / "plain"
    onnx = write_onnx_release(source, needs)
    tokens = (4, 8, 8) if needs.text is not None else None
    profile = profile_for(read_model(source / "model.onnx").inputs, (2, 4, 4), tokens)
    write_recipe(source / "model.onnx", ("6.2",), [profile], folder.parent / "recipe", as_typed=True)
    files = files_below(folder.parent / "recipe")
    beside = {file.path: source / file.path for file in onnx.files if not file.path.startswith("model.")}
    manifest = onnx.model_copy(update={"format": "tensorrt-recipe", "profiles": ("sm_87",), "files": ()})
    return package_release(folder, manifest, files | beside)


def jetson() -> TensorRtMachine:
    return TensorRtMachine("onnxruntime 1.31.1", "10.3.0.30", 87, "540.4.0", 8_000_000_000)


def test_without_tensorrt_one_error_says_what_to_install(tmp_path: Path) -> None:
    manifest = write_release(tmp_path / "trt")
    check_served(manifest)  # the format is served, and where it can be is known before anything is fetched
    here = Machine("x86-64-avx2", 2, 4_000_000_000)
    with pytest.raises(UnfitRelease, match="has no TensorRT: install onnxruntime-gpu"):
        machine_for(manifest, here)
    with pytest.raises(UnfitRelease, match="has no TensorRT: install onnxruntime-gpu"):
        read_plan([f"minilm={tmp_path}/trt"], [])
    with pytest.raises(NoTensorRt, match="has no TensorRT: install onnxruntime-gpu"):
        OnnxText(files_of_release(tmp_path / "trt", manifest), OnnxSettings(device="auto"))


def test_the_machine_of_a_recipe_is_its_gpu(tmp_path: Path) -> None:
    manifest, box = write_release(tmp_path / "trt"), Machine("x86-64-avx2", 16, 64_000_000_000)
    assert machine_for(manifest, box, jetson) == Machine("sm_87", 16, 8_000_000_000)
    nano = Machine("jetson-orin-nano-8g", 6, 8_000_000_000)
    assert machine_for(manifest, nano, jetson) == nano
    assert machine_for(manifest.model_copy(update={"format": "onnx"}), box) == box


def test_a_recipe_is_accepted_where_it_has_a_plan(tmp_path: Path) -> None:
    manifest = write_release(tmp_path / "trt")
    files = of_release(tmp_path / "trt", manifest, jetson)
    assert files.format == "tensorrt-recipe" and EngineFiles.from_wire(files.to_wire()) == files
    files.check()
    with pytest.raises(UnfitRelease, match=r"for TensorRT 10\.x on JetPack 6; here is TensorRT 11\.4\.1"):
        of_release(tmp_path / "trt", manifest, lambda: replace(jetson(), tensorrt="11.4.1"))
    recipe = tmp_path / "trt" / "tensorrt.json"
    recipe.write_text("{}")
    with pytest.raises(UnsafeFile, match=r"tensorrt\.json"):
        files.check()
    without = [file for file in manifest.files if file.path != "tensorrt.json"]
    with pytest.raises(UnsafeFile, match=r"tensorrt\.json is no file of the release"):
        of_release(tmp_path / "trt", manifest.model_copy(update={"files": tuple(without)}), jetson)


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that processes started from now on take for a Jetson; the log of its builds."""
    for name, value in build_libraries(tmp_path / "libraries").items():
        monkeypatch.setenv(name, value)
    return tmp_path / "libraries" / "builds.jsonl"


@pytest.mark.parametrize("missing", ["libcuda.so.1", "libnvidia-ml.so.1", "libnvinfer.so.10"])
def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name, value in build_libraries(tmp_path / "libraries", without=(missing,)).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UnfitRelease, match=rf"missing \({missing}\): JetPack brings it along"):
        find_tensorrt()


async def answers(files: EngineFiles, settings: EngineSettings) -> list[list[float]]:
    """Vectors of ``TEXTS``, from a process of its own."""
    engine = await EncoderProcess.start(files, settings)
    try:
        answer = await engine.ask(EncoderCall(TEXTS))
        return [floats(row) for row in answer.rows]
    finally:
        await engine.close()


def built_of(log: Path) -> list[dict[str, str]]:
    """The provider's options of each engine that was built."""
    return list(map(json.loads, log.read_text().splitlines()))


async def test_an_engine_is_built_asked_and_kept(tmp_path: Path, simulated: Path) -> None:
    manifest = write_release(tmp_path / "trt")
    found = find_tensorrt()
    assert replace(found, runtime="") == replace(jetson(), runtime="")
    files = of_release(tmp_path / "trt", manifest)
    settings = EngineSettings(threads=1, engine_cache=str(tmp_path / "engines"))
    onnx = files_of_release(tmp_path / "plain", read_release(tmp_path / "plain")[0])
    right = OnnxText(onnx).embed(TEXTS)  # seven texts, some shorter than the profile's shortest
    for _ in range(2):
        assert np.allclose(await answers(files, settings), right, atol=1e-6)
    (built,) = built_of(simulated)
    assert built["trt_profile_min_shapes"] == "attention_mask:2x4,input_ids:2x4"
    assert built["trt_fp16_enable"] == built["trt_int8_enable"] == "False"
    assert [path.name for path in (tmp_path / "engines").glob("trt*")] == [
        Path(built["trt_engine_cache_path"]).name.removeprefix(".").removesuffix(".building")
    ]


async def test_a_picture_alone_fills_the_smallest_batch(tmp_path: Path, simulated: Path) -> None:
    files = of_release(tmp_path / "trt", write_release(tmp_path / "trt", INSPECT))
    engine = await EncoderProcess.start(files, EngineSettings(threads=1))
    try:
        for pictures in [(plain("black"),), (plain("white"), plain("black"), plain("white")) * 3]:
            found = (await engine.ask(EncoderCall(images=pictures))).inspections
            assert [one.is_defect for one in found] == [one == plain("black") for one in pictures]
    finally:
        await engine.close()


async def test_another_driver_builds_another_engine(
    tmp_path: Path, simulated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = of_release(tmp_path / "trt", write_release(tmp_path / "trt"))
    settings = EngineSettings(threads=1, engine_cache=str(tmp_path / "engines"))
    await answers(files, settings)
    monkeypatch.setenv("LD_LIBRARY_PATH", build_libraries(tmp_path / "new", "580.1")["LD_LIBRARY_PATH"])
    await answers(files, settings)
    assert len(built_of(simulated)) == len(list((tmp_path / "engines").glob("trt*"))) == 2


async def test_there_is_no_silent_fallback(
    tmp_path: Path, simulated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = of_release(tmp_path / "trt", write_release(tmp_path / "trt"))
    settings = EngineSettings(threads=1, engine_cache=str(tmp_path / "engines"))
    with pytest.raises(EngineError, match="made for TensorRT, which does not compute on the CPU"):
        await EncoderProcess.start(files, replace(settings, device="cpu"))
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="cannot be kept"):
        await EncoderProcess.start(files, replace(settings, engine_cache=str(tmp_path / "file" / "engines")))
    monkeypatch.setenv("SIMULATED_TENSORRT", "refuses")
    with pytest.raises(EngineError, match="TensorrtExecutionProvider did not start"):
        await EncoderProcess.start(files, settings)
    assert not list((tmp_path / "engines").glob("trt*"))
