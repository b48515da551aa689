"""What is read of a picture of text and of a recording of speech. Pure values."""

from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class TextLine:
    """One line of text. ``confidence`` in [0, 1]. ``box``: its corners in pixels of the upright picture,
    clockwise from the corner where the picture's top left is nearest.
    """

    text: str
    confidence: float
    box: tuple[Point, Point, Point, Point]


@dataclass(frozen=True, slots=True)
class Page:
    """The lines of one picture, from top to bottom."""

    width: int
    height: int
    lines: tuple[TextLine, ...]

    @property
    def text(self) -> str:
        """All lines, one below the other."""
        return "\n".join(line.text for line in self.lines)


@dataclass(frozen=True, slots=True)
class Recording:
    """Speech in an encoded file (WAV, MP3, FLAC, Ogg, MP4, WebM), and how it is to be heard.

    ``language``: ISO 639-1, None to have it found. ``prompt``: text in the style of what is said, with names
    as they are spelled. ``temperature`` None: greedy, and warmer only where that fails. ``words``: when each
    word is said is wanted.
    """

    data: bytes
    language: str | None = None
    prompt: str | None = None
    temperature: float | None = None
    words: bool = False


@dataclass(frozen=True, slots=True)
class Word:
    """A word and when it is said, in seconds."""

    word: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech. Seconds; the figures are Whisper's own of how sure it is."""

    start: float
    end: float
    text: str
    tokens: tuple[int, ...] = ()
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech_prob: float = 0.0
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said. ``duration`` of the recording in seconds."""

    language: str
    duration: float
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        """All of it in one line."""
        return "".join(segment.text for segment in self.segments).strip()
