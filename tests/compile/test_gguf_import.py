"""The way from a quantized GGUF to a Hugging Face folder, tensor by tensor."""

import json

import numpy as np
import pytest
from gguf_models import Shape, write_llama

from compile.errors import UnsupportedBase
from compile.gguf.dequantize import compare, hf_name, llama_config, rows_of, write_safetensors
from compile.gguf.quantize import quantize
from models.engines.llama_cpp import LlamaEngine, LlamaSettings
from models.gguf import read_header

SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "unk_token_id": 0}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    quantize(write_llama(folder / "f32.gguf", Shape()), folder / "q.gguf", "Q4_K_M", 1)
    return folder / "q.gguf"


def test_weights_are_those_that_transformers_reads_and_shards_change_nothing(packed, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    header = read_header(packed)
    vocabulary = len(header.metadata["tokenizer.ggml.tokens"])
    expected = AutoModelForCausalLM.from_pretrained(
        packed.parent, gguf_file=packed.name, dtype=torch.float32, local_files_only=True
    ).state_dict()
    for name, shard in (("one", 1 << 30), ("many", 1 << 20)):
        folder = tmp_path / name
        folder.mkdir()
        write_safetensors(packed, header, folder, shard)
        (folder / "config.json").write_text(json.dumps(llama_config(header, vocabulary, SPECIAL)))
        ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        assert set(ours.state_dict()) == set(expected)
        assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    # The torch model and the engine say the same: names, row order and configuration are right.
    tokens = [5, 40, 77, 120, 9, 260]
    engine = LlamaEngine(packed, LlamaSettings(context_tokens=64, max_sequences=1, cache_tokens=64))
    theirs = engine.score(tokens)
    engine.close()
    with torch.no_grad():
        logits = ours(torch.tensor([tokens])).logits[0].numpy()
    assert np.corrcoef(logits.ravel(), theirs.ravel())[0, 1] > 0.999


def test_a_reference_that_differs_in_one_bit_is_named(packed, tmp_path):
    source = packed.parent / "f32.gguf"
    header = read_header(source)
    compare(source, header, source, header)
    content = bytearray(source.read_bytes())
    tensor = next(one for one in header.tensors if one.name == "blk.1.ffn_down.weight")
    content[tensor.offset + tensor.size - 1] ^= 1
    other = tmp_path / "other.gguf"
    other.write_bytes(content)
    with pytest.raises(UnsupportedBase, match=r"blk\.1\.ffn_down\.weight"):
        compare(source, header, other, read_header(other))


def test_rows_come_in_slabs_that_make_the_whole(packed):
    tensor = max(read_header(packed).tensors, key=lambda one: one.elements)
    with packed.open("rb") as file:
        whole = np.concatenate(list(rows_of(file, tensor)))
    assert whole.shape == (tensor.shape[1], tensor.shape[0]) and whole.dtype == np.float32


def test_what_has_no_place_in_a_llama_is_refused():
    with pytest.raises(UnsupportedBase, match="rope_freqs"):
        hf_name("rope_freqs.weight")
