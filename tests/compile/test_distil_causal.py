"""Logit distillation on Llamas of a few thousand weights."""

import itertools

import pytest
import torch
from safetensors.torch import load_file
from small_models import examples, llama, quiet, tokenizer

from compile.errors import BadRecipe
from compile.recipe.distil import DistilLogits
from compile.recipe.sections import Source
from compile.recipe.training import FineTune
from compile.training.causal import train_causal
from compile.training.distil_causal import distil_causal, text_examples
from compile.training.run import TrainingRun

SETTINGS = FineTune(method="full", epochs=3, batch=4, learning_rate=0.01)
TRAIN, VALIDATION = examples(24, 0), examples(8, 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    where = tmp_path_factory.mktemp("models")
    return llama(where / "teacher", 1), llama(where / "student", 2, layers=2)


def lesson(**more):
    return DistilLogits(teacher=Source(file="teacher"), **more)


def distil(folders, where, distil, report=quiet, settings=SETTINGS):
    where.mkdir(exist_ok=True)
    ticks = itertools.count()
    curve = distil_causal(
        *folders, TRAIN, VALIDATION, distil, settings,
        TrainingRun(where, where / "scratch", 1, lambda: float(next(ticks)), report),
    )  # fmt: skip
    return curve, load_file(where / "model.safetensors")


def same(one, other, atol):
    return all(torch.allclose(one[name], other[name], atol=atol) for name in one)


def test_without_a_teacher_s_share_it_is_plain_training(folders, tmp_path):
    _, alone = distil(folders, tmp_path / "a", lesson(hard=1.0))
    (tmp_path / "b").mkdir()
    ticks = itertools.count()
    train_causal(
        folders[1], TRAIN, VALIDATION, SETTINGS,
        TrainingRun(tmp_path / "b", tmp_path / "b" / "scratch", 1, lambda: float(next(ticks)), quiet),
    )  # fmt: skip
    assert same(alone, load_file(tmp_path / "b" / "model.safetensors"), 1e-6)
    _, taught = distil(folders, tmp_path / "c", lesson(hard=0.3))
    assert not same(alone, taught, 1e-4)


def test_a_student_learns_what_its_teacher_says(folders, tmp_path):
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([VALIDATION[0].ids])

    def says(folder):
        with torch.no_grad():
            return AutoModelForCausalLM.from_pretrained(folder)(ids).logits.log_softmax(-1)

    teacher = says(folders[0])

    def apart(folder):
        said = says(folder)
        return float((teacher.exp() * (teacher - said)).sum(-1).mean())

    distil(folders, tmp_path / "a", lesson(hard=0.0, temperature=1.0), settings=SETTINGS)
    assert apart(tmp_path / "a") < 0.5 * apart(folders[1])


def test_all_logits_kept_on_disk_teach_what_the_teacher_does_and_are_computed_once(folders, tmp_path):
    beside, _ = distil(folders, tmp_path / "a", lesson())
    notes = []
    curve, kept = distil(folders, tmp_path / "b", lesson(top=16), lambda done, note: notes.append(note))
    for one, other in zip(beside, curve, strict=True):
        assert one.validation_loss == pytest.approx(other.validation_loss, abs=5e-3)  # kept as float16
    assert "what the teacher says" in notes
    notes.clear()
    for checkpoint in (tmp_path / "b" / "scratch").glob("checkpoint-*"):
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    _, again = distil(folders, tmp_path / "b", lesson(top=16), lambda done, note: notes.append(note))
    assert same(kept, again, 0) and "what the teacher says" not in notes
    distil(folders, tmp_path / "b", lesson(top=4), lambda done, note: notes.append(note))
    assert "what the teacher says" in notes


def test_a_run_that_was_cut_goes_on_to_the_same_weights(folders, tmp_path):
    class Cut(Exception):
        pass

    def cut(done, note):
        if "epoch 2" in note:
            raise Cut

    with pytest.raises(Cut):
        distil(folders, tmp_path / "a", lesson(), cut)
    curve, resumed = distil(folders, tmp_path / "a", lesson())
    _, whole = distil(folders, tmp_path / "b", lesson())
    assert len(curve) == 3 and same(resumed, whole, 1e-6)


def test_another_vocabulary_is_refused_before_anything_runs(folders, tmp_path):
    from shutil import copytree

    copytree(folders[1], tmp_path / "other")
    tokenizer(tmp_path / "other", special=("[UNK]", "[PAD]"))
    with pytest.raises(BadRecipe, match="kind: sequences"):
        distil((folders[0], tmp_path / "other"), tmp_path / "a", lesson())


def test_pieces_of_a_text_ask_for_every_token_but_the_first_once(folders):
    from tokenizers import Tokenizer

    reads = Tokenizer.from_file(str(folders[0] / "tokenizer.json"))
    text = "the pump leaks on the line again the valve sticks"
    wanted = reads.encode(text, add_special_tokens=False).ids
    pieces = text_examples([text, "pump"], reads, 4, 3)
    assert [one for piece in pieces[:-1] for one in piece.ids[1:]] == [*wanted[1:], 3]
    assert all(len(piece.weights) == len(piece.ids) - piece.prompt_length <= 4 for piece in pieces)
    assert pieces[-1].ids == (4, 3)
