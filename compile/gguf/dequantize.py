"""A GGUF's tensors as float32, a few rows at a time: no model is ever whole in memory.

Owns the way back from llama.cpp's names, row order and metadata to a Hugging Face folder for the Llama
architecture (the inverse of ``conversion/llama.py``), and the comparison of two files tensor by tensor.
Refuses a tensor that has no place in such a folder. Files are read, not mapped, so that peak memory is what
is held: two slabs of rows, or one attention matrix, whose rows change places.

Format written: https://github.com/huggingface/safetensors#format
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from compile.errors import UnsupportedBase
from models.gguf import GgufHeader, Tensor, TensorType, block_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_SLAB_NUMBERS = 4 << 20
SHARD_BYTES = 4 << 30

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE = re.compile(r"\.rope\.(?!dimension_count$|freq_base$)")


def hf_name(name: str) -> str:
    """The Hugging Face name of a Llama's GGUF tensor. Raises ``UnsupportedBase``."""
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if found and found[2] in _IN_LAYER:
        return f"model.layers.{found[1]}.{_IN_LAYER[found[2]]}.{found[3]}"
    if name not in _WHOLE:
        raise UnsupportedBase(f"the tensor {name!r} has no place in a Llama")
    return _WHOLE[name]


def llama_config(header: GgufHeader, vocabulary: int, special: Mapping[str, int]) -> dict[str, Any]:
    """``config.json`` of a Llama. Raises ``UnsupportedBase`` for what it could not say."""
    scaled = sorted(key for key in header.metadata if _ROPE.search(key))
    if scaled:
        raise UnsupportedBase(f"scaled rotary positions ({scaled[0]}) are not carried over")
    names = {tensor.name for tensor in header.tensors}
    heads, width = _number(header, "attention.head_count"), _number(header, "embedding_length")
    size = header.integer("llama.attention.key_length") or width // heads
    rope = header.metadata.get("llama.rope.freq_base", 10_000.0)
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": any(name.endswith("attn_q.bias") for name in names),
        "attention_dropout": 0.0,
        **special,
        "dtype": "float32",
        "head_dim": size,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": _number(header, "feed_forward_length"),
        "max_position_embeddings": _number(header, "context_length"),
        "mlp_bias": any(name.endswith("ffn_up.bias") for name in names),
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": _number(header, "block_count"),
        "num_key_value_heads": header.integer("llama.attention.head_count_kv") or heads,
        "rms_norm_eps": _shortest(header.metadata.get("llama.attention.layer_norm_rms_epsilon", 1e-6)),
        "rope_scaling": None,
        "rope_theta": _shortest(rope),
        "tie_word_embeddings": "output.weight" not in names,
        "vocab_size": vocabulary,
    }


def write_safetensors(source: Path, header: GgufHeader, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write every tensor of ``source`` as float32 safetensors under Hugging Face's names into ``folder``.

    Files of about ``shard_bytes`` with an index, or one file when it fits.
    """
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in header.tensors:
        if shards[-1] and filled + tensor.elements * 4 > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.elements * 4
    where: dict[str, str] = {}
    for number, tensors in enumerate(shards):
        one = len(shards) == 1
        name = "model.safetensors" if one else f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        where |= {hf_name(tensor.name): name for tensor in tensors}
        with source.open("rb") as file, (folder / name).open("wb") as target:
            _write_shard(file, header, tensors, target)
    if len(shards) > 1:
        total = sum(tensor.elements * 4 for tensor in header.tensors)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def compare(source: Path, ours: GgufHeader, reference: Path, theirs: GgufHeader) -> None:
    """Every tensor of the reference is bit for bit what the source dequantizes to, and there is no other.

    Raises ``UnsupportedBase`` naming the tensor.
    """
    import numpy as np

    there = {tensor.name: tensor for tensor in theirs.tensors}
    strange = there.keys() - {tensor.name for tensor in ours.tensors}
    if strange:
        raise UnsupportedBase(f"the reference has a tensor of its own: {min(strange)}")
    with source.open("rb") as file, reference.open("rb") as other:
        for tensor in ours.tensors:
            twin = there.get(tensor.name)
            if twin is None or twin.shape != tensor.shape:
                raise UnsupportedBase(f"the reference lost the tensor {tensor.name}")
            for wanted, got in zip(rows_of(file, tensor), rows_of(other, twin), strict=True):
                if not np.array_equal(wanted, got):
                    raise UnsupportedBase(f"the tensor {tensor.name} of the reference is not the source's")


def rows_of(file: IO[bytes], tensor: Tensor) -> "Iterator[npt.NDArray[np.float32]]":
    """The rows of ``tensor`` in slabs: float32 [rows, row length]. Raises ``UnsupportedBase``."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    length = tensor.shape[0]
    rows = tensor.elements // length
    per_block, block_bytes = block_of(tensor.type)
    row_bytes = length // per_block * block_bytes
    slab = max(1, _SLAB_NUMBERS // length)
    file.seek(tensor.offset)
    for at in range(0, rows, slab):
        count = min(slab, rows - at)
        raw = np.frombuffer(file.read(count * row_bytes), dtype=np.uint8).reshape(count, row_bytes)
        if tensor.type is TensorType.F32:
            yield raw.view("<f4")
            continue
        try:
            values = dequantize(raw, GGMLQuantizationType(int(tensor.type)))
        except (NotImplementedError, ValueError) as error:
            raise UnsupportedBase(f"{tensor.name}: {tensor.type.name} cannot be dequantized here") from error
        yield values.astype("<f4", copy=False)


def _write_shard(file: IO[bytes], header: GgufHeader, tensors: list[Tensor], target: IO[bytes]) -> None:
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        end = at + tensor.elements * 4
        shape = list(reversed(tensor.shape))
        described[hf_name(tensor.name)] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    target.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
        heads = _heads(header, tensor.name)
        if heads is None:
            for slab in rows_of(file, tensor):
                target.write(slab.tobytes())
        else:
            target.write(_in_halves(file, tensor, heads).tobytes())


def _heads(header: GgufHeader, name: str) -> int | None:
    """The heads of a matrix whose rows llama.cpp keeps interleaved for its rotary positions."""
    if re.search(r"\.attn_q\.", name):
        return _number(header, "attention.head_count")
    if re.search(r"\.attn_k\.", name):
        return header.integer("llama.attention.head_count_kv") or _number(header, "attention.head_count")
    return None


def _in_halves(file: IO[bytes], tensor: Tensor, heads: int) -> "npt.NDArray[np.float32]":
    import numpy as np

    values = np.concatenate(list(rows_of(file, tensor))).reshape(tuple(reversed(tensor.shape)))
    rows = values.shape[0]
    if rows % (2 * heads):
        raise UnsupportedBase(f"{tensor.name}: {rows} rows for {heads} heads")
    halves = values.reshape(heads, rows // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def _number(header: GgufHeader, key: str) -> int:
    value = header.integer(f"llama.{key}")
    if value is None:
        raise UnsupportedBase(f"the GGUF has no llama.{key}")
    return value


def _shortest(value: object) -> float:
    """A float32 as the decimal that people wrote: 1e-05, not 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(float(str(value)))))
