import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compile.evaluate import statistics
from compile.evaluate.judge import Measured, VariantResult, choose, hold, nearest_recipe
from compile.recipe.sections import Budget

LOSS = {"class_accuracy": Budget(max_loss=0.05)}


def measured(value: float, low: float, high: float, samples: int = 100) -> Measured:
    return Measured(0.8, value, (low, high), samples)


def variant(name: str, size: int, *values: tuple[float, float, float]) -> VariantResult:
    verdicts = hold({"class_accuracy": measured(*values[0])}, LOSS)
    return VariantResult(name, "Q8_0", size, verdicts, (100.0,), 1)


def test_a_budget_holds_at_the_pessimistic_end():
    (inside,) = hold({"class_accuracy": measured(0.79, -0.04, 0.02)}, LOSS)
    assert inside.passed and inside.budget == -0.05
    (outside,) = hold({"class_accuracy": measured(0.79, -0.06, 0.04)}, LOSS)
    assert not outside.passed


def test_what_the_data_cannot_decide_is_refused_with_the_samples_that_would():
    (verdict,) = hold({"class_accuracy": measured(0.79, -0.09, 0.07)}, LOSS)
    # The point is 0.04 from the bound and 0.08 from the end: twice too wide, so four times the samples.
    assert not verdict.passed and verdict.decides == 400
    assert "undecidable with 100 samples, about 400 would decide" in verdict.reason
    (over,) = hold({"class_accuracy": measured(0.7, -0.12, -0.08)}, LOSS)
    assert not over.passed and over.decides is None and "undecidable" not in over.reason


def test_the_smallest_that_passes_is_chosen_and_else_the_nearest_recipe_named():
    small, middle, large = (
        variant("small", 1, (0.7, -0.14, -0.06)),
        variant("middle", 2, (0.79, -0.03, 0.01)),
        variant("large", 3, (0.8, -0.01, 0.01)),
    )
    assert choose([large, small, middle]) is middle
    assert choose([small]) is None
    near = nearest_recipe([small])
    assert near["variant"] == "small"
    changed = {"class_accuracy": Budget(**near["budgets"]["class_accuracy"])}
    assert all(v.passed for v in hold({"class_accuracy": measured(0.7, -0.14, -0.06)}, changed))


@given(st.floats(1e-9, 1e4), st.sampled_from(["max_loss", "max_rise", "min_gain"]))
def test_the_nearest_recipe_passes_and_is_hardly_looser_than_it_must_be(need, key):
    end = -need if key == "max_loss" else need
    metric = {"max_loss": "class_accuracy", "max_rise": "kl_mean", "min_gain": "adapter_effect"}[key]
    one = {metric: Measured(0.0, end, (end, end), 100)}
    asked = {metric: Budget(**{key: 2 * need if key == "min_gain" else need / 2})}
    refused = VariantResult("only", "Q8_0", 1, hold(one, asked), (1.0,), 1)
    near = nearest_recipe([refused])["budgets"][metric]
    assert all(verdict.passed for verdict in hold(one, {metric: Budget(**near)}))
    low, high = (0.98 * need, need) if key == "min_gain" else (need, 1.02 * need)
    assert low <= near[key] <= high


def test_no_recipe_asks_for_a_gain_of_what_may_have_lost():
    verdicts = hold(
        {"adapter_effect": Measured(0.0, 0.01, (-0.02, 0.04), 9)}, {"adapter_effect": Budget(min_gain=0.1)}
    )
    assert nearest_recipe([VariantResult("only", "Q8_0", 1, verdicts, (1.0,), 1)]) is None


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=5, max_size=60), st.integers(0, 9))
def test_a_paired_interval_holds_the_difference_and_never_claims_certainty(pairs, seed):
    ours, theirs = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    low, high = statistics.paired_difference(ours, theirs, 300, seed)
    difference = (sum(ours) - sum(theirs)) / len(pairs)
    assert low <= difference + 1e-9 and high >= difference - 1e-9
    assert low < high
    assert (low, high) == statistics.paired_difference(ours, theirs, 300, seed)


def test_never_seen_is_the_exact_bound():
    assert (1 - statistics.never_seen_bound(96)) ** 96 == pytest.approx(0.025)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40))
def test_macro_f1_is_one_exactly_for_right_answers(labels):
    assert statistics.macro_f1(labels, labels, "abc") == pytest.approx(1.0)
    assert statistics.macro_f1(labels, ["x"] * len(labels), "abc") == 0.0
