"""What the steps of an encoder line do that change weights, and what they are compared with.

A student is what is left of the base after ``prune``. A teacher of vectors is asked while the student learns;
a teacher of labels in a step of its own, which also says how well it does on the rows that are tested. What
stands beside the variants, the model before its training and the same student without the teacher, answers
through torch: it has no graph, and ships nowhere.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compile.data.duplicates import near_pairs
from compile.data.rows import Row, Splits, read_splits
from compile.errors import BadData, BadRecipe
from compile.lines.encoder import ANSWERS, SAID, Recipe, evaluated, measured_texts
from compile.recipe.distil import DistilLabels, DistilVectors, Prune, TextTeacher
from compile.recipe.encoder import ClassifyRecipe, EmbedRecipe
from compile.recipe.training import FineTune
from compile.steps import Report
from compile.training.run import TrainingRun

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from compile.training.distil_labels import Labelled
    from compile.training.teacher import Teacher

    Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Lesson:
    """Who learns what: ``start`` is the folder that training begins with, ``teacher`` one that teaches, and
    ``more`` texts without labels, one a line. ``now`` is a monotonic clock in seconds."""

    recipe: Recipe
    start: Path
    data: Path
    teacher: Path | None
    more: Path | None
    threads: int
    now: Callable[[], float]

    @property
    def settings(self) -> FineTune:
        """How it is trained."""
        return self.recipe.finetune or FineTune()

    @property
    def splits(self) -> Splits:
        """The rows."""
        return read_splits(self.data)

    def longest(self, settings: FineTune | None = None) -> int:
        """Tokens that a text may have: what training, serving and the positions of both models allow."""
        limits = [(settings or self.settings).max_tokens, self.recipe.text.max_tokens]
        for folder in (self.start, self.teacher):
            if folder is not None and folder.is_dir():
                config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
                limits.append(config.get("max_position_embeddings"))
        return min(limit for limit in limits if limit)

    def run(self, folder: Path, scratch: Path, report: Report) -> TrainingRun:
        """Training into ``folder``."""
        return TrainingRun(folder, scratch, self.threads, self.now, report)

    def more_texts(self) -> list[str]:
        """The lines of ``more`` that no row repeats, nor nearly repeats, that is validated or tested with."""
        if self.more is None:
            return []
        lines = self.more.read_text(encoding="utf-8").splitlines()
        texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        held = [row.text for row in (*self.splits.validation, *self.splits.test)]
        parts = [0] * len(held) + [1] * len(texts)
        known = {
            at - len(held)
            for pair in near_pairs([*held, *texts], self.recipe.data.near_duplicate, parts)
            for at in pair[:2]
            if at >= len(held)
        }
        return [text for at, text in enumerate(texts) if at not in known]


def prune(lesson: Lesson, settings: Prune, folder: Path, scratch: Path, report: Report) -> None:
    """Cut the base; what is left heals by the whole's vectors. Raises ``BadRecipe``, ``UnsupportedBase``."""
    from compile.training.prune_heal import prune_encoder

    training = settings.heal.training if settings.heal is not None else FineTune(too_long="truncate")
    train, validation = _texts(lesson.splits.train), _texts(lesson.splits.validation)
    longest = lesson.longest(training)
    _check_lengths(lesson.start, [*train, *validation], longest, training)
    prune_encoder(
        lesson.start,
        settings,
        train,
        validation,
        lesson.run(folder, scratch, report),
        longest,
    )


def label(
    lesson: Lesson,
    distil: DistilLabels,
    environment: Mapping[str, str],
    folder: Path,
    scratch: Path,
    report: Report,
) -> None:
    """Ask the teacher of labels: about what the student is to learn from, and about the rows tested.

    The latter go to ``said.json``, "" where the answer names no label. Raises ``TeacherFailed``,
    ``BadRecipe``.
    """
    from compile.training.distil_labels import label_with_teacher
    from compile.training.teacher import open_teacher

    labels, longest = lesson.splits.labels, lesson.longest()
    tested = [row.text for row in evaluated(lesson.recipe, lesson.splits)]
    own = [row.text for row in lesson.splits.train] if distil.hard < 1 else []
    wanted = list(dict.fromkeys([*own, *lesson.more_texts()]))
    asked: AbstractContextManager[Path | Teacher] = nullcontext(lesson.teacher or lesson.start)
    if isinstance(distil.teacher, TextTeacher):
        asked = open_teacher(distil.teacher, lesson.teacher, environment, lesson.threads)
    with asked as teacher:
        label_with_teacher(
            teacher, wanted, labels, distil, folder, scratch, lesson.threads, _part(report, 0.0, 0.8), longest
        )
        found = label_with_teacher(
            teacher,
            tested,
            labels,
            distil,
            scratch / "tested",
            scratch / "tested",
            lesson.threads,
            _part(report, 0.8, 1.0),
            longest,
        )
    said = {one.text: labels[one.probabilities.index(max(one.probabilities))] for one in found}
    (folder / SAID).write_text(json.dumps([said.get(text, "") for text in tested]), encoding="utf-8")


def finetune(
    lesson: Lesson, labelled: Path | None, alone: bool, folder: Path, scratch: Path, report: Report
) -> None:
    """Train as the recipe says; ``alone``, without the teacher. Raises ``BadData``, ``BadRecipe``,
    ``TrainingFailed``."""
    recipe = lesson.recipe
    if isinstance(recipe, EmbedRecipe):
        _learn_vectors(lesson, recipe, alone, folder, scratch, report)
    elif recipe.distil is not None and labelled is not None:
        _learn_labels(lesson, recipe.distil, labelled, alone, folder, scratch, report)
    else:
        from compile.training.classifier import train_classifier

        splits = lesson.splits
        train_classifier(
            lesson.start,
            splits,
            splits.labels,
            lesson.settings,
            lesson.run(folder, scratch, report),
        )


def answer_before(lesson: Lesson, folder: Path, report: Report) -> None:
    """What the model says of the rows tested as its training begins."""
    from compile.training.classifier import predict_untrained

    if isinstance(lesson.recipe, EmbedRecipe):
        _write_answers(lesson, lesson.start, folder, report)
        return
    report(0.0, "asking the classifier before its training")
    splits = lesson.splits
    texts, longest = measured_texts(lesson.recipe, splits), lesson.longest()
    said = predict_untrained(lesson.start, splits.labels, lesson.settings, texts, longest, lesson.threads)
    _save(folder, said)


def answer_alone(lesson: Lesson, labelled: Path | None, folder: Path, scratch: Path, report: Report) -> None:
    """What the same student says of them where it was trained without the teacher."""
    student = scratch / "student"
    student.mkdir(parents=True, exist_ok=True)
    finetune(lesson, labelled, True, student, scratch / "training", _part(report, 0.0, 0.9))
    _write_answers(lesson, student, folder, _part(report, 0.9, 1.0))


def _learn_vectors(
    lesson: Lesson, recipe: EmbedRecipe, alone: bool, folder: Path, scratch: Path, report: Report
) -> None:
    from compile.training.contrast import contrast
    from compile.training.distil_encoder import distil_encoder, pooling

    settings, asked = lesson.settings, recipe.text.pooling
    if asked is not None and asked != pooling(lesson.start):
        raise BadRecipe(f"text.pooling: {asked}, but the base's own files, and so distil, say otherwise")
    train = [*_texts(lesson.splits.train), *lesson.more_texts()]
    validation, longest = _texts(lesson.splits.validation), lesson.longest()
    _check_lengths(lesson.start, [*train, *validation], longest, settings)
    how = (settings, lesson.run(folder, scratch, report), longest)
    if alone:
        contrast(lesson.start, train, validation, *how)
    elif isinstance(recipe.distil, DistilVectors) and lesson.teacher is not None:
        distil_encoder(lesson.teacher, lesson.start, train, validation, recipe.distil, *how)


def _learn_labels(
    lesson: Lesson,
    distil: DistilLabels,
    labelled: Path,
    alone: bool,
    folder: Path,
    scratch: Path,
    report: Report,
) -> None:
    from compile.training.distil_labels import Labelled, distil_classifier

    splits, settings, longest = lesson.splits, lesson.settings, lesson.longest()
    validation = [Labelled(row.text, row.label) for row in splits.validation]
    taught = _taught(splits, labelled)
    own = [Labelled(row.text, row.label) for row in splits.train]
    # As many steps as with the teacher, over what there is.
    train = [own[at % len(own)] for at in range(len(taught))] if alone else taught
    _check_lengths(lesson.start, [one.text for one in (*train, *validation)], longest, settings)
    distil_classifier(
        lesson.start,
        train,
        validation,
        splits.labels,
        distil,
        settings,
        lesson.run(folder, scratch, report),
        longest,
    )


def _taught(splits: Splits, labelled: Path) -> "list[Labelled]":
    """The rows with their own labels and the teacher's, and the texts that only it has labelled."""
    from compile.training.distil_labels import Labelled, read_labelled

    found = {one.text: one.probabilities for one in read_labelled(labelled)}
    rows = {row.text for row in splits.train}
    return [
        *(Labelled(row.text, row.label, found.get(row.text, ())) for row in splits.train),
        *(Labelled(text, "", probabilities) for text, probabilities in found.items() if text not in rows),
    ]


def _texts(rows: Sequence[Row]) -> list[str]:
    """What an embedder reads of rows: where they have answers to be found, these too."""
    asked = [row.text for row in rows]
    return [*asked, *(row.answer for row in rows if row.answer and not row.label)]


def _check_lengths(folder: Path, texts: Sequence[str], longest: int, settings: FineTune) -> None:
    from compile.training.distil_encoder import encode

    if settings.too_long == "truncate":
        return
    long = sum(len(ids) > longest for ids in encode(folder, texts, longest + 1))
    if long:
        raise BadData(
            f"{long} of {len(texts)} texts are longer than {longest} tokens; raise finetune.max_tokens "
            "(text.max_tokens), or set too_long: truncate"
        )


def _write_answers(lesson: Lesson, model: Path, folder: Path, report: Report) -> None:
    """Vectors or probabilities of the texts measured, by torch."""
    texts = measured_texts(lesson.recipe, lesson.splits)
    if isinstance(lesson.recipe, ClassifyRecipe):
        from compile.training.classifier import predict

        _save(folder, predict(model, texts, lesson.longest(), lesson.threads))
    else:
        from compile.training.distil_encoder import embed

        def told(done: float, note: str) -> None:
            report(done, "reading what is tested")

        _save(folder, embed(model, texts, lesson.longest(), lesson.threads, told).numpy())


def _save(folder: Path, answers: "Array") -> None:
    import numpy as np

    np.save(folder / ANSWERS, answers)


def _part(report: Report, start: float, end: float) -> Report:
    """The progress of a part, from ``start`` to ``end`` of the whole."""
    return lambda done, note: report(start + (end - start) * done, note)
