"""Device profiles and the forecast: what is promised, and how reports of devices move it."""

import math
import platform
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ModelsError
from models.forecast import (
    OVERHEADS,
    Corrections,
    Interval,
    Report,
    Workload,
    decode,
    decode_bound,
    fit,
    fitting_profiles,
    memory_needed,
    prefill,
)
from models.profiles import PROFILES, cpu_flags, cpu_profile, gpu_profile, profile

SEVEN_B = Workload(
    "gguf", "Q4_K_M", 7_240_000_000, 4_370_000_000, kv_bytes=131_072, context_tokens=4096, sequences=4
)
SMALL = Workload("gguf", "Q8_0", 134_515_008, 143_000_000, kv_bytes=23_040, context_tokens=2048)


def test_every_profile_is_whole() -> None:
    expected = {"jetson-orin-nano-8g", "jetson-agx-orin", "jetson-thor"}
    expected |= {f"sm_{sm}" for sm in (75, 80, 86, 87, 89, 90, 100, 101, 110, 120)}
    expected |= {"x86-64-avx2", "x86-64-avx512-vnni", "x86-64-amx", "arm64-dotprod", "arm64-i8mm"}
    assert set(PROFILES) == expected
    for name, one in PROFILES.items():
        assert one.name == name
        assert one.bandwidth > 1e9
        assert "f32" in one.operations
        assert one.source
        assert (one.memory_bytes > 0) == (one.kind != "cpu")
        assert ("tensorrt-recipe" in one.runs) == (one.kind != "cpu")
        for caution in one.cautions:
            assert caution.source.startswith(("https://", "measured here"))
    with pytest.raises(ModelsError, match="x86-64-avx2"):
        profile("pentium")


def test_what_orin_cannot_run_is_not_offered() -> None:
    orin, thor = profile("jetson-orin-nano-8g"), profile("jetson-thor")
    assert orin.can_run("gguf", "Q4_K_M")
    assert not orin.can_run("tensorrt-recipe", "fp8")
    assert thor.can_run("tensorrt-recipe", "fp8")
    assert not profile("x86-64-amx").can_run("tensorrt-recipe", "int8")


@pytest.mark.parametrize(
    ("machine", "flags", "name"),
    [
        ("x86_64", "fma avx2 sse4_2", "x86-64-avx2"),
        ("x86_64", "fma avx2 avx512f avx512bw avx512_vnni", "x86-64-avx512-vnni"),
        ("x86_64", "fma avx2 avx512f avx512_vnni amx_tile amx_int8 amx_bf16", "x86-64-amx"),
        ("x86_64", "sse4_2", None),
        ("aarch64", "fp asimd asimddp", "arm64-dotprod"),
        ("aarch64", "fp asimd asimddp i8mm", "arm64-i8mm"),
        ("aarch64", "fp asimd", None),
        ("riscv64", "", None),
    ],
)
def test_processors_are_known_by_their_flags(machine: str, flags: str, name: str | None) -> None:
    assert cpu_profile(machine, flags.split()) == name


def test_a_flag_counts_when_every_core_has_it() -> None:
    text = "processor : 0\nFeatures\t: fp asimd asimddp i8mm\n\nprocessor : 1\nFeatures\t: fp asimd asimddp\n"
    assert cpu_flags(text) == {"fp", "asimd", "asimddp"}
    assert cpu_flags("nothing") == frozenset()


def test_this_machine_has_a_profile() -> None:
    flags = cpu_flags(Path("/proc/cpuinfo").read_text())
    assert cpu_profile(platform.machine(), flags) in PROFILES


def test_gpus_are_known_by_board_or_capability() -> None:
    assert gpu_profile(87, "NVIDIA Jetson Orin Nano Developer Kit") == "jetson-orin-nano-8g"
    assert gpu_profile(87, "NVIDIA Jetson AGX Orin Developer Kit") == "jetson-agx-orin"
    assert gpu_profile(110, "NVIDIA Jetson AGX Thor Developer Kit") == "jetson-thor"
    assert gpu_profile(90) == "sm_90"
    assert gpu_profile(61) is None


def test_fit_and_speed_are_of_the_right_size() -> None:
    nano = profile("jetson-orin-nano-8g")
    assert not fit(nano, SEVEN_B).fits  # weights 4.4 GB and KV 2.1 GB beside a system in 8 GB
    assert fit(profile("jetson-agx-orin"), SEVEN_B).fits
    assert fit(nano, SMALL).fits
    speed = decode(profile("jetson-agx-orin"), SEVEN_B)
    assert 10 < speed.low < speed.value < speed.high < 80  # llama.cpp users report some 20 to 35
    assert prefill(nano, SEVEN_B).value < prefill(profile("sm_90"), SEVEN_B).value
    found = fitting_profiles(SEVEN_B, {"x86-64-avx2": 16_000_000_000})
    assert "x86-64-avx2" in found
    assert "arm64-i8mm" not in found  # its memory is not known
    assert "jetson-orin-nano-8g" not in found
    with pytest.raises(ModelsError, match="memory_bytes"):
        fit(profile("x86-64-avx2"), SMALL)


def reports(ratios: list[float]) -> list[Report]:
    return [Report("sm_89", "gguf", "Q8_0", "decode", 100.0, 100.0 * ratio) for ratio in ratios]


ratios = st.lists(st.floats(0.3, 3), min_size=1, max_size=20)


@given(ratios)
def test_reports_move_the_forecast_towards_them_and_narrow_it(ratios: list[float]) -> None:
    device = profile("sm_89")
    before = decode(device, SMALL)
    after = decode(device, SMALL, corrections=Corrections(reports(ratios)))
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    told = before.value * mean
    assert abs(math.log(after.value / told)) <= abs(math.log(before.value / told)) + 1e-9
    assert (
        min(before.value, told) - 1e-9 <= after.value * 1.0000001
        and after.value <= max(before.value, told) * 1.0000001
    )
    assert after.high / after.low < before.high / before.low


@given(ratios, ratios)
def test_reports_may_come_in_any_order_and_more_of_them_narrow_more(
    one: list[float], other: list[float]
) -> None:
    together = Corrections(reports(one)).with_reports(reports(other))
    swapped = Corrections(reports(other)).with_reports(reports(one))
    a, b = (beliefs.of("sm_89", "gguf", "q8_0", "decode") for beliefs in (together, swapped))
    assert math.isclose(a.mean, b.mean, abs_tol=1e-9)
    assert a.reports == len(one) + len(other)
    assert a.deviation < Corrections(reports(one)).of("sm_89", "gguf", "Q8_0", "decode").deviation


def test_reports_of_one_kind_say_nothing_of_another() -> None:
    told = Corrections(reports([2.0] * 5))
    untold = Corrections()
    for key in (("sm_90", "gguf", "Q8_0"), ("sm_89", "onnx", "Q8_0"), ("sm_89", "gguf", "Q4_0")):
        assert told.of(*key, "decode") == untold.of(*key, "decode")
    assert told.of("sm_89", "gguf", "Q8_0", "memory").mean == 0


def test_ten_like_reports_are_believed() -> None:
    speed = decode(profile("sm_89"), SMALL, corrections=Corrections(reports([0.5] * 10)))
    bound = decode_bound(profile("sm_89"), SMALL)
    assert abs(speed.value / (0.5 * bound) - 1) < 0.02
    assert speed.low < 0.5 * bound < speed.high
    assert speed.high / speed.low < 1.6


@given(st.integers(10**6, 10**11), st.integers(1, 64), st.sampled_from(sorted(OVERHEADS)))
def test_more_takes_more_memory_and_is_slower(weights: int, sequences: int, format: str) -> None:
    one = Workload(format, "int8", weights, weights, kv_bytes=1000, context_tokens=1000, sequences=sequences)
    more = Workload(
        format, "int8", weights, 2 * weights, kv_bytes=1000, context_tokens=1000, sequences=sequences + 1
    )
    assert memory_needed(more) > memory_needed(one) > weights
    device = profile("sm_80")
    assert decode_bound(device, more) <= decode_bound(device, one)


def test_what_cannot_be_is_refused() -> None:
    for wrong in (("gguf", "x", 0, 1), ("exe", "x", 1, 1), ("gguf", "x", 1, 0)):
        with pytest.raises(ModelsError):
            Workload(*wrong)
    with pytest.raises(ModelsError):
        Report("sm_80", "gguf", "x", "decode", 0.0, 1.0)
    with pytest.raises(ModelsError):
        Interval(1.0, 2.0, 3.0)
