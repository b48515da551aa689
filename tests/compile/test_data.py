import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.ticket_data import Splits, check_splits, near_duplicates, read_rows, split
from compile.errors import BadData
from compile.tickets import CLASSES, Ticket, score

ROW = {
    "id": "T1",
    "ticket": "pump P3 leaks",
    "class": "hydraulic-pneumatic",
    "severity": "watch",
    "component": "pump P3",
}


def ticket(number: int, label: str = CLASSES[0], language: str = "en", text: str = "") -> Ticket:
    return Ticket(f"T{number}", text or f"ticket {number}", label, "watch", "ticket", language)


def test_bad_rows_are_listed_by_number_and_refused():
    good = [json.dumps(ROW | {"ticket": f"pump P3 leaks {n}"}) for n in range(40)]
    bad = {
        3: json.dumps(ROW | {"class": "plumbing"}),
        7: '{"ticket": "cut',
        9: json.dumps(ROW | {"component": "valve"}),
        12: good[0],
        15: json.dumps(ROW | {"severity": ""}),
    }
    lines = [bad.get(number, line) for number, line in enumerate(good, 1)]
    with pytest.raises(BadData) as refused:
        read_rows("\n".join(lines).encode() + b"\n\xff\xfe\n", "ticket", "language")
    message = str(refused.value)
    assert message.startswith("6 bad rows")
    for number in (*bad, 41):
        assert f"row {number}:" in message
    assert "unknown class 'plumbing'" in message and "the same text as row 1" in message


@given(st.lists(st.sampled_from(CLASSES), min_size=30, max_size=200), st.integers(0, 99))
def test_the_splits_are_whole_apart_and_8_to_1_to_1(labels, seed):
    rows = [ticket(number, label) for number, label in enumerate(labels)]
    splits = split(rows, seed)
    parts = [splits.train, splits.validation, splits.test]
    assert sorted(row.id for part in parts for row in part) == sorted(row.id for row in rows)
    assert abs(len(splits.test) - len(rows) / 10) < 1 and abs(len(splits.validation) - len(rows) / 10) < 1
    for label in CLASSES:
        share = labels.count(label) / 10
        assert abs(sum(row.label == label for row in splits.test) - share) < 2


def test_a_near_duplicate_across_splits_is_found_and_one_within_a_split_is_not():
    text = "conveyor 4 drive chain slack and jumping teeth since the morning shift"
    splits = Splits(
        train=(ticket(1, text=text), ticket(2, text=text + "!")),
        validation=(ticket(3, text="spindle coolant low"),),
        test=(ticket(4, text=text.replace("4", "5")),),
    )
    found = {(a.id, b.id) for a, b, _ in near_duplicates(splits, 0.7)}
    assert found == {("T1", "T4"), ("T2", "T4")}
    with pytest.raises(BadData, match="2 near-duplicates"):
        check_splits(splits, 0.7)


def test_only_an_answer_of_the_schema_counts():
    row = ticket(1, text="ticket 1")
    assert score(row, row.answer).exact
    twice = row.answer[:-1] + ',"component":"ticket"}'
    for broken in (
        "",
        "{}",
        row.answer[:-1],
        row.answer.replace("watch", "wait"),
        f"[{row.answer}]",
        "null",
        twice,
    ):
        assert not score(row, broken).valid and not score(row, broken).class_right
