"""What an encoder is asked in one call and what it answers. Pure values."""

from array import array
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EncoderCall:
    """Texts or encoded pictures, not both. ``heat_maps``: an inspection is wanted with pictures of them."""

    texts: tuple[str, ...] = ()
    images: tuple[bytes, ...] = ()
    heat_maps: bool = False

    @property
    def size(self) -> int:
        """How many inputs there are."""
        return len(self.texts) + len(self.images)


@dataclass(frozen=True, slots=True)
class Inspected:
    """One picture's verdict. ``heat_map``: a PNG of the model's input size in grey, where 128 is the
    threshold and 255 twice as much; ``region`` what it covers (left, top, right, bottom in pixels).
    """

    score: float
    is_defect: bool
    threshold: float
    region: tuple[float, float, float, float]
    heat_map: bytes | None = None


@dataclass(frozen=True, slots=True)
class EncoderAnswer:
    """Answers in the order of the inputs. ``rows``: vectors or probabilities, float32, little-endian."""

    rows: tuple[bytes, ...] = ()
    tokens: int = 0
    inspections: tuple[Inspected, ...] = ()


def floats(row: bytes) -> list[float]:
    """The numbers of a row."""
    numbers = array("f")
    numbers.frombytes(row)
    return numbers.tolist()
