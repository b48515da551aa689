"""Embedders and rerankers from GGUF files: the served command, the process, what they may take of memory."""

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from edge_command import serving
from gguf_encoders import write_bert
from gguf_models import Shape, write_llama

from edge_agent.engines.encoder_calls import EncoderCall, floats
from edge_agent.engines.encoder_process import EncoderProcess
from edge_agent.engines.files import EngineFiles, of_path
from edge_agent.engines.residence import memory_of
from edge_agent.engines.settings import EngineSettings
from edge_agent.engines.sizes import forecast_bytes
from edge_agent.errors import WrongUse
from edge_agent.serve import read_plan
from models.engines.llama_cpp.encoder_files import RANK
from models.errors import ContextLengthExceeded, EngineError

TEXTS = ["the pump leaks oil .", "hot oil", "cold"]


def test_gguf_files_embed_rerank_and_chat_beside_each_other(tmp_path: Path) -> None:
    embed = write_bert(tmp_path / "embed.gguf")
    rerank = write_bert(tmp_path / "rerank.gguf", RANK, outputs=1)
    chat = write_llama(tmp_path / "chat.gguf", Shape(layers=1, width=32, inner=32, heads=2, kv_heads=1))
    with serving(f"embed={embed}", f"rerank={rerank}", f"chat={chat}") as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        made = client.embeddings.create(model="embed", input=TEXTS)
        vectors = np.array([one.embedding for one in made.data])
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert made.usage.prompt_tokens == made.usage.total_tokens == 7 + 4 + 3
        again = client.embeddings.create(model="embed", input=TEXTS[1], encoding_format="float")
        np.testing.assert_allclose(again.data[0].embedding, vectors[1], atol=1e-5)

        body = {"model": "rerank", "query": "the pump", "documents": TEXTS}
        ranked = httpx.post(f"{url}/v1/rerank", json=body).json()
        scores = [one["relevance_score"] for one in ranked["results"]]
        assert scores == sorted(scores, reverse=True) and 0 < scores[-1] < scores[0] < 1
        assert {one["index"] for one in ranked["results"]} == {0, 1, 2}
        assert (ranked["scoring"], ranked["usage"]["prompt_tokens"]) == ("cross-encoder", 23)

        with pytest.raises(openai.BadRequestError, match="the model reads 32") as long:
            client.embeddings.create(model="embed", input=["pump", "pump " * 40])
        assert long.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError, match="dimensions"):
            client.embeddings.create(model="embed", input="pump", dimensions=8)
        with pytest.raises(openai.BadRequestError, match="'chat' is not made to embed; ask it at /v1/chat"):
            client.embeddings.create(model="chat", input="pump")
        with pytest.raises(openai.BadRequestError, match="'embed' does not generate text"):
            client.completions.create(model="embed", prompt="pump")
        assert client.completions.create(model="chat", prompt="the cat", max_tokens=2).usage
        assert all(httpx.get(f"{url}/readyz").json()["models"].values())


async def test_calls_share_batches_and_an_error_is_that_of_its_call(tmp_path: Path) -> None:
    engine = await EncoderProcess.start(of_path(write_bert(tmp_path / "a.gguf")), EngineSettings(threads=1))
    try:
        calls = [EncoderCall((*TEXTS[: number % 3 + 1], f"pump {'hot ' * number}")) for number in range(12)]
        async with asyncio.timeout(60):
            long, pair, *answers = await asyncio.gather(
                engine.ask(EncoderCall(("pump " * 40,))),
                engine.ask(EncoderCall(("pump",), query="oil")),
                *map(engine.ask, calls),
                return_exceptions=True,
            )
            alone = [await engine.ask(call) for call in calls]
        for answer, expected in zip(answers, alone, strict=True):
            assert answer.tokens == expected.tokens
            np.testing.assert_allclose(
                [floats(row) for row in answer.rows], [floats(row) for row in expected.rows], atol=1e-5
            )
        assert isinstance(long, ContextLengthExceeded)
        assert isinstance(pair, EngineError) and "asked something else" in str(pair)
        assert (engine.facts.name, engine.facts.width, engine.restarts) == ("tiny bert", 32, 0)
    finally:
        await engine.close()


async def test_a_file_that_llama_cpp_refuses_costs_its_process_only(tmp_path: Path) -> None:
    """A sound header over tensors that make no BERT."""
    data = write_bert(tmp_path / "a.gguf").read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(data.replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight"))
    with pytest.raises(EngineError, match=r"broken\.gguf cannot be loaded: .*attn_q|ended while loading"):
        await EncoderProcess.start(of_path(broken), EngineSettings(threads=1, load_seconds=30))


def test_what_serve_is_given_is_known_before_it_is_loaded(tmp_path: Path) -> None:
    embed = write_bert(tmp_path / "embed.gguf")
    (source,) = read_plan([f"m={embed}"], []).models
    assert source.files is not None and source.files.encoder is not None
    assert EngineFiles.from_wire(source.files.to_wire()) == source.files
    assert source.files.bytes_on_disk() == embed.stat().st_size
    with pytest.raises(WrongUse, match="'m' does not generate text and takes no adapter"):
        read_plan([f"m={embed}"], [f"a={embed}"])
    bare = write_bert(tmp_path / "bare.gguf", pooling=None)
    command = [sys.executable, "-m", "edge_agent.cli", "serve", "--model", f"m={bare}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "bare.gguf: an encoder, which writes no text, and bert.pooling_type does not say" in done.stderr


async def test_memory_is_forecast_with_the_longest_text(tmp_path: Path) -> None:
    short, long = (of_path(write_bert(tmp_path / f"{n}.gguf", context=n)) for n in (32, 2048))
    # Who attends to whom and the states of 2,048 tokens; keys and values are not kept.
    assert 8e6 < forecast_bytes(long) - forecast_bytes(short) < 12e6
    assert forecast_bytes(long, EngineSettings(context_tokens=256)) < forecast_bytes(long)
    engine = await EncoderProcess.start(long, EngineSettings(threads=1))
    try:
        await engine.ask(EncoderCall(("pump " * 2000,)))
        assert 0 < memory_of(engine.pid) < forecast_bytes(long)
    finally:
        await engine.close()
