"""What people read of a run: the page, its plots, its numbers."""

import math
import re

import yaml
from hypothesis import given
from hypothesis import strategies as st

from compile.evaluate.judge import Measured, VariantResult, hold, nearest_recipe
from compile.findings import Answer, Case, Compared, Findings, Flips
from compile.recipe.sections import Budget
from compile.report.page import page, write_report
from compile.report.plots import frontier

numbers = st.floats(min_value=-1e3, max_value=1e3)


def variant(name: str, size: int, kl: float, speed: float, budget: float | None = None) -> VariantResult:
    metrics = {
        "kl_mean": Measured(0.0, kl, (0.9 * kl, 1.1 * kl), 100, (0.9 * kl, 1.1 * kl)),
        "auroc_local": Measured(0.998, 0.9931, (-0.01, 0.0), 100, (0.99, 0.996)),
        "detection_rate_local": Measured(0.9, 0.875, (-0.1, 0.05), 40, (0.7, 0.9)),
    }
    budgets = {} if budget is None else {"kl_mean": Budget(max_rise=budget)}
    return VariantResult(
        name, "Q4_0", size, hold(metrics, budgets), (speed, speed + 1, speed + 2), 90_000_000
    )


def findings(*variants: VariantResult, **more) -> Findings:
    passed = [one.name for one in variants if one.passed]
    nearest = None if passed else nearest_recipe(variants)
    reference = variant("reference", 16_000_000, 0.0, 30)
    told = {"rows": {}, "lineage": {}, "reference_note": "in F32", "headline": "kl_mean"} | more
    chosen = passed[0] if passed else None
    return Findings("m 1.0.0", "run it", "a machine", reference=reference, variants=variants, chosen=chosen,
                    nearest=nearest, **told)  # fmt: skip


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12))
def test_nothing_beats_what_is_on_the_frontier_and_something_on_it_beats_the_rest(points):
    kept = frontier(points)
    costs = [points[at] for at in kept]
    assert costs == sorted(costs) and len(set(kept)) == len(kept)
    for cost, loss in points:
        assert any(points[at][0] <= cost and points[at][1] <= loss for at in kept)
    for at in kept:
        cost, loss = points[at]
        assert not any(c <= cost and other <= loss and (c, other) != (cost, loss) for c, other in points)


def test_a_page_stands_alone_and_names_every_variant_in_its_plots():
    told = page(findings(variant("small", 2_400_000, 8e-4, 900), variant("tiny", 91_000, 4e-3, 80)), {})
    assert not re.search(r'(?:src|href)="(?!data:)[^#]', told) and told.count("<svg") == 1
    for name in ("reference", "small", "tiny"):
        assert f"<!-- {name} -->" in told  # matplotlib writes what it draws as paths, and says it beside


def test_the_data_card_that_lies_beside_it_is_linked(tmp_path):
    told = findings(variant("small", 2_400_000, 8e-4, 900))
    write_report(tmp_path, told, {})
    assert "<a href" not in (tmp_path / "report.html").read_text()
    (tmp_path / "data-card.html").touch()
    write_report(tmp_path, told, {})
    assert re.findall(r'<a href="(.*?)"', (tmp_path / "report.html").read_text()) == ["data-card.html"]


def test_numbers_are_said_so_that_variants_can_be_told_apart():
    told = page(findings(variant("fp32", 149_000, 8e-4, 900), variant("int8", 91_000, 9e-4, 80)), {})
    assert "149 kB" in told and "91 kB" in told and "0.1 MB" not in told
    assert "0.9931" in told and "99.3%" not in told  # an area is no share, whatever it is of
    assert ">87.5%<" in told and ">0.875" not in told


def test_a_refusal_gives_the_lines_to_paste_into_the_recipe():
    told = findings(variant("q8_0", 4_000_000, 5.1e-5, 900, 1e-7))
    words, pasted = told.nearest_recipe.split("with\n")
    assert words.startswith("q8_0") and told.nearest_recipe in page(told, {})
    bound = Budget.model_validate(yaml.safe_load(pasted)["budgets"]["kl_mean"])
    assert bound.max_rise is not None and 1.1 * 5.1e-5 <= bound.max_rise <= 1.15 * 5.1e-5


def test_answers_that_precision_spoilt_come_first():
    def case(text: str, reference: bool, small: bool) -> Case:
        said = {"reference": Answer(f"r{reference}", reference), "small": Answer(f"s{small}", small)}
        return Case(text, "expected", said)

    cases = (case("both wrong", False, False), case("mended", False, True), case("spoilt", True, False))
    told = page(findings(variant("small", 1, 1e-3, 9), cases=cases, flips=Flips.of(cases)), {})
    assert told.index("spoilt") < told.index("both wrong") < told.index("mended")


def test_what_was_not_measured_is_said_and_not_drawn():
    nothing = Measured(None, math.nan, None, 0)
    broken = VariantResult("odd", "Q4_0", 1000, hold({"kl_mean": nothing}, {}), (1.0,), 1)
    beside = (Compared("chance", {"kl_mean": Measured(None, 0.01, None, 5)}),)
    told = page(findings(broken, variant("small", 2_000, 1e-3, 9), beside=beside), {})
    assert "not measured" in told and "<!-- odd -->" not in told and "<!-- chance -->" in told
