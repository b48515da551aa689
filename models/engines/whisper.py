"""Speech to text: Whisper on CTranslate2, through faster-whisper.

Owns the check of a model's folder, and how a recording becomes segments, one at a time so that the caller can
stop between them. A folder is what CTranslate2's converter writes: ``model.bin``, ``config.json``,
``tokenizer.json``, ``vocabulary.json`` or ``.txt``, and ``preprocessor_config.json`` if it came with one.
Refuses folders that lack one: the library would ask a hub for it. One thread owns an engine. The libraries
are imported when an engine is made.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import ctranslate2
from models.ctranslate2 import MODEL_FILE, Header
from models.engines.base import EncoderFacts
from models.engines.foreign import converted
from models.engines.readings import Recording, Segment, Transcript, Word
from models.errors import EngineError, InvalidAudio, UnsafeFile, UnsupportedRequest

CONFIG_FILE, TOKENIZER_FILE = "config.json", "tokenizer.json"
VOCABULARIES = ("vocabulary.json", "vocabulary.txt")
MAX_JSON = 64 << 20
RATE = 16_000
"""Samples a second that Whisper hears."""
CONTAINERS = "aac,flac,matroska,mov,mp3,ogg,wav,webm"
"""What is opened. FFmpeg's playlists, which name other files and hosts, are never reached."""

_EXTRA = "hearing speech needs the extra edge-speech: pip install 'outpost[edge-speech]'"
_UNHEARD = "the recording cannot be heard"
_WARMER = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Tried in turn where a segment comes out unlikely or repeats itself (Radford et al. 2022, section 4.5)."""


@dataclass(frozen=True, slots=True)
class SpeechSettings:
    """Sizes of an engine."""

    threads: int = 1
    beam: int = 5
    max_seconds: float = 3 * 3600.0  # of one recording


class WhisperEngine:
    """A loaded model. Raises ``UnsafeFile`` for files that are not sound, else ``EngineError``."""

    def __init__(self, folder: Path, name: str = "", settings: SpeechSettings = SpeechSettings()) -> None:
        header = check_folder(folder)
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise EngineError(f"{_EXTRA} ({error})") from error
        with converted(f"{folder.name} cannot be loaded"):
            self._model: Any = WhisperModel(
                str(folder),
                device="cpu",
                compute_type="default",
                cpu_threads=settings.threads,
                local_files_only=True,
            )
        self._settings = settings
        self._languages = frozenset(self._model.supported_languages)
        self.facts = EncoderFacts(
            task="transcribe",
            name=name or folder.name,
            parameters=header.parameters,
            file_bytes=(folder / MODEL_FILE).stat().st_size,
        )

    def transcribe(self, recording: Recording) -> tuple[Transcript, Iterator[Segment]]:
        """Language and duration, without segments yet; and the segments, each computed when it is asked for.

        Raises ``InvalidAudio``, ``UnsupportedRequest`` for a language that the model does not know, and
        ``EngineError``, also between segments.
        """
        if self._model is None:
            raise EngineError("the engine has been closed")
        if recording.language is not None and recording.language not in self._languages:
            raise UnsupportedRequest(
                f"this model does not know the language {recording.language!r:.20}; it knows "
                + (", ".join(sorted(self._languages)) if len(self._languages) < 10 else "ISO 639-1's")
            )
        sound = decode_audio(recording.data, self._settings.max_seconds)
        with converted(_UNHEARD):
            segments, facts = self._model.transcribe(
                sound,
                language=recording.language,
                initial_prompt=recording.prompt,
                temperature=_WARMER if recording.temperature is None else recording.temperature,
                beam_size=self._settings.beam,
                word_timestamps=recording.words,
            )
        return Transcript(facts.language, len(sound) / RATE, ()), _heard(segments)

    def close(self) -> None:
        """Free the weights. Safe to call twice."""
        self._model = None


def whole(begun: Transcript, segments: Iterator[Segment]) -> Transcript:
    """All segments at once. Raises as they do."""
    return Transcript(begun.language, begun.duration, tuple(segments))


def check_folder(folder: Path) -> Header:
    """Look at every file without native code. Raises ``UnsafeFile``."""
    for name in (MODEL_FILE, CONFIG_FILE, TOKENIZER_FILE):
        if not (folder / name).is_file():
            raise UnsafeFile(f"{folder.name}: {name} is missing, without which no speech is heard")
    vocabularies = [name for name in VOCABULARIES if (folder / name).is_file()]
    if not vocabularies:
        raise UnsafeFile(f"{folder.name}: neither {' nor '.join(VOCABULARIES)} is there")
    for name in (CONFIG_FILE, TOKENIZER_FILE, *vocabularies):
        if (folder / name).stat().st_size > MAX_JSON:
            raise UnsafeFile(f"{name}: more than {MAX_JSON} bytes")
    header = ctranslate2.read_header(folder / MODEL_FILE)
    if header.specification != "WhisperSpec":
        raise UnsafeFile(f"{MODEL_FILE}: is a {header.specification!r:.100}; Whisper models are served here")
    return header


def decode_audio(data: bytes, max_seconds: float, rate: int = RATE) -> Any:
    """The first audio track as float32 [samples] at ``rate`` a second, mono. Raises ``InvalidAudio``.

    What is longer than allowed is given up as soon as that is known: a small file cannot fill the memory.
    """
    import av
    import numpy as np

    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
    parts: list[Any] = []
    left = int(max_seconds * rate)
    try:
        opened = {"format_whitelist": CONTAINERS}
        with av.open(io.BytesIO(data), mode="r", metadata_errors="ignore", options=opened) as container:
            if not container.streams.audio:
                raise InvalidAudio("the file holds no sound")
            for frame in _frames(container):
                for piece in resampler.resample(frame):
                    samples = piece.to_ndarray().reshape(-1)
                    left -= samples.size
                    if left < 0:
                        raise InvalidAudio(f"the recording is longer than {max_seconds:g} s")
                    parts.append(samples)
    except (av.FFmpegError, ValueError, OSError, IndexError) as error:
        raise InvalidAudio(f"the recording cannot be decoded: {str(error)[:200]}") from error
    sound = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
    if not sound.size:
        raise InvalidAudio("the recording is empty")
    return sound


def _frames(container: Any) -> Iterator[Any]:
    """Decoded frames, and None at the end, which has the resampler give what it still holds."""
    yield from container.decode(audio=0)
    yield None


def _heard(segments: Any) -> Iterator[Segment]:
    """The library's segments as ours, its exceptions too."""
    with converted(_UNHEARD):
        for one in segments:
            yield Segment(
                start=float(one.start),
                end=float(one.end),
                text=one.text,
                tokens=tuple(one.tokens),
                temperature=float(one.temperature or 0.0),
                avg_logprob=float(one.avg_logprob),
                compression_ratio=float(one.compression_ratio),
                no_speech_prob=float(one.no_speech_prob),
                words=tuple(Word(word.word, float(word.start), float(word.end)) for word in one.words or ()),
            )
