"""Training examples: prompt and answer as token ids, with a weight per answer token.

Owns how a row becomes tokens, what each of them weighs, and what is done with rows that are too long:
refused by number, or cut in the user's text and counted. The answer is encoded apart from the prompt,
because the engine, too, starts it at a token boundary.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.errors import BadData, UnsupportedBase
from compile.recipe.training import FineTune
from models.prompts import ChatTemplate, Prompt

if TYPE_CHECKING:
    from compile.data.rows import Row

FRAME_WEIGHT = 0.2
"""Braces, keys and quotes are the same in every answer: learned at once, and then of no more use."""
_SHOWN = 20


@dataclass(frozen=True)
class Example:
    """Token ids of prompt and answer. ``weights`` are those of the answer's tokens in the loss."""

    ids: tuple[int, ...]
    prompt_length: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Encoded:
    """The examples of some rows, in their order, and the numbers of the rows whose text was cut."""

    examples: tuple[Example, ...]
    cut: tuple[int, ...] = ()

    @property
    def note(self) -> str:
        """What was cut, for a person; empty when nothing was."""
        return f"{len(self.cut)} of {len(self.examples)} rows were cut" if self.cut else ""


def load_tokenizer(hf_folder: Path) -> Any:
    """The reference tokenizer (``tokenizers.Tokenizer``)."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(hf_folder / "tokenizer.json"))


def load_template(hf_folder: Path) -> tuple[ChatTemplate, str]:
    """A model's chat template, and the token that ends a turn. Raises ``UnsupportedBase``."""
    path = hf_folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    source, beside = config.get("chat_template"), hf_folder / "chat_template.jinja"
    if beside.is_file():
        source = beside.read_text(encoding="utf-8")
    if not isinstance(source, str):
        raise UnsupportedBase(f"{hf_folder}: the tokenizer has no chat template; give one")
    bos, eos = _content(config.get("bos_token")), _content(config.get("eos_token"))
    return ChatTemplate(source, bos, eos), eos


def encode_rows(
    rows: Sequence["Row"],
    tokenizer: Any,
    prompt_of: Callable[[Sequence[Mapping[str, str]]], Prompt | str],
    end_of_turn: str,
    settings: FineTune,
    label_fields: Sequence[str] = (),
) -> Encoded:
    """One example per row.

    ``prompt_of`` is ``ChatTemplate.prompt`` (or ``render``, for trusted rows). In a structured answer
    (``row.fields``) the tokens of ``label_fields`` weigh ``settings.label_weight``, those of other fields 1,
    braces and keys little; ``settings.field_weights`` says otherwise by field. Every token of a plain
    answer weighs 1. Raises ``BadData`` for rows over ``settings.max_tokens`` unless they are to be cut, and
    for rows without an answer.
    """
    _refuse(rows, lambda row: not row.answer, "have no answer")
    _refuse(rows, lambda row: bool(row.rejected), "are preferences (prompt, chosen, rejected)")
    weight_of = dict.fromkeys(label_fields, settings.label_weight) | dict(settings.field_weights)
    examples, long, cut = [], [], []
    for row in rows:
        example = _encode(row, row.messages, tokenizer, prompt_of, end_of_turn, weight_of)
        if len(example.ids) > settings.max_tokens:
            long.append((row.number, len(example.ids)))
            if settings.too_long == "truncate":
                shorter = _shortened(row, tokenizer, prompt_of, end_of_turn, weight_of, settings.max_tokens)
                if shorter is None:
                    raise BadData(
                        f"row {row.number}: prompt and answer are over {settings.max_tokens} tokens even "
                        "without the user's text; raise finetune.max_tokens"
                    )
                example = shorter
                cut.append(row.number)
        examples.append(example)
    if long and settings.too_long == "refuse":
        shown = ", ".join(f"row {number} ({length})" for number, length in long[:_SHOWN])
        more = f" and {len(long) - _SHOWN} more" if len(long) > _SHOWN else ""
        raise BadData(
            f"{len(long)} of {len(rows)} rows are longer than finetune.max_tokens {settings.max_tokens}: "
            f"{shown}{more}; raise it, or set finetune.too_long: truncate"
        )
    return Encoded(tuple(examples), tuple(cut))


def _refuse(rows: Sequence["Row"], wrong: Callable[["Row"], bool], what: str) -> None:
    numbers = [row.number for row in rows if wrong(row)]
    if numbers:
        shown = ", ".join(map(str, numbers[:_SHOWN])) + (", ..." if len(numbers) > _SHOWN else "")
        raise BadData(f"{len(numbers)} of {len(rows)} rows {what}: rows {shown}")


def _encode(
    row: "Row",
    said: Sequence[Mapping[str, str]],
    tokenizer: Any,
    prompt_of: Callable[[Sequence[Mapping[str, str]]], Prompt | str],
    end_of_turn: str,
    weight_of: Mapping[str, float],
) -> Example:
    prompt = prompt_ids(tokenizer, prompt_of(said))
    answer = tokenizer.encode(row.answer + end_of_turn, add_special_tokens=False)
    if not row.fields:
        return Example((*prompt, *answer.ids), len(prompt), (1.0,) * len(answer.ids))
    spans = spans_of(row.answer, row.fields)
    weights = []
    for start, end in answer.offsets:
        field = next((name for name, (low, high) in spans.items() if start < high and end > low), None)
        weights.append(weight_of.get(field, 1.0) if field else FRAME_WEIGHT)
    return Example((*prompt, *answer.ids), len(prompt), tuple(weights))


def prompt_ids(tokenizer: Any, prompt: Prompt | str) -> list[int]:
    """Token ids of a prompt; control tokens count where the template wrote them and nowhere else."""
    if isinstance(prompt, str):
        prompt = Prompt(prompt)
    ids: list[int] = []
    at = 0
    for start, end in (*prompt.literal, (len(prompt.text), len(prompt.text))):
        for piece, literal in ((prompt.text[at:start], False), (prompt.text[start:end], True)):
            tokenizer.encode_special_tokens = literal
            ids += tokenizer.encode(piece, add_special_tokens=False).ids if piece else []
        at = end
    tokenizer.encode_special_tokens = False
    return ids


def spans_of(answer: str, fields: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    """Where the value of each field stands in a compact answer, without its quotes."""
    spans, at = {}, 0
    for name, value in fields.items():
        written = json.dumps(value, ensure_ascii=False)
        key = json.dumps(name, ensure_ascii=False) + ":"
        found = answer.find(key + written, at)
        if found < 0:
            raise BadData(f"the answer {answer[:80]!r} does not hold the field {name!r} in its place")
        start = found + len(key)
        at = start + len(written)
        spans[name] = (start + 1, at - 1)
    return spans


def _shortened(
    row: "Row",
    tokenizer: Any,
    prompt_of: Callable[[Sequence[Mapping[str, str]]], Prompt | str],
    end_of_turn: str,
    weight_of: Mapping[str, float],
    most: int,
) -> Example | None:
    """With as much of the beginning of the last user message as fits; None when nothing fits."""
    last = max((at for at, one in enumerate(row.messages) if one["role"] == "user"), default=None)
    if last is None:
        return None

    def with_text(length: int) -> Example:
        said = [dict(one) for one in row.messages]
        said[last]["content"] = said[last]["content"][:length]
        return _encode(row, said, tokenizer, prompt_of, end_of_turn, weight_of)

    low, high = 0, len(row.messages[last]["content"])
    best = with_text(0)
    if len(best.ids) > most:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        tried = with_text(middle)
        if len(tried.ids) <= most:
            low, best = middle, tried
        else:
            high = middle - 1
    return best


def _content(token: Any) -> str:
    """Hugging Face writes a special token as its text or as a mapping."""
    return str(token["content"]) if isinstance(token, dict) else str(token or "")
