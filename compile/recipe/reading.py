"""Recipes for models that read: ``task: ocr`` (text in pictures) and ``task: transcribe`` (speech).

They come ready-made, and nothing is trained: a recipe says which precisions are tried, on which texts they
are measured, and what they may cost. Owns their sections and which metrics a budget can bound.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from compile.recipe.sections import BaseSource, RecipeBase, Section, Source
from models.manifest import Name


class ReadingData(Source):
    """A folder of files with ``texts.jsonl``: for each a row ``{"file": "a.png", "text": "what it is"}``."""


class ReadingEvaluate(Section):
    """How much to measure."""

    speed_repeats: int = Field(default=5, ge=3, le=100)
    bootstrap: int = Field(default=2000, ge=200)


class _ReadingRecipe(RecipeBase):
    data: ReadingData
    evaluate: ReadingEvaluate = ReadingEvaluate()


class OcrBase(BaseSource):
    """A folder with PaddleOCR's three networks as ONNX. ``characters``: what the last one can say, a line
    each; None: its metadata has them, as RapidOCR writes it."""

    detection: str = "detection.onnx"
    direction: str = "direction.onnx"
    recognition: str = "recognition.onnx"
    characters: str | None = None


class OcrVariant(Section):
    """A precision. ``int8-dynamic``: the matrices of ``networks`` in INT8, activations while running; with
    ``convolutions`` those too. ``reduce_range``: weights of 7 bits, which no sum of AVX2 overflows."""

    name: Name
    type: Literal["fp32", "int8-dynamic"]
    networks: Annotated[tuple[Literal["detection", "direction", "recognition"], ...], Field(min_length=1)] = (
        "recognition",
    )
    convolutions: bool = False
    reduce_range: bool = True

    @model_validator(mode="after")
    def _settings_belong(self) -> "OcrVariant":
        if self.type == "fp32" and (set(self.model_fields_set) - {"name", "type"}):
            raise ValueError("networks, convolutions and reduce_range go with int8-dynamic")
        return self


class OcrRecipe(_ReadingRecipe):
    """Text in pictures."""

    task: Literal["ocr"]
    base: OcrBase
    variants: Annotated[tuple[OcrVariant, ...], Field(min_length=1)]

    fixed_metrics: ClassVar[tuple[str, ...]] = (
        "character_error_rate",
        "text_agreement",
        "fallback_tensors",
        "size_ratio",
    )


WeightType = Literal["float32", "float16", "int8", "int8_float32"]


class SpeechVariant(Section):
    """What the weights are stored in, by CTranslate2's names. A processor computes ``float16`` in float32.

    ``int8``: matrices in INT8, all else as it came; ``int8_float32``: all else in float32.
    """

    name: Name
    type: WeightType


class SpeechRecipe(_ReadingRecipe):
    """Speech to text. The base is a folder as CTranslate2's converter writes it, with weights in float."""

    task: Literal["transcribe"]
    base: BaseSource
    variants: Annotated[tuple[SpeechVariant, ...], Field(min_length=1)]

    fixed_metrics: ClassVar[tuple[str, ...]] = (
        "word_error_rate",
        "text_agreement",
        "fallback_tensors",
        "size_ratio",
    )
