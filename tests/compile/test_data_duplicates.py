"""Near-duplicates and splits: nothing is missed, nothing leaks, the seed decides."""

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compile.data.duplicates import SHINGLE, near_groups, near_pairs, plain
from compile.data.rows import Row, Splits, read_splits, write_splits
from compile.data.splits import check_labels, given_split, split, together, without_leaks
from compile.errors import BadData

WORDS = ["pump", "leaks", "oil", "valve", "泵", "漏油", "now", "3", "stuck"]
SENTENCES = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
THRESHOLDS = st.sampled_from([0.3, 0.5, 0.7, 0.85, 1.0])


def row(number: int, text: str = "", label: str = "a", language: str = "en") -> Row:
    return Row(
        number, ({"role": "user", "content": text or f"text {number}"},), label, label, language=language
    )


def shingles(text: str) -> frozenset[str]:
    short = plain(text)
    return frozenset(short[at : at + SHINGLE] for at in range(max(1, len(short) - SHINGLE + 1)))


def jaccard(a: str, b: str) -> float:
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


@settings(deadline=None)
@given(st.lists(SENTENCES, max_size=24), THRESHOLDS)
def test_the_pairs_are_those_that_comparing_all_finds(texts, threshold):
    slow = {(i, j) for i, j in combinations(range(len(texts)), 2) if jaccard(texts[i], texts[j]) >= threshold}
    fast = near_pairs(texts, threshold)
    assert {(i, j) for i, j, _ in fast} == slow and len(fast) == len(slow)
    assert all(similarity == pytest.approx(jaccard(texts[i], texts[j])) for i, j, similarity in fast)


@settings(deadline=None)
@given(st.lists(SENTENCES, max_size=24), THRESHOLDS)
def test_groups_are_what_the_pairs_join(texts, threshold):
    groups = near_groups(texts, threshold)
    joined = list(range(len(texts)))
    for i, j, _ in near_pairs(texts, threshold):
        low, high = sorted((joined[i], joined[j]))
        joined = [low if one == high else one for one in joined]
    assert groups == joined


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["en", "zh"])), min_size=30, max_size=200),
    st.integers(0, 99),
)
def test_alone_rows_are_split_8_to_1_to_1_within_labels(kinds, seed):
    rows = [row(number, label=label, language=language) for number, (label, language) in enumerate(kinds)]
    splits = split(rows, range(len(rows)), seed)
    assert sorted(one.number for _, part in splits.parts() for one in part) == list(range(len(rows)))
    assert {one.label for one in splits.train} == {label for label, _ in kinds}
    for part in (splits.validation, splits.test):
        assert abs(len(part) - len(rows) / 10) <= 4
        for label in "abc":
            share = sum(one == label for one, _ in kinds) / 10
            assert abs(sum(one.label == label for one in part) - share) <= 3
    assert split(rows, range(len(rows)), seed) == splits


@settings(deadline=None)
@given(st.lists(SENTENCES, min_size=30, max_size=90), THRESHOLDS, st.integers(0, 9))
def test_no_near_duplicates_lie_in_different_splits(texts, threshold, seed):
    rows = [row(number, f"{text} {number if number % 3 else ''}") for number, text in enumerate(texts)]
    groups = near_groups([one.asked for one in rows], threshold)
    try:
        splits = split(rows, groups, seed)
    except BadData as refused:
        assert "empty split" in str(refused)
        return
    parts = list(splits.parts())
    assert sorted(one.number for _, part in parts for one in part) == list(range(len(rows)))
    for (_, one), (_, other) in combinations(parts, 2):
        assert all(jaccard(a.asked, b.asked) < threshold for a in one for b in other)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["watch", "stop", "rare"]), min_size=30, max_size=90), st.integers(0, 9))
def test_labels_of_every_field_are_trained(values, seed):
    rows = [replace(row(number), fields={"severity": value}) for number, value in enumerate(values)]
    splits = split(rows, range(len(rows)), seed, ["severity"])
    check_labels(splits, {"": ("a",), "severity": tuple(set(values))})


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["", "x", "y", "z"])), max_size=20))
def test_what_shares_a_group_or_a_name_is_together(pairs):
    groups, names = [group for group, _ in pairs], [name for _, name in pairs]
    joined = together(groups, names)
    for at, to in combinations(range(len(pairs)), 2):
        if groups[at] == groups[to] or (names[at] and names[at] == names[to]):
            assert joined[at] == joined[to]
    assert together(joined, names) == joined
    assert together(groups, [""] * len(groups)) == groups


def test_a_large_set_without_duplicates_keeps_its_tenths():
    rows = [row(number, label="ab"[number % 2]) for number in range(5000)]
    splits = split(rows, range(5000), 7)
    assert splits.sizes == {"train": 4000, "validation": 500, "test": 500}


def test_too_few_rows_and_one_large_group_are_refused():
    with pytest.raises(BadData, match="29 rows cannot be split"):
        split([row(number) for number in range(29)], range(29), 0)
    with pytest.raises(BadData, match=r"empty split: validation, test .*the largest of 40"):
        split([row(number) for number in range(40)], [0] * 40, 0)


def test_a_split_of_the_source_is_honoured_and_checked():
    rows = [row(number, f"{WORDS[number]} is item {number}") for number in range(6)]
    said = ["train", "TRAIN", "training", "dev", "valid", "test"]
    assert given_split(rows, said).sizes == {"train": 3, "validation": 2, "test": 1}
    with pytest.raises(BadData, match="empty split: test"):
        given_split(rows[:5], said[:5])
    with pytest.raises(BadData, match="row 5: 'tset' is no split"):
        given_split(rows, [*said[:5], "tset"])


def test_near_duplicates_across_given_splits_are_refused_or_cost_training_rows():
    text = "conveyor 4 drive chain slack and jumping teeth since the morning shift"
    splits = Splits(
        (row(1, text), row(2, "spindle coolant low")),
        (row(3, "lamp out"),),
        (row(4, text.replace("4", "5")),),
    )
    with pytest.raises(BadData, match=r"row 1 \(train\) ~ row 4 \(test\)"):
        without_leaks(splits, 0.7, drop=False)
    kept, gone = without_leaks(splits, 0.7, drop=True)
    assert gone == 1 and [one.number for one in kept.train] == [2] and len(kept.test) == 1


def test_labels_that_training_never_sees_are_named():
    splits = Splits((row(1), row(2, label="b")), (row(3, label="c"),), (row(4),))
    with pytest.raises(BadData, match=r"'c' stands in validation \(1 rows\) and never in train"):
        check_labels(splits, {})
    with pytest.raises(BadData, match="'z' is declared and stands in no row"):
        check_labels(Splits((row(1),), (row(2),), (row(3),)), {"": ("a", "z")})


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            Row,
            number=st.integers(1, 9),
            messages=st.lists(
                st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": SENTENCES}),
                max_size=3,
            ).map(tuple),
            answer=st.text(st.characters(exclude_categories=["Cs"])),
            label=SENTENCES,
            fields=st.dictionaries(st.sampled_from(WORDS), SENTENCES, max_size=2),
            rejected=SENTENCES,
            language=SENTENCES,
            id=SENTENCES,
        ),
        max_size=5,
    ).map(tuple)
)
def test_splits_come_back_from_their_file(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("splits")
    splits = Splits(rows, rows[:1], ())
    digest = write_splits(folder, splits)
    assert read_splits(folder) == splits
    assert write_splits(folder, splits) == digest


def test_a_file_that_is_no_splits_is_refused(tmp_path):
    for text in ("", "{}", '{"train": [{"x": 1}], "validation": [], "test": []}'):
        (tmp_path / "splits.json").write_text(text)
        with pytest.raises(BadData, match="not the splits of a data step"):
            read_splits(tmp_path)


def test_texts_that_differ_in_a_number_are_joined_without_comparing_all():
    """All of these are alike: comparing every pair would take minutes at the size of the real sets."""
    form = "The coolant pump of machining centre {} loses pressure after the shift change, no note in the log"
    other = "A second text, which is about the gate of hall {} and how it keeps the forklifts waiting at noon"
    texts = [form.format(at * 7919) for at in range(2000)] + [other.format(at * 7919) for at in range(2000)]
    assert set(near_groups(texts, 0.7)) == {0, 2000}
    parts = ["made"] * 2000 + ["held"] * 2000
    assert near_pairs(texts, 0.7, parts) == []
