"""English speech from the package moonshine-voice, with what is said, as a folder that a recipe measures on.

    python examples/speech/recordings.py .cache/speech
    python examples/speech/recordings.py .cache/speech-noise --noise 5

Two recordings whose words are known, nine files: Dickens's opening is cut at its pauses, because an interval
needs more samples than one. ``--noise``: decibels from the speech down to white noise that is mixed in.
"""

import argparse
import json
import sys
import wave
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

Sound = npt.NDArray[np.float64]

BECKETT = "Ever tried. Ever failed. No matter. Try again. Fail again. Fail better."
TWO_CITIES = (
    (0.0, "It was the best of times, it was the worst of times,"),
    (5.08, "it was the age of wisdom, it was the age of foolishness,"),
    (8.88, "it was the epoch of belief, it was the epoch of incredulity,"),
    (13.52, "it was the season of Light, it was the season of Darkness,"),
    (17.6, "it was the spring of hope, it was the winter of despair,"),
    (21.28, "we had everything before us, we had nothing before us,"),
    (24.68, "we were all going direct to Heaven, we were all going direct the other way"),
    (
        29.16,
        "in short, the period was so far like the present period, that some of its noisiest authorities "
        "insisted on its being received, for good or for evil, in the superlative degree of comparison only.",
    ),
)
"""About when each part begins, in seconds: the quietest moment near is where it is cut."""
NEAR, MOMENT = 0.4, 0.05
"""Seconds: how far a cut may move, and how long a moment is."""


def write_recordings(folder: Path, noise: float | None = None) -> Path:
    """Write WAVs and ``texts.jsonl`` into ``folder``; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    chance, rows = np.random.default_rng(7), []
    for name, text, sound, rate in recordings():
        if noise is not None:
            strength = np.sqrt(np.mean(sound**2)) * 10 ** (-noise / 20)
            sound = sound + chance.standard_normal(len(sound)) * strength
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(np.clip(np.rint(sound), -32768, 32767).astype("<i2").tobytes())
        rows.append(json.dumps({"file": f"{name}.wav", "text": text}))
    (folder / "texts.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def recordings() -> list[tuple[str, str, Sound, int]]:
    """Name, words, samples [n] and samples a second of each."""
    spec = find_spec("moonshine_voice")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("moonshine-voice is missing: pip install moonshine-voice==0.1.5")
    assets = Path(next(iter(spec.submodule_search_locations))) / "assets"
    sound, rate = read(assets / "beckett.wav")
    found = [("beckett", BECKETT, sound, rate)]
    sound, rate = read(assets / "two_cities.wav")
    cuts = [0, *(quietest(sound, rate, start) for start, _ in TWO_CITIES[1:]), len(sound)]
    for number, (_, text) in enumerate(TWO_CITIES):
        found.append((f"two-cities-{number + 1}", text, sound[cuts[number] : cuts[number + 1]], rate))
    return found


def read(path: Path) -> tuple[Sound, int]:
    """The samples of a WAV of 16 bits, its channels averaged, and how many there are in a second."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float64)
        return samples.reshape(-1, file.getnchannels()).mean(axis=1), file.getframerate()


def quietest(sound: Sound, rate: int, near: float) -> int:
    """The middle of the quietest moment about ``near`` seconds."""
    moment, first = int(MOMENT * rate), int((near - NEAR) * rate)
    starts = range(first, int((near + NEAR) * rate), moment // 4)
    return min(starts, key=lambda at: float(np.mean(sound[at : at + moment] ** 2))) + moment // 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where WAVs and texts.jsonl are written")
    parser.add_argument(
        "--noise", type=float, metavar="DB", help="mix in noise, so many decibels below the speech"
    )
    asked = parser.parse_args()
    print(write_recordings(asked.folder, asked.noise))
