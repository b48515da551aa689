"""Probes: known answers that a release must still give on the device before it is activated.

Pure: writes and judges answers; asking the engine belongs to the caller. An answer, like what is expected,
is text. For a chat it is what the model said; else it is JSON, written by the functions here:

- of an embedder ``{"vector": [...]}``,
- of a classifier ``{"label": "leak", "probability": 0.93}``, the likeliest,
- of a reranker ``{"relevance": 0.98}``,
- of an inspection ``{"score": 2.5, "is_defect": true}``,
- of a reader of pictures or speech ``{"text": "Invoice No. 17"}``.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from models import canonical
from models.errors import ModelsError
from models.manifest import Probe

_DIGITS = 6
"""Significant digits of a number in an answer: what float32 holds for sure."""


@dataclass(frozen=True, slots=True)
class ProbeVerdict:
    """How near an answer came to the expected one, and whether that is near enough."""

    probe: Probe
    answer: str
    similarity: float
    passed: bool


def vector_answer(vector: Sequence[float]) -> str:
    """The answer of an embedder."""
    return _written({"vector": [_rounded(number) for number in vector]})


def label_answer(labels: Sequence[str], probabilities: Sequence[float]) -> str:
    """The answer of a classifier: its likeliest label, the first of equals."""
    best = max(range(len(labels)), key=lambda index: probabilities[index])
    return _written({"label": labels[best], "probability": _rounded(probabilities[best])})


def relevance_answer(relevance: float) -> str:
    """The answer of a reranker."""
    return _written({"relevance": _rounded(relevance)})


def text_answer(text: str) -> str:
    """The answer of what reads text in pictures or hears speech."""
    return _written({"text": text})


def score_answer(score: float, is_defect: bool) -> str:
    """The answer of an inspection."""
    return _written({"score": _rounded(score), "is_defect": bool(is_defect)})


def similarity(expected: str, answer: str) -> float:
    """Likeness of two texts in [0, 1].

    1 when both texts hold the same JSON value, however it is written; else the Ratcliff/Obershelp ratio of
    the texts without surrounding space (``difflib``, which is not symmetric: ``expected`` comes first).
    """
    left, right = expected.strip(), answer.strip()
    if left == right or _same_json(left, right):
        return 1.0
    return SequenceMatcher(None, left, right, autojunk=False).ratio()


def likeness(expected: str, answer: str) -> float:
    """Likeness in [0, 1] of two answers of an encoder; 0 for other labels, verdicts or shapes.

    Vectors: their cosine. Labels: 1 less the difference of their probabilities. Scores: 1 less their
    difference as a share of the larger one. Relevances: 1 less their difference. Texts: their similarity.
    """
    match _read(expected), _read(answer):
        case {"vector": list() as left}, {"vector": list() as right}:
            return _cosine(left, right)
        case {"label": str() as label, "probability": wanted}, {"label": str() as other, "probability": got}:
            return _clamped(1 - abs(_number(wanted) - _number(got))) if label == other else 0.0
        case {"score": wanted, "is_defect": bool() as verdict}, {"score": got, "is_defect": bool() as other}:
            left_score, right_score = _number(wanted), _number(got)
            largest = max(abs(left_score), abs(right_score)) or 1.0
            return _clamped(1 - abs(left_score - right_score) / largest) if verdict is other else 0.0
        case {"relevance": wanted}, {"relevance": got}:
            return _clamped(1 - abs(_number(wanted) - _number(got)))
        case {"text": str() as wanted}, {"text": str() as got}:
            return similarity(wanted, got)
    return 0.0


def judge(probe: Probe, answer: str) -> ProbeVerdict:
    """Hold one answer against its probe."""
    near = similarity(probe.expected, answer) if probe.messages else likeness(probe.expected, answer)
    return ProbeVerdict(probe, answer, near, near >= probe.tolerance)


def _written(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _rounded(number: float) -> float:
    return float(f"{float(number):.{_DIGITS}g}")


def _read(text: str) -> dict[str, Any]:
    try:
        value = canonical.decode(text.encode())
    except ModelsError:
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float:
    """NaN for what is no number, which is near nothing."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _clamped(value: float) -> float:
    return max(0.0, min(1.0, value)) if math.isfinite(value) else 0.0


def _cosine(left: Sequence[Any], right: Sequence[Any]) -> float:
    one, two = [_number(value) for value in left], [_number(value) for value in right]
    if len(one) != len(two) or not all(map(math.isfinite, one + two)):
        return 0.0
    norm = math.hypot(*one) * math.hypot(*two)
    return _clamped(math.fsum(a * b for a, b in zip(one, two, strict=True)) / norm) if norm else 0.0


def _same_json(left: str, right: str) -> bool:
    try:
        return canonical.encode(canonical.decode(left.encode())) == canonical.encode(
            canonical.decode(right.encode())
        )
    except ModelsError:
        return False
