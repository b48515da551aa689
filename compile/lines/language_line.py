"""The line of causal language models: a recipe on its way from steps to findings and releases."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compile.errors import BadRecipe
from compile.line import Workshop
from compile.lines.language import LanguageParts
from compile.lines.language_findings import find
from compile.lines.language_release import package
from compile.lines.language_sources import Sources
from compile.lines.language_steps import LanguageSteps
from compile.recipe.language import LanguageRecipe
from compile.recipe.load import load_recipe
from models.digest import Digest
from models.forecast import Workload


@dataclass(frozen=True)
class LanguageLine(LanguageParts):
    """A recipe of ``task: generate``. Implements ``Line``."""

    sources: Sources

    findings, package = find, package

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
        sources = Sources.find(recipe, path.parent, workshop)
        parts = LanguageSteps(sources, previous).parts(Digest.of(path.read_bytes()))
        return cls(**vars(parts), sources=sources)

    @property
    def workloads(self) -> Mapping[str, Workload]:
        """See ``Line``. What is cut is known once it has been cut."""
        if self.recipe.prune is not None:
            return {}
        return {one.name: self.sources.workload(one) for one in self.recipe.variants}


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
