"""The recipe's section on fine-tuning: method, shape, schedule, what ends it and what is done with long rows.

Owns names, defaults and which of them go together; refuses those that do not. What a method needs of the
machine is said by ``compile/training/methods.py``.
"""

from typing import Literal, get_args

from pydantic import Field, model_validator

from compile.recipe.sections import Section

Method = Literal["lora", "qlora", "full", "prefix", "p-tuning", "prompt"]

_LlamaTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LoraTarget = Literal[_LlamaTarget, "query", "key", "value", "dense"]
DEFAULT_TARGETS: tuple[LoraTarget, ...] = get_args(_LlamaTarget)
"""Every matrix of a Llama layer."""

_WITH_LAYERS = ("lora", "full")
_WITH_VIRTUAL = ("prefix", "p-tuning", "prompt")


class FineTune(Section):
    """How a model is fine-tuned.

    ``lora`` and ``qlora`` train an adapter of ``rank``, the latter over a base held in 4 bits (CUDA only);
    ``full`` trains every weight; ``prefix``, ``p-tuning`` and ``prompt`` train ``virtual_tokens`` that stand
    before every input. Layers below ``first_layer`` stay as they are, so what they compute is kept, not
    repeated. ``targets`` left at its default means every matrix of a layer, whatever the architecture.
    """

    method: Method = "lora"
    rank: int = Field(default=16, ge=1, le=256)
    alpha: int = Field(default=32, ge=1)
    targets: tuple[LoraTarget, ...] = Field(default=DEFAULT_TARGETS, min_length=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    first_layer: int = Field(default=0, ge=0)
    virtual_tokens: int = Field(default=16, ge=1, le=512)

    epochs: int = Field(default=2, ge=1, le=100)
    batch: int = Field(default=8, ge=1)
    accumulate: int = Field(default=1, ge=1, le=1024, description="Batches per step of the optimizer.")
    learning_rate: float = Field(default=6e-4, gt=0, lt=1)
    warmup: float = Field(default=0.06, ge=0, lt=1, description="Part of all steps in which the rate rises.")
    weight_decay: float = Field(default=0.0, ge=0, lt=1)
    patience: int | None = Field(
        default=None, ge=1, description="Epochs without a better one after which training ends."
    )
    best_by: Literal["loss", "metric"] = "loss"
    seed: int = Field(default=0, ge=0, lt=2**31)
    deterministic: bool = False

    label_weight: float = Field(default=3.0, gt=0, description="Loss weight of label fields' tokens.")
    field_weights: dict[str, float] = Field(default={}, description="The same, field by field.")
    class_weights: Literal["auto", "none", "balanced"] = "auto"
    preference_strength: float = Field(
        default=0.1, gt=0, le=10, description="Beta of DPO: how closely training stays with the reference."
    )
    max_tokens: int = Field(default=1024, ge=8, le=131072)
    too_long: Literal["refuse", "truncate"] = "refuse"

    @model_validator(mode="after")
    def _goes_together(self) -> "FineTune":
        if self.first_layer and self.method not in _WITH_LAYERS:
            raise ValueError(f"first_layer goes with {' and '.join(_WITH_LAYERS)}, not with {self.method}")
        if "virtual_tokens" in self.model_fields_set and self.method not in _WITH_VIRTUAL:
            raise ValueError(f"virtual_tokens goes with {', '.join(_WITH_VIRTUAL)}, not with {self.method}")
        if any(weight <= 0 for weight in self.field_weights.values()):
            raise ValueError("field_weights: every weight is above 0")
        return self
