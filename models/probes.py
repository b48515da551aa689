"""Probes: known answers that a release must still give on the device before it is activated.

Pure: judges answers; asking the engine belongs to the caller.
"""

from dataclasses import dataclass
from difflib import SequenceMatcher

from models import canonical
from models.errors import ModelsError
from models.manifest import Probe


@dataclass(frozen=True, slots=True)
class ProbeVerdict:
    """How near an answer came to the expected one, and whether that is near enough."""

    probe: Probe
    answer: str
    similarity: float
    passed: bool


def similarity(expected: str, answer: str) -> float:
    """Likeness in [0, 1].

    1 when both texts hold the same JSON value, however it is written; else the Ratcliff/Obershelp ratio of
    the texts without surrounding space (``difflib``, which is not symmetric: ``expected`` comes first).
    """
    left, right = expected.strip(), answer.strip()
    if left == right or _same_json(left, right):
        return 1.0
    return SequenceMatcher(None, left, right, autojunk=False).ratio()


def judge(probe: Probe, answer: str) -> ProbeVerdict:
    """Hold one answer against its probe."""
    likeness = similarity(probe.expected, answer)
    return ProbeVerdict(probe, answer, likeness, likeness >= probe.tolerance)


def _same_json(left: str, right: str) -> bool:
    try:
        return canonical.encode(canonical.decode(left.encode())) == canonical.encode(
            canonical.decode(right.encode())
        )
    except ModelsError:
        return False
