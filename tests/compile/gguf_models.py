"""Small Llamas as GGUF files with random weights, made at once: laws of files do not depend on training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

_TEXT = "the cat sat on a mat and saw what was there but not why it came from here to you"
_WORDS = tuple(_TEXT.split(" "))


@dataclass(frozen=True)
class Shape:
    """``width`` is the row length of most matrices; heads have ``width // heads`` numbers."""

    layers: int = 2
    width: int = 256
    inner: int = 512
    heads: int = 4
    kv_heads: int = 2
    tied: bool = False
    seed: int = 0


def write_llama(
    path: Path,
    shape: Shape = Shape(),
    control: tuple[str, ...] = (),
    architecture: Literal["llama", "qwen2vl"] = "llama",
) -> Path:
    """An F32 GGUF that the engine loads: byte-level BPE over 256 bytes, words and two special tokens.

    ``control``: the texts of further control tokens. qwen2vl: the same, with positions of several axes.
    """
    from gguf import GGUFWriter

    chance = np.random.default_rng(shape.seed)
    tokens, merges = _vocabulary()
    kinds = [3, 3] + [1] * (len(tokens) - 2) + [3] * len(control)
    tokens += control
    writer = GGUFWriter(path, architecture)
    if architecture == "qwen2vl":
        axis = shape.width // shape.heads // 8
        writer.add_rope_dimension_sections([2 * axis, axis, axis, 0])
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    keys = shape.width // shape.heads * shape.kv_heads

    def matrix(name: str, rows: int, columns: int) -> None:
        # Columns differ in size, as those of trained models do: that is what importance is about.
        scale = np.exp(chance.normal(0, 0.7, columns)) / np.sqrt(columns)
        values = chance.standard_normal((rows, columns)) * scale
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", chance.uniform(0.2, 2, shape.width).astype(np.float32))

    matrix("token_embd", len(tokens), shape.width)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm")
        matrix(f"{block}.attn_q", shape.width, shape.width)
        matrix(f"{block}.attn_k", keys, shape.width)
        matrix(f"{block}.attn_v", keys, shape.width)
        matrix(f"{block}.attn_output", shape.width, shape.width)
        norm(f"{block}.ffn_norm")
        matrix(f"{block}.ffn_gate", shape.inner, shape.width)
        matrix(f"{block}.ffn_up", shape.inner, shape.width)
        matrix(f"{block}.ffn_down", shape.width, shape.inner)
    norm("output_norm")
    if not shape.tied:
        matrix("output", len(tokens), shape.width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_lora(path: Path, base: Path, strength: float, rank: int = 4, seed: int = 1) -> Path:
    """A LoRA on every matrix of every layer; ``strength`` is its size beside the weight's."""
    from gguf import GGUFReader, GGUFWriter

    chance = np.random.default_rng(seed)
    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0 * rank)
    for tensor in GGUFReader(base).tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            rows, columns = tensor.data.shape
            size = strength * float(np.abs(tensor.data).mean()) / 2
            a = chance.standard_normal((rank, columns)) / np.sqrt(rank)
            b = chance.standard_normal((rows, rank)) * size
            writer.add_tensor(f"{tensor.name}.lora_a", a.astype(np.float16))
            writer.add_tensor(f"{tensor.name}.lora_b", b.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def calibration_text(path: Path, words: int = 600) -> Path:
    """Text of the words that the vocabulary knows."""
    chance = np.random.default_rng(7)
    path.write_text(" ".join(chance.choice(_WORDS, words)), encoding="utf-8")
    return path


def _vocabulary() -> tuple[list[str], list[str]]:
    alphabet = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    spelled = {byte: chr(byte) for byte in alphabet}
    for byte in range(256):
        spelled.setdefault(byte, chr(256 + len(spelled) - len(alphabet)))
    tokens, merges = ["<s>", "</s>", *(spelled[byte] for byte in range(256))], []
    for word in sorted(set(_WORDS)):
        left = "Ġ"
        for letter in word:
            merges.append(f"{left} {letter}")
            left += letter
            tokens.append(left)
    return list(dict.fromkeys(tokens)), list(dict.fromkeys(merges))
