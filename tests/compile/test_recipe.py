import re
from pathlib import Path

import pytest

from compile.errors import BadRecipe
from compile.recipe.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "factory"
GOOD = (EXAMPLES / "tickets-ci.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_the_examples_are_sound(path):
    assert load_recipe(path).variant_names


def test_the_first_recipe_that_is_read_is_sound(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.yaml").variant_names == ("q8_0", "q4_k_m")


@pytest.mark.parametrize(
    ("good", "bad", "key", "near"),
    [
        ("  rank: 16", "  rnak: 16", "finetune.rnak", "rank"),
        ("prompt:", "promt:", "promt", "prompt"),
        ("{name: q8_0, type: Q8_0}", "{name: q8_0, typ: Q8_0}", "variants.0.typ", "type"),
        ("  valid_json:", "  valid_jsn:", "budgets.valid_jsn", "valid_json"),
        ("{max_loss: 0.5}", "{max_los: 0.4}", "budgets.class_accuracy.max_los", "max_loss"),
        ("labels: [stop", "lables: [stop", "data.answer.severity.lables", "labels"),
        ("  near_duplicate:", "  near_duplikate:", "data.near_duplikate", "near_duplicate"),
    ],
)
def test_an_unknown_key_is_refused_with_its_line_and_the_nearest_key(tmp_path, good, bad, key, near):
    text = GOOD.replace(good, bad, 1)
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    line = next(number for number, line in enumerate(text.splitlines(), 1) if bad in line)
    with pytest.raises(BadRecipe) as refused:
        load_recipe(path)
    assert f"line {line}: unknown key {key!r}; did you mean {near!r}?" in str(refused.value)


@pytest.mark.parametrize(
    ("first", "following"),
    [("tickets-v1.yaml", "tickets-v2.yaml"), ("tickets-ci.yaml", "tickets-ci-v2.yaml")],
)
def test_a_following_recipe_measures_as_the_first_so_that_its_bases_are_the_same_releases(first, following):
    one, other = load_recipe(EXAMPLES / first), load_recipe(EXAMPLES / following)
    assert (one.base, one.variants, one.evaluate, one.budgets) == (
        other.base,
        other.variants,
        other.evaluate,
        other.budgets,
    )
    assert one.release.name == other.release.name and one.release.version < other.release.version


@pytest.mark.parametrize("taken", ["q8_0", "reference"])
def test_a_name_that_is_taken_is_refused_on_its_line(tmp_path, taken):
    text = GOOD.replace("{name: iq4_nl,", f"{{name: {taken},")
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "type: IQ4_NL" in line)
    with pytest.raises(BadRecipe, match=rf"line {line}: variants\.1\.name: '{taken}' is taken"):
        load_recipe(path)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD + "release: {name: a, version: 1.0.0}\n", encoding="utf-8")
    with pytest.raises(BadRecipe, match=r"'release' stands twice"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ("type: Q8_0", "type: Q8", "variants.0.type: 'Q8' is none of .*did you mean 'Q8_0'"),
        ("base:", "task: translate\nbase:", "task: 'translate' is none of generate, embed"),
        ("  rank: 16", "  rank: none", "finetune.rank: Input should be a valid integer"),
        (
            "{name: q8_0, type: Q8_0}",
            "{name: q8_0, type: Q8_0, mixed: {higher: F16}}",
            "variants.0.mixed: .*mixed sets max_kl, max_flips or both",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_line_and_what_is_possible(tmp_path, good, bad, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD.replace(good, bad, 1), encoding="utf-8")
    with pytest.raises(BadRecipe, match=rf"line \d+: {said}"):
        load_recipe(path)


def test_a_missing_part_is_named(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("budgets: {}\nvariants: [{name: a, type: Q8_0}]\n", encoding="utf-8")
    with pytest.raises(BadRecipe, match=r"line 1: base is missing(.|\n)*evaluate is missing"):
        load_recipe(path)
