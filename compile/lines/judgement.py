"""What the findings of a line say whatever its kind: which variants there were, and which of them ships.

What was measured, and what of it is worth showing, is a line's.
"""

from collections.abc import Collection, Mapping
from typing import Any, TypedDict

from compile.evaluate import judge
from compile.evaluate.judge import VariantResult
from compile.line import REFERENCE, Parts, device_name


class Judgement(TypedDict):
    """The fields of ``Findings`` that follow from a recipe and the results of its variants."""

    title: str
    command: str
    device: str
    reference: VariantResult
    variants: tuple[VariantResult, ...]
    chosen: str | None
    nearest: Mapping[str, Any] | None


def judgement(
    line: Parts, command: str, results: Mapping[str, VariantResult], left: Collection[str] = ()
) -> Judgement:
    """Choose among ``results``, which are by name and have the reference.

    ``left``: variants that do not ship, within their budgets or not.
    """
    recipe = line.recipe
    variants = tuple(one for name, one in results.items() if name != REFERENCE)
    chosen = judge.choose([one for one in variants if one.name not in left])
    return Judgement(
        title=f"{recipe.release.name} {recipe.release.version} on {recipe.base.name}",
        command=command,
        device=device_name(line.workshop.threads),
        reference=results[REFERENCE],
        variants=variants,
        chosen=chosen.name if chosen else None,
        nearest=None if chosen else judge.nearest_recipe(variants),
    )
