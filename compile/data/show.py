"""``outpost-compile data``: prepare a recipe's data, and say what came out. No model is loaded."""

import json
import tempfile
from pathlib import Path
from typing import Any

from compile.data.card import CARD_HTML, CARD_JSON, summary
from compile.data.prepare import prepare
from compile.data.rows import SPLITS
from compile.errors import CompileError
from compile.recipe.data import DataSource
from compile.steps import Report
from models.store import make_folder, write_durably


def show(
    source: DataSource, beside: Path, out: Path, report: Report, base_parameters: int | None = None
) -> dict[str, Any]:
    """Write splits and card into ``out`` and return the card (``card.json``).

    ``beside`` is the recipe's folder. Raises ``BadRecipe`` and ``BadData``, and ``CompileError`` when the
    files cannot be written; what stood in ``out`` is untouched then.
    """
    try:
        make_folder(out)
        with tempfile.TemporaryDirectory(dir=out, prefix=".data-") as name:
            prepare(source, beside, Path(name), report, base_parameters=base_parameters)
            made = {file: (Path(name) / file).read_bytes() for file in (SPLITS, CARD_HTML, CARD_JSON)}
        for file, data in made.items():
            write_durably(out / file, data)
    except OSError as error:
        raise CompileError(f"{out}: {error}") from error
    card: dict[str, Any] = json.loads(made[CARD_JSON])
    return card


def describe(card: dict[str, Any], out: Path) -> str:
    """The card for a terminal: a few lines, and where the page is."""
    return "\n".join((*summary(card), f"card: {out / CARD_HTML}"))
