"""Heat maps for people: the picture, and over it what looks unlike a good part. PNG bytes.

One scale for all pictures of a model: nothing below nine tenths of the threshold, full red at half above it.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.engines.onnx_vision import decode

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

_SIDE = 220
_GAP, _TEXT = 6, 16
_BACK, _INK, _BAD = (255, 255, 255), (30, 30, 30), (190, 30, 30)


@dataclass(frozen=True)
class Shown:
    """A picture (encoded), its heat map [rows, columns], and what the model says."""

    picture: bytes
    heat_map: "npt.NDArray[np.float32]"
    label: str
    score: float
    is_defect: bool


def overlay(
    picture: bytes, heat_map: "npt.NDArray[np.float32]", threshold: float, max_pixels: int
) -> "Image":
    """The picture in grey with the heat map over it, [220, 220]."""
    import numpy as np
    from PIL import Image

    size = (_SIDE, _SIDE)
    grey = np.asarray(decode(picture, max_pixels).convert("L").resize(size), dtype=np.float32)
    heat = np.asarray(Image.fromarray(heat_map).resize(size, Image.Resampling.BILINEAR))
    part = np.clip((heat / threshold - 0.9) / 0.6, 0, 1)[..., None]
    colour = np.stack([np.full_like(heat, 230), 200 * (1 - part[..., 0]), np.zeros_like(heat)], axis=-1)
    mixed = grey[..., None] * (1 - 0.75 * part) + colour * 0.75 * part
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def sheet(rows: Sequence[Sequence[Shown]], threshold: float, max_pixels: int) -> bytes:
    """A row per label: each picture beside its overlay, with label, score and verdict above. PNG."""
    from PIL import Image, ImageDraw

    across = max(len(row) for row in rows)
    cell, tall = 2 * _SIDE + _GAP, _SIDE + _TEXT + _GAP
    paper = Image.new("RGB", (across * (cell + 2 * _GAP), len(rows) * tall), _BACK)
    pen = ImageDraw.Draw(paper)
    for down, row in enumerate(rows):
        for right, shown in enumerate(row):
            left, top = right * (cell + 2 * _GAP), down * tall
            said = "defect" if shown.is_defect else "good"
            text = f"{shown.label}: score {shown.score:.2f}, threshold {threshold:.2f}, {said}"
            pen.text((left, top + 2), text, fill=_BAD if shown.is_defect else _INK)
            plain = decode(shown.picture, max_pixels).resize((_SIDE, _SIDE))
            paper.paste(plain, (left, top + _TEXT))
            paper.paste(
                overlay(shown.picture, shown.heat_map, threshold, max_pixels),
                (left + _SIDE + _GAP, top + _TEXT),
            )
    return png(paper)


def png(image: "Image") -> bytes:
    """Encoded."""
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()
