"""A contact sheet: inspected pictures side by side, with verdict, score and where the model looked.

Pure but for Pillow, which is imported when something is drawn.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from edge_agent.engines.encoder_calls import Inspected
from edge_agent.overlay import overlay

if TYPE_CHECKING:
    from PIL import ImageFont
    from PIL.Image import Image

SIDE = 180
"""Pixels of a thumbnail's box."""
CAPTION = 44
MARGIN = 12
COLUMNS = 6

_INK, _PAPER, _BOX = (30, 30, 30), (255, 255, 255), (238, 238, 238)
_GOOD, _DEFECT = (20, 130, 60), (190, 30, 30)


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One picture of a sheet. ``picture``: RGB, at most ``SIDE`` a side, drawn over with its heat map."""

    name: str
    verdict: str
    score: float
    threshold: float
    picture: "Image"


def thumbnail(name: str, data: bytes, found: Inspected) -> Cell:
    """A picture made small, red where it looks unlike a good part.

    Raises ``InvalidImage``.
    """
    small = overlay(data, found, SIDE, enlarge=True)
    return Cell(name, "defect" if found.is_defect else "good", found.score, found.threshold, small)


def draw_sheet(title: str, cells: Sequence[Cell]) -> bytes:
    """A PNG of all cells in order, row by row."""
    from PIL import Image, ImageDraw, ImageFont

    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    wide, high = SIDE + MARGIN, SIDE + CAPTION + MARGIN
    font, large = ImageFont.load_default(13), ImageFont.load_default(18)
    width = max(MARGIN + columns * wide, 2 * MARGIN + round(large.getlength(title)))
    sheet = Image.new("RGB", (width, 3 * MARGIN + 20 + rows * high), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), title, _INK, large)
    for number, cell in enumerate(cells):
        left, top = MARGIN + number % columns * wide, 2 * MARGIN + 20 + number // columns * high
        color = _DEFECT if cell.verdict == "defect" else _GOOD
        pen.rectangle((left - 3, top - 3, left + SIDE + 2, top + SIDE + 2), color)
        pen.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), _BOX)
        at = (left + (SIDE - cell.picture.width) // 2, top + (SIDE - cell.picture.height) // 2)
        sheet.paste(cell.picture, at)
        told = f"{cell.verdict}  {cell.score:.3g} (from {cell.threshold:.3g})"
        pen.text((left, top + SIDE + 6), told, color, font)
        pen.text((left, top + SIDE + 23), _fitting(cell.name, font), _INK, font)
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def _fitting(name: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont") -> str:
    """As much of a name as a cell has room for: its end, which tells pictures apart."""
    name = name.encode("utf-8", "replace").decode()  # a path may hold bytes that are no text
    shown = name if font.getlength(name) <= SIDE else PurePosixPath(name).name
    while len(shown) > 4 and font.getlength(shown) > SIDE:
        shown = "\u2026" + shown[2:]
    return shown
