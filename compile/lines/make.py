"""From a recipe to its line: picks the line by the recipe's task, and imports that one only."""

from pathlib import Path

from compile.line import Line, Workshop
from compile.recipe.load import load_recipe


def make_line(path: Path, workshop: Workshop) -> Line:
    """Read a recipe and what it names. Raises ``BadRecipe``."""
    recipe, beside = load_recipe(path), path.resolve().parent
    if recipe.task in ("embed", "classify"):
        from compile.lines.encoder_line import EncoderLine

        return EncoderLine.make(recipe, path, beside, workshop)
    if recipe.task in ("inspect", "classify-image"):
        from compile.lines.vision_line import VisionLine

        return VisionLine.make(recipe, path, beside, workshop)
    if recipe.task in ("ocr", "transcribe"):
        from compile.lines.reading_line import ReadingLine

        return ReadingLine.make(recipe, path, beside, workshop)
    from compile.lines.language_line import LanguageLine

    return LanguageLine.make(path, workshop)
