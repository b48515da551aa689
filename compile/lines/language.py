"""What the parts of the language line agree on: its steps by role, the names of files, how rows are asked.

A base becomes float32 weights and a reference GGUF; pruning and training change it or put an adapter beside
it; every variant is quantized from that and measured against the reference, through the engine that will
serve it. ``language_steps`` makes the steps, ``language_findings`` judges, ``language_release`` packages, and
``language_line`` is all of it together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compile.data.rows import Row, Splits, spread
from compile.evaluate import answers
from compile.gguf.files import vocabulary
from compile.gguf.folder import HF as HF
from compile.gguf.folder import REFERENCE as _REFERENCE
from compile.line import Workshop
from compile.recipe.language import LanguageRecipe
from compile.steps import Step
from models.digest import Digest
from models.gguf import read_header
from models.prompts import ChatTemplate

MODEL = "model.gguf"
ADAPTER = "adapter.gguf"
GENAI = "genai"
GENAI_ADAPTER = "adapter.onnx_adapter"
REFERENCE_FILE = _REFERENCE  # a line also has a variant that is called the reference
FIXED = "fixed.safetensors"
IMPORTANCE = "importance.safetensors"
SETTINGS = "settings.json"
SURVIVAL = "survival.json"
BASELINES = "baselines.json"
BASE_PROBE = "What is the capital of France?"
BASE_PROBE_TOKENS = 8


@dataclass(frozen=True)
class VariantSteps:
    """The steps of one variant: its files are at ``file`` in the folder of ``model``.

    ``fidelity`` measures it on text, ``answers`` on data with the adapter, ``alone`` on data without the
    adapter that there is. ``adapter`` has this variant's format. ``against`` is the fidelity of what it is
    held against; ``survival`` says what is left of the adapter.
    """

    model: Step
    file: str
    fidelity: Step
    alone: Step | None
    answers: Step | None
    adapter: Step | None
    against: Step | None = None
    survival: Step | None = None


@dataclass(frozen=True)
class LanguageParts:
    """A recipe of ``task: generate`` as steps. ``root`` holds what the variants are quantized from.

    ``digests`` are those of the sources, by name; ``text`` is held out. ``variants`` has the reference first.
    ``before`` is what was there before training, where anything is trained, on data; ``before_text``, where
    no adapter is what is trained, on text.
    """

    recipe: LanguageRecipe
    recipe_digest: Digest
    digests: Mapping[str, Digest]
    text: Path
    workshop: Workshop
    previous: "LanguageParts | None"
    base: Step
    root: Step
    data: Step | None
    tuned: Step | None
    adapter: Step | None
    baselines: Step | None
    before: Step | None
    before_text: Step | None
    variants: Mapping[str, VariantSteps]

    @property
    def steps(self) -> list[Step]:
        """Everything that the judgement needs."""
        made = [self.data, self.baselines, self.tuned, self.adapter, self.before, self.before_text]
        measured = [
            step
            for one in self.variants.values()
            for step in (one.fidelity, one.alone, one.answers, one.survival)
        ]
        return [self.base, self.root, *(step for step in (*made, *measured) if step is not None)]


def answer_fields(recipe: LanguageRecipe) -> tuple[answers.Field, ...]:
    """The fields of a structured answer; none where the answer is text."""
    described = (recipe.data.answer or {}) if recipe.data is not None else {}
    return tuple(answers.Field(name, field.labels) for name, field in described.items())


def chat(recipe: LanguageRecipe, row: Row) -> tuple[Mapping[str, str], ...]:
    """The messages of a request: the recipe's system prompt comes first unless the row has one."""
    system = recipe.prompt.system
    if system is None or any(message["role"] == "system" for message in row.messages):
        return row.messages
    return ({"role": "system", "content": system}, *row.messages)


def template_of(folder: Path) -> ChatTemplate:
    """The chat template of the reference in ``folder``."""
    known = vocabulary(read_header(folder / REFERENCE_FILE))
    return ChatTemplate(known.chat_template, known.tokens[known.bos], known.tokens[known.eos])


def test_rows(recipe: LanguageRecipe, splits: Splits) -> tuple[Row, ...]:
    """The rows that the recipe tests on."""
    return spread(splits.test, recipe.evaluate.test_rows)


def before_rows(recipe: LanguageRecipe, splits: Splits) -> tuple[Row, ...]:
    """Those of them that are also given to the base without its adapter."""
    return spread(test_rows(recipe, splits), recipe.evaluate.before_rows)
