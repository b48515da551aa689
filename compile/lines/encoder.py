"""What the parts of the encoder line agree on: its steps by role, the names of files, which rows are read.

A base is cut, taught and fine-tuned as the recipe says, and exported once in float; every variant is
quantized from that and measured through the engine that will serve it. ``encoder_steps`` makes the steps,
with ``encoder_work``, ``encoder_training`` and ``encoder_quantize`` for what they do; ``encoder_findings``
judges with ``encoder_scores``, ``encoder_release`` packages, and ``encoder_line`` is all of it together.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compile.data.rows import Row, Splits, spread
from compile.line import Workshop
from compile.recipe.encoder import ClassifyRecipe, EmbedRecipe, EncoderVariant
from compile.steps import Step
from models.digest import Digest
from models.manifest import Engine

PREPARED, RANGES, MADE = "prepared.onnx", "ranges.json", "made.json"
FACTS, IDS, SAID = "facts.json", "token_ids.json", "said.json"
ANSWERS = "answers.npy"
STUDENT = "float"
"""The name under which the float export is measured where it is not the reference."""

Recipe = EmbedRecipe | ClassifyRecipe
Folders = Mapping[str, Path]


@dataclass(frozen=True)
class VariantSteps:
    """One precision: ``model`` holds ``model.onnx``, ``measured`` what the engine made of the texts."""

    model: Step
    measured: Step


@dataclass(frozen=True)
class EncoderParts:
    """One recipe as steps. ``variants`` has the reference first.

    ``exported`` is what variants are quantized from; ``student`` measures it where the reference is another
    model. ``before``: what the model says as its training begins; ``alone``: the same student, trained
    without the teacher ``labelled`` of a classifier, or without the vectors of an embedder's.
    """

    recipe: Recipe
    workshop: Workshop
    digests: Mapping[str, Digest]
    data: Step
    pruned: Step | None
    labelled: Step | None
    tuned: Step | None
    before: Step | None
    alone: Step | None
    exported: Step
    student: Step | None
    baselines: Step
    tensorrt: Step | None
    variants: Mapping[str, VariantSteps]

    @property
    def steps(self) -> list[Step]:
        """Everything that the judgement needs."""
        asked = (self.tensorrt, self.pruned, self.labelled, self.before, self.alone, self.student)
        measured = [one.measured for one in self.variants.values()]
        return [self.data, self.baselines, *(step for step in asked if step is not None), *measured]


def engine_of(folder: Path) -> Engine:
    """The manifest's section for the engine, as the export step wrote it."""
    return Engine.model_validate_json((folder / FACTS).read_text(encoding="utf-8"))


def read_made(folder: Path) -> dict[str, Any]:
    """What quantizing wrote down: ledger, what runs, what stayed in float and why."""
    made: dict[str, Any] = json.loads((folder / MADE).read_text(encoding="utf-8"))
    return made


def evaluated(recipe: Recipe, splits: Splits) -> tuple[Row, ...]:
    """The rows that are measured on: the test split; of an embedder that learns from no row, everything but
    the rows that calibration and sensitivity have seen."""
    rows = splits.test
    if isinstance(recipe, EmbedRecipe) and not recipe.learns:
        seen = {row.number for row in (*calibration_rows(recipe, splits), *sensitivity_rows(recipe, splits))}
        rows = tuple(
            row for _, part in splits.parts() for row in part if row.number not in seen and not row.augmented
        )
    return spread(rows, recipe.evaluate.rows)


def measured_texts(recipe: Recipe, splits: Splits) -> list[str]:
    """Their texts in order; where rows have answers to be found, those follow."""
    rows = evaluated(recipe, splits)
    return [row.text for row in rows] + ([row.answer for row in rows] if seeks_answers(recipe, rows) else [])


def seeks_answers(recipe: Recipe, rows: Sequence[Row]) -> bool:
    """Whether the rows are questions with answers, and an embedder is to find these."""
    return isinstance(recipe, EmbedRecipe) and all(row.answer and not row.label for row in rows)


def calibration_rows(recipe: Recipe, splits: Splits) -> tuple[Row, ...]:
    """As many training rows as the hungriest variant calibrates with."""
    wanted = set_aside(recipe.variants)[0]
    return spread(splits.train, wanted) if wanted else ()


def sensitivity_rows(recipe: Recipe, splits: Splits) -> tuple[Row, ...]:
    """The validation rows that losses are measured on while a mixture is searched."""
    wanted = set_aside(recipe.variants)[1]
    return spread(splits.validation, wanted) if wanted else ()


def set_aside(variants: tuple[EncoderVariant, ...]) -> tuple[int, int]:
    """How many rows calibration and sensitivity see; so many are not measured on."""
    calibration = [one.calibration_rows for one in variants if one.type == "int8-static"]
    searched = [one.mixed.rows if one.mixed is not None else 48 for one in variants if _searches(one)]
    return max(calibration, default=0), max(searched, default=0)


def _searches(variant: EncoderVariant) -> bool:
    return variant.mixed is not None or (variant.type == "int8-static" and variant.attention == "measure")
