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
_FAINT, _FULL, _OPAQUE = 96, 256, 200
"""Grey values of a heat map: it shows from ``_FAINT`` on; at ``_FULL`` it covers with ``_OPAQUE`` of 255."""


def overlay(data: bytes, found: Inspected, side: int, *, enlarge: bool = False) -> "Image":
    """A picture of at most ``side`` a side, red where it looks unlike a good part: faint at the threshold,
    full at twice it. Without a heat map the picture alone. ``enlarge``: smaller pictures grow to ``side``.

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
        steps = [(value - _FAINT) * _OPAQUE // (_FULL - _FAINT) for value in range(256)]
        picture.paste(_HOT, (left, top), grey.point([max(0, one) for one in steps]))
    return picture


def overlay_png(data: bytes, found: Inspected, side: int) -> bytes:
    """The same as a PNG."""
    stream = io.BytesIO()
    overlay(data, found, side).save(stream, "PNG")
    return stream.getvalue()
