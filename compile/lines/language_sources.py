"""What a language recipe names, found and hashed: the ground on which its steps are made."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from compile.data.reading import source_digest
from compile.errors import BadRecipe
from compile.forecast import CONTEXT, Facts, Forecast, facts_of, predict
from compile.line import Workshop
from compile.recipe.distil import TextTeacher
from compile.recipe.language import LanguageRecipe, LanguageVariant
from compile.recipe.sections import Source
from models.digest import Digest
from models.forecast import Workload
from models.store import digest_of
from models.workloads import computes_in, held_sequences

_BITS = {
    "F16": 16.0, "Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.7, "Q5_1": 6.0, "Q5_0": 5.5, "Q4_K_M": 4.9,
    "Q4_1": 5.0, "Q4_0": 4.5, "IQ4_NL": 4.5, "IQ4_XS": 4.3,
    "genai-fp32": 32.0, "genai-int8": 9.0, "genai-int4": 6.0,
}  # fmt: skip
"""Bits of a weight, scales included; for forecasts."""


@dataclass(frozen=True)
class Sources:
    """Files by role, their digests by name, and the sizes of the base."""

    recipe: LanguageRecipe
    beside: Path
    workshop: Workshop
    base: Path
    text: Path
    calibration: Path | None
    teacher: Path | None
    digests: dict[str, Digest]
    facts: Facts = field(repr=False)

    @classmethod
    def find(cls, recipe: LanguageRecipe, beside: Path, workshop: Workshop) -> "Sources":
        """Look everything up. Raises ``BadRecipe``, ``UnsafeFile``."""
        base = recipe.base.find(beside, "base")
        text = _find_text(recipe.evaluate.text, beside, "evaluate.text")
        digests = {"base": digest_of(base), "text": digest_of(text)}
        calibration = teacher = None
        if recipe.data is not None:
            digests["data"] = source_digest(recipe.data, beside)
        if recipe.calibration is not None:
            calibration = _find_text(recipe.calibration.text, beside, "calibration.text")
            digests["calibration"] = digest_of(calibration)
            if digests["calibration"] == digests["text"]:
                raise BadRecipe(
                    "calibration.text: the same text as evaluate.text, which is to be held out; split it"
                )
        taught_by = recipe.distil.teacher if recipe.distil is not None else None
        if isinstance(taught_by, TextTeacher):
            taught_by = taught_by.file
        if taught_by is not None:
            teacher = taught_by.find(beside, "distil.teacher")
            digests["teacher"] = digest_of(teacher)
        window = recipe.evaluate.window
        facts = facts_of(base, window, text.stat().st_size)
        return cls(recipe, beside, workshop, base, text, calibration, teacher, digests, facts)

    def forecast(
        self, kind: str, variant: str | None = None, batch: int = 0, window: int | None = None
    ) -> Forecast:
        """What a step of ``kind`` takes, on the base or on a variant of this type.

        ``window``: tokens whose logits it holds, by default those of the evaluation. ``batch``: tokens at
        once, times the part of the layers that is trained.
        """
        bits = _BITS[variant] if variant is not None else 32.0
        weights = round(self.facts.parameters * bits / 8)
        sizes = replace(self.facts, weight_bytes=weights, batch=batch)
        return predict(kind, sizes if window is None else replace(sizes, window=window))

    def workload(self, variant: LanguageVariant) -> Workload:
        """What a variant will ask of a device, by the sizes of the base."""
        facts, format = self.facts, "onnx-genai" if variant.is_genai else "gguf"
        precision = variant.type.removeprefix("genai-").lower()
        numbers = 2 * facts.layers * facts.kv_width
        return Workload(
            format,
            precision,
            facts.parameters,
            weight_bytes=round(facts.parameters * _BITS[variant.type] / 8),
            kv_bytes=numbers * (4 if variant.is_genai else 2),
            context_tokens=CONTEXT,
            sequences=held_sequences(format, CONTEXT),
            computes=computes_in(format, precision),
        )

    @property
    def base_bytes(self) -> int:
        """In float32."""
        return self.facts.float_bytes


def _find_text(source: Source, beside: Path, key: str) -> Path:
    """Where a text lies. Raises ``BadRecipe`` that names ``key`` when it is not there, or is not UTF-8."""
    path = source.find(beside, key)
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadRecipe(
            f"{key}.file: {path.name} is not UTF-8: {error.reason} at byte {error.start}"
        ) from error
    return path
