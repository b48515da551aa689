"""Recipes for pictures: ``task: inspect`` (good parts only, to a score, a verdict and a heat map) and
``task: classify-image``. Owns their sections and which metrics a budget can bound.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from compile.recipe.sections import BaseSource, RecipeBase, Section, Source
from compile.recipe.tensorrt import TensorRt
from models.manifest import ImageInput, Name

STRIDES = (2, 4, 8, 16, 16, 32, 32)
"""Pixels from one place of a stage to the next."""


_ATTENTION_PICTURES = 64
"""What attention costs in INT8 is measured on so many, where ``mixed`` does not say."""


class ImageData(Source):
    """A folder with a folder of images (JPEG, PNG) per label. ``max_pixels`` holds before decoding."""

    keep_good: bool = False
    max_pixels: int = Field(default=16_000_000, ge=1024)
    seed: int = 7


class InspectData(ImageData):
    """``good`` is the label of the good parts, ``defects`` those of the others, which are tested on only."""

    good: str
    defects: Annotated[tuple[str, ...], Field(min_length=1)]
    train: int = Field(default=200, ge=4)
    calibration: int = Field(default=128, ge=4)
    test: int = Field(default=200, ge=8)
    test_defects: int = Field(default=200, ge=8)

    @model_validator(mode="after")
    def _labels_differ(self) -> "InspectData":
        labels = (self.good, *self.defects)
        if len(set(labels)) != len(labels):
            raise ValueError("good and defects need different labels")
        return self


class LabelledData(ImageData):
    """``each``: at most so many images of a label."""

    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    each: int | None = Field(default=None, ge=5)

    @field_validator("labels")
    @classmethod
    def _differ(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels):
            raise ValueError("a label is listed twice")
        return labels


class ImageSection(Section):
    """What the model sees. Mean and standard deviation come with the base's weights."""

    width: int = Field(ge=32, le=1024)
    height: int = Field(ge=32, le=1024)
    resize: Literal["stretch", "shorter-side"] = "stretch"
    resize_to: int | None = Field(default=None, ge=32, le=2048)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    @model_validator(mode="after")
    def _can_be_cut(self) -> "ImageSection":
        ImageInput(**self.model_dump())
        return self


class Memory(Section):
    """The memory bank (PatchCore).

    ``stages`` of the backbone whose features are taken (1 is the finest), each averaged over squares of
    ``neighbourhood`` pixels, ``grid`` pixels apart; ``border`` places on each side are left out, because the
    network's padding shows there. ``whiten`` scales every direction in which good parts vary to the same
    length and keeps the ``directions`` of largest variance (all by default). ``patches`` are kept by greedy
    coreset selection in ``projection`` random directions; a score is re-weighted by the ``neighbours`` of the
    nearest kept patch. ``whole``: stages whose means over the whole picture are one more patch, compared in
    ``whole_directions`` directions with those of the good pictures.
    """

    stages: Annotated[tuple[int, ...], Field(min_length=1, max_length=4)] = (1,)
    neighbourhood: int = Field(default=12, ge=2, le=256)
    grid: int = Field(default=8, ge=2, le=64)
    border: int = Field(default=1, ge=0, le=8)
    whiten: bool = True
    directions: int | None = Field(default=None, ge=2)
    patches: int = Field(default=1000, ge=10, le=50_000)
    projection: int = Field(default=32, ge=2)
    neighbours: int = Field(default=9, ge=1)
    whole: tuple[int, ...] = (1,)
    whole_directions: int = Field(default=16, ge=2)
    seed: int = 0

    @field_validator("stages", "whole")
    @classmethod
    def _in_order(cls, stages: tuple[int, ...]) -> tuple[int, ...]:
        if list(stages) != sorted(set(stages)) or not all(1 <= stage <= 6 for stage in stages):
            raise ValueError("stages are numbers from 1 to 6, each once, in order")
        return stages


class Threshold(Section):
    """The share of good parts that may be rejected; holds for the next part, over calibrations."""

    false_reject_rate: float = Field(default=0.05, gt=0, lt=0.5)


class ImageMixed(Section):
    """Parts stay in float, those that lose most per byte first, until the mean KL divergence on ``pictures``
    of the calibration split is within ``max_loss``, or the file would be larger than ``max_size_ratio`` of
    the float one."""

    max_loss: float = Field(gt=0)
    max_size_ratio: float = Field(default=0.3, gt=0, le=1)
    pictures: int = Field(default=32, ge=8, le=512)


class ImageVariant(Section):
    """A precision. ``calibration`` sets the ranges of static INT8; ``symmetric`` is how TensorRT wants them.

    ``reduce_range``: weights of 7 bits, which no sum of AVX2 overflows. Convolutional networks lose more by
    it than transformers do; processors with VNNI, AMX or Arm's dot products can do without. ``attention``:
    products of two activations in INT8, in float, or whichever measures better. ``keep``: parts (``stem``,
    ``block0``, ...) that stay in float; ``mixed`` finds more of them by measurement.
    """

    name: Name
    type: Literal["fp32", "int8-static", "int8-dynamic"]
    calibration: Literal["min-max", "entropy", "percentile"] = "min-max"
    calibration_images: int = Field(default=32, ge=4, le=512)
    reduce_range: bool = True
    attention: Literal["int8", "float", "measure"] = "measure"
    symmetric: bool = False
    keep: tuple[str, ...] = ()
    mixed: ImageMixed | None = None

    @model_validator(mode="after")
    def _settings_belong(self) -> "ImageVariant":
        if self.mixed is not None and self.type != "int8-static":
            raise ValueError(f"mixed goes with int8-static, not with {self.type}")
        if "attention" in self.model_fields_set and self.type != "int8-static":
            raise ValueError(f"attention goes with int8-static, not with {self.type}")
        return self

    @property
    def measured_on(self) -> int:
        """How many pictures may be needed to find out what stays in float."""
        if self.mixed is not None:
            return self.mixed.pictures
        return _ATTENTION_PICTURES if self.type == "int8-static" and self.attention == "measure" else 0

    @property
    def not_for_tensorrt(self) -> str:
        """Why TensorRT cannot take it; empty where it can."""
        if self.type == "int8-dynamic":
            return "TensorRT has no dynamic quantization: quantize statically (int8-static, symmetric: true)"
        if self.type == "int8-static" and not self.symmetric:
            return "TensorRT's INT8 is symmetric: set symmetric: true"
        return ""


class ImageEvaluate(Section):
    """How much to measure. ``shown`` cases of each label go into the report."""

    speed_repeats: int = Field(default=30, ge=5)
    bootstrap: int = Field(default=2000, ge=200)
    shown: int = Field(default=2, ge=1, le=8)


class Head(Section):
    """A linear head on the backbone's pooled features, in place of the stored one. A base that is a
    classifier of transformers keeps its own."""

    strengths: Annotated[tuple[float, ...], Field(min_length=1)] = (0.01, 0.1, 1.0, 10.0)


class _ImageRecipe(RecipeBase):
    base: BaseSource
    image: ImageSection
    variants: Annotated[tuple[ImageVariant, ...], Field(min_length=1)]
    evaluate: ImageEvaluate = ImageEvaluate()
    tensorrt: TensorRt | None = None

    @model_validator(mode="after")
    def _tensorrt_takes_it(self) -> "_ImageRecipe":
        if self.tensorrt is not None:
            self.tensorrt.check({one.name: one.not_for_tensorrt for one in self.variants}, self.release)
        return self


class InspectRecipe(_ImageRecipe):
    """Anomaly detection from good parts."""

    task: Literal["inspect"]
    data: InspectData
    memory: Memory = Memory()
    threshold: Threshold = Threshold()

    @model_validator(mode="after")
    def _mixes_nothing(self) -> "InspectRecipe":
        if any(variant.mixed is not None for variant in self.variants):
            raise ValueError("mixed measures classifiers; for inspection name the parts to keep in float")
        return self

    @model_validator(mode="after")
    def _grid_fits(self) -> "InspectRecipe":
        strides = [STRIDES[stage - 1] for stage in self.memory.stages]
        if self.memory.grid < strides[0]:
            raise ValueError(
                f"memory.grid is at least {strides[0]}, the places of stage {self.memory.stages[0]}"
            )
        for side, length in (("width", self.image.width), ("height", self.image.height)):
            for step in (*strides, self.memory.grid):
                if length % step:
                    raise ValueError(f"image.{side} is a multiple of {step}, the distance of places")
            if length // self.memory.grid <= 2 * self.memory.border:
                raise ValueError(f"image.{side} has no places inside memory.border")
        return self

    fixed_metrics: ClassVar[tuple[str, ...]] = (
        "auroc",
        "false_reject_rate",
        "detection_rate",
        "score_correlation",
        "verdict_agreement",
        "fallback_tensors",
        "size_ratio",
    )

    @property
    def metrics(self) -> tuple[str, ...]:
        """With the AUROC and the detection rate of each kind of defect."""
        each = [f"{metric}_{label}" for label in self.data.defects for metric in ("auroc", "detection_rate")]
        return (*self.fixed_metrics, *each)


class ClassifyImageRecipe(_ImageRecipe):
    """A backbone with a head for labels of one's own."""

    task: Literal["classify-image"]
    data: LabelledData
    head: Head = Head()

    fixed_metrics: ClassVar[tuple[str, ...]] = (
        "accuracy",
        "macro_f1",
        "top1_agreement",
        "kl_mean",
        "kl_p99",
        "fallback_tensors",
        "size_ratio",
    )
