"""Training examples of the ticket task: prompt and answer as token ids, with a weight per answer token."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compile.tickets import FIELDS, Ticket, messages
from compile.training.finetune import Example
from models.prompts import ChatTemplate

_FRAME_WEIGHT = 0.2
"""Braces, keys and quotes are the same in every answer: learned at once, and then of no more use."""


def load_tokenizer(hf_folder: Path) -> Any:
    """The reference tokenizer (``tokenizers.Tokenizer``)."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(hf_folder / "tokenizer.json"))


def encode(
    tickets: Sequence[Ticket],
    tokenizer: Any,
    template: ChatTemplate,
    system: str,
    end_of_turn: str,
    label_weight: float,
) -> list[Example]:
    """One example per ticket. ``label_weight`` is that of the class; severity has half, component 1."""
    weight_of = {"class": label_weight, "severity": max(1.0, label_weight / 2), "component": 1.0}
    return [_one(ticket, tokenizer, template, system, end_of_turn, weight_of) for ticket in tickets]


def _one(
    ticket: Ticket,
    tokenizer: Any,
    template: ChatTemplate,
    system: str,
    end_of_turn: str,
    weight_of: Mapping[str, float],
) -> Example:
    prompt = tokenizer.encode(template.render(messages(system, ticket.text)), add_special_tokens=False)
    # The answer is encoded apart from the prompt, because the engine, too, starts it at a token boundary.
    written = ticket.answer + end_of_turn
    answer = tokenizer.encode(written, add_special_tokens=False)
    spans = _spans(ticket.answer)
    weights = []
    for start, end in answer.offsets:
        field = next((name for name, (low, high) in spans.items() if start < high and end > low), None)
        weights.append(weight_of[field] if field else _FRAME_WEIGHT)
    return Example((*prompt.ids, *answer.ids), len(prompt.ids), tuple(weights))


def _spans(answer: str) -> dict[str, tuple[int, int]]:
    """Where the value of each field stands in a compact answer."""
    starts = {name: answer.index(f'"{name}":"') + len(name) + 4 for name in FIELDS}
    ends = {
        "class": answer.index('","severity":"'),
        "severity": answer.index('","component":"'),
        "component": len(answer) - 2,
    }
    return {name: (starts[name], ends[name]) for name in FIELDS}
