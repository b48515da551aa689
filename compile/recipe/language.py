"""Recipes of causal language models (``task: generate``)."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from compile.recipe.data import DataSource
from compile.recipe.distil import DistilLogits, DistilSequences, Prune
from compile.recipe.sections import BaseSource, RecipeBase, Section, Source
from compile.recipe.training import FineTune
from models.manifest import Name

GgufType = Literal[
    "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_1", "Q5_0", "Q4_K_M", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS"
]
GenaiType = Literal["genai-fp32", "genai-int8", "genai-int4"]

FIDELITY = (
    "perplexity_ratio",
    "kl_mean",
    "kl_p99",
    "top_token_agreement",
    "fallback_tensors",
)
"""What every variant is measured in, whatever the data: against the reference, on held-out text."""
TEXT_METRICS = ("exact_match", "chrf", "bleu", "rouge_l", "answer_perplexity", "answer_agreement")
ADAPTER_METRICS = ("adapter_effect", "adapter_margin", "answer_kl")


class Prompt(Section):
    """What stands before the input. Short: every token of it is paid on every request."""

    system: str | None = None


class Calibration(Section):
    """Text from which an importance matrix and a mixed precision are computed; never that of ``evaluate``."""

    text: Source
    tokens: int = Field(default=8192, ge=512)


class Mixed(Section):
    """Tensors are kept in a ``higher`` type, the most sensitive first, until what is bounded holds.

    ``max_kl`` bounds the mean KL, ``max_flips`` the share of tokens whose most likely successor is another
    one than the reference's; both on the calibration text, at the upper end of the interval. Groups of
    tensors are tried one by one: all of a ``kind``, all of a ``layer``, or a kind in a layer.
    """

    max_kl: float | None = Field(default=None, gt=0)
    max_flips: float | None = Field(default=None, gt=0, lt=1)
    higher: GgufType = "Q8_0"
    by: Literal["kind", "layer", "layer-kind"] = "layer"

    @model_validator(mode="after")
    def _bounds_something(self) -> "Mixed":
        if self.max_kl is None and self.max_flips is None:
            raise ValueError("mixed sets max_kl, max_flips or both")
        return self


class Genai(Section):
    """How GenAI's builder quantizes; what is left out is as ``compile.onnx.genai.GenaiSettings`` has it."""

    algorithm: Literal["k_quant", "rtn"] | None = None
    block_size: Literal[16, 32, 64, 128, 256] | None = None
    accuracy_level: Literal[1, 4] | None = None
    eight_bits: tuple[str, ...] | None = None


class LanguageVariant(Section):
    """One precision of the base."""

    name: Name
    type: Literal[GgufType, GenaiType]
    importance: bool = False
    mixed: Mixed | None = None
    merged: bool = False
    genai: Genai | None = None

    @property
    def is_genai(self) -> bool:
        """Whether ONNX Runtime GenAI serves it, and not llama.cpp."""
        return self.type.startswith("genai-")

    @property
    def genai_precision(self) -> Literal["fp32", "int8", "int4"]:
        """As GenAI's builder is told. Raises ``ValueError`` for a GGUF type."""
        found: dict[str, Literal["fp32", "int8", "int4"]] = {
            "genai-fp32": "fp32",
            "genai-int8": "int8",
            "genai-int4": "int4",
        }
        if self.type not in found:
            raise ValueError(f"{self.type} is not a type of GenAI")
        return found[self.type]

    @property
    def genai_settings(self) -> dict[str, Any]:
        """What the variant says of GenAI's builder beside the precision."""
        return {} if self.genai is None else self.genai.model_dump(exclude_none=True)

    def is_merged(self, other: "LanguageVariant") -> bool:
        """Whether this is ``other`` but for the adapter, which is merged here and beside it there."""
        return self == other.model_copy(update={"name": self.name, "merged": True}) and not other.merged

    @model_validator(mode="after")
    def _goes_together(self) -> "LanguageVariant":
        if self.is_genai and (self.importance or self.mixed is not None or self.merged):
            raise ValueError("importance, mixed and merged are for GGUF types")
        if self.genai is not None and self.type not in ("genai-int8", "genai-int4"):
            raise ValueError("genai says how genai-int8 and genai-int4 are quantized")
        if self.genai is not None and self.genai.eight_bits and self.type != "genai-int4":
            raise ValueError("eight_bits is for genai-int4: a model in eight bits has no others to spare")
        return self


class Evaluate(Section):
    """How much to measure. The tokens of ``text`` are held out: no step trains or calibrates on them."""

    text: Source
    text_tokens: int = Field(default=3000, ge=256)
    window: int = Field(default=512, ge=64, le=4096)
    test_rows: int | None = Field(default=None, ge=8)
    before_rows: int = Field(default=24, ge=4)
    max_tokens: int = Field(default=64, ge=8, le=512)
    speed_repeats: int = Field(default=5, ge=3)
    bootstrap: int = Field(default=2000, ge=200)


class LanguageRecipe(RecipeBase):
    """A causal model: as it is, or fine-tuned on ``data``; with an adapter beside it, or changed itself."""

    task: Literal["generate"] = "generate"
    base: BaseSource
    data: DataSource | None = None
    prompt: Prompt = Prompt()
    prune: Prune | None = None
    distil: DistilLogits | DistilSequences | None = Field(default=None, discriminator="kind")
    finetune: FineTune | None = None
    continues: str | None = None
    calibration: Calibration | None = None
    variants: Annotated[tuple[LanguageVariant, ...], Field(min_length=1)]
    evaluate: Evaluate

    @model_validator(mode="after")
    def _goes_together(self) -> "LanguageRecipe":
        if self.data is None and self.calibration is None and (self.finetune or self.prune):
            raise ValueError("finetune and prune learn from data, or from the text of calibration")
        if self.distil is not None and (self.finetune is None or self.has_adapter):
            raise ValueError("distil needs finetune with method: full, which says how the student is trained")
        if isinstance(self.distil, DistilSequences) and self.data is None:
            raise ValueError("distil with kind: sequences needs data: the teacher answers its rows")
        if self.continues is not None and self.finetune is None:
            raise ValueError("continues needs finetune")
        if self.finetune is not None and self.finetune.method not in ("lora", "qlora", "full"):
            raise ValueError(
                f"finetune.method {self.finetune.method!r} trains virtual tokens, which neither llama.cpp "
                "nor ONNX Runtime GenAI attaches to a base: both know LoRA. Use lora or qlora for an "
                "adapter, full for a whole model; examples/training/compare_methods.py compares all of them"
            )
        if self.calibration is None and any(one.importance or one.mixed for one in self.variants):
            raise ValueError("a variant with importance or mixed needs a calibration text")
        if any(one.merged for one in self.variants) and not self.has_adapter:
            raise ValueError("merged needs an adapter: finetune with lora or qlora")
        return self

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter ships beside the base."""
        return self.finetune is not None and self.finetune.method in ("lora", "qlora")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Fidelity for every model, and what the data lets be scored."""
        found = list(FIDELITY)
        if self.data is not None and self.data.answer is not None:
            for name, field in self.data.answer.items():
                found += [f"{name}_accuracy", f"{name}_macro_f1"] if field.labels else [f"{name}_match"]
            found += ["exact_match", "valid_json", "answer_agreement"]
        elif self.data is not None:
            found += TEXT_METRICS
        return (*found, *(ADAPTER_METRICS if self.has_adapter else ()))
