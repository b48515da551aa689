"""A pruned model still is what llama.cpp runs: heads whose size is no share of the width any more."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import quiet

from compile.gguf.files import Converters
from compile.recipe.distil import Prune, PruneDepth, PruneWidth
from compile.training import prune
from compile.training.distil_causal import text_examples
from compile.training.examples import load_tokenizer
from compile.training.prune_heal import prune_causal
from compile.training.run import TrainingRun
from models.engines.llama_cpp import LlamaEngine, LlamaSettings

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "small_llama"))
from make import Sizes, make  # noqa: E402


@pytest.mark.model
def test_llama_cpp_gives_the_scores_of_the_pruned_model(tmp_path):
    sizes = Sizes(layers=3, hidden=64, intermediate=96, heads=4, kv_heads=2, vocabulary=512, context=128)
    make(tmp_path / "whole", sizes, None)
    text = (tmp_path / "whole" / "text" / "heldout.txt").read_text()[:600]
    tokenizer = load_tokenizer(tmp_path / "whole")
    data = text_examples([text], tokenizer, 64, None)
    cut = Prune(depth=PruneDepth(drop=1), width=PruneWidth(neurons=64, heads=2, by="activation"), heal=None)
    prune_causal(
        tmp_path / "whole",
        cut,
        data,
        data,
        TrainingRun(tmp_path / "cut", tmp_path / "scratch", 1, lambda: 0.0, quiet),
    )
    assert not (tmp_path / "cut" / "made.json").exists()
    Converters(ROOT / ".cache" / "llama.cpp-0.3.36").base(tmp_path / "cut", tmp_path / "cut.gguf")
    engine = LlamaEngine(
        tmp_path / "cut.gguf", LlamaSettings(threads=1, context_tokens=128, cache_tokens=128)
    )
    ids = tokenizer.encode(text).ids[:100]
    with torch.no_grad():
        wanted = prune.load(tmp_path / "cut")(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(engine.score(ids) - wanted).max() < 0.02
    engine.close()
