"""The small Llama of ``examples/small_llama``: into llama.cpp with equal ids and scores."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from compile.evaluate.tokens import first_difference, readings
from compile.gguf.convert_child import splitting_rule
from compile.gguf.files import Converters
from models.engines.llama_cpp import LlamaEngine, LlamaSettings
from models.gguf import read_header

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "small_llama"))
from make import Sizes, Training, make, news  # noqa: E402

TINY = Sizes(layers=1, hidden=64, intermediate=96, heads=2, kv_heads=1, vocabulary=512, context=128)
QUICK = Training(epochs=1, window=128, batch=32, learning_rate=5e-3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    return folder, make(folder, TINY, QUICK)


@pytest.mark.model
def test_llama_cpp_reads_its_ids_and_gives_its_scores(tiny, tmp_path):
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    folder, _ = tiny
    gguf = tmp_path / "tiny.gguf"
    Converters(ROOT / ".cache" / "llama.cpp-0.3.36").base(folder, gguf)
    header = read_header(gguf)
    assert header.text("tokenizer.ggml.pre") == "smollm"
    engine = LlamaEngine(gguf, LlamaSettings(threads=1, context_tokens=128, cache_tokens=128))
    known = readings(Tokenizer.from_file(str(folder / "tokenizer.json")), None)
    assert not first_difference(known, engine.tokenize)
    ids = engine.tokenize((folder / "text" / "heldout.txt").read_text()[:300], False, False)[:100]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0].numpy()
    # llama.cpp keeps its keys and values in half precision.
    assert np.abs(engine.score(ids) - wanted).max() < 0.02
    engine.close()


def test_the_same_seed_gives_the_same_bytes_and_no_held_out_article_is_trained_on(tiny, tmp_path):
    folder, made = tiny
    again = make(tmp_path, TINY, QUICK)
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (folder / file).read_bytes() == (tmp_path / file).read_bytes()
    assert again == made and made["curve"][-1]["heldout_loss"] < np.log(TINY.vocabulary)
    train, held = news()
    assert len(held) == 30 and not set(train) & set(held)


def test_rows_of_the_default_size_divide_by_256(tmp_path):
    from safetensors import safe_open

    make(tmp_path, Sizes(layers=2), None)
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    assert all(shape[-1] % 256 == 0 for shape in shapes.values())
    assert json.loads((tmp_path / "made.json").read_text())["training"] is None


def test_only_a_splitting_rule_that_llama_cpp_has_gets_a_name(tiny):
    tokenizer = json.loads((tiny[0] / "tokenizer.json").read_text())
    assert splitting_rule(tokenizer) == "smollm"
    digits, byte_level = tokenizer["pre_tokenizer"]["pretokenizers"]
    assert splitting_rule(tokenizer | {"pre_tokenizer": byte_level}) == "gpt-2"
    for other in (
        {"pre_tokenizer": byte_level | {"add_prefix_space": True}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [byte_level, digits]}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [digits | {"individual_digits": False}, byte_level],
            }
        },
        {"pre_tokenizer": None},
        {"normalizer": {"type": "NFC"}},
        {"model": {"type": "Unigram"}},
    ):
        assert splitting_rule(tokenizer | other) is None
