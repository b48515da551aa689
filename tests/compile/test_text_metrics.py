"""Metrics of texts: equal to their libraries', right for every script, with intervals that pair."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compile.errors import BadData
from compile.evaluate import statistics
from compile.evaluate.text_metrics import (
    BY_NAME,
    accuracy,
    bleu,
    bleu_tokenizer,
    chrf,
    compare,
    exact_match,
    macro_f1,
    measured,
    perplexity,
    rouge_l,
    valid_json,
    words,
)

WANTED = [
    "叉车托盘含水偏高,木头发霉味",
    "the spindle bearing is worn",
    "Die Pumpe leckt am Flansch",
    "主轴 bearing 磨损",
]
SAID = [
    "叉车托盘含水偏低,木头有霉味",
    "the spindle bearing was worn out",
    "Die Pumpe leckt",
    "主轴 bearing 坏了",
]
TEXTS = st.lists(
    st.tuples(st.text("ab 主轴机。.", max_size=12), st.text("ab 主轴机。.", max_size=12)),
    min_size=1,
    max_size=6,
)


@given(TEXTS)
@settings(deadline=None, max_examples=60)
def test_corpus_values_are_those_of_sacrebleu(pairs):
    import sacrebleu

    said, wanted = [one for one, _ in pairs], [other for _, other in pairs]
    for tokenize in ("zh", "13a"):
        theirs = sacrebleu.corpus_bleu(said, [wanted], tokenize=tokenize).score
        assert bleu(said, wanted, tokenize).value == pytest.approx(theirs)
    assert chrf(said, wanted).value == pytest.approx(sacrebleu.corpus_chrf(said, [wanted]).score)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcx")), min_size=1, max_size=30))
def test_macro_f1_of_summed_counts_is_macro_f1(pairs):
    wanted, said = [one for one, _ in pairs], [other for _, other in pairs]
    assert macro_f1(said, wanted, "abc").value == pytest.approx(statistics.macro_f1(wanted, said, "abc"))
    assert accuracy(said, wanted).value == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


def test_scripts_without_spaces_lose_no_character():
    assert words("木头发霉味, Spindle ÜBER-Last 3 мотор") == [
        *"木头发霉味",
        "spindle",
        "über",
        "last",
        "3",
        "мотор",
    ]
    scored = rouge_l(SAID, WANTED)
    assert 0.7 < scored.values[0] < 0.95 and rouge_l(WANTED, WANTED).value == 1
    assert rouge_l(["完全不同"], ["木头发霉味"]).value == 0
    assert [bleu_tokenizer([text]) for text in ("plain", "主轴 bearing", "ベアリング")] == [
        "13a",
        "zh",
        "char",
    ]
    assert bleu(["叉车托盘含水偏高"], ["叉车托盘含水偏高"]).value == pytest.approx(100)


def test_rouge_agrees_with_its_library_on_english():
    from rouge_score.rouge_scorer import RougeScorer

    theirs = RougeScorer(["rougeL"]).score(WANTED[1], SAID[1])["rougeL"].fmeasure
    assert rouge_l(SAID[1:2], WANTED[1:2]).value == pytest.approx(theirs)


def test_perplexity_is_that_of_all_tokens_and_not_the_mean_of_answers():
    scored = perplexity([2.0, 9.0], [2, 3])
    assert scored.value == pytest.approx(math.exp(11 / 5))
    assert scored.values.tolist() == pytest.approx([math.exp(1), math.exp(3)])


def test_json_and_exact_match():
    assert valid_json(['{"a":1}', "[1]", '{"a":NaN}', '{"a":', "[" * 100_000]).values.tolist() == [
        1,
        0,
        0,
        0,
        0,
    ]
    assert exact_match([" e\u0301 ", "a"], ["é", "A"]).values.tolist() == [1, 0]


def test_a_system_paired_with_itself_differs_by_nothing_more_than_what_was_never_seen():
    for name, made in compare(WANTED, SAID, SAID, [*BY_NAME, "macro_f1"], 200, 0).items():
        assert made.value == made.reference and made.samples == 4, name
        low, high = made.ci95
        assert low <= 0 <= high and (name in ("accuracy", "exact_match", "valid_json") or low == high == 0)
        assert made.interval[0] <= made.value + 1e-9 and made.value <= made.interval[1] + 1e-9


def test_pairing_decides_what_two_intervals_leave_open():
    chance = np.random.default_rng(0)
    hard = chance.normal(3, 1, 400)
    ours, theirs = perplexity(hard * 20, [20] * 400), perplexity((hard + 0.05) * 20, [20] * 400)
    result = measured(ours, theirs, 500, 1)
    alone = measured(theirs, None, 500, 1)
    assert result.ci95[1] < 0 and alone.interval[0] < result.interval[1]  # the intervals overlap
    assert measured(ours, theirs, 500, 1) == result  # the seed fixes it


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    chance = np.random.default_rng(5)
    covered = 0
    for seed in range(100):
        right = ["y" if one else "n" for one in chance.random(60) < 0.7]
        low, high = measured(accuracy(right, ["y"] * 60), None, 400, seed).interval
        covered += low <= 0.7 <= high
    assert 85 <= covered <= 99


def test_mistakes_are_named():
    with pytest.raises(BadData, match="2 answers for 1 references"):
        bleu(["a", "b"], ["a"])
    with pytest.raises(BadData, match="no samples"):
        measured(accuracy([], []), None, 10, 0)
    with pytest.raises(BadData, match="a pair needs the same"):
        measured(accuracy(["a"], ["a"]), accuracy(["a", "b"], ["a", "b"]), 10, 0)
