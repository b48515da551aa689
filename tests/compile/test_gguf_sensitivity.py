"""Planning as laws over made-up harms; measuring on a real file through the engine."""

import math
import re

import pytest
from gguf_models import Shape, calibration_text, write_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from compile.errors import Refused
from compile.gguf.files import fallbacks
from compile.gguf.quantize import quantize
from compile.gguf.sensitivity import (
    Candidate,
    Heldout,
    Limits,
    Point,
    groups_of,
    measure_mixture,
    measure_reference,
    plan_mixed,
    sensitivity,
)
from models.gguf import TensorType, read_header


def quiet(done, note):
    pass


harms = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 100)), min_size=1, max_size=40)


@settings(deadline=None)
@given(
    harms,
    st.builds(Limits, kl=st.floats(0, 3), flips=st.none() | st.floats(0, 1))
    | st.builds(Limits, flips=st.floats(0, 1)),
    st.floats(0, 0.5),
)
def test_a_plan_holds_its_limits_with_no_shorter_list_of_the_same_order(listed, limits, rest):
    groups = [
        Candidate(f"g{at}", (f"t{at}.weight",), 10, 10 + more, harm) for at, (harm, more) in enumerate(listed)
    ]
    asked = []

    def measured(kept):
        asked.append(kept)
        kl = rest + sum(one.harm for one in groups if one.name not in kept)
        size = sum(one.high_bytes if one.name in kept else one.low_bytes for one in groups)
        return Point(tuple(sorted(kept)), size, kl, kl * 1.1, kl / 4, kl / 3)

    def within(kl):
        return (limits.kl is None or kl * 1.1 <= limits.kl) and (
            limits.flips is None or kl / 3 <= limits.flips
        )

    if not within(rest):
        with pytest.raises(Refused, match="budget"):
            plan_mixed(groups, TensorType.Q8_0, limits, measured)
        return
    plan = plan_mixed(groups, TensorType.Q8_0, limits, measured)
    assert within(plan.point.kl) and len(asked) == len(set(asked)) <= 2 + math.log2(len(groups) + 1)
    assert (
        [one.tensor for one in plan.overrides] and {one.type for one in plan.overrides} == {TensorType.Q8_0}
        if plan.point.kept
        else plan.overrides == ()
    )
    order = sorted(groups, key=lambda one: (-one.harm / (one.high_bytes - one.low_bytes), one.name))
    assert set(plan.point.kept) == {one.name for one in order[: len(plan.point.kept)]}
    if plan.point.kept:
        assert not within(measured(frozenset(one.name for one in order[: len(plan.point.kept) - 1])).kl)
    assert [one.bytes for one in plan.curve] == sorted(one.bytes for one in plan.curve)


def test_groups_cover_every_quantized_tensor_once(tmp_path):
    header = read_header(write_llama(tmp_path / "f32.gguf", Shape(layers=3)))
    for by, count in (("layer-kind", 3 * 7 + 2), ("layer", 3 + 2), ("kind", 7 + 2)):
        groups = groups_of(header, by)
        tensors = [name for group in groups.values() for name in group]
        assert len(groups) == count and len(tensors) == len(set(tensors)) == 3 * 7 + 2


@pytest.mark.slow
def test_a_measured_plan_makes_the_file_that_holds(tmp_path):
    reference = write_llama(tmp_path / "f32.gguf", Shape(layers=2, inner=256))
    text = Heldout(calibration_text(tmp_path / "text.txt"), 192, 64)
    against, folder = tmp_path / "reference", tmp_path / "work"
    folder.mkdir()
    measure_reference(reference, text, against, 1, quiet)
    arguments = (reference, against, "Q4_0", TensorType.Q8_0)
    told = []
    found = sensitivity(
        *arguments, text, folder, 1, "kind", None, lambda done, note: told.append((done, note))
    )
    assert told == sorted(told, key=lambda one: one[0]) and told[-1][0] == 1
    assert any(re.match(r"group attn_q: quantizing blk\.1\.attn_q", note) for _, note in told)
    assert any("group attn_q: window 3 of 3" in note for _, note in told)
    assert {one.name for one in found} > {"attn_q", "ffn_down", "token_embd"} and all(
        one.harm > 0 for one in found
    )
    measured = measure_mixture(*arguments, found, text, folder, 1)
    least, most = measured(frozenset()), measured(frozenset(one.name for one in found))
    assert 0 < least.flips < least.worst_flips and most.flips < least.flips
    budget = (least.worst_kl + most.worst_kl) / 2
    plan = plan_mixed(found, TensorType.Q8_0, Limits(kl=budget), measured)
    assert most.kl < plan.point.worst_kl <= budget < least.worst_kl
    assert least.bytes < plan.point.bytes < most.bytes
    quantize(reference, tmp_path / "mixed.gguf", "Q4_0", 1, overrides=plan.overrides)
    assert (tmp_path / "mixed.gguf").stat().st_size == plan.point.bytes
    assert fallbacks(read_header(tmp_path / "mixed.gguf"), "Q4_0", plan.overrides) == ()
    assert not (folder / "mixture.gguf").exists()
