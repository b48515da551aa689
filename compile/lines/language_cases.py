"""Examples for the report of a model that has no test rows: where variants would go on otherwise."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.findings import Answer, Case
from compile.line import REFERENCE

if TYPE_CHECKING:
    import numpy.typing as npt

_SHOWN = 24
_BEFORE = 24
"""Tokens of the text that are shown before the one in question."""

Tokens = Mapping[str, "npt.NDArray[Any]"]


def text_cases(
    tokenizer: Any, text: Path, tokens: int, window: int, measured: Mapping[str, Tokens]
) -> tuple[Case, ...]:
    """The places of the held-out text where variants part from the reference most: text, and each next token.

    ``measured`` holds ``top`` and ``kl`` per token, by variant, ``reference`` among them.
    """
    import numpy as np

    ids = text_ids(tokenizer, text, tokens)
    places = _places(len(ids), window)
    reference = measured[REFERENCE]["top"]
    if len(places) != len(reference):
        return ()  # measured on other tokens than these: nothing could be said of them
    variants = [name for name in measured if name != REFERENCE]
    worst = np.zeros(len(places))
    for name in variants:
        parted = measured[name]["top"] != reference
        worst = np.maximum(worst, np.where(parted, measured[name]["kl"], 0.0))
    cases = []
    for place in np.argsort(-worst)[:_SHOWN]:
        if worst[place] <= 0:
            break
        at = places[place]
        said = {
            name: Answer(
                repr(tokenizer.decode([int(measured[name]["top"][place])])),
                bool(measured[name]["top"][place] == ids[at]),
            )
            for name in measured
        }
        before = tokenizer.decode(ids[max(0, at - _BEFORE) : at])
        cases.append(Case(f"… {before}", repr(tokenizer.decode([ids[at]])), said))
    return tuple(cases)


def text_ids(tokenizer: Any, text: Path, tokens: int) -> list[int]:
    """The first ids of a text; what looks like a control token is text in it."""
    tokenizer.encode_special_tokens = True
    ids: list[int] = tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids[:tokens]
    tokenizer.encode_special_tokens = False
    return ids


def _places(count: int, window: int) -> Sequence[int]:
    """The positions that are predicted: all but the first of each window."""
    return [at for start in range(0, count, window) for at in range(start + 1, min(start + window, count))]
