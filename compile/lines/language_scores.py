"""How right answers are: those of a variant beside the reference's, those after training beside those before.

Structured answers are scored field by field, free ones as texts (``evaluate.text_metrics``), and by the
perplexity of the answers that are wanted.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from compile.data.rows import Row, read_splits
from compile.evaluate import answers, judge
from compile.evaluate.judge import Measured
from compile.evaluate.measure import read_measured
from compile.findings import Compared
from compile.lines.language import BASELINES, LanguageParts, answer_fields, before_rows, test_rows
from compile.recipe.language import LanguageRecipe
from compile.steps import Cache, Step

if TYPE_CHECKING:
    import numpy.typing as npt

    Tokens = Mapping[str, "npt.NDArray[Any]"]

SEED = 7
BEFORE, AFTER = "before training", "after training, not quantized"


@dataclass(frozen=True)
class Said:
    """One model's answers to some rows, and how far it is from the wanted ones.

    ``losses``: of the rows that are also asked before training, the losses (nats) and the number of tokens
    of the wanted answers; none where answers are structured.
    """

    answers: tuple[str, ...] = ()
    losses: tuple[tuple[float, int], ...] = ()

    @classmethod
    def read(cls, cache: Cache, step: Step | None) -> "Said":
        """What ``step`` left; nothing where there is none."""
        if step is None:
            return cls()
        stored = read_measured(cache.folder(step))
        losses = tuple((loss, count) for loss, count in stored.get("losses", []))
        return cls(tuple(stored.get("answers", [])), losses)


@dataclass(frozen=True)
class Asked:
    """The rows: all that are tested, and those of them that are also asked before training."""

    tested: tuple[Row, ...] = ()
    before: tuple[Row, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, line: LanguageParts, cache: Cache) -> "Asked":
        """No rows without data."""
        if line.data is None:
            return cls()
        splits = read_splits(cache.folder(line.data))
        return cls(test_rows(line.recipe, splits), before_rows(line.recipe, splits), splits.sizes)

    def also_before(self, said: Said) -> Said:
        """What was said to ``tested``, cut to ``before``."""
        return Said(tuple(said.answers[self.tested.index(row)] for row in self.before), said.losses)


def task_metrics(recipe: LanguageRecipe, asked: Asked, ours: Said, reference: Said) -> dict[str, Measured]:
    """Scores of answers beside those of the reference on the same rows."""
    same = [float(a == b) for a, b in zip(ours.answers, reference.answers, strict=True)]
    agreement = judge.paired(same, [1.0] * len(same), recipe.evaluate.bootstrap, SEED)
    return scores(recipe, asked.tested, ours, reference) | {"answer_agreement": agreement}


def scores(recipe: LanguageRecipe, rows: Sequence[Row], ours: Said, others: Said) -> dict[str, Measured]:
    """Everything that can be said of answers to ``rows``, paired with what others answer."""
    fields, rounds = answer_fields(recipe), recipe.evaluate.bootstrap
    if not fields:
        return _of_texts(rows, ours, others, rounds)
    scored, known = (
        [answers.score(row.fields, text, fields) for row, text in zip(rows, said.answers, strict=True)]
        for said in (ours, others)
    )

    def share(read: Any) -> Measured:
        return judge.paired([float(read(a)) for a in scored], [float(read(b)) for b in known], rounds, SEED)

    found = {}
    for part in fields:
        found[part.metric] = share(lambda one, name=part.name: one.right[name])
        if part.labels:
            found[f"{part.name}_macro_f1"] = judge.macro_f1(
                [row.fields[part.name] for row in rows],
                [one.said.get(part.name, "") for one in scored],
                [one.said.get(part.name, "") for one in known],
                part.labels,
                rounds,
                SEED,
            )
    return found | {"exact_match": share(lambda one: one.exact), "valid_json": share(lambda one: one.valid)}


def _of_texts(rows: Sequence[Row], ours: Said, others: Said, rounds: int) -> dict[str, Measured]:
    from compile.evaluate.text_metrics import compare_texts, measured, perplexity

    found = compare_texts([row.answer for row in rows], ours.answers, others.answers, rounds, SEED)
    pair = [perplexity(*zip(*said.losses, strict=True)) for said in (ours, others) if said.losses]
    if len(pair) == 2:
        found["answer_perplexity"] = measured(pair[0], pair[1], rounds, SEED)
    return found


def adapter_effect(recipe: LanguageRecipe, rows: Sequence[Row], adapted: Said, alone: Said) -> Measured:
    """The headline score with the adapter (value) and without it (reference), on the same base."""
    fields = answer_fields(recipe)
    return scores(recipe, rows, adapted, alone)[fields[0].metric if fields else "chrf"]


def right(row: Row, answer: str, fields: Sequence[answers.Field]) -> bool:
    """Whether the first field is right; without fields, the whole answer."""
    if fields:
        return answers.score(row.fields, answer, fields).right[fields[0].name]
    return answer.strip() == row.answer.strip()


def before_and_after(
    recipe: LanguageRecipe, asked: Asked, said: tuple[Said, Said], texts: "tuple[Tokens, Tokens] | None"
) -> tuple[Compared, ...]:
    """The model before training and after it, on the same rows and on the same held-out text.

    ``said``: its answers before to ``asked.before``, after to ``asked.tested``. ``texts``: what was measured
    on the text before and after, where training changed what the model itself says.
    """
    before, after = said
    found: tuple[dict[str, Measured], dict[str, Measured]] = {}, {}
    if before.answers:
        found[0].update(scores(recipe, asked.before, before, before))
        found[1].update(scores(recipe, asked.before, asked.also_before(after), before))
    if texts is not None:
        rounds = recipe.evaluate.bootstrap
        found[0]["perplexity"] = judge.perplexity(texts[0]["loss"], rounds, SEED)
        found[1]["perplexity"] = judge.fidelity_metrics(texts[1], texts[0], rounds, SEED)["perplexity"]
    if not found[0]:
        return ()
    alone = {name: replace(one, reference=None, ci95=None) for name, one in found[0].items()}
    changes = [
        f"{name} {one.ci95[0]:+.3g} to {one.ci95[1]:+.3g}" for name, one in found[1].items() if one.ci95
    ]
    note = f"change, paired, 95 %: {', '.join(changes)}"
    return Compared(BEFORE, alone), Compared(AFTER, found[1], note)


def baselines(line: LanguageParts, cache: Cache, tested: Sequence[Row]) -> tuple[Compared, ...]:
    """What the label fields would get without a language model."""
    if line.baselines is None or line.data is None:
        return ()
    found: dict[str, dict[str, Measured]] = {}
    splits = read_splits(cache.folder(line.data))
    kept = [splits.test.index(row) for row in tested]
    stored = json.loads((cache.folder(line.baselines) / BASELINES).read_text(encoding="utf-8"))
    for part, by_name in stored.items():
        for name, labels in by_name.items():
            hits = [labels[at] == row.fields[part] for at, row in zip(kept, tested, strict=True)]
            share = judge.share(hits, line.recipe.evaluate.bootstrap, SEED)
            found.setdefault(name, {})[f"{part}_accuracy"] = share
    return tuple(Compared(name, metrics) for name, metrics in found.items())
