"""The ticket task: what an answer is, how it is written, read and scored. Pure.

An answer is compact JSON with the keys ``class``, ``severity``, ``component`` in this order.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models import canonical
from models.errors import ModelsError

CLASSES = (
    "mechanical-wear",
    "lubrication-cooling",
    "hydraulic-pneumatic",
    "electrical-power",
    "sensor-instrument",
    "control-software",
    "tooling-fixture",
    "material-quality",
)
SEVERITIES = ("stop", "degraded", "watch")
FIELDS = ("class", "severity", "component")

ANSWER_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "class": {"type": "string", "enum": list(CLASSES)},
        "severity": {"type": "string", "enum": list(SEVERITIES)},
        "component": {"type": "string", "minLength": 1, "maxLength": 120},
    },
    "required": list(FIELDS),
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Ticket:
    """One labelled ticket."""

    id: str
    text: str
    label: str
    severity: str
    component: str
    language: str

    @property
    def answer(self) -> str:
        """The answer as it is to be written."""
        fields = {"class": self.label, "severity": self.severity, "component": self.component}
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Score:
    """What one answer got right. ``label`` is the class that was read, empty when there was none."""

    valid: bool
    label: str
    class_right: bool
    severity_right: bool
    component_right: bool

    @property
    def exact(self) -> bool:
        """All three fields right."""
        return self.class_right and self.severity_right and self.component_right


def score(ticket: Ticket, answer: str) -> Score:
    """Compare an answer with the labels. Nothing of an invalid answer counts."""
    read = read_answer(answer)
    if read is None:
        return Score(False, "", False, False, False)
    return Score(
        valid=True,
        label=read["class"],
        class_right=read["class"] == ticket.label,
        severity_right=read["severity"] == ticket.severity,
        component_right=_same_component(read["component"], ticket.component),
    )


def read_answer(answer: str) -> dict[str, str] | None:
    """The fields of a valid answer; None when it is not JSON of the answer's schema, each key once."""
    try:
        value = canonical.decode(answer.encode("utf-8", "replace"))
    except ModelsError:
        return None
    if not isinstance(value, dict) or set(value) != set(FIELDS):
        return None
    if value["class"] not in CLASSES or value["severity"] not in SEVERITIES:
        return None
    if not isinstance(value["component"], str) or not 0 < len(value["component"]) <= 120:
        return None
    return value


def messages(system: str, text: str) -> tuple[dict[str, str], ...]:
    """The chat of a request."""
    return ({"role": "system", "content": system}, {"role": "user", "content": text})


def _same_component(read: str, wanted: str) -> bool:
    """Equal but for case and space, or one within the other and at least half as long."""
    a, b = (" ".join(value.lower().split()) for value in (read, wanted))
    short, long = sorted((a, b), key=len)
    return bool(short) and short in long and 2 * len(short) >= len(long)
