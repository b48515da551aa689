"""Sources, formats, encodings and shapes: bytes in, rows or a reason out."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from compile.data.prepare import prepare
from compile.data.reading import Record, read_records, source_digest
from compile.data.shapes import find_shape, to_row
from compile.errors import BadData, BadRecipe
from compile.recipe.data import DataSource

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because."},
]
SHAPES = {
    "instruction": ({"instruction": "Sum.", "input": "1 2", "output": "3"}, "Sum.\n\n1 2", "3"),
    "question": ({"question": "Who?", "answer": "Me."}, "Who?", "Me."),
    "chat": ({"messages": CHAT}, "Why?", "Because."),
    "dialogue": ({"history": ["Hi", "Hello", "Why?"], "response": "So."}, "Why?", "So."),
    "label": ({"text": "pump leaks", "label": "oil"}, "pump leaks", "oil"),
    "preference": ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, "Why?", "So."),
}


def read_one(values, **settings):
    source = DataSource(path="x.jsonl", **settings)
    record = Record(1, values)
    return to_row(record, source, find_shape(source, [record]))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_known_by_its_columns(shape):
    values, asked, answered = SHAPES[shape]
    source = DataSource(path="x.jsonl")
    assert find_shape(source, [Record(1, values)]) == shape
    row = read_one(values)
    assert (row.text, row.answer) == (asked, answered)
    assert (row.label, row.rejected) == (
        ("oil" if shape == "label" else ""),
        ("No." if shape == "preference" else ""),
    )


def test_columns_can_have_other_names():
    row = read_one({"q": "Who?", "a": "Me."}, columns={"question": "q", "answer": "a"})
    assert (row.text, row.answer) == ("Who?", "Me.")
    with pytest.raises(BadData, match="'q', 'a' fit no shape"):
        read_one({"q": "Who?", "a": "Me."})
    with pytest.raises(BadData, match="shape chat needs the columns 'messages'; there are 'q'"):
        read_one({"q": "Who?"}, shape="chat")


def test_chats_of_other_tools_are_read():
    said = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    row = read_one({"conversations": said}, columns={"messages": "conversations"})
    assert row.messages == ({"role": "user", "content": "Why?"},) and row.answer == "So."
    pairs = read_one({"prompt": "Why?", "history": [["Hi", "Hello"]], "response": "So."})
    assert [turn["role"] for turn in pairs.messages] == ["user", "assistant", "user"]


TICKET = {
    "text": "Pump P3 leaks",
    "class": "hydraulic",
    "severity": "watch",
    "component": "Pump P3",
    "note": "seal",
}
FIELDS = {
    "class": {"labels": ["hydraulic", "electric"]},
    "level": {"labels": ["watch", "stop"], "column": "severity"},
    "component": {"span": True},
    "note": {"text": True},
}


def test_structured_answers_are_written_in_the_order_of_the_recipe():
    row = read_one(TICKET, answer=FIELDS)
    assert row.answer == '{"class":"hydraulic","level":"watch","component":"Pump P3","note":"seal"}'
    assert row.label == "hydraulic" and row.fields["component"] in row.text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"class": "plumbing"}, "unknown label 'plumbing'"),
        ({"component": "valve"}, "'valve' does not stand in the text"),
        ({"severity": None}, "'severity' is missing or empty"),
        ({"note": "x" * 121}, "121 characters"),
        ({"text": ""}, "'text' is missing"),
        ({"text": 7}, "no text"),
    ],
)
def test_a_row_that_does_not_fit_says_why(change, reason):
    with pytest.raises(ValueError, match=reason):
        read_one(TICKET | change, answer=FIELDS)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (CHAT[:2], "does not end with the assistant"),
        (CHAT[1:2] * 2, "two messages of the user in a row"),
        ([CHAT[2]], "no user message"),
        ("hello", "no list of messages"),
        ([*CHAT[1:], {"role": "tool", "content": "x"}], "role 'tool'"),
        ([CHAT[1], {"role": "assistant", "content": ""}], "message 2 is empty"),
    ],
)
def test_a_chat_that_cannot_be_learned_from_says_why(messages, reason):
    with pytest.raises(ValueError, match=reason):
        read_one({"messages": messages}, shape="chat")


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1)


PAIRS = st.lists(st.tuples(CELL, CELL), min_size=1, max_size=6).filter(
    lambda pairs: any(q.strip() or a.strip() for q, a in pairs)  # in CSV there would be no rows at all
)


@given(PAIRS, st.sampled_from(",;\t|"))
@example([("a", "b"), (" ", "\t")], ",")
def test_csv_and_jsonl_give_the_same_rows(tmp_path_factory, pairs, delimiter):
    folder = tmp_path_factory.mktemp("both")
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([("question", "answer"), *pairs])
    (folder / "a.csv").write_bytes(out.getvalue().encode())
    lines = [json.dumps({"question": q, "answer": a}) for q, a in pairs]
    (folder / "a.jsonl").write_text("\n".join(lines))
    (folder / "a.json").write_text(f"[{','.join(lines)}]")
    found = [
        [dict(record.values) for record in read_records(DataSource(path=name), folder)[0]]
        for name in ("a.csv", "a.jsonl", "a.json")
    ]
    blank = [{"question": q, "answer": a} for q, a in pairs if q.strip() or a.strip()]
    assert found[1] == found[2] == [{"question": q, "answer": a} for q, a in pairs]
    assert found[0] == blank


def test_bad_rows_are_numbered_as_in_the_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "cut\r\n[1]\n{"text": 1, "text": 2}\n'
        b'{"text": "\xc4\xe3"}\n'
    )
    records, bad = read_records(DataSource(path="a.jsonl"), tmp_path)
    assert [record.number for record in records] == [1]
    assert [one.number for one in bad] == [3, 4, 5, 6]
    at = (tmp_path / "a.jsonl").read_bytes().index(b"\xc4")
    assert str(bad[-1]) == f"row 6: byte 0xc4 at offset {at} of the file is not utf-8"


def test_csv_rows_are_numbered_by_the_line_they_begin_on(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'text;label\n"two\nlines";a\nshort\n\nfine;b\n\xff;c\n')
    records, bad = read_records(DataSource(path="a.csv"), tmp_path)
    assert [(record.number, record.values["text"]) for record in records] == [(2, "two\nlines"), (6, "fine")]
    assert [str(one) for one in bad] == [
        "row 4: 1 cells where the header has 2",
        "row 7: byte 0xff at offset 39 of the file is not utf-8",
    ]
    (tmp_path / "b.csv").write_text('text,label\nfine,a\n"never closed,b\nlost,c\n')
    with pytest.raises(BadData, match="row 3: a quote is opened that no later row closes"):
        read_records(DataSource(path="b.csv"), tmp_path)


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-8-sig"])
def test_other_encodings_are_read_when_named(tmp_path, encoding):
    (tmp_path / "a.jsonl").write_bytes('{"text": "泵漏油"}\n{"text": "好"}\n'.encode(encoding))
    (tmp_path / "a.csv").write_bytes("text,label\r\n泵漏油,a\r\n好,b\r\n".encode(encoding))
    for name in ("a.jsonl", "a.csv"):
        records, bad = read_records(DataSource(path=name, encoding=encoding), tmp_path)
        assert [record.values["text"] for record in records] == ["泵漏油", "好"] and not bad


def test_labelled_texts_come_in_files_and_folders(tmp_path):
    (tmp_path / "pos.txt").write_text("good\n\nvery good\n")
    (tmp_path / "neg.txt").write_bytes(b"bad\n\xff\n")
    source = DataSource(files={"plus": "pos.txt", "minus": "neg.txt"})
    records, bad = read_records(source, tmp_path)
    assert [(one.place, one.values["label"]) for one in records] == [
        ("pos.txt row 1", "plus"),
        ("pos.txt row 3", "plus"),
        ("neg.txt row 1", "minus"),
    ]
    assert str(bad[0]).startswith("neg.txt row 2: byte 0xff at offset 4")
    assert to_row(records[0], source, "label").id == "pos.txt:1"
    for label, text in (("a", "one\ntwo"), ("b", "three")):
        (tmp_path / "tree" / label).mkdir(parents=True)
        (tmp_path / "tree" / label / "1.txt").write_text(text)
    records, _ = read_records(DataSource(path="tree"), tmp_path)
    assert [one.values for one in records] == [
        {"text": "one\ntwo", "label": "a"},
        {"text": "three", "label": "b"},
    ]


def test_what_is_not_there_is_named_and_a_change_changes_the_digest(tmp_path):
    with pytest.raises(BadRecipe, match=r"data\.path: .*gone\.jsonl is not there; make it first: make rows$"):
        read_records(DataSource(path="gone.jsonl", made_by="make rows"), tmp_path)
    with pytest.raises(BadRecipe, match="package 'no_such_package' is not installed"):
        read_records(DataSource(package="no_such_package", file="x.csv"), tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(BadData, match="no rows"):
        read_records(DataSource(path="empty.jsonl"), tmp_path)
    one = DataSource(path="empty.jsonl", made_by="make rows")
    assert "made_by" not in one.model_dump()  # so no step's key holds it
    before = source_digest(DataSource(path="empty.jsonl"), tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    assert source_digest(DataSource(path="empty.jsonl"), tmp_path) != before


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "exactly one of path, file"),
        ({"file": "x"}, "inside a package"),
        ({"path": "x", "package": "y"}, "inside a package it is file"),
        ({"path": "x", "encoding": "utf-9"}, "not an encoding"),
        ({"path": "x", "encoding": "base64"}, "not an encoding"),
        ({"path": "x", "shape": "fields"}, "belong together"),
        ({"path": "x", "answer": {"a": {"span": True, "text": True}}}, "exactly one of labels"),
        ({"path": "x", "answer": {"text": {"text": True}}}, "'text' is the input"),
        ({"path": "x", "augment": {}}, "a synonyms file, a templates file or both"),
        ({"files": {"one": "a.txt"}}, "at least two labels"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(settings, reason):
    with pytest.raises(ValidationError, match=reason):
        DataSource(**settings)


def test_a_data_set_that_is_mostly_bad_is_refused_even_when_bad_rows_are_dropped(tmp_path):
    lines = ['{"question": "q", "answer": "a"}', '{"question": ""}', "x"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = DataSource(path="a.jsonl", bad_rows="drop")
    with pytest.raises(BadData, match=r"2 bad rows:\nrow 2: .*missing.*\nrow 3: not valid JSON"):
        prepare(source, tmp_path, Path(tmp_path), lambda done, note: None)
