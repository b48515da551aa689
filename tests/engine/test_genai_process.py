"""A GenAI folder behind the same supervision as any language model: adapters, crashes, releases."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from genai_folders import exported, write_peft

from compile.onnx.genai import export_adapter
from edge_agent.engines.files import of_path, of_release
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.text_process import EngineProcess
from edge_agent.errors import EngineCrashed, UnfitRelease
from models.engines.base import GenerateRequest, Sampling
from models.errors import EngineError, UnsafeFile, UnsupportedRequest
from models.manifest import Kind, Manifest
from models.store import describe_file

pytestmark = [pytest.mark.model, pytest.mark.slow]

SMALL = EngineSettings(threads=1, context_tokens=96, max_sequences=2, batch_tokens=32)
PROMPT = "<|im_start|>user\nThe fires in Sydney<|im_end|>\n<|im_start|>assistant\n"


async def said(engine: EngineProcess, adapter: str | None = None, **sampling) -> str:
    request = GenerateRequest("r", PROMPT, Sampling(**{"max_tokens": 12, **sampling}), adapter)
    return "".join([event.text async for event in engine.generate(request)])


def mapped(pid: int | None) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


async def test_a_genai_model_and_its_adapter_come_back_after_a_crash(tmp_path: Path) -> None:
    folder = exported("fp32", slots=True)
    export_adapter(write_peft(tmp_path / "p", seed=3), folder, tmp_path / "x.onnx_adapter")
    engine = await EngineProcess.start(of_path(folder), SMALL, {"x": tmp_path / "x.onnx_adapter"})
    try:
        base, adapted = await said(engine), await said(engine, "x")
        assert base and base != adapted
        libraries = mapped(engine.pid)
        assert "onnxruntime_genai" in libraries and "torch" not in libraries
        with pytest.raises(UnsupportedRequest, match="grammar"):
            await said(engine, grammar='root ::= "x"')
        pid = engine.pid
        assert pid is not None
        long = engine.generate(GenerateRequest("long", PROMPT, Sampling(max_tokens=60)))
        await anext(long)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineCrashed, match="killed by signal 9"):
            async for _ in long:
                pass
        assert (await said(engine), await said(engine, "x")) == (base, adapted)
        assert engine.restarts == 1
        (tmp_path / "y.onnx_adapter").write_bytes(b"none at all")
        with pytest.raises(UnsafeFile, match="no ONNX adapter"):
            await engine.attach("y", tmp_path / "y.onnx_adapter")
    finally:
        await engine.close()


async def test_the_device_that_was_asked_for_reaches_the_engine() -> None:
    with pytest.raises(EngineError, match="has no CUDA"):
        await EngineProcess.start(of_path(exported("int4")), replace(SMALL, device="cuda"))


def test_a_genai_release_is_loaded_as_its_folder(tmp_path: Path) -> None:
    folder = shutil.copytree(exported("fp32", slots=True), tmp_path / "tiny")
    manifest = Manifest(
        kind=Kind.MODEL,
        name="tiny",
        version="1.0.0",
        format="onnx-genai",
        precision="fp32",
        files=tuple(describe_file(path, path.name) for path in sorted(folder.iterdir())),
        license="MIT",
    )
    files = of_release(folder, manifest)
    assert (files.format, files.path, files.encoder) == ("onnx-genai", folder, None)
    (folder / "planted.json").write_text("{}")
    with pytest.raises(UnfitRelease, match=r"planted\.json is no file of the release"):
        of_release(folder, manifest)
    (folder / "planted.json").unlink()
    assert files.bytes_on_disk() == sum(file.size for file in manifest.files)
