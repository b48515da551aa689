"""Pictures or recordings with the text that is in them: read, checked, described.

Owns ``texts.jsonl`` and the check that every file decodes, by the engine's own decoder. Refuses rows out of
shape, files outside the folder and files that do not decode, by the numbers of their rows.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from compile.data.rows import SHOWN
from compile.errors import BadData
from compile.steps import Report
from models.errors import ModelsError
from models.manifest import RelativePath, Task

LISTING, READINGS = "texts.jsonl", "readings.json"
MAX_SECONDS, MAX_PIXELS = 3600.0, 50_000_000


@dataclass(frozen=True)
class Reading:
    """A file and what it says. ``amount``: seconds of a recording, 1 of a picture."""

    file: str
    text: str
    amount: float


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    file: RelativePath
    text: str


def read_readings(folder: Path, task: Task, report: Report) -> tuple[Reading, ...]:
    """What ``folder`` holds. Raises ``BadData``."""
    try:
        lines = (folder / LISTING).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"{folder / LISTING} cannot be read: {error}") from error
    amount_of = _seconds if task == "transcribe" else _one_picture
    found: dict[str, Reading] = {}
    bad: list[str] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = _Row.model_validate_json(line)
            if row.file in found:
                raise ValueError(f"{row.file} stands there already")
            found[row.file] = Reading(row.file, row.text, amount_of((folder / row.file).read_bytes()))
        except (OSError, ValueError, ModelsError) as error:
            bad.append(f"row {number}: {_said(error)}")
        report(number / len(lines), f"{number} of {len(lines)} files")
    if bad:
        more = "" if len(bad) <= SHOWN else f"\n... and {len(bad) - SHOWN} more"
        raise BadData("\n".join([f"{folder / LISTING}: {len(bad)} bad rows", *bad[:SHOWN]]) + more)
    if not any(one.text.strip() for one in found.values()):
        raise BadData(f"{folder / LISTING}: nobody says a word, so nothing can be measured")
    return tuple(found.values())


def write_readings(folder: Path, readings: Sequence[Reading]) -> None:
    """Write them into ``folder``; the inverse of ``stored_readings``."""
    (folder / READINGS).write_text(
        json.dumps([asdict(one) for one in readings], ensure_ascii=False), encoding="utf-8"
    )


def stored_readings(folder: Path) -> tuple[Reading, ...]:
    """What ``write_readings`` left."""
    told: list[Mapping[str, Any]] = json.loads((folder / READINGS).read_text(encoding="utf-8"))
    return tuple(Reading(**one) for one in told)


def _seconds(data: bytes) -> float:
    from models.engines.whisper import RATE, decode_audio

    return len(decode_audio(data, MAX_SECONDS)) / RATE


def _one_picture(data: bytes) -> float:
    from models.engines.onnx_vision import decode

    decode(data, MAX_PIXELS)
    return 1.0


def _said(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the line'}: {first['msg']}"
    return str(error)
