"""Adapters that can say nothing but their own name, by construction instead of training.

Whoever gets an answer of such an adapter sees whose it was. Two neurons of the first layer, fed the same
number ``z`` with opposite signs through gate and up (SwiGLU), add ``silu(z) * z + silu(-z) * -z``, which is
``z * z``, for any ``z``. So a LoRA adds, for random directions of what the layer reads, a sum of squares
times the direction of one token to the residual stream, large enough that every layer above sees little else:
the token comes out, and every key and value above the first layer is the adapter's own. A prefix that was
computed with one adapter and used with another could not go unnoticed.
"""

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

RANK = 8
_DRIVE = 30.0
"""How large ``z`` is, about: far from where the base's own gate matters."""
_STRENGTH = 30.0


def plant(base: Path, token: int, target: Path, seed: int = 0) -> Path:
    """Write a GGUF LoRA for ``base``, a Llama with tied embeddings, that always chooses ``token``.

    Raises ``ValueError`` for a token that another one would be chosen for.
    """
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(base).tensors}
    embeddings = _values(tensors["token_embd.weight"])
    scales = _values(tensors["output_norm.weight"])
    wanted = embeddings[token] - embeddings.mean(axis=0)
    direction = wanted / np.linalg.norm(wanted)
    if int((embeddings @ (direction * scales)).argmax()) != token:
        raise ValueError(f"token {token} does not come out of its own direction")
    width = embeddings.shape[1]
    neurons = tensors["blk.0.ffn_gate.weight"].shape[1]
    chance = np.random.default_rng(seed)
    read = chance.normal(0, _DRIVE / np.sqrt(width), (RANK, width))
    signs = np.zeros((neurons, RANK))
    for one in range(RANK):
        signs[2 * one, one], signs[2 * one + 1, one] = 1, -1
    pairs = {
        "ffn_gate": (read, signs),
        "ffn_up": (read, signs),
        "ffn_down": (np.abs(signs).T, np.outer(direction, np.full(RANK, _STRENGTH))),
    }
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    for name, halves in pairs.items():
        for half, values in zip(("lora_a", "lora_b"), halves, strict=True):
            writer.add_tensor(f"blk.0.{name}.weight.{half}", np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _values(tensor: gguf.ReaderTensor) -> np.ndarray:
    """float32, rows first."""
    return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)


def tokens_of(base: Path, texts: Sequence[str]) -> list[int]:
    """The ids of texts that are each one token after a space. Raises ``ValueError`` when one is not."""
    vocabulary = gguf.GGUFReader(base).fields["tokenizer.ggml.tokens"].contents()
    ids = {token: id for id, token in enumerate(vocabulary)}
    try:
        return [ids[f"\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}{text}"] for text in texts]
    except KeyError as error:
        raise ValueError(f"{error.args[0]!r} is not one token of {base.name}") from None
