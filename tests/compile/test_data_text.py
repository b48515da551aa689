"""Cleaning, scripts and personal data: what happens to a text."""

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compile.data import pii
from compile.data.cleaning import clean, map_strings, what_changes
from compile.data.scripts import language_of

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERISH = st.text(st.sampled_from("0123456789 .-+()@abXDE/:_[]中"), max_size=60)


@settings(deadline=None)
@given(TEXTS)
@example("e\u200b\u0301")
@example(" \r\n\u2028x\n\n\n\ny \t\n")
def test_cleaning_twice_is_cleaning_once(text):
    once = clean(text)
    assert clean(once) == once
    assert not list(what_changes(once))


@settings(deadline=None)
@given(TEXTS)
def test_what_is_clean_is_left_alone(text):
    assert (clean(text) == text) == (not list(what_changes(text)))


def test_cleaning_keeps_what_carries_meaning():
    assert clean("  if x:\n        y\n") == "if x:\n        y"
    assert clean("\ufeffAn\u00a0e\u0301clair\x07\u202e 泵\u3000漏油") == "An éclair 泵 漏油"
    family = "👩\u200d👩\u200d👧"
    assert clean(family) == family
    with pytest.raises(ValueError, match="lone surrogate"):
        clean("half \ud83d")
    assert map_strings({"a": ["x\x07", 1, None]}, clean) == {"a": ["x", 1, None]}
    with pytest.raises(ValueError, match="a key holds half a character"):
        map_strings({"\ud83d": 1}, clean)


def test_long_hostile_texts_cost_no_more_than_long_texts():
    began = time.process_time()
    for text in (" " * 300_000 + "x", "\n \n" * 100_000, "a@" * 150_000, "1" * 300_000, "(1-" * 100_000):
        pii.mask(clean(text))
    assert pii.mask("a@bc.de " * 30_000) == "[EMAIL] " * 30_000
    assert time.process_time() - began < 20


def test_a_value_that_is_nested_without_end_is_refused():
    value = "x"
    for _ in range(900):
        value = [value]
    with pytest.raises(ValueError, match="nested more than 16 deep"):
        map_strings(value, clean)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("泵漏油，PLC 报警", "zh"),
        ("ポンプが漏れている", "ja"),
        ("펌프가 샌다", "ko"),
        ("pump leaks", "latin"),
        ("насос течёт", "cyrillic"),
        ("42 !!", "other"),
        ("", "other"),
    ],
)
def test_the_script_tells_the_language_where_it_can(text, language):
    assert language_of(text) == language


PERSONAL = {
    "email": ["write to anna.b+x@mail.example.org.", "邮箱a.b@example.cn请回复"],
    "phone": [
        "call +49 (0)30 1234567 now",
        "电话13812345678请打",
        "(415) 555-2671",
        "030 1234567",
        "+14155552671",
    ],
    "iban": ["DE89 3704 0044 0532 0130 00 and more", "IBAN GB82WEST12345698765432"],
    "card": ["4111 1111 1111 1111", "paid with 5500-0000-0000-0004."],
    "chinese_id": ["身份证11010519491231002X。"],
    "ipv4": ["device at 192.168.10.21, rack 2"],
}
EVERY = [text for texts in PERSONAL.values() for text in texts]
HARMLESS = [
    "ticket 20261126, part 4711-0815, 12.5 bar at 03:40",
    "4111 1111 1111 1112",  # Luhn fails
    "DE89 3704 0044 0532 0130 01",  # mod 97 fails
    "110105194912310021",  # checksum fails
    "firmware 1.2.3.4.5 and 300.1.1.1",
    "a@b",
    "2026-11-26 00:36:51",
]


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in PERSONAL.items() for text in texts]
)
def test_personal_data_is_found_by_form_and_check_digit(kind, text):
    assert {one.kind for one in pii.find(text)} == {kind}
    assert f"[{kind.upper()}]" in pii.mask(text)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_alike_is_left_alone(text):
    assert pii.find(text) == ()
    assert pii.mask(text) == text


@settings(deadline=None)
@given(st.one_of(TEXTS, NUMBERISH, st.lists(st.sampled_from(EVERY), max_size=4).map("".join)))
def test_masking_leaves_nothing_to_find(text):
    assert pii.find(pii.mask(text)) == ()
