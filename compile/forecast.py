"""What a step will take: peak memory, disk and time, from a model's sizes and constants measured here.

Owns the constants (``benchmarks/forecast_fit.py`` measures them; the table is in docs/profiles.md) and the
facts that they are multiplied with. Memory is predicted within 25 % for the models that we have; seconds are
those of two quiet cores and no more than an order. Refuses kinds of step that were never measured.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from compile.errors import BadRecipe
from models import safetensors
from models.forecast import UNCORRECTED, Corrections, Interval, fitting_profiles
from models.gguf import read_header
from models.workloads import workload_of

_RAM_OFF = 0.25
_CACHE_TOKENS = 4096
CONTEXT = 2048
"""Tokens of context that devices are forecast for."""


@dataclass(frozen=True)
class Facts:
    """Sizes of a model, and of what is done with it. ``weight_bytes``: of the variant at hand, 0 for float32.

    ``largest`` is the number of weights of the largest tensor, ``kv_width`` KV heads x head size; ``window``
    and ``batch`` are tokens at once, ``text_bytes`` the size of the held-out text, which is split whole.
    """

    parameters: int
    vocabulary: int
    layers: int
    hidden: int
    largest: int
    kv_width: int = 0
    weight_bytes: int = 0
    window: int = 0
    text_bytes: int = 0
    batch: int = 0

    @property
    def float_bytes(self) -> int:
        """In float32."""
        return 4 * self.parameters


@dataclass(frozen=True)
class Forecast:
    """What one step takes; ``ram`` with its interval."""

    seconds: float
    ram_bytes: int
    disk_bytes: int

    @property
    def ram(self) -> Interval:
        """The peak, and what it was within for every model that was measured."""
        return Interval(self.ram_bytes, self.ram_bytes * (1 - _RAM_OFF), self.ram_bytes * (1 + _RAM_OFF))


@dataclass(frozen=True)
class Cost:
    """Bytes of memory: ``fixed``, and per byte of float32 weights, of the variant's weights, of the largest
    tensor in float32, of the logits of a window, of the measuring engine's KV cache (4,096 tokens, float16),
    of activations (batch x hidden x layers x 4), and of the held-out text. Seconds: fixed, and per GB of
    float32 weights. Disk: per byte of float32 weights, or of the variant's.
    """

    fixed: float
    per_float: float = 0.0
    per_weight: float = 0.0
    per_largest: float = 0.0
    per_logits: float = 0.0
    per_cache: float = 0.0
    per_activation: float = 0.0
    per_text: float = 0.0
    seconds: float = 1.0
    seconds_per_gb: float = 0.0
    disk_per_float: float = 0.0
    disk_per_weight: float = 0.0


COSTS: Mapping[str, Cost] = MappingProxyType(
    {
        "import-gguf": Cost(493e6, per_largest=1.6, seconds=8, seconds_per_gb=60, disk_per_float=2.0),
        "import-folder": Cost(493e6, per_largest=1.6, seconds=8, seconds_per_gb=25, disk_per_float=2.0),
        "importance": Cost(69e6, per_float=1.05, per_logits=8.4, seconds=3, seconds_per_gb=60),
        "quantize-gguf": Cost(53e6, per_largest=1.0, seconds=1, seconds_per_gb=10, disk_per_weight=1.0),
        "measure-gguf": Cost(
            65e6, per_weight=0.94, per_cache=1.3, per_logits=8.0, seconds=2, seconds_per_gb=40
        ),
        # An adapter has a context, and so a cache, of its own beside the base's.
        "measure-gguf-adapter": Cost(
            65e6, per_weight=0.94, per_cache=2.6, per_logits=8.0, seconds=2, seconds_per_gb=40
        ),
        "export-genai-fp32": Cost(
            578e6, per_float=1.17, per_largest=0.76, seconds=9, seconds_per_gb=10, disk_per_float=1.0
        ),
        "export-genai-quantized": Cost(
            567e6, per_float=2.46, per_largest=3.7, seconds=9, seconds_per_gb=50, disk_per_weight=1.0
        ),
        "measure-genai": Cost(
            92e6, per_weight=1.08, per_logits=8.4, per_text=145.0, seconds=2, seconds_per_gb=50
        ),
        "finetune-lora": Cost(539e6, per_float=1.0, per_activation=56.0, seconds=10, seconds_per_gb=500),
        "finetune-full": Cost(540e6, per_float=3.9, per_activation=56.0, seconds=10, seconds_per_gb=900),
    }
)
"""Fitted to docs/profiles.md's table."""


def predict(kind: str, facts: Facts) -> Forecast:
    """What a step of ``kind`` takes on a model of these sizes. Raises ``BadRecipe`` for an unknown kind."""
    cost = COSTS.get(kind)
    if cost is None:
        raise BadRecipe(f"no forecast for steps of the kind {kind!r}; there are {', '.join(sorted(COSTS))}")
    weights = facts.weight_bytes or facts.float_bytes
    ram = (
        cost.fixed
        + cost.per_text * facts.text_bytes
        + cost.per_float * facts.float_bytes
        + cost.per_weight * weights
        + cost.per_largest * 4 * facts.largest
        + cost.per_logits * 4 * facts.window * facts.vocabulary
        + cost.per_cache * 2 * 2 * _CACHE_TOKENS * facts.layers * facts.kv_width
        + cost.per_activation * 4 * facts.batch * facts.hidden * facts.layers
    )
    return Forecast(
        seconds=cost.seconds + cost.seconds_per_gb * facts.float_bytes / 1e9,
        ram_bytes=round(ram),
        disk_bytes=round(cost.disk_per_float * facts.float_bytes + cost.disk_per_weight * weights),
    )


def facts_of(source: Path, window: int = 0, text_bytes: int = 0, batch: int = 0) -> Facts:
    """The sizes of a GGUF or of a Hugging Face folder, from headers alone.

    Raises ``UnsafeFile``, ``BadRecipe``.
    """
    if source.is_dir():
        headers = [safetensors.read_header(path) for path in sorted(source.glob("*.safetensors"))]
        sizes = {one.name: one.shape for header in headers for one in header.tensors}
        try:
            config = json.loads((source / "config.json").read_text(encoding="utf-8"))
            layers, hidden = int(config["num_hidden_layers"]), int(config["hidden_size"])
            vocabulary, heads = int(config["vocab_size"]), int(config["num_attention_heads"])
            size = int(config.get("head_dim") or hidden // heads)
            kv_width = size * int(config.get("num_key_value_heads") or heads)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadRecipe(f"{source.name}/config.json does not say the model's sizes: {error}") from error
        counts = [_product(shape) for shape in sizes.values()]
    else:
        read = read_header(source)
        architecture = read.architecture
        layers = read.integer(f"{architecture}.block_count") or 1
        hidden = read.integer(f"{architecture}.embedding_length") or 1
        heads = read.integer(f"{architecture}.attention.head_count") or 1
        size = read.integer(f"{architecture}.attention.key_length") or hidden // heads
        kv_width = size * (read.integer(f"{architecture}.attention.head_count_kv") or heads)
        counts = [tensor.elements for tensor in read.tensors]
        vocabulary = max(
            (max(tensor.shape) for tensor in read.tensors if "token_embd" in tensor.name), default=1
        )
    return Facts(
        parameters=sum(counts),
        vocabulary=vocabulary,
        layers=layers,
        hidden=hidden,
        largest=max(counts, default=0),
        kv_width=kv_width,
        window=window,
        text_bytes=text_bytes,
        batch=batch,
    )


def parameters_in(folder: Path) -> int:
    """Of the safetensors in a Hugging Face folder, from their headers. Raises ``UnsafeFile``."""
    headers = [safetensors.read_header(path) for path in sorted(folder.glob("*.safetensors"))]
    return sum(_product(one.shape) for header in headers for one in header.tensors)


def fitting(
    place: Path, precision: str, format: str | None = None, corrections: Corrections = UNCORRECTED
) -> tuple[str, ...]:
    """The device profiles that a variant fits, by forecast.

    ``precision`` as a recipe or a manifest says it. ``format``: that of the release, where the file alone
    does not say it. Raises ``UnsafeFile``.
    """
    load = workload_of(place, precision, CONTEXT)
    return fitting_profiles(load if format is None else replace(load, format=format), corrections)


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for one in shape:
        size *= one
    return size
