"""Memory banks, and the graph that computes with them."""

import itertools

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compile.anomaly import bank as banks
from compile.anomaly.features import Grid
from compile.anomaly.graph import assemble
from compile.errors import BadData
from compile.onnx.vision_export import Graph, float_output, image_input

ROWS, COLUMNS, WIDTH = 4, 5, 3


def quiet(done, note):
    pass


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(2, 4))
def test_a_greedy_coreset_covers_at_most_twice_as_far_as_the_best(seed, count):
    points = np.random.default_rng(seed).normal(size=(12, 2)).astype(np.float32)

    def radius(chosen):
        return np.linalg.norm(points[:, None] - points[list(chosen)], axis=2).min(axis=1).max()

    greedy = banks.coreset(points, count, 8, seed, quiet)
    assert len(set(greedy.tolist())) == count
    best = min(radius(chosen) for chosen in itertools.combinations(range(12), count))
    assert radius(greedy) <= 2 * best + 1e-5


def test_whitened_features_vary_alike_in_every_direction():
    chance = np.random.default_rng(0)
    features = (chance.normal(size=(5000, 4)) @ chance.normal(size=(4, 4)) + 3).astype(np.float32)
    inside = banks.space_of(features, True, None).into(features)
    assert np.allclose(np.cov(inside.T), np.eye(4), atol=0.1)
    assert banks.space_of(features, True, 2).directions.shape == (4, 2)
    assert np.allclose(
        banks.space_of(features, False, None).into(features), features - features.mean(axis=0), atol=1e-4
    )
    with pytest.raises(BadData):
        banks.space_of(features[:1], True, None)


@given(st.integers(0, 100))
def test_points_in_int8_move_by_half_a_step_and_only_once(seed):
    points = np.random.default_rng(seed).normal(size=(6, 5)).astype(np.float32)
    stored, scales = banks.to_int8(points)
    once = banks.from_int8(stored, scales)
    assert (np.abs(once - points) <= scales[:, None] * 0.5001).all()
    assert np.allclose(banks.rounded(once, True), once, rtol=1e-6)


def passing(whole):
    """A graph whose image is its features: [n, 3, rows, columns]."""
    graph = Graph()
    last = graph.add("Transpose", "last", ["image"], perm=[0, 2, 3, 1])
    shape = graph.constant("shape", np.array([0, ROWS * COLUMNS, WIDTH], np.int64))
    graph.add("Reshape", "patches", [last, shape])
    outputs = [float_output("patches", ["n", ROWS * COLUMNS, WIDTH])]
    if whole:
        graph.add("ReduceMean", "whole", ["image"], axes=[2, 3], keepdims=0)
        outputs.append(float_output("whole", ["n", WIDTH]))
    return graph.model("passing", [image_input(COLUMNS, ROWS)], outputs)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("neighbours", [1, 5])
@pytest.mark.parametrize("border", [0, 1])
def test_the_graph_computes_the_score_that_is_written_down(small, neighbours, border):
    chance = np.random.default_rng(4)
    good = chance.normal(size=(30, ROWS * COLUMNS, WIDTH)).astype(np.float32)
    space = banks.space_of(good.reshape(-1, WIDTH), True, None)
    points = banks.rounded(space.into(good[:20].reshape(-1, WIDTH))[::7], small)
    means = good.mean(axis=1)
    whole_space = banks.space_of(means[:20], True, 2)
    whole = banks.with_neighbours(whole_space, banks.rounded(whole_space.into(means[:20]), small), 1)
    patches, whole = banks.scaled(
        banks.with_neighbours(space, points, neighbours), whole, good[20:], means[20:]
    )
    grid = Grid(ROWS, COLUMNS, WIDTH, WIDTH, border)
    model = assemble(passing(True), grid, patches, whole, small)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    asked = chance.normal(size=(3, ROWS * COLUMNS, WIDTH)).astype(np.float32) * [[[1]], [[1]], [[4]]]
    asked = asked.astype(np.float32)
    images = asked.reshape(3, ROWS, COLUMNS, WIDTH).transpose(0, 3, 1, 2)
    scores, heat = session.run(["score", "heat_map"], {"image": images})
    assert heat.shape == (3, ROWS + 2 * border, COLUMNS + 2 * border)
    inner = heat[:, border : border + ROWS, border : border + COLUMNS]
    for at in range(3):
        local, distances = banks.score(patches, asked[at])
        across, _ = banks.score(whole, asked[at].mean(axis=0)[None])
        local, across = local * patches.factor + patches.offset, across * whole.factor + whole.offset
        assert scores[at] == pytest.approx(max(local, across), rel=1e-3)
        wanted = np.maximum(distances * patches.factor + patches.offset, across)
        assert np.allclose(inner[at].ravel(), wanted, rtol=1e-3, atol=1e-3)
    assert scores[2] > scores[:2].max()


def test_a_patch_that_the_bank_keeps_scores_nothing():
    points = np.random.default_rng(1).normal(size=(ROWS * COLUMNS, WIDTH)).astype(np.float32)
    space = banks.space_of(points, False, None)
    kept = banks.with_neighbours(space, space.into(points), 3)
    assert banks.score(kept, points)[0] < 1e-2
    assert (kept.neighbours[:, 0] == np.arange(len(points))).all()
