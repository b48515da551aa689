"""Thresholds keep their promise; areas are those of the books."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from compile.anomaly.areas import area, measured_area
from compile.anomaly.threshold import calibrate, parts_needed, rate_interval
from compile.errors import Refused

scores = st.lists(st.floats(0, 100, width=32), min_size=1, max_size=300)
rates = st.sampled_from([0.01, 0.02, 0.05, 0.1, 0.2, 0.3])


@given(scores, rates)
def test_a_threshold_rejects_no_more_than_was_asked(values, rate):
    if len(values) < parts_needed(rate):
        with pytest.raises(Refused, match=f"at least {parts_needed(rate)} are needed"):
            calibrate(values, rate)
        return
    found = calibrate(values, rate)
    rejected = sum(np.float32(value) >= np.float32(found.value) for value in values)
    assert rejected <= rate * len(values) + 1e-9
    assert found.expected <= rate + 1e-9
    assert found.interval[0] <= found.expected <= found.interval[1]


@pytest.mark.parametrize(("rate", "needed"), [(0.05, 19), (0.1, 9), (0.01, 99), (0.25, 3)])
def test_the_number_that_would_do_does(rate, needed):
    assert parts_needed(rate) == needed
    calibrate(range(needed), rate)
    with pytest.raises(Refused):
        calibrate(range(needed - 1), rate)


def test_the_promise_holds_over_calibrations_and_its_interval_for_each():
    chance = np.random.default_rng(5)
    rate, inside, rejected = 0.05, 0, []
    for _ in range(400):
        found = calibrate(chance.normal(size=100).tolist(), rate)
        true = 0.5 * math.erfc(found.value / math.sqrt(2))
        rejected.append(true)
        inside += found.interval[0] <= true <= found.interval[1]
    assert np.mean(rejected) == pytest.approx(found.expected, abs=0.004) and found.expected <= rate
    assert 0.92 < inside / 400 < 0.98


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(Refused, match="not a finite number"):
        calibrate([1.0] * 30 + [math.nan], 0.1)


@given(st.integers(0, 40), st.integers(1, 40))
def test_an_observed_rate_lies_in_its_interval(hits, trials):
    hits = min(hits, trials)
    low, high = rate_interval(hits, trials)
    assert 0 <= low <= hits / trials <= high <= 1


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 20), min_size=2, max_size=40),
    st.lists(st.integers(0, 20), min_size=2, max_size=40),
)
def test_an_area_is_the_probability_of_the_right_order(good, defects):
    expected = roc_auc_score([0] * len(good) + [1] * len(defects), good + defects)
    assert area(good, defects).value == pytest.approx(expected)
    assert area([-x for x in defects], [-x for x in good]).value == pytest.approx(expected)


def test_the_paired_interval_covers_the_true_difference_and_equal_scores_have_none():
    chance = np.random.default_rng(3)
    true = 0.5 * math.erfc(-1.5 / 2) - 0.5 * math.erfc(-1.2 / 2)
    inside = 0
    for _ in range(200):
        good, defects = chance.normal(size=(2, 80)), chance.normal(size=(2, 60))
        shared_good, shared_defects = chance.normal(size=80), chance.normal(size=60)
        mixed_good = [0.8 * shared_good + 0.6 * one for one in good]
        mixed = [0.8 * shared_defects + 0.6 * one + gap for one, gap in zip(defects, (1.5, 1.2), strict=True)]
        low, high = measured_area(mixed_good[0], mixed[0], mixed_good[1], mixed[1]).ci95
        inside += low <= true <= high
    assert inside >= 183
    same = measured_area([1, 2, 3], [2, 4], [1, 2, 3], [2, 4])
    assert same.ci95 == (0.0, 0.0) and same.value == same.reference
    perfect = measured_area([1, 2], [3, 4], [1, 2], [5, 6])
    assert perfect.ci95[0] < -0.5  # two of each decide nothing
