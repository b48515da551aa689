"""A folder of images per label: read, checked, freed of copies, split, described.

Owns the decode check (with the engine's own decoder, whose limit holds before anything is decoded), exact
duplicates (by pixels, so that a re-encoded copy counts), the splits and the card. Refuses an image that does
not decode, one that claims more pixels than the limit, one that lies under two labels, and a folder with too
few images; by name.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compile.errors import BadData
from compile.steps import Report
from models.digest import Digest
from models.errors import InvalidImage

SPLITS_FILE = "images.json"
CARD_FILE = "card.json"
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


@dataclass(frozen=True)
class Limits:
    """``pixels``: width times height as the header says; ``file_bytes``: of the encoded file."""

    pixels: int = 16_000_000
    file_bytes: int = 64_000_000


@dataclass(frozen=True)
class LabelledImage:
    """One image. ``file`` is relative to the root, with ``/``; ``pixels`` the digest of what it shows."""

    file: str
    label: str
    pixels: str
    width: int
    height: int
    brightness: float
    contrast: float


@dataclass(frozen=True)
class Reading:
    """What a folder holds. ``bad`` are files with the reason, ``copies`` files that repeat an earlier one."""

    images: tuple[LabelledImage, ...]
    bad: tuple[tuple[str, str], ...]
    copies: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ImageSplits:
    """Images by use. ``calibration`` sets thresholds or chooses a head; ``test`` is seen once, at the end."""

    train: tuple[LabelledImage, ...]
    calibration: tuple[LabelledImage, ...]
    test: tuple[LabelledImage, ...]


def read_images(root: Path, labels: Sequence[str], limits: Limits, report: Report) -> Reading:
    """Decode every image under ``root/<label>``. Raises ``BadData`` for a label without images."""
    listed: list[tuple[str, Path]] = []
    for label in labels:
        folder = root / label
        found = (
            sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
            if folder.is_dir()
            else []
        )
        if not found:
            what = f"holds none of {', '.join(sorted(SUFFIXES))}" if folder.is_dir() else "is no folder"
            raise BadData(f"{folder} {what}: there are no images of {label!r}")
        listed += [(label, path) for path in found]
    images: list[LabelledImage] = []
    bad: list[tuple[str, str]] = []
    copies: list[tuple[str, str]] = []
    first: dict[str, LabelledImage] = {}
    for number, (label, path) in enumerate(listed):
        name = path.relative_to(root).as_posix()
        try:
            image = _describe(name, label, _bounded(path, limits), limits)
        except (BadData, InvalidImage) as error:
            bad.append((name, str(error)))
            continue
        before = first.setdefault(image.pixels, image)
        if before is image:
            images.append(image)
        elif before.label == label:
            copies.append((name, before.file))
        else:
            bad.append((name, f"shows the same as {before.file}, under another label"))
        if number % 50 == 0:
            report(number / len(listed), f"{number} of {len(listed)} images")
    return Reading(tuple(images), tuple(bad), tuple(copies))


def refuse_bad(reading: Reading, keep_good: bool) -> None:
    """Raise ``BadData`` with every bad image by name, unless told to go on with the good ones."""
    if reading.bad and not keep_good:
        lines = [f"{name}: {reason}" for name, reason in reading.bad[:20]]
        more = f"\n... and {len(reading.bad) - 20} more" if len(reading.bad) > 20 else ""
        raise BadData(f"{len(reading.bad)} bad images:\n" + "\n".join(lines) + more)


def split_good_and_defects(
    reading: Reading, good: str, counts: Mapping[str, int], defects_each: int, seed: int
) -> ImageSplits:
    """Good parts to train, calibration and test by ``counts``; defects to the test only.

    Which image goes where depends on pixels and ``seed``, not on names or order. Raises ``BadData`` when
    there are too few good ones.
    """
    parts = _ordered([image for image in reading.images if image.label == good], seed)
    wanted = sum(counts.values())
    if len(parts) < wanted:
        split = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise BadData(f"{len(parts)} good images of {good!r}; {wanted} are needed ({split})")
    at, taken = 0, {}
    for name in ("train", "calibration", "test"):
        taken[name] = parts[at : at + counts[name]]
        at += counts[name]
    labels = sorted({image.label for image in reading.images} - {good})
    defects = [
        image
        for label in labels
        for image in _ordered([one for one in reading.images if one.label == label], seed)[:defects_each]
    ]
    return ImageSplits(tuple(taken["train"]), tuple(taken["calibration"]), (*taken["test"], *defects))


def split_by_label(reading: Reading, each: int | None, seed: int) -> ImageSplits:
    """Each label's images (at most ``each``) 6:2:2 into train, calibration and test."""
    train: list[LabelledImage] = []
    calibration: list[LabelledImage] = []
    test: list[LabelledImage] = []
    for label in sorted({image.label for image in reading.images}):
        chosen = _ordered([image for image in reading.images if image.label == label], seed)[:each]
        fifth = len(chosen) // 5
        if fifth < 1:
            raise BadData(f"{len(chosen)} images of {label!r}; at least 5 are needed for a split")
        test += chosen[:fifth]
        calibration += chosen[fifth : 2 * fifth]
        train += chosen[2 * fifth :]
    return ImageSplits(tuple(train), tuple(calibration), tuple(test))


def card(reading: Reading, splits: ImageSplits) -> dict[str, Any]:
    """The data card: counts, sizes, brightness and contrast by label, copies, bad files, a digest."""
    by_label: dict[str, list[LabelledImage]] = {}
    for image in reading.images:
        by_label.setdefault(image.label, []).append(image)
    return {
        "digest": digest(splits),
        "images": {label: len(images) for label, images in by_label.items()},
        "splits": {
            name: dict(Counter(image.label for image in getattr(splits, name)))
            for name in ("train", "calibration", "test")
        },
        "sizes": {
            f"{width} x {height}": count
            for (width, height), count in Counter(
                (image.width, image.height) for image in reading.images
            ).most_common(10)
        },
        "brightness": {label: _spread([one.brightness for one in each]) for label, each in by_label.items()},
        "contrast": {label: _spread([one.contrast for one in each]) for label, each in by_label.items()},
        "copies": [{"file": name, "of": first} for name, first in reading.copies],
        "bad": [{"file": name, "reason": reason} for name, reason in reading.bad],
    }


def digest(splits: ImageSplits) -> Digest:
    """Of what is used and how: the pixels and labels of each split, whatever the files are called."""
    lines = [
        f"{name}\0{image.label}\0{image.pixels}\n"
        for name in ("train", "calibration", "test")
        for image in getattr(splits, name)
    ]
    return Digest.of("".join(lines).encode())


def write_image_splits(folder: Path, splits: ImageSplits) -> None:
    """Store the splits in a step's folder."""
    stored = {
        name: [asdict(image) for image in getattr(splits, name)] for name in ("train", "calibration", "test")
    }
    (folder / SPLITS_FILE).write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")


def read_image_splits(folder: Path) -> ImageSplits:
    """What ``write_image_splits`` stored."""
    stored = json.loads((folder / SPLITS_FILE).read_text(encoding="utf-8"))
    return ImageSplits(
        **{name: tuple(LabelledImage(**image) for image in images) for name, images in stored.items()}
    )


def _bounded(path: Path, limits: Limits) -> bytes:
    size = path.stat().st_size
    if size > limits.file_bytes:
        raise BadData(f"has {size} bytes; the limit is {limits.file_bytes}")
    return path.read_bytes()


def _describe(name: str, label: str, data: bytes, limits: Limits) -> LabelledImage:
    import numpy as np

    from models.engines.onnx_vision import decode

    image = decode(data, limits.pixels)
    pixels = np.asarray(image)
    shape = f"{image.width}x{image.height}\0".encode()
    return LabelledImage(
        file=name,
        label=label,
        pixels=hashlib.sha256(shape + pixels.tobytes()).hexdigest(),
        width=image.width,
        height=image.height,
        brightness=round(float(pixels.mean()), 2),
        contrast=round(float(pixels.std()), 2),
    )


def _ordered(images: Sequence[LabelledImage], seed: int) -> list[LabelledImage]:
    return sorted(images, key=lambda image: hashlib.sha256(f"{seed}\0{image.pixels}".encode()).digest())


def _spread(values: Sequence[float]) -> dict[str, float]:
    import numpy as np

    low, median, high = np.percentile(values, [5, 50, 95])
    return {"median": round(float(median), 2), "p5": round(float(low), 2), "p95": round(float(high), 2)}
