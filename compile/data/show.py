"""``outpost-compile data``: prepare a recipe's data, and say what came out. No model is loaded."""

import json
from pathlib import Path
from typing import Any

from compile.data.card import CARD_JSON, summary
from compile.data.prepare import prepare
from compile.recipe.data import DataSource
from compile.steps import Report
from models.store import make_folder


def show(
    source: DataSource, beside: Path, out: Path, report: Report, base_parameters: int | None = None
) -> dict[str, Any]:
    """Write splits and card into ``out`` and return the card (``card.json``).

    ``beside`` is the recipe's folder. Raises ``BadRecipe`` and ``BadData``; nothing is written then.
    """
    make_folder(out)
    prepare(source, beside, out, report, base_parameters=base_parameters)
    card: dict[str, Any] = json.loads((out / CARD_JSON).read_text(encoding="utf-8"))
    return card


def describe(card: dict[str, Any], out: Path) -> str:
    """The card for a terminal: a few lines, and where the page is."""
    return "\n".join((*summary(card), f"card: {out / 'card.html'}"))
