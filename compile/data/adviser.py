"""Which technique a data set supports, and why, in words. Pure: facts in, advice out.

The thresholds are rules of thumb and stand here by name. They follow what is published: some fifty to a
hundred examples are where fine-tuning begins to help; a thousand good ones can shape a model (LIMA, arXiv
2305.11206); a low-rank adapter keeps up with full fine-tuning on sets of that kind and falls behind on much
larger ones (LoRA Learns Less and Forgets Less, arXiv 2405.09673); an encoder of ordinary size learns a label
from some tens of examples (SetFit, arXiv 2209.11055, shows eight as the least). They say where to begin:
what passes is decided by the budgets, on the test split.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Technique = Literal["prompting", "lora", "full", "encoder-classifier"]

LORA_ROWS = 100
"""Rows to train on below which examples belong into the prompt."""
FULL_ROWS = 10_000
"""Rows to train on from which training every weight can pay."""
FULL_PARAMETERS = 1_500_000_000
"""Parameters of the largest base for which full fine-tuning is advised: 16 bytes each with AdamW."""
BYTES_PER_PARAMETER = 16
"""Weights, gradients and two moments, 4 bytes each."""
ENCODER_ROWS_PER_LABEL = 16
"""Rows of the rarest label below which a fine-tuned encoder is not to be relied on."""
PROMPT_ROWS_PER_LABEL = 8
"""Rows of the rarest label below which nothing can be learned of it."""
IMBALANCE = 10.0
"""Largest label over smallest, from which accuracy alone misleads."""
TEST_ROWS = 100
"""Test rows below which an interval of accuracy is wider than 10 points to either side."""
LONG_TOKENS = 2048
"""95th percentile of a row from which training on a small machine hurts."""
CHARS_PER_TOKEN = {"zh": 1.2, "ja": 1.2, "ko": 1.2, "": 3.5}
"""Rough, where no tokenizer is given; the empty key is for every other script."""


@dataclass(frozen=True)
class Facts:
    """What the advice is drawn from.

    ``labels`` counts the rows to train on by label, empty where answers are free. ``only_labels`` says that
    an answer is a label and nothing else. ``tokens_p95`` is of a whole row; an estimate where
    ``tokens_estimated``. ``base_parameters`` is None where the base is not known.
    """

    train_rows: int
    test_rows: int
    labels: Mapping[str, int]
    only_labels: bool
    preferences: bool
    tokens_p95: int
    tokens_estimated: bool
    base_parameters: int | None = None


@dataclass(frozen=True)
class Advice:
    """What to do, why, what speaks against the others, and what to watch."""

    technique: Technique
    reasons: tuple[str, ...]
    against: Mapping[Technique, str]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """As it stands in the card."""
        return {
            "technique": self.technique,
            "reasons": list(self.reasons),
            "against": dict(self.against),
            "warnings": list(self.warnings),
        }


def advise(facts: Facts) -> Advice:
    """The technique that the data support. Never raises: too little data is advice, too."""
    if facts.labels and facts.only_labels:
        return _for_labels(facts)
    return _for_answers(facts)


def _for_labels(facts: Facts) -> Advice:
    rarest = min(facts.labels, key=lambda label: (facts.labels[label], label))
    least = facts.labels[rarest]
    against: dict[Technique, str] = {}
    if least < PROMPT_ROWS_PER_LABEL:
        technique: Technique = "prompting"
        reasons = [
            f"label {rarest!r} has {_rows(least)} to train on: below {PROMPT_ROWS_PER_LABEL} nothing can be "
            "learned of it, so describe the labels in a prompt and collect more"
        ]
        against["encoder-classifier"] = f"needs {ENCODER_ROWS_PER_LABEL} rows of every label"
        against["lora"] = "would learn to leave the rare labels out"
    else:
        technique = "encoder-classifier"
        reasons = [
            "the answer is one of a few labels: an encoder says it in one pass, with a probability, at a "
            "fraction of the size and time of a model that writes",
            f"the rarest label, {rarest!r}, has {_rows(least)} to train on",
        ]
        if least < ENCODER_ROWS_PER_LABEL:
            reasons.append(
                f"that is below {ENCODER_ROWS_PER_LABEL}: expect many misses, and compare with TF-IDF"
            )
        against["prompting"] = f"{_rows(facts.train_rows)} say more than a prompt can hold"
        against["lora"] = "worth it only where the same model has to explain itself or has other tasks"
    against["full"] = "of a model that writes: the most expensive way to say a label"
    return Advice(technique, (*reasons, *_shape_of(facts)), against, _warnings(facts))


def _for_answers(facts: Facts) -> Advice:
    rows, base = facts.train_rows, facts.base_parameters
    against: dict[Technique, str] = {}
    if rows < LORA_ROWS:
        technique: Technique = "prompting"
        reasons = [
            f"{_rows(rows)} to train on: below {LORA_ROWS} a model learns rows by heart and not the task; "
            "put a few into the prompt as examples"
        ]
        against["lora"] = f"try it from {LORA_ROWS} rows on"
        against["full"] = f"far too few rows; from {FULL_ROWS:,} on"
    elif rows >= FULL_ROWS and (base is None or base <= FULL_PARAMETERS):
        technique = "full"
        reasons = [f"{_rows(rows)} to train on: from {FULL_ROWS:,} on a low-rank adapter can fall behind"]
        if base is not None:
            reasons.append(
                f"the base has {_millions(base)} parameters: AdamW needs about "
                f"{_gigabytes(base * BYTES_PER_PARAMETER)} for all of them"
            )
        else:
            reasons.append(
                f"this holds for a base up to {_millions(FULL_PARAMETERS)} parameters; above that, LoRA"
            )
        against["lora"] = (
            "the better choice where several tasks share one base, or the base must not forget; try both"
        )
        against["prompting"] = f"{_rows(rows)} say more than a prompt can hold"
    else:
        technique = "lora"
        reasons = [f"{_rows(rows)} to train on: enough for an adapter, which changes little of the base"]
        if rows >= FULL_ROWS and base is not None:
            against["full"] = (
                f"the base has {_millions(base)} parameters: AdamW needs about "
                f"{_gigabytes(base * BYTES_PER_PARAMETER)}"
            )
        else:
            against["full"] = f"below {FULL_ROWS:,} rows it gains little over LoRA and forgets more"
        against["prompting"] = f"{_rows(rows)} say more than a prompt can hold"
    if facts.labels:
        against["encoder-classifier"] = "the answer holds more than a label; an encoder cannot write the rest"
    else:
        against["encoder-classifier"] = "the answers are free text"
    return Advice(technique, (*reasons, *_shape_of(facts)), against, _warnings(facts))


def _shape_of(facts: Facts) -> list[str]:
    """What lengths and balance say in favour; what they say against is a warning."""
    reasons = []
    if facts.tokens_p95 <= LONG_TOKENS:
        about = "about " if facts.tokens_estimated else ""
        reasons.append(
            f"19 rows in 20 have at most {about}{facts.tokens_p95:,} tokens, so they are cheap to train on"
        )
    if len(facts.labels) > 1 and not _is_uneven(facts.labels):
        most, least = max(facts.labels.values()), min(facts.labels.values())
        reasons.append(
            f"the {len(facts.labels)} labels are balanced well enough ({least:,} to {most:,} rows each)"
        )
    return reasons


def _is_uneven(labels: Mapping[str, int]) -> bool:
    return max(labels.values()) >= IMBALANCE * min(labels.values())


def _warnings(facts: Facts) -> tuple[str, ...]:
    warnings = []
    if facts.test_rows < TEST_ROWS:
        warnings.append(
            f"{_rows(facts.test_rows)} to test on: a 95 % interval of accuracy is then up to "
            f"{98 / max(1, facts.test_rows) ** 0.5:.0f} points wide to either side, and a tight budget is "
            "refused as undecided"
        )
    if len(facts.labels) > 1 and _is_uneven(facts.labels):
        warnings.append(
            "the largest label is "
            f"{max(facts.labels.values()) / max(1, min(facts.labels.values())):.0f} times the smallest: look "
            "at macro-F1 and weigh the classes"
        )
    if facts.preferences:
        warnings.append(
            "these are preferences: fine-tuning makes the chosen answers likelier than the rejected ones "
            "(direct preference optimization). To learn the chosen answers themselves, read the rows as "
            "shape: instruction with columns {instruction: prompt, output: chosen}"
        )
    if facts.tokens_p95 > LONG_TOKENS:
        about = "about " if facts.tokens_estimated else ""
        warnings.append(
            f"one row in twenty has more than {about}{facts.tokens_p95:,} tokens: set max_tokens of the "
            "fine-tuning, or cut the texts"
        )
    return tuple(warnings)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _millions(parameters: int) -> str:
    return (
        f"{parameters / 1e9:.1f} thousand million" if parameters >= 1e9 else f"{parameters / 1e6:.0f} million"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
