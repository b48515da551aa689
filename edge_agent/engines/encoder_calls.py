"""What an encoder is asked in one call and what it answers. Pure values."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from models.engines.readings import Page, Recording, Transcript

HeatMaps = bool | Literal["overlay"]
"""Whether heat maps are wanted as pictures: in grey, or in red over the picture that was inspected."""


@dataclass(frozen=True, slots=True)
class EncoderCall:
    """Texts, encoded pictures or a recording: one of them. ``heat_maps``: of an inspection. ``query``: what
    the texts are to be judged by, of a reranker.
    """

    texts: tuple[str, ...] = ()
    images: tuple[bytes, ...] = ()
    heat_maps: HeatMaps = False
    query: str | None = None
    recording: Recording | None = None

    @property
    def size(self) -> int:
        """How many inputs there are."""
        return len(self.texts) + len(self.images) + (self.recording is not None)


@dataclass(frozen=True, slots=True)
class Inspected:
    """One picture's verdict. ``heat_map``: a PNG of the model's input size in grey, where 128 is the
    threshold and 255 twice as much; ``region`` what it covers (left, top, right, bottom in pixels). As an
    overlay it is of the whole picture.
    """

    score: float
    is_defect: bool
    threshold: float
    region: tuple[float, float, float, float]
    heat_map: bytes | None = None


@dataclass(frozen=True, slots=True)
class EncoderAnswer:
    """Answers in the order of the inputs. ``rows``: vectors, probabilities or one relevance each, float32,
    little-endian. ``tokens`` that were read.
    """

    rows: tuple[bytes, ...] = ()
    tokens: int = 0
    inspections: tuple[Inspected, ...] = ()
    pages: tuple[Page, ...] = ()
    transcript: Transcript | None = None

    @classmethod
    def joined(cls, answers: "Sequence[EncoderAnswer]") -> "EncoderAnswer":
        """Answers to parts of a call, in order, as one. A transcript is never a part."""
        return cls(
            rows=tuple(chain.from_iterable(one.rows for one in answers)),
            tokens=sum(one.tokens for one in answers),
            inspections=tuple(chain.from_iterable(one.inspections for one in answers)),
            pages=tuple(chain.from_iterable(one.pages for one in answers)),
        )


def floats(row: bytes) -> list[float]:
    """The numbers of a row."""
    numbers = array("f")
    numbers.frombytes(row)
    return numbers.tolist()
