"""A heat map drawn over the picture that it is of, for people.

Pure but for Pillow, which is imported when something is drawn.
"""

import io
from typing import TYPE_CHECKING

from edge_agent.engines.encoder_calls import Inspected
from models.engines.onnx_vision import decode

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 50_000_000
_HOT = (255, 40, 0)
_THRESHOLD, _FULL = 128, 192
"""Grey values of a heat map: nothing is drawn below the first, and no more from the second on."""
_FAINT, _STRONG = 60, 200
"""How much is covered there, of 255."""


def overlay(data: bytes, found: Inspected, side: int, *, enlarge: bool = False) -> "Image":
    """A picture of at most ``side`` a side, red where it looks unlike a good part: faint from the threshold
    on, full at half above it. Without a heat map the picture alone. ``enlarge``: smaller ones grow to that.

    Raises ``InvalidImage``.
    """
    from PIL import Image

    whole = decode(data, MAX_PIXELS)
    width, height = whole.size
    scale = side / max(width, height)
    scale = scale if enlarge else min(1.0, scale)
    shown = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = whole.resize(shown, Image.Resampling.BILINEAR, reducing_gap=2.0)
    if found.heat_map is not None:
        with Image.open(io.BytesIO(found.heat_map), formats=("PNG",)) as heat:
            left, top, right, bottom = (round(edge * scale) for edge in found.region)
            size = (max(1, right - left), max(1, bottom - top))
            grey = heat.convert("L").resize(size, Image.Resampling.BILINEAR)
        picture.paste(_HOT, (left, top), grey.point([_opacity(value) for value in range(256)]))
    return picture


def _opacity(value: int) -> int:
    """Of a grey value. Good parts can lie close below the threshold all over: they stay as they are."""
    if value < _THRESHOLD:
        return 0
    return min(_STRONG, _FAINT + (value - _THRESHOLD) * (_STRONG - _FAINT) // (_FULL - _THRESHOLD))


def overlay_png(data: bytes, found: Inspected, side: int) -> bytes:
    """The same as a PNG."""
    stream = io.BytesIO()
    overlay(data, found, side).save(stream, "PNG")
    return stream.getvalue()
