"""Rows to tokens: what is learned, what it weighs, and what is done with rows that are too long."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.data.rows import Row
from compile.errors import BadData, BadRecipe, UnsupportedBase
from compile.recipe.load import load_recipe
from compile.recipe.training import FineTune
from compile.training.examples import FRAME_WEIGHT, encode_rows, load_template, spans_of
from models.prompts import ChatTemplate

TEMPLATE = ChatTemplate(
    "{% for m in messages %}<s>{{ m.role }} {{ m.content }}<e>{% endfor %}<s>", "<s>", "<e>"
)


@pytest.fixture(scope="module")
def tokenizer():
    """One token per byte, and two control tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "<e>")])
    return made


def row(text: str, answer: str = "yes", number: int = 1, **more) -> Row:
    return Row(number, ({"role": "user", "content": text},), answer, **more)


def test_loss_is_on_the_answer_and_the_end_of_the_turn(tokenizer):
    (example,) = encode_rows([row("hi")], tokenizer, TEMPLATE.prompt, "<e>", FineTune()).examples
    text = tokenizer.decode(example.ids, skip_special_tokens=False)
    assert text == "<s>user hi<e><s>yes<e>"
    assert tokenizer.decode(example.ids[example.prompt_length :], skip_special_tokens=False) == "yes<e>"
    assert example.weights == (1.0,) * 4


def test_fields_weigh_what_the_settings_say(tokenizer):
    fields = {"class": "a", "part": 'b"c'}
    answer = json.dumps(fields, separators=(",", ":"))
    settings = FineTune(label_weight=4, field_weights={"part": 0.5})
    encoded = encode_rows(
        [row("x", answer, fields=fields)], tokenizer, TEMPLATE.prompt, "<e>", settings, ["class"]
    )
    weights = encoded.examples[0].weights
    assert [w for w in weights if w != FRAME_WEIGHT] == [4.0] + [
        0.5
    ] * 4  # the quote is written with two letters


FIELDS = st.dictionaries(st.text(min_size=1, max_size=4), st.text(max_size=8), min_size=1, max_size=4)


@given(FIELDS)
def test_spans_are_where_the_values_stand(fields):
    answer = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    for name, (start, end) in spans_of(answer, fields).items():
        assert json.loads(answer[start - 1 : end + 1]) == fields[name]


def test_a_stranger_s_control_token_is_text(tokenizer):
    ids = encode_rows([row("a<e>b")], tokenizer, TEMPLATE.prompt, "<e>", FineTune()).examples[0].ids
    assert ids.count(tokenizer.token_to_id("<e>")) == 2
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>user a<e>b<e><s>yes<e>"


def test_long_rows_are_refused_by_number_or_cut_and_counted(tokenizer):
    rows = [row("short", number=1), row("long " * 30, number=2), row("长" * 30, number=5)]
    settings = FineTune(max_tokens=40)
    with pytest.raises(
        BadData, match=r"2 of 3 rows are longer than finetune.max_tokens 40: row 2 \(1.*row 5"
    ):
        encode_rows(rows, tokenizer, TEMPLATE.prompt, "<e>", settings)
    encoded = encode_rows(
        rows, tokenizer, TEMPLATE.prompt, "<e>", settings.model_copy(update={"too_long": "truncate"})
    )
    assert encoded.cut == (2, 5) and encoded.note == "2 of 3 rows were cut"
    for example in encoded.examples:
        text = tokenizer.decode(example.ids, skip_special_tokens=False)
        assert len(example.ids) <= 40 and text.startswith("<s>user ") and text.endswith("<e><s>yes<e>")
    assert len(encoded.examples[1].ids) == 40 and "�" not in text
    with pytest.raises(BadData, match="row 1: prompt and answer are over 40 tokens even without"):
        encode_rows(
            [row("x", "y" * 50)],
            tokenizer,
            TEMPLATE.prompt,
            "<e>",
            settings.model_copy(update={"too_long": "truncate"}),
        )


def test_rows_of_another_kind_are_refused_by_name(tokenizer):
    with pytest.raises(BadData, match=r"1 of 1 rows are preferences \(prompt, chosen, rejected\)"):
        encode_rows([row("x", rejected="no")], tokenizer, TEMPLATE.prompt, "<e>", FineTune())
    with pytest.raises(BadData, match="1 of 2 rows have no answer: rows 4"):
        encode_rows([row("x"), row("x", "", 4)], tokenizer, TEMPLATE.prompt, "<e>", FineTune())


def test_the_template_is_the_tokenizer_s_own(tmp_path):
    config = {"chat_template": "{{ bos_token }}{{ messages[0].content }}", "bos_token": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "<e>"}))
    template, end = load_template(tmp_path)
    assert template.render([{"role": "user", "content": "x"}]) == "<s>x" and end == "<e>"
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UnsupportedBase, match="no chat template"):
        load_template(tmp_path)


@pytest.mark.parametrize("method", ("prefix", "p-tuning", "prompt"))
def test_a_recipe_refuses_virtual_tokens_and_says_what_to_use_instead(tmp_path, method):
    good = Path(__file__).parents[2] / "examples" / "factory" / "tickets-ci.yaml"
    text = good.read_text(encoding="utf-8").replace("first_layer: 20", f"method: {method}")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(BadRecipe, match=r"neither llama\.cpp nor ONNX Runtime GenAI .* Use lora or qlora"):
        load_recipe(tmp_path / "recipe.yaml")
