"""Which type each tensor gets: by design, by override, and by falling back. Pure.

``llama_model_quantize`` gives some tensors of a "mostly X" file another type on purpose (Q4_K_M keeps half of
its ``ffn_down`` at Q6_K), and others because their rows do not divide into blocks. ``designed`` is the
first, a port of ``llama_tensor_get_type_impl`` (llama.cpp, ``src/llama-quant.cpp``, as in llama-cpp-python
0.3.36) as it decides on rows that divide; ``settled`` the second, a port of ``tensor_type_fallback``. Held
against the library itself by ``tests/compile/test_gguf_mixture.py``. Refuses types that need an importance
matrix, when there is none, and expert mixtures, whose rules were not ported.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compile.errors import BadRecipe, UnsupportedBase
from models.gguf import GgufHeader, Tensor, TensorType, block_of

_T = TensorType

FILE_TYPES: Mapping[str, TensorType] = {
    "F32": _T.F32,
    "F16": _T.F16,
    "Q8_0": _T.Q8_0,
    "Q6_K": _T.Q6_K,
    "Q5_K_M": _T.Q5_K,
    "Q5_1": _T.Q5_1,
    "Q5_0": _T.Q5_0,
    "Q4_K_M": _T.Q4_K,
    "Q4_1": _T.Q4_1,
    "Q4_0": _T.Q4_0,
    "IQ4_NL": _T.IQ4_NL,
    "IQ4_XS": _T.IQ4_XS,
    "IQ3_S": _T.IQ3_S,
    "IQ3_XXS": _T.IQ3_XXS,
    "IQ2_S": _T.IQ2_XS,
    "IQ2_XS": _T.IQ2_XS,
    "IQ2_XXS": _T.IQ2_XXS,
    "IQ1_M": _T.IQ1_M,
    "IQ1_S": _T.IQ1_S,
}
"""What a file may be asked to be, and the tensor type that most of it then has."""

NEED_IMPORTANCE = frozenset({"IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"})
"""Below about three bits, rounding without weights leaves noise: llama.cpp refuses it, and so does this."""

IMPORTANCE_TOKENS = "outpost.importance.tokens"
IMPORTANCE_TEXT = "quantize.imatrix.dataset"
"""In the metadata of a file that was quantized with an importance matrix; the second is llama.cpp's own."""

PORTED = frozenset(FILE_TYPES) - NEED_IMPORTANCE - {"IQ3_S"}
"""File types whose designed mixture is known here tensor by tensor."""

_OWN_RULES = frozenset({"falcon", "glm5-next", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "t5"})
"""Architectures for which llama.cpp has rules of their own."""
_QUARTERS = frozenset({"IQ4_NL", "IQ4_XS"})
_UNQUANTIZED = frozenset({_T.F32, _T.F16, _T.BF16})
_TOKEN_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_KEPT = (
    *("_norm.weight", "ffn_gate_inp.weight", "attn_rel_b.weight", "per_layer_model_proj", "altup", "laurel"),
    *("ssm_conv1d", "shortconv.conv.weight", ".position_embd", ".patch_embd"),
)
_KEPT_WHOLE = frozenset({"position_embd.weight", "token_types.weight"})

_SMALLER_BLOCKS: Mapping[TensorType, TensorType] = {
    _T.IQ1_S: _T.IQ4_NL,
    _T.IQ1_M: _T.IQ4_NL,
    _T.IQ2_XXS: _T.IQ4_NL,
    _T.IQ2_XS: _T.IQ4_NL,
    _T.IQ2_S: _T.IQ4_NL,
    _T.IQ3_XXS: _T.IQ4_NL,
    _T.IQ3_S: _T.IQ4_NL,
    _T.IQ4_XS: _T.IQ4_NL,
    _T.Q2_K: _T.Q4_0,
    _T.Q3_K: _T.Q4_0,
    _T.Q4_K: _T.Q5_0,
    _T.Q5_K: _T.Q5_1,
    _T.Q6_K: _T.Q8_0,
}


@dataclass(frozen=True, slots=True)
class Override:
    """One tensor that is to have a type of its own, whatever the mixture says."""

    tensor: str
    type: TensorType

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,63}", self.tensor):
            raise BadRecipe(f"{self.tensor!r} is not the name of a tensor")


def check_kind(kind: str, importance: bool) -> None:
    """Raise ``BadRecipe`` for a file type that is unknown, or lacks the importance matrix that it needs."""
    if kind not in FILE_TYPES:
        raise BadRecipe(f"type {kind!r} is not known; known are {', '.join(FILE_TYPES)}")
    if kind in NEED_IMPORTANCE and not importance:
        raise BadRecipe(
            f"{kind} needs an importance matrix: below about three bits rounding without one leaves noise. "
            "Give calibration text, or take IQ4_XS or a larger type"
        )


def is_quantized(tensor: Tensor) -> bool:
    """Whether llama.cpp quantizes this tensor at all: matrices, but no norms, gates or position tables."""
    name = tensor.name
    return (
        sum(size > 1 for size in tensor.shape[1:]) > 0
        and name.endswith("weight")
        and name not in _KEPT_WHOLE
        and not any(part in name for part in _KEPT)
    )


def designed(
    header: GgufHeader, kind: str, importance: bool = False, overrides: Sequence[Override] = ()
) -> dict[str, TensorType]:
    """The type that every quantized tensor of a ``kind`` file has if its rows divide into blocks.

    Raises ``BadRecipe`` for an override of a tensor that is not there or is not quantized, and
    ``UnsupportedBase`` for an architecture with rules of its own.
    """
    if kind not in PORTED:
        raise BadRecipe(f"the mixture of {kind} is not known tensor by tensor; known: {sorted(PORTED)}")
    if header.integer(f"{header.architecture}.expert_count") or header.architecture in _OWN_RULES:
        raise UnsupportedBase(f"a {header.architecture!r} model with experts or rules of its own: not ported")
    if overrides and FILE_TYPES[kind] in _UNQUANTIZED:
        raise BadRecipe(f"{kind} is no quantization: it takes no overrides")
    matrices = [tensor for tensor in header.tensors if is_quantized(tensor)]
    # llama.cpp visits tensors layer by layer, and its rules count what they have seen.
    matrices.sort(key=lambda tensor: (_layer(tensor.name), tensor.name))
    facts = _Facts(
        kind,
        importance,
        layers=header.integer(f"{header.architecture}.block_count") or 0,
        values=sum("attn_v.weight" in t.name or "attn_qkv.weight" in t.name for t in header.tensors),
        queries_per_key=_queries_per_key(header),
        tied=all(tensor.name != _OUTPUT for tensor in header.tensors),
    )
    result, seen = {}, {"attn_v": 0, "ffn_down": 0}
    for tensor in matrices:
        result[tensor.name] = _mixture(tensor, facts, seen)
    for override in overrides:
        if override.tensor not in result:
            raise BadRecipe(f"an override names {override.tensor!r}, which is no tensor that is quantized")
        result[override.tensor] = override.type
    return result


def settled(tensor: Tensor, wanted: TensorType) -> TensorType:
    """What ``wanted`` becomes for a tensor whose rows do not divide into its blocks."""
    row = tensor.shape[0]
    if row % block_of(wanted)[0] == 0:
        return wanted
    smaller = _SMALLER_BLOCKS.get(wanted, wanted)
    return smaller if row % block_of(smaller)[0] == 0 else _T.F16


def size_of(tensor: Tensor, kind: TensorType) -> int:
    """Bytes of ``tensor`` once it has the type ``kind``, its fallback included."""
    per_block, block_bytes = block_of(settled(tensor, kind))
    return tensor.elements // per_block * block_bytes


@dataclass(frozen=True, slots=True)
class _Facts:
    kind: str
    importance: bool
    layers: int
    values: int
    queries_per_key: int
    tied: bool


def _mixture(tensor: Tensor, facts: _Facts, seen: dict[str, int]) -> TensorType:
    name, kind = tensor.name, facts.kind
    default = FILE_TYPES[kind]
    if default in _UNQUANTIZED:
        return default
    if name == _OUTPUT or (facts.tied and name == _TOKEN_EMBEDDING):
        return default if default is _T.Q8_0 else _T.Q6_K
    if "attn_qkv.weight" in name or "attn_kv_b.weight" in name or "attn_v.weight" in name:
        at, seen["attn_v"] = seen["attn_v"], seen["attn_v"] + 1
        if kind in _QUARTERS and facts.queries_per_key >= 4:
            return _T.Q5_K
        return _T.Q6_K if kind in ("Q4_K_M", "Q5_K_M") and _more_bits(at, facts.values) else default
    if "ffn_down" in name:
        at, seen["ffn_down"] = seen["ffn_down"], seen["ffn_down"] + 1
        if kind in ("Q4_K_M", "Q5_K_M"):
            return _T.Q6_K if _more_bits(at, facts.layers) else default
        if at < facts.layers // 8:
            if kind in _QUARTERS and not facts.importance:
                return _T.Q5_K
            # Even with an importance matrix the first of these go astray at four bits without an offset.
            if kind in ("Q4_0", "Q5_0") and facts.importance:
                return _T.Q4_1 if kind == "Q4_0" else _T.Q5_1
    return default


def _more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _queries_per_key(header: GgufHeader) -> int:
    heads = header.integer(f"{header.architecture}.attention.head_count")
    keys = header.integer(f"{header.architecture}.attention.head_count_kv") or heads
    return heads // keys if heads and keys else 1
