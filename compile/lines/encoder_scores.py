"""What the task makes of answers: of every variant's beside the reference's, and of what stands beside them.

Beside variants stand baselines, the model before its training, a teacher, the same student without one, and
the student in float where the reference is another model.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from compile.data.rows import Row
from compile.evaluate import judge, vectors
from compile.evaluate.judge import Measured
from compile.evaluate.texts import read_measured
from compile.findings import Answer, Case, Compared
from compile.line import REFERENCE
from compile.lines.encoder import ANSWERS, SAID, EncoderParts, Recipe, seeks_answers
from compile.recipe.encoder import EmbedRecipe
from compile.steps import Cache, Step

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

SEED = 7
_QUERY = 300
"""Characters of a text in a case."""
_BEFORE = {
    "embed": "the student as its training begins",
    "classify": "the model as its training begins; a head that the base lacks is drawn at random",
}
_ALONE = {
    "embed": "the same texts and steps; halves of a text are to find each other (InfoNCE)",
    "classify": "the rows' own labels alone, repeated to as many steps",
}


class Judged:
    """The answers of every variant beside the reference's, and what the task makes of them."""

    def __init__(
        self, recipe: Recipe, rows: Sequence[Row], labels: Sequence[str], answers: "Mapping[str, Array]"
    ) -> None:
        self._recipe, self._rows, self._labels, self._answers = recipe, rows, labels, answers
        self._embeds = isinstance(recipe, EmbedRecipe)
        self._seeks = seeks_answers(recipe, rows)
        self._found = {
            name: self._retrieve(answers) for name, answers in self._answers.items() if self._embeds
        }

    @property
    def rounds(self) -> int:
        """Of every bootstrap."""
        return self._recipe.evaluate.bootstrap

    @property
    def headline(self) -> str:
        """The metric that plots and summaries show."""
        if not self._embeds:
            return "accuracy"
        if self._seeks:
            return "answer_rank"
        return "retrieval_precision" if all(row.label for row in self._rows) else "cosine_mean"

    def scores(self, answers: "Array") -> list[float]:
        """The headline of anyone's answers to the same rows, row by row."""
        wanted = [row.label for row in self._rows]
        match self.headline:
            case "accuracy":
                return self.right(vectors.chosen(answers, self._labels))
            case "answer_rank":
                return vectors.reciprocal_ranks(self._retrieve(answers))
            case "retrieval_precision":
                return vectors.precision(self._retrieve(answers), wanted)
        nearness: list[float] = vectors.cosines(answers, self._answers[REFERENCE]).tolist()
        return nearness

    def chance(self) -> Measured:
        """The precision of texts found at random."""
        wanted = [row.label for row in self._rows]
        expected = [(wanted.count(label) - 1) / (len(wanted) - 1) for label in wanted]
        return judge.share(expected, self.rounds, SEED)

    def right(self, said: Sequence[str]) -> list[float]:
        """Whether each row got its label."""
        return [float(label == row.label) for label, row in zip(said, self._rows, strict=True)]

    def metrics(self, name: str) -> dict[str, Measured]:
        """All metrics of one variant; of the reference those that do not compare it with itself."""
        rounds = self.rounds
        ours, theirs = self._answers[name], self._answers[REFERENCE]
        wanted = [row.label for row in self._rows]
        if not self._embeds:
            found = vectors.classification(wanted, self._labels, ours, theirs, rounds, SEED)
            kept = ("accuracy", "macro_f1")
            return found if name != REFERENCE else {key: found[key] for key in kept}
        mine, reference = self._found[name], self._found[REFERENCE]
        found = {}
        if self._seeks:
            found |= vectors.scored(
                "answer_rank",
                vectors.reciprocal_ranks(mine),
                vectors.reciprocal_ranks(reference),
                rounds,
                SEED,
            )
        elif all(wanted):
            for metric, score in (
                ("retrieval_precision", vectors.precision),
                ("retrieval_accuracy", vectors.first_right),
            ):
                found |= vectors.scored(metric, score(mine, wanted), score(reference, wanted), rounds, SEED)
        if name == REFERENCE:
            return {key: one for key, one in found.items() if not key.endswith("_ratio")}
        found |= vectors.fidelity(ours, theirs, rounds, SEED)
        return found | vectors.agreement(mine, reference, rounds, SEED)

    def said(self, name: str) -> list[str]:
        """One answer per row, as text: a label, or the text that was found."""
        if not self._embeds:
            return vectors.chosen(self._answers[name], self._labels)
        pool = [row.answer if self._seeks else row.text for row in self._rows]
        return [pool[row[0]] for row in self._found[name].nearest]

    def cases(self) -> tuple[Case, ...]:
        """All inputs. Those on which the variants do not agree come first; then those that they get wrong."""
        said = {name: self.said(name) for name in self._answers}
        made = []
        for at, row in enumerate(self._rows):
            answers = {name: self._answer(name, at, texts[at]) for name, texts in said.items()}
            made.append(Case(row.text[:_QUERY], row.label or row.answer, answers))

        def rank(case: Case) -> tuple[bool, bool]:
            answers = case.answers.values()
            return len({one.text for one in answers}) == 1, all(one.right is not False for one in answers)

        return tuple(sorted(made, key=rank))

    def _answer(self, name: str, at: int, text: str) -> Answer:
        row = self._rows[at]
        if not self._embeds:
            return Answer(text, text == row.label)
        if self._seeks:
            return Answer(text[:_QUERY], text == row.answer)
        label = self._rows[self._found[name].nearest[at][0]].label
        return Answer(
            f"{label}: {text[:_QUERY]}" if label else text[:_QUERY], label == row.label if label else None
        )

    def _retrieve(self, answers: "Array") -> vectors.Retrieved:
        if not self._seeks:
            return vectors.retrieve(answers)
        count = len(self._rows)
        return vectors.retrieve_answers(answers[:count], answers[count:], [row.answer for row in self._rows])


def beside(line: EncoderParts, cache: Cache, judged: Judged) -> tuple[Compared, ...]:
    """The scores of what is no variant."""
    task, found = line.recipe.task, _baselines(line, cache, judged)
    if line.before is not None:
        found.append(_compared("before training", judged, _answers(cache, line.before), _BEFORE[task]))
    if line.labelled is not None:
        said = json.loads((cache.folder(line.labelled) / SAID).read_text(encoding="utf-8"))
        right = judge.share(judged.right(said), judged.rounds, SEED)
        found.append(Compared("teacher", {"accuracy": right}, "asked about the rows that are tested"))
    if line.alone is not None:
        found.append(
            _compared("student without the teacher", judged, _answers(cache, line.alone), _ALONE[task])
        )
    if line.student is not None:
        answers = read_measured(cache.folder(line.student)).answers
        found.append(_compared("student in F32", judged, answers, "before it is quantized"))
    return tuple(found)


def gain(line: EncoderParts, cache: Cache, judged: Judged) -> tuple[str, ...]:
    """What the teacher is worth: the student in float less the one without, row by row."""
    if line.alone is None:
        return ()
    taught = line.student or line.variants[REFERENCE].measured
    with_, without = (
        judged.scores(answers)
        for answers in (read_measured(cache.folder(taught)).answers, _answers(cache, line.alone))
    )
    told = judge.paired(with_, without, judged.rounds, SEED)
    low, high = told.ci95 or (0.0, 0.0)
    worth = "helps" if low > 0 else "does harm" if high < 0 else "cannot be told from none"
    metric = judged.headline.replace("_", " ")
    return (
        f"The teacher {worth}: {metric} of the student in F32 is {told.value:.4f}, "
        f"without the teacher {told.reference:.4f}; difference {low:+.4f} to {high:+.4f} (paired 95 %).",
    )


def _baselines(line: EncoderParts, cache: Cache, judged: Judged) -> list[Compared]:
    stored = json.loads((cache.folder(line.baselines) / SAID).read_text(encoding="utf-8"))
    found = [
        Compared(name, {"accuracy": judge.share(judged.right(said), judged.rounds, SEED)})
        for name, said in stored["labels"].items()
    ]
    for metric, key in (("retrieval_precision", "precision"), ("answer_rank", "ranks")):
        if stored[key]:
            found.append(Compared("TF-IDF vectors", {metric: judge.share(stored[key], judged.rounds, SEED)}))
    if stored["precision"]:
        found.append(Compared("chance", {"retrieval_precision": judged.chance()}))
    return found


def _compared(name: str, judged: Judged, answers: "Array", note: str) -> Compared:
    metrics = {judged.headline: judge.share(judged.scores(answers), judged.rounds, SEED)}
    return Compared(name, metrics, note)


def _answers(cache: Cache, step: Step) -> "Array":
    import numpy as np

    answers: Array = np.load(cache.folder(step) / ANSWERS, allow_pickle=False)
    return answers
