"""Recipes of every task: the YAML file in which a person says what to build and what it must not cost.

``task`` says which sections there are; without one it is ``generate``. Knows nothing of how a step is
carried out.
"""

import importlib
from pathlib import Path

from compile.recipe.document import read_document
from compile.recipe.sections import LOWER_IS_BETTER, RecipeBase, key_for

TASKS = {
    "generate": ("language", "LanguageRecipe"),
    "embed": ("encoder", "EmbedRecipe"),
    "classify": ("encoder", "ClassifyRecipe"),
    "inspect": ("vision", "InspectRecipe"),
    "classify-image": ("vision", "ClassifyImageRecipe"),
    "ocr": ("reading", "OcrRecipe"),
    "transcribe": ("reading", "SpeechRecipe"),
}


def load_recipe(path: Path) -> RecipeBase:
    """Read a recipe. Raises ``BadRecipe`` with file, line, key and the nearest valid key."""
    document = read_document(path)
    task = document.values.setdefault("task", "generate")
    if not isinstance(task, str) or task not in TASKS:
        raise document.wrong_value(["task"], f"{task!r} is none of {', '.join(TASKS)}")
    module, name = TASKS[task]
    recipe: RecipeBase = document.into(getattr(importlib.import_module(f"compile.recipe.{module}"), name))
    names = recipe.variant_names
    for at, variant in enumerate(names):
        if variant in ("reference", *names[:at]):
            raise document.wrong_value(
                ["variants", at, "name"],
                f"{variant!r} is taken: variants need names of their own, and the reference has its",
            )
    for metric, budget in recipe.budgets.items():
        if metric not in recipe.metrics:
            raise document.wrong_key(["budgets", metric], recipe.metrics)
        if budget.bound[0] != key_for(metric):
            low = metric in LOWER_IS_BETTER
            reason = f"{metric} is to be {'low' if low else 'high'}: a budget on it sets {key_for(metric)}"
            raise document.wrong_value(["budgets", metric, budget.bound[0]], reason)
    return recipe
