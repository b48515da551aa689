"""Importance read from the engine, held against a reading in torch of the same model."""

import json

import numpy as np
import pytest
from gguf_models import Shape, calibration_text, write_llama
from safetensors.numpy import load_file, save_file

from compile.errors import BadData
from compile.gguf.importance import importance, windows_of
from compile.gguf.importance_file import describe
from compile.gguf.quantize import quantize
from models.engines.llama_cpp import LlamaEngine, LlamaSettings
from models.errors import UnsafeFile
from models.gguf import TensorType


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("importance")
    model = write_llama(folder / "f32.gguf", Shape(layers=2, heads=4, kv_heads=4))
    text = calibration_text(folder / "text.txt")
    facts = importance(model, text, folder / "importance.safetensors", 1, 200, 64)
    return model, text, folder / "importance.safetensors", facts


def test_every_matrix_has_the_mean_square_of_what_it_multiplies(measured):
    import torch
    from transformers import AutoModelForCausalLM

    model, text, file, facts = measured
    torch_model = AutoModelForCausalLM.from_pretrained(
        model.parent, gguf_file=model.name, dtype=torch.float32, local_files_only=True
    )
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    sums = {}

    def hook(name):
        def add(module, inputs):
            sums[name] = sums.get(name, 0) + inputs[0].double().pow(2).sum(dim=(0, 1))

        return add

    for number, layer in enumerate(torch_model.model.layers):
        for theirs, ours in names.items():
            layer.get_submodule(theirs).register_forward_pre_hook(hook(f"blk.{number}.{ours}.weight"))
    torch_model.lm_head.register_forward_pre_hook(hook("output.weight"))
    engine = LlamaEngine(model, LlamaSettings(context_tokens=64, max_sequences=1, cache_tokens=64))
    tokens = engine.tokenize(text.read_text(), False, True)[:200]
    engine.close()
    windows = windows_of(tokens, 64, None)
    with torch.no_grad():
        for window in windows:
            torch_model(torch.tensor([window]))
    assert facts.tokens == sum(map(len, windows)) == 192
    stored = load_file(file)
    assert set(stored) == set(sums)
    for name, values in stored.items():
        # The engine keeps keys and values as float16, so what follows differs in the fourth digit.
        np.testing.assert_allclose(values, sums[name].numpy() / facts.tokens, rtol=5e-3, atol=1e-7)


def test_the_file_names_its_text_and_its_model(measured):
    _, _, file, facts = measured
    assert describe(file) == facts and facts.text.startswith("sha256:") and facts.model != facts.text


def test_quantization_rounds_with_more_care_where_inputs_are_strong(measured, tmp_path):
    """The error that importance minimises, the weighted one, falls for every matrix."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    model, _, file, _ = measured
    weights = load_file(file)
    quantize(model, tmp_path / "plain.gguf", "IQ4_NL", 1)
    quantize(model, tmp_path / "weighted.gguf", "IQ4_NL", 1, file)

    def errors(path):
        truth = {tensor.name: tensor.data for tensor in GGUFReader(model).tensors}
        return {
            tensor.name: float(
                (
                    (dequantize(tensor.data, tensor.tensor_type) - truth[tensor.name]) ** 2
                    * weights[tensor.name]
                ).sum()
            )
            for tensor in GGUFReader(path).tensors
            if tensor.name in weights and tensor.tensor_type == TensorType.IQ4_NL
        }

    plain, weighted = errors(tmp_path / "plain.gguf"), errors(tmp_path / "weighted.gguf")
    assert len(plain) >= 12 and all(weighted[name] < plain[name] for name in plain)


def test_calibration_text_that_is_too_short_or_no_text_is_refused(measured, tmp_path):
    model, *_ = measured
    (tmp_path / "short.txt").write_text("the cat")
    with pytest.raises(BadData, match=r"short\.txt: .* tokens of calibration text"):
        importance(model, tmp_path / "short.txt", tmp_path / "out", 1, 64)
    (tmp_path / "latin.txt").write_bytes("für".encode("latin-1"))
    with pytest.raises(BadData, match="UTF-8"):
        importance(model, tmp_path / "latin.txt", tmp_path / "out", 1, 64)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_importance_matrix_is_refused(tmp_path):
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "other.safetensors", metadata={"x": json.dumps({})})
    for name, content in (("empty", b""), ("bomb", (1 << 40).to_bytes(8, "little"))):
        (tmp_path / name).write_bytes(content)
    for name in ("other.safetensors", "empty", "bomb", "missing"):
        with pytest.raises(UnsafeFile):
            describe(tmp_path / name)
