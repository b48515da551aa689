"""Distillation of vectors and labels on encoders of a few thousand weights."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import WORDS, encoder, quiet, texts

from compile.errors import BadRecipe, TeacherFailed
from compile.recipe.distil import (
    DistilLabels,
    DistilVectors,
    Heal,
    Prune,
    PruneDepth,
    PruneWidth,
    TextTeacher,
)
from compile.recipe.sections import Source
from compile.recipe.training import FineTune
from compile.training.distil_encoder import distil_encoder, embed, pooling
from compile.training.distil_labels import (
    Labelled,
    distil_classifier,
    label_with_teacher,
    probabilities,
    read_label,
    read_labelled,
)
from compile.training.prune_depth import prune_depth
from compile.training.prune_heal import prune_encoder
from compile.training.run import TrainingRun

SETTINGS = FineTune(method="full", epochs=6, batch=8, learning_rate=2e-3, best_by="metric")
SOURCE = Source(file="teacher")
LABELS = ("pump", "belt", "valve")
TRAIN, VALIDATION = texts(64, 0), texts(16, 1)


def clock():
    ticks = itertools.count()
    return lambda: float(next(ticks))


def named(some):
    """Each text's label is which of the three words stands first in it."""
    found = [(text, next((word for word in text.split() if word in LABELS), "")) for text in some]
    return [Labelled(text, label) for text, label in found if label]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    where = tmp_path_factory.mktemp("encoders")
    teacher = encoder(where / "teacher", 1)
    prune_depth(teacher, TRAIN[:8], PruneDepth(keep=2), where / "student", 1, quiet)
    return teacher, where / "student"


def test_a_student_comes_nearer_to_its_teacher_s_vectors(folders, tmp_path):
    teacher, student = folders
    wanted = embed(teacher, VALIDATION, 32, 1, quiet)
    assert torch.allclose(wanted.norm(dim=-1), torch.ones(len(VALIDATION)), atol=1e-5)
    before = float((embed(student, VALIDATION, 32, 1, quiet) * wanted).sum(-1).mean())
    curve = distil_encoder(
        teacher, student, TRAIN, VALIDATION, DistilVectors(teacher=SOURCE), SETTINGS,
        TrainingRun(tmp_path / "out", tmp_path / "scratch", 1, clock(), quiet), 32,
    )  # fmt: skip
    after = float((embed(tmp_path / "out", VALIDATION, 32, 1, quiet) * wanted).sum(-1).mean())
    assert after > before + 0.5 * (1 - before) and max(one.metric for one in curve) == pytest.approx(after)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hidden_dropout_prob"] == 0.1


def test_an_encoder_is_cut_and_heals_in_one(folders, tmp_path):
    both = Prune(
        depth=PruneDepth(keep=3),
        width=PruneWidth(neurons=32, by="activation"),
        heal=Heal(training={"epochs": 4, "batch": 8, "learning_rate": 2e-3}),
    )
    run = TrainingRun(tmp_path / "out", tmp_path / "scratch", 1, clock(), quiet)
    prune_encoder(folders[0], both, TRAIN, VALIDATION, run, 32)
    wanted = embed(folders[0], VALIDATION, 32, 1, quiet)
    cosines = [
        float((embed(folder, VALIDATION, 32, 1, quiet) * wanted).sum(-1).mean())
        for folder in (tmp_path / "scratch" / "width", tmp_path / "out")
    ]
    assert cosines[1] > cosines[0] + 0.5 * (1 - cosines[0])
    said = json.loads((tmp_path / "out" / "pruned.json").read_text())
    assert said[0]["depth"]["kept"] and said[1]["width"]["neurons"] == 32


def test_vectors_do_not_depend_on_what_else_is_in_the_batch(folders):
    together = embed(folders[0], VALIDATION, 32, 1, quiet)
    alone = torch.cat([embed(folders[0], [text], 32, 1, quiet) for text in VALIDATION[:4]])
    assert torch.allclose(together[:4], alone, atol=1e-5)


def test_a_folder_s_own_way_of_pooling_is_taken_or_refused(folders, tmp_path):
    assert pooling(folders[0]) == "mean"
    (tmp_path / "1_Pooling").mkdir()
    for way, known in (("cls_token", "cls"), ("mean_tokens", "mean"), ("max_tokens", None)):
        said = {"word_embedding_dimension": 32, f"pooling_mode_{way}": True, "pooling_mode_other": False}
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(said))
        if known:
            assert pooling(tmp_path) == known
        else:
            with pytest.raises(BadRecipe, match="max_tokens"):
                pooling(tmp_path)


def test_vectors_of_another_width_are_refused(folders, tmp_path):
    wide = encoder(tmp_path / "wide", width=64)
    with pytest.raises(BadRecipe, match="64"):
        distil_encoder(
            wide, folders[1], TRAIN, VALIDATION, DistilVectors(teacher=SOURCE), SETTINGS,
            TrainingRun(tmp_path / "out", tmp_path / "scratch", 1, clock(), quiet),
        )  # fmt: skip


def test_a_student_with_few_labels_learns_from_a_teacher_that_has_many(folders, tmp_path):
    validation = named(texts(60, 2))

    def train(start, some, name, epochs):
        how = SETTINGS.model_copy(update={"epochs": epochs})
        lesson = DistilLabels(teacher=SOURCE)
        distil_classifier(
            start, some, validation, LABELS, lesson, how,
            TrainingRun(tmp_path / name, tmp_path / f"{name}-scratch", 1, clock(), quiet), 32,
        )  # fmt: skip
        return tmp_path / name

    def accuracy(folder):
        test = named(texts(200, 3))
        said = probabilities(folder, [one.text for one in test], LABELS, 1.0, 32, 1, quiet).argmax(-1)
        return np.mean([LABELS[at] == one.label for at, one in zip(said, test, strict=True)])

    many = named(texts(400, 4))
    teacher = train(folders[0], many, "teacher", 6)
    few, bare = named(texts(12, 5)), [one.text for one in named(texts(300, 6))]
    soft = label_with_teacher(
        teacher, bare, LABELS, DistilLabels(teacher=SOURCE), tmp_path, tmp_path, 1, quiet, 32
    )
    assert read_labelled(tmp_path) == soft
    assert all(sum(one.probabilities) == pytest.approx(1, abs=1e-3) for one in soft)
    taught = train(folders[1], [*few, *soft], "taught", 4)
    alone = train(folders[1], [few[at % len(few)] for at in range(len(few) + len(soft))], "alone", 4)
    assert accuracy(taught) > accuracy(alone) + 0.1
    assert json.loads((taught / "config.json").read_text())["id2label"]["1"] == "belt"
    other = label_with_teacher(
        teacher, bare[:3], LABELS[::-1], DistilLabels(teacher=SOURCE), tmp_path, tmp_path, 1, quiet, 32
    )
    assert [one.probabilities[::-1] for one in other] == [one.probabilities for one in soft[:3]]
    with pytest.raises(BadRecipe, match="its labels are"):
        label_with_teacher(
            teacher, bare, ("a", "b"), DistilLabels(teacher=SOURCE), tmp_path, tmp_path, 1, quiet
        )


def test_a_text_that_nobody_labelled_is_refused(folders, tmp_path):
    for train, validation in (
        ([Labelled("pump")], named(VALIDATION)),
        (named(TRAIN), [Labelled("pump", "", (1.0, 0.0, 0.0))]),
    ):
        with pytest.raises(BadRecipe, match="needs a label"):
            distil_classifier(
                folders[1], train, validation, LABELS, DistilLabels(teacher=SOURCE), SETTINGS,
                TrainingRun(tmp_path, tmp_path, 1, clock(), quiet),
            )  # fmt: skip


@given(st.sampled_from(WORDS), st.sampled_from(["{}", " {}.", "The label is {}.", '"{}"', "**{}**", "{}\n"]))
def test_an_answer_that_names_one_label_is_read(label, frame):
    assert read_label(frame.format(label.upper()), WORDS[:8]) == (label if label in WORDS[:8] else None)


def test_an_answer_that_names_none_or_several_is_no_label():
    labels = ("wear", "tool wear", "control-software", "C++")
    assert read_label("It is tool wear, I think", labels) == "tool wear"
    assert read_label("wear", labels) == "wear"
    assert read_label("Control-Software", labels) == "control-software"
    assert read_label("c++.", labels) == "C++"
    for answer in ("", "I cannot say", "software", "tool wear or C++", "swear"):
        assert read_label(answer, labels) is None


class Says:
    """A teacher that answers in text, by a function."""

    def __init__(self, say):
        self.say = say

    def answer(self, prompts):
        for number, messages in enumerate(prompts):
            yield number, self.say(messages[-1]["content"])

    def close(self):
        pass


def test_a_teacher_s_words_become_labels_and_what_names_none_is_left_out(tmp_path):
    some = [one.text for one in named(texts(20, 7))]
    lesson = DistilLabels(teacher=TextTeacher(url="http://teacher/v1", model="any"))

    def first(question):
        text = question.split("Text: ")[1].split("\n")[0]
        return "no idea" if text == some[0] else next(word for word in text.split() if word in LABELS) + "."

    found = label_with_teacher(Says(first), some, LABELS, lesson, tmp_path, tmp_path / "s", 1, quiet)
    assert {one.text for one in found} == set(some) - {some[0]}
    for one in found:
        assert LABELS[one.probabilities.index(1.0)] == named([one.text])[0].label
    with pytest.raises(TeacherFailed, match=r"none of .* answers names"):
        label_with_teacher(Says(lambda _: "?"), some, LABELS, lesson, tmp_path, tmp_path / "t", 1, quiet)
