"""The line of causal language models: its steps by role, and what its parts agree on.

A base becomes float32 weights and a reference GGUF; pruning and training change it or put an adapter beside
it; every variant is quantized from that and measured against the reference, through the engine that will
serve it. ``language_steps`` makes the steps, ``language_findings`` judges, ``language_release`` packages.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compile.data.rows import Row, Splits, spread
from compile.errors import BadRecipe
from compile.evaluate import answers
from compile.findings import Findings
from compile.gguf.files import vocabulary
from compile.line import Workshop
from compile.recipe.language import LanguageRecipe
from compile.recipe.load import load_recipe
from compile.steps import Cache, Step
from models.digest import Digest
from models.engines.llama_cpp import read_header
from models.prompts import ChatTemplate

MODEL = "model.gguf"
ADAPTER = "adapter.gguf"
GENAI = "genai"
GENAI_ADAPTER = "adapter.onnx_adapter"
HF = "hf"
REFERENCE_FILE = "reference-f32.gguf"
FIXED = "fixed.safetensors"
IMPORTANCE = "importance.safetensors"
SETTINGS = "settings.json"
SURVIVAL = "survival.json"
BASE_PROBE = "What is the capital of France?"
BASE_PROBE_TOKENS = 8


@dataclass(frozen=True)
class VariantSteps:
    """The steps of one variant: its files are at ``file`` in the folder of ``model``.

    ``fidelity`` measures it without the adapter, ``answers`` with it. ``adapter`` has this variant's format.
    ``against`` is the fidelity of what it is held against; ``survival`` says what is left of the adapter.
    """

    model: Step
    file: str
    fidelity: Step
    answers: Step | None
    adapter: Step | None
    against: Step | None = None
    survival: Step | None = None


@dataclass(frozen=True)
class LanguageLine:
    """A recipe of ``task: generate`` as steps. ``root`` holds what the variants are quantized from.

    ``digests`` are those of the sources, by name; ``text`` is held out. ``variants`` has the reference first.
    """

    recipe: LanguageRecipe
    recipe_digest: Digest
    digests: Mapping[str, Digest]
    text: Path
    workshop: Workshop
    previous: "LanguageLine | None"
    base: Step
    root: Step
    data: Step | None
    tuned: Step | None
    adapter: Step | None
    baselines: Step | None
    variants: Mapping[str, VariantSteps]

    @classmethod
    def make(cls, path: Path, workshop: Workshop, continued: frozenset[Path] = frozenset()) -> "LanguageLine":
        """Read a recipe and what it names. Raises ``BadRecipe``, and ``Refused`` where CUDA is missing."""
        recipe = load_recipe(path)
        if not isinstance(recipe, LanguageRecipe):
            raise BadRecipe(f"{path}: task {recipe.task!r}, where 'generate' is needed")
        path = path.resolve()
        if path in continued:
            raise BadRecipe(f"{path}: continues: the recipes continue each other in a circle")
        if recipe.finetune is not None and recipe.finetune.method == "qlora":
            from compile.training.methods import check_machine

            check_machine(recipe.finetune)
        previous = None
        if recipe.continues is not None:
            before = path.parent / recipe.continues
            if not before.is_file():
                raise BadRecipe(f"continues: {before} is not there")
            previous = cls.make(before, workshop, continued | {path})
            _check_continues(recipe, previous.recipe)
        from compile.lines.language_sources import Sources
        from compile.lines.language_steps import LanguageSteps

        sources = Sources.find(recipe, path.parent, workshop)
        return LanguageSteps(sources, previous).line(Digest.of(path.read_bytes()))

    @property
    def steps(self) -> list[Step]:
        """Everything that the judgement needs."""
        made = [self.data, self.baselines, self.tuned, self.adapter]
        measured = [
            step for one in self.variants.values() for step in (one.fidelity, one.answers, one.survival)
        ]
        return [self.base, self.root, *(step for step in (*made, *measured) if step is not None)]

    def findings(self, cache: Cache, command: str) -> Findings:
        """See ``Line``."""
        from compile.lines.language_findings import find

        return find(self, cache, command)

    def package(self, cache: Cache, findings: Findings, out: Path) -> Mapping[str, Path]:
        """See ``Line``."""
        from compile.lines.language_release import package

        return package(self, cache, findings, out)


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


def _check_continues(recipe: LanguageRecipe, before: LanguageRecipe) -> None:
    """What continues an adapter must have its shape."""
    if recipe.finetune is None or before.finetune is None or not before.has_adapter:
        raise BadRecipe("continues: both recipes fine-tune an adapter")
    for key in ("method", "rank", "alpha", "targets", "first_layer"):
        ours, theirs = getattr(recipe.finetune, key), getattr(before.finetune, key)
        if ours != theirs:
            raise BadRecipe(
                f"finetune.{key}: {ours!r}, but the recipe that this one continues has {theirs!r}"
            )
    if recipe.base != before.base or recipe.prompt != before.prompt or recipe.data != before.data:
        raise BadRecipe("continues: base, prompt and data must be those of the recipe that is continued")
