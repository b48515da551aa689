"""``outpost-edge serve`` on encoders, and a device that activates releases of several files: real engines."""

import asyncio
import base64
import io
import os
import signal
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
from edge_command import serving
from minilm import write_minilm
from onnx_releases import EMBED, INSPECT, write_onnx_release
from pictures import plain
from PIL import Image

from edge_agent.engines.encoder_calls import EncoderCall, floats
from edge_agent.engines.encoder_process import EncoderProcess
from edge_agent.engines.files import EngineFiles, check_served, of_path, of_release
from edge_agent.engines.settings import EngineSettings
from edge_agent.errors import UnfitRelease, WrongUse
from edge_agent.serve import read_plan
from models.errors import DigestMismatch, UnsafeFile
from models.manifest import Engine, Kind
from models.store import read_release, write_durably


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.model
def test_an_embedder_and_an_inspection_are_served_beside_each_other(tmp_path: Path) -> None:
    folder = write_minilm(tmp_path / "minilm")
    manifest = write_onnx_release(tmp_path / "welds", INSPECT)
    with serving(f"minilm={folder}", f"welds={tmp_path}/welds") as (url, process):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        texts = ["The pump leaks oil.", "Oil is dripping from the pump.", "The invoice is overdue."]
        made = client.embeddings.create(model="minilm", input=texts)
        pump, drip, bill = (one.embedding for one in made.data)
        assert sum(map(float.__mul__, pump, drip)) > 0.6 > 0.3 > sum(map(float.__mul__, pump, bill))
        assert made.usage.prompt_tokens == 26
        with pytest.raises(openai.BadRequestError, match="the model reads 256"):
            client.embeddings.create(model="minilm", input="pump " * 300)
        form = {"model": "welds", "heat_map": "true"}
        files = [("image", ("part.png", plain("black", (40, 30)), "image/png"))]
        answer = httpx.post(f"{url}/v1/inspect", data=form, files=files).json()
        (verdict,) = answer["data"]
        assert verdict["verdict"] == "defect" and answer["outpost"]["release"] == manifest.digest
        assert base64.b64decode(verdict["heat_map"]).startswith(b"\x89PNG")
        assert verdict["region"] == [0, 0, 40, 30]
        form["heat_map"] = "overlay"
        (verdict,) = httpx.post(f"{url}/v1/inspect", data=form, files=files).json()["data"]
        with Image.open(io.BytesIO(base64.b64decode(verdict["heat_map"]))) as over:
            assert (
                over.size == (40, 30) and over.getpixel((20, 15))[0] > 150 > 60 > over.getpixel((20, 15))[2]
            )
        loaded = {"ready": True, "state": "loaded"}
        assert httpx.get(f"{url}/readyz").json()["models"] == {"minilm": loaded, "welds": loaded}
        agent = Path(f"/proc/{process.pid}/maps").read_text()
        assert "onnxruntime" not in agent and "torch" not in agent
        children = children_of(process.pid)
        assert len(children) == 2
        for child in children:
            assert "torch" not in Path(f"/proc/{child}/maps").read_text()
        check_a_killed_child(url, children)


def check_a_killed_child(url: str, children: list[int]) -> None:
    """kill -9 of the embedder under requests: a clean error, and the other model undisturbed."""
    embedder = next(pid for pid in children if "tokenizers" in Path(f"/proc/{pid}/maps").read_text())
    answers: list[httpx.Response] = []
    ask = {"model": "minilm", "input": ["word " * 200] * 200}
    asking = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{url}/v1/embeddings", json=ask, timeout=60))
    )
    asking.start()
    time.sleep(0.5)
    os.kill(embedder, signal.SIGKILL)
    picture = base64.b64encode(plain("white")).decode()
    other = httpx.post(f"{url}/v1/inspect", json={"model": "welds", "image": picture})
    assert other.json()["data"][0]["verdict"] == "good"
    asking.join(30)
    (broken,) = answers
    assert (broken.status_code, broken.json()["error"]["code"]) == (503, "engine_failed")
    assert int(broken.headers["retry-after"]) >= 1
    again = httpx.post(f"{url}/v1/embeddings", json={"model": "minilm", "input": "pump"}, timeout=30)
    assert again.status_code == 200


def test_what_serve_is_given_is_checked_before_it_is_loaded(tmp_path: Path) -> None:
    manifest = write_onnx_release(tmp_path / "minilm", EMBED)
    plan = read_plan([f"minilm={tmp_path}/minilm"], [])
    source = plan.models[0]
    assert source.release == manifest.digest and source.files is not None and source.files.encoder is not None
    with pytest.raises(WrongUse, match="takes no adapter"):
        read_plan([f"minilm={tmp_path}/minilm"], [f"x={tmp_path}/minilm"])
    with pytest.raises(WrongUse, match=r"does not say what it is for.*config\.json"):
        read_plan([f"minilm={tmp_path}/minilm/model.onnx"], [])
    with pytest.raises(UnsafeFile, match=r"config\.json is missing"):
        read_plan([f"minilm={tmp_path}/minilm-made"], [])
    manifest = read_release(tmp_path / "minilm")[0]
    listed = [file for file in manifest.files if file.path != "model.onnx.data"]
    write_durably(
        tmp_path / "minilm" / "release.json",
        manifest.model_copy(update={"files": tuple(listed)}).to_bytes(),
    )
    with pytest.raises(UnsafeFile, match=r"lie in 'model\.onnx\.data', no file of the release"):
        read_plan([f"minilm={tmp_path}/minilm"], [])
    write_durably(tmp_path / "minilm" / "release.json", manifest.to_bytes())
    data = tmp_path / "minilm" / "model.onnx.data"
    data.write_bytes(bytes(len(data.read_bytes())))
    with pytest.raises(DigestMismatch, match=r"model\.onnx\.data"):
        read_plan([f"minilm={tmp_path}/minilm"], [])
    pickle = tmp_path / "weights.gguf"
    pickle.write_bytes(b"\x80\x04\x95rest")
    with pytest.raises(UnsafeFile, match="pickle"):
        of_path(pickle)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"format": "json"}, "format json"),
        ({"format": "gguf"}, "asked to embed is not served from format gguf"),
        ({"engine": Engine()}, "asked to generate is not served from format onnx"),
        ({"kind": Kind.KNOWLEDGE_PACK}, "knowledge-pack"),
    ],
)
def test_what_no_engine_serves_is_not_fetched(tmp_path: Path, changes: dict, why: str) -> None:
    manifest = write_onnx_release(tmp_path / "minilm", EMBED).model_copy(update=changes)
    with pytest.raises(UnfitRelease, match=why):
        check_served(manifest)


async def test_an_encoders_process_loads_a_release_of_several_files(tmp_path: Path) -> None:
    manifest = write_onnx_release(tmp_path / "minilm", EMBED)
    files = of_release(tmp_path / "minilm", manifest)
    assert isinstance(files, EngineFiles) and files.bytes_on_disk() > 352
    engine = await EncoderProcess.start(files, EngineSettings(threads=1))
    try:
        async with asyncio.timeout(20):
            answer = await engine.ask(EncoderCall(("pump",)))
        assert len(floats(answer.rows[0])) == 8
    finally:
        await engine.close()
