"""Recipes for text encoders: ``task: embed`` and ``task: classify``.

Owns their sections, which settings go with which precision, and which metrics a budget can bound.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from compile.recipe.data import DataSource
from compile.recipe.distil import DistilLabels, DistilVectors, Prune
from compile.recipe.sections import BaseSource, RecipeBase, Section
from compile.recipe.tensorrt import TextTensorRt
from compile.recipe.training import FineTune
from models.manifest import Name

VariantType = Literal["int8-dynamic", "int8-static", "int8-blocks", "int4"]

_ONLY_WITH: dict[str, tuple[VariantType, ...]] = {
    "calibration": ("int8-static",),
    "percentile": ("int8-static",),
    "calibration_rows": ("int8-static",),
    "attention": ("int8-static",),
    "symmetric": ("int8-static",),
    "reduce_range": ("int8-dynamic", "int8-static"),
    "method": ("int4",),
    "block": ("int8-blocks", "int4"),
    "accuracy_level": ("int8-blocks", "int4"),
    "tables": ("int4",),
}


class TextSection(Section):
    """How the model reads text. What is left out is what the base's own files say."""

    max_tokens: int | None = Field(default=None, ge=8, le=8192)
    pooling: Literal["mean", "cls"] | None = None
    normalize: bool | None = None


class ExportSection(Section):
    """The ONNX export and what it may differ from torch by."""

    opset: int = Field(default=18, ge=14, le=21)
    max_difference: float = Field(default=1e-3, gt=0)
    min_cosine: float = Field(default=0.99999, gt=0, le=1)


class Mixed(Section):
    """Groups of nodes stay in float, those that lose most per byte first, until the loss on ``rows`` held-out
    texts is within ``max_loss`` (1 less the mean cosine; for a classifier the mean KL divergence) or the file
    would be larger than ``max_size_ratio`` of the float one."""

    max_loss: float = Field(gt=0)
    max_size_ratio: float = Field(default=0.3, gt=0, le=1)
    by: Literal["part", "block"] = "part"
    rows: int = Field(default=48, ge=8, le=1024)


class EncoderVariant(Section):
    """One precision.

    ``attention``: products of two activations in INT8, in float, or whichever measures better.
    ``accuracy_level`` 4: activations in INT8 by the block; 0: in float. ``symmetric``: signed activations
    around 0, as TensorRT wants them.
    """

    name: Name
    type: VariantType
    reduce_range: bool = True
    calibration: Literal["min-max", "entropy", "percentile"] = "min-max"
    percentile: float = Field(default=99.999, gt=50, le=100)
    calibration_rows: int = Field(default=64, ge=4, le=4096)
    attention: Literal["int8", "float", "measure"] = "measure"
    symmetric: bool = False
    method: Literal["rtn", "k-quant", "hqq"] = "rtn"
    block: Literal[16, 32, 64, 128, 256] = 32
    accuracy_level: Literal[0, 4] = 4
    tables: Literal[4, 8] = 8
    mixed: Mixed | None = None

    @model_validator(mode="after")
    def _settings_belong(self) -> "EncoderVariant":
        for key, types in _ONLY_WITH.items():
            if key in self.model_fields_set and self.type not in types:
                raise ValueError(f"{key} goes with {' and '.join(types)}, not with {self.type}")
        if self.method == "k-quant" and (self.block != 32 or self.tables != 8):
            raise ValueError("k-quant works in blocks of 32, with tables in 8 bits")
        return self

    @property
    def precision(self) -> str:
        """As a manifest says it."""
        return "INT4" if self.type == "int4" else "INT8"

    @property
    def not_for_tensorrt(self) -> str:
        """Why TensorRT cannot take it; empty where it can."""
        if self.type == "int8-dynamic":
            return "TensorRT has no dynamic quantization: quantize statically (int8-static, symmetric: true)"
        if self.type != "int8-static":
            return "products in blocks are an operator of ONNX Runtime's own, which TensorRT does not have"
        return "" if self.symmetric else "TensorRT's INT8 is symmetric: set symmetric: true"


class EncoderEvaluate(Section):
    """How much to measure. ``rows``: at most so many texts."""

    rows: int | None = Field(default=None, ge=16)
    speed_repeats: int = Field(default=5, ge=3)
    bootstrap: int = Field(default=1000, ge=200)
    shown: int = Field(default=200, ge=1, le=5000)


class _EncoderRecipe(RecipeBase):
    base: BaseSource
    data: DataSource
    text: TextSection = TextSection()
    prune: Prune | None = None
    finetune: FineTune | None = None
    export: ExportSection = ExportSection()
    variants: Annotated[tuple[EncoderVariant, ...], Field(min_length=1)]
    evaluate: EncoderEvaluate = EncoderEvaluate()
    tensorrt: TextTensorRt | None = None

    @model_validator(mode="after")
    def _can_be_pruned(self) -> "_EncoderRecipe":
        if self.prune is None:
            return self
        if self.prune.width is not None and self.prune.width.by == "taylor":
            raise ValueError("prune.width.by: taylor (the default) needs answers; texts need by: activation")
        heal = self.prune.heal
        unknown = heal.model_fields_set - {"training"} if heal is not None else set()
        if unknown:
            raise ValueError(f"prune.heal: an encoder heals by vectors, without {', '.join(sorted(unknown))}")
        return self

    @model_validator(mode="after")
    def _tensorrt_takes_it(self) -> "_EncoderRecipe":
        if self.tensorrt is not None:
            self.tensorrt.check({one.name: one.not_for_tensorrt for one in self.variants}, self.release)
            if self.tensorrt.variant == "reference" and self.reference != "itself":
                raise ValueError(f"tensorrt.variant: the reference is the {self.reference}; name a variant")
            longest, tokens = self.text.max_tokens, self.tensorrt.tokens
            if longest is not None and tokens is not None and tokens[2] > longest:
                raise ValueError(f"tensorrt.tokens: up to {tokens[2]}, and text.max_tokens is {longest}")
        return self

    @property
    def reference(self) -> Literal["itself", "base", "teacher"]:
        """Whose float export variants are held against: what is cut is held against the whole, what copies
        a teacher's vectors against the teacher, what learns a task against itself before it shrinks."""
        return "itself" if self.prune is None or self.finetune is not None else "base"


def _check_student(distil: DistilVectors | DistilLabels, finetune: FineTune | None) -> None:
    """A student is trained whole, by the objective of ``distil`` alone. Raises ``ValueError``."""
    if finetune is None or finetune.method != "full":
        raise ValueError("distil needs finetune with method: full, which says how the student is trained")
    if finetune.first_layer or finetune.class_weights == "balanced":
        raise ValueError("distil trains every layer, and weighs no class: leave first_layer, class_weights")


class EmbedRecipe(_EncoderRecipe):
    """A text embedder. Rows with a label are found by their label, rows with an answer by their answer.

    The base is what ships, cut by ``prune`` and taught by ``distil``, where these are given.
    """

    fixed_metrics: ClassVar[tuple[str, ...]] = (
        "cosine_mean",
        "cosine_p1",
        "similarity_spearman",
        "top1_agreement",
        "top10_overlap",
        "retrieval_accuracy",
        "retrieval_accuracy_ratio",
        "retrieval_precision",
        "retrieval_precision_ratio",
        "answer_rank",
        "answer_rank_ratio",
        "fallback_tensors",
        "size_ratio",
    )

    task: Literal["embed"]
    distil: DistilVectors | None = None

    @model_validator(mode="after")
    def _is_taught(self) -> "EmbedRecipe":
        if self.distil is not None:
            _check_student(self.distil, self.finetune)
        elif self.finetune is not None:
            raise ValueError("an embedder is fine-tuned by a teacher: finetune needs distil")
        return self

    @property
    def reference(self) -> Literal["itself", "base", "teacher"]:
        """See ``_EncoderRecipe``."""
        return "teacher" if self.distil is not None else super().reference

    @property
    def learns(self) -> bool:
        """Whether any row is learned from, so that only the others may be measured on."""
        return self.prune is not None or self.distil is not None


class ClassifyRecipe(_EncoderRecipe):
    """A text classifier. Without ``finetune`` the base is one already; with ``distil`` a teacher helps."""

    fixed_metrics: ClassVar[tuple[str, ...]] = (
        "accuracy",
        "accuracy_ratio",
        "macro_f1",
        "label_agreement",
        "kl_mean",
        "kl_p99",
        "fallback_tensors",
        "size_ratio",
    )

    task: Literal["classify"]
    distil: DistilLabels | None = None

    @model_validator(mode="after")
    def _is_taught(self) -> "ClassifyRecipe":
        if self.distil is not None:
            _check_student(self.distil, self.finetune)
        return self
