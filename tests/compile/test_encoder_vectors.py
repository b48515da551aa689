"""What vectors and probabilities are worth beside the reference's: laws, and the recipes' words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from compile.errors import BadRecipe
from compile.evaluate import vectors
from compile.recipe.load import load_recipe

finite = st.floats(-100, 100, width=16, allow_subnormal=False)
tables = arrays.arrays(np.float32, (12, 6), elements=finite)


@given(tables, tables)
@settings(max_examples=50, deadline=None)
def test_cosines_are_bounded_and_blind_to_length(left, right):
    near = vectors.cosines(left, right)
    assert near.shape == (12,) and (np.abs(near) <= 1).all()
    assert np.allclose(vectors.cosines(left * 3, right), near, atol=1e-5)


@given(arrays.arrays(np.float32, (9, 4), elements=st.floats(2**-9, 1, width=32)))
@settings(max_examples=50, deadline=None)
def test_divergence_is_nothing_only_from_itself(table):
    shares = table / table.sum(axis=1, keepdims=True)
    assert (vectors.divergences(shares, shares) < 1e-9).all()
    other = np.roll(shares, 1, axis=1)
    apart = vectors.divergences(other, shares)
    assert (apart >= 0).all() and ((apart > 1e-9) | np.isclose(other, shares, atol=1e-3).all(axis=1)).all()


def test_retrieval_finds_texts_of_the_same_label_and_no_text_itself():
    random = np.random.default_rng(0)
    centres = np.eye(3, 8, dtype=np.float32)
    labels = [name for name in "abc" for _ in range(12)]
    table = np.repeat(centres, 12, axis=0) + random.normal(0, 0.01, (36, 8)).astype(np.float32)
    found = vectors.retrieve(table)
    assert all(at not in row for at, row in enumerate(found.nearest)) and found.nearest.shape == (36, 10)
    assert vectors.precision(found, labels) == [1.0] * 36 == vectors.first_right(found, labels)
    assert vectors.precision(vectors.retrieve(table), labels[1:] + labels[:1]) != [1.0] * 36


def test_an_answer_is_found_by_its_text_wherever_it_stands():
    answers = np.eye(3, dtype=np.float32)
    found = vectors.retrieve_answers(answers[[0, 1, 2]], answers[[1, 0, 2]], ["yes", "no", "perhaps"])
    assert found.ranks.tolist() == [1, 1, 0] and vectors.reciprocal_ranks(found) == [0.5, 0.5, 1.0]
    same = vectors.retrieve_answers(answers[[0, 1, 2]], answers[[1, 0, 2]], ["yes", "yes", "perhaps"])
    assert same.ranks.tolist() == [0, 0, 0]


def test_a_ratio_is_the_share_of_what_the_reference_can_do():
    theirs, ours = [1.0] * 50 + [0.0] * 50, [1.0] * 49 + [0.0] * 51
    found = vectors.scored("accuracy", ours, theirs, 300, 7)
    assert found["accuracy"].value == 0.49 and found["accuracy"].reference == 0.5
    ratio = found["accuracy_ratio"]
    assert ratio.reference == 1.0 and ratio.value == pytest.approx(0.98)
    assert ratio.ci95[0] == pytest.approx(2 * found["accuracy"].ci95[0]) and ratio.ci95[0] < -0.02
    assert "accuracy_ratio" not in vectors.scored("accuracy", [0.0] * 9, [0.0] * 9, 300, 7)


def test_a_variant_like_the_reference_loses_nothing():
    random = np.random.default_rng(3)
    table = random.normal(size=(40, 16)).astype(np.float32)
    found = vectors.fidelity(table, table, 200, 7)
    assert found["cosine_mean"].value == pytest.approx(1) and found["similarity_spearman"].value == 1.0
    noisy = vectors.fidelity(table + random.normal(0, 0.5, table.shape).astype(np.float32), table, 200, 7)
    assert noisy["cosine_p1"].value < noisy["cosine_mean"].value < 1
    assert noisy["similarity_spearman"].ci95[1] < 0


RECIPE = """task: embed
base: {name: m, version: 1.0.0, license: MIT, file: m}
data: {path: rows.jsonl}
variants:
  - {name: a, type: int8-dynamic}
budgets: {cosine_mean: {max_loss: 0.1}}
release: {name: m, version: 1.0.0}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("type: int8-dynamic", "type: int8-dynamc", "line 5.*'int8-dynamic'"),
        (
            "type: int8-dynamic",
            "type: int4, calibration: entropy",
            "line 5.*goes with int8-static",
        ),
        ("type: int8-dynamic", "type: int4, method: k-quant, block: 64", "k-quant works in blocks of 32"),
        ("cosine_mean", "cosine_meen", "line 6.*did you mean 'cosine_mean'"),
        ("cosine_mean", "accuracy", "line 6: unknown key 'budgets.accuracy'"),
        ("name: a", "name: reference", "'reference' is taken"),
        ("data:", "finetune: {}\ndata:", "finetune needs distil"),
    ],
)
def test_recipes_that_cannot_be_meant_are_refused_with_line_and_key(tmp_path, old, new, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    assert load_recipe(path).variant_names == ("a",)
    path.write_text(RECIPE.replace(old, new, 1))
    with pytest.raises(BadRecipe, match=message):
        load_recipe(path)
