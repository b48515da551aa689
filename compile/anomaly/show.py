"""Heat maps for people: the picture, and over it what looks unlike a good part. PNG bytes.

One scale for all pictures of a model: nothing below nine tenths of the threshold, full red at half above it.
"""

import io
from typing import TYPE_CHECKING

from models.engines.onnx_vision import decode

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

_SIDE = 220
_GAP = 4
_BACK = (255, 255, 255)


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


def beside(picture: bytes, heat_map: "npt.NDArray[np.float32]", threshold: float, max_pixels: int) -> bytes:
    """The picture and its overlay side by side. PNG."""
    from PIL import Image

    paper = Image.new("RGB", (2 * _SIDE + _GAP, _SIDE), _BACK)
    paper.paste(decode(picture, max_pixels).resize((_SIDE, _SIDE)), (0, 0))
    paper.paste(overlay(picture, heat_map, threshold, max_pixels), (_SIDE + _GAP, 0))
    return png(paper)


def png(image: "Image") -> bytes:
    """Encoded."""
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()
