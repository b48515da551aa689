"""Device profiles and the forecast: what is promised, and how reports of devices move it."""

import math
from itertools import count
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ModelsError
from models.forecast import (
    OVERHEADS,
    UNCORRECTED,
    Corrections,
    Interval,
    Measured,
    Workload,
    decode,
    decode_bound,
    fit,
    fitting_profiles,
    forecast,
    items,
    memory_needed,
    prefill,
    unfit,
)
from models.manifest import Manifest
from models.profiles import PROFILES, Machine, cpu_flags, cpu_profile, gpu_profile, profile

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
    found = fitting_profiles(SEVEN_B)
    # A processor's memory is its machine's: the device compares for itself.
    assert {"x86-64-avx2", "arm64-i8mm", "jetson-agx-orin"} <= set(found)
    assert "jetson-orin-nano-8g" not in found
    with pytest.raises(ModelsError, match="memory_bytes"):
        fit(profile("x86-64-avx2"), SMALL)


MINILM = Workload("onnx", "int8", 22_713_216, 23_000_000)
DEVICE = profile("sm_89")


def measured(ratios: list[float], load: Workload = SMALL) -> list[Measured]:
    """As many devices, each so much faster than was predicted, and with so much more memory in use."""
    speed, memory, numbers = decode_bound(DEVICE, load), memory_needed(load), count()
    return [
        Measured(f"d{next(numbers)}", "sm_89", 1, load, decode=speed * one, memory=memory * one)
        for one in ratios
    ]


loads = st.builds(
    Workload,
    format=st.sampled_from(sorted(OVERHEADS)),
    precision=st.sampled_from(["int8", "Q4_K_M"]),
    parameters=st.integers(10**6, 10**10),
    weight_bytes=st.integers(10**6, 10**10),
    kv_bytes=st.integers(1, 10**5),
    context_tokens=st.integers(0, 4096),
)
ratios = st.lists(st.floats(0.3, 3), min_size=1, max_size=20)
figure = st.floats(1e-3, 1e12)


@given(loads, st.sampled_from(sorted(PROFILES)), st.integers(1, 64))
def test_without_figures_a_forecast_is_what_it_was(load: Workload, name: str, cores: int) -> None:
    told = forecast(profile(name), load, cores)
    assert told == forecast(profile(name), load, cores, Corrections([]))
    assert told.decode is not None and told.decode.value == decode_bound(profile(name), load, cores)
    assert told.memory.value == memory_needed(load)
    assert (told.speed_basis, told.memory_basis) == ("data sheet", "data sheet")
    others = Corrections(measured([2.0] * 5, Workload("onnx", "fp32", 1, 1)))
    assert forecast(profile(name), load, cores, others) == told  # of another format, precision or device


@given(loads, st.sampled_from(sorted(PROFILES)), st.integers(1, 64), figure, figure, figure)
def test_what_was_measured_is_forecast_again(
    load: Workload, name: str, cores: int, speed: float, reading: float, memory: float
) -> None:
    one = Measured("press-01", name, cores, load, decode=speed, prefill=reading, memory=memory)
    told = forecast(profile(name), load, cores, Corrections([one]))
    assert told.decode is not None and math.isclose(told.decode.value, speed, rel_tol=1e-9)
    assert told.prefill is not None and math.isclose(told.prefill.value, reading, rel_tol=1e-9)
    assert math.isclose(told.memory.value, memory, rel_tol=1e-9)
    assert told.decode.low < speed < told.decode.high
    assert (told.speed_basis, told.memory_basis) == ("measured on 1 device", "measured on 1 device")


@given(st.lists(st.floats(0.8, 1.25), min_size=2, max_size=20), st.floats(1e-3, 1e3))
def test_one_device_that_is_off_leaves_the_forecast_among_the_others(
    ratios: list[float], wild: float
) -> None:
    corrected = decode(DEVICE, SMALL, corrections=Corrections(measured([*ratios, wild])))
    told = corrected.value / decode_bound(DEVICE, SMALL)
    assert min(ratios) * 0.999 <= told <= max(ratios) * 1.001


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.3, 3)), min_size=1, max_size=12), st.randoms())
def test_a_device_counts_once_and_the_order_not_at_all(said: list[tuple[str, float]], random: object) -> None:
    bound = decode_bound(DEVICE, SMALL)
    figures = [Measured(name, "sm_89", 1, SMALL, decode=bound * ratio) for name, ratio in said]
    belief = Corrections(figures).of("sm_89", SMALL, "decode")
    each = [median(math.log(r) for n, r in said if n == name) for name in {name for name, _ in said}]
    assert math.isclose(belief.mean, median(each), abs_tol=1e-9)
    assert belief.devices == len(each)
    random.shuffle(figures)  # type: ignore[attr-defined]
    assert math.isclose(Corrections(figures).of("sm_89", SMALL, "decode").mean, belief.mean, abs_tol=1e-9)


def test_devices_that_agree_are_believed() -> None:
    spans = [
        decode(DEVICE, SMALL, corrections=Corrections(measured([0.5] * devices))) for devices in (0, 1, 3, 10)
    ]
    widths = [span.high / span.low for span in spans]
    assert widths == sorted(widths, reverse=True) and widths[-1] < 1.6
    apart = decode(DEVICE, SMALL, corrections=Corrections(measured([0.25, 0.5, 1.0])))
    assert apart.high / apart.low > widths[2]


def test_another_model_of_the_kind_says_less_and_the_model_itself_outweighs_it() -> None:
    sibling = Workload("gguf", "q8_0", 2 * SMALL.parameters, 2 * SMALL.weight_bytes, 2 * SMALL.kv_bytes)
    theirs = Corrections(measured([0.5, 0.5, 0.5], sibling))
    told = forecast(DEVICE, SMALL, corrections=theirs)
    assert told.decode is not None
    assert math.isclose(told.decode.value, 0.5 * decode_bound(DEVICE, SMALL))
    assert told.speed_basis == "other models measured on 3 devices"
    tiny = Workload("gguf", "q8_0", SMALL.parameters // 40, SMALL.weight_bytes // 40, 1000)
    assert decode(DEVICE, SMALL, corrections=Corrections(measured([0.1], tiny))) == decode(DEVICE, SMALL)
    own = Corrections(measured([0.5, 0.5, 0.5]))
    itself = decode(DEVICE, SMALL, corrections=own)
    assert told.decode.high / told.decode.low > itself.high / itself.low
    both = Corrections([*measured([0.5, 0.5, 0.5], sibling), *measured([2.0])])
    assert math.isclose(decode(DEVICE, SMALL, corrections=both).value, 2 * decode_bound(DEVICE, SMALL))


def test_an_encoder_has_a_speed_once_it_was_measured() -> None:
    assert items(DEVICE, MINILM, UNCORRECTED) is None
    seen = Corrections([Measured("a", "sm_89", 1, MINILM, items=50.0, memory=300e6)])
    told = forecast(DEVICE, MINILM, corrections=seen)
    assert told.items is not None and math.isclose(told.items.value, 50.0)
    assert told.decode is None and told.prefill is None
    wider = Workload("onnx", "int8", 2 * MINILM.parameters, MINILM.weight_bytes)
    assert forecast(DEVICE, wider, corrections=seen).items is None
    assert told.fits


def made_for(*profiles: str, size: int = 0, kind: str = "model") -> Manifest:
    file = {"path": "w.gguf", "sha256": "sha256:" + "0" * 64, "size": size, "chunks": []}
    file["chunks"] = ["sha256:" + "0" * 64] * -(-size // (1 << 20))
    adapter = {"base_name": "m", "trained_on": "sha256:" + "1" * 64, "checked_against": [], "rank": 1,
               "targets": []} if kind == "adapter" else None  # fmt: skip
    return Manifest.model_validate(
        {"kind": kind, "name": "m", "version": "1.0.0", "format": "gguf", "precision": "q8_0",
         "files": [file], "profiles": profiles, "license": "x", "adapter": adapter}
    )  # fmt: skip


def test_a_release_fits_what_it_was_made_for_and_what_has_the_memory() -> None:
    box = Machine("x86-64-avx2", 4, 8_000_000_000)
    assert unfit(made_for(), box) is None
    assert unfit(made_for("x86-64-avx2", "sm_80"), box) is None
    assert unfit(made_for("x86-64-avx2"), Machine("x86-64-amx", 4, 8_000_000_000)) is None
    assert unfit(made_for("sm_87"), Machine("jetson-agx-orin", 4, 64_000_000_000)) is None
    assert unfit(made_for("sm_80"), Machine(None, 4, 8_000_000_000)) is None  # nobody can tell
    assert unfit(made_for("x86-64-amx"), box) == (
        "m 1.0.0 is made for x86-64-amx; this device is x86-64-avx2 with 8.0 GB of memory"
    )
    assert unfit(made_for("sm_80", kind="adapter"), box) is not None


def test_a_model_that_even_at_best_exceeds_the_memory_does_not_fit() -> None:
    small = Machine("x86-64-avx2", 1, 1_000_000_000)
    assert unfit(made_for(size=700_000_000), small) is None
    why = unfit(made_for(size=1_200_000_000), small)
    assert why is not None and "needs at least 1.1 GB" in why and "has 1.0 GB, of which" in why
    assert unfit(made_for(size=1_200_000_000), Machine("x86-64-avx2", 1, 4_000_000_000)) is None
    assert unfit(made_for(size=1_200_000_000, kind="adapter"), small) is None


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
    for figures in ({"decode": 0.0}, {"memory": math.inf}, {"profile": "pentium"}):
        with pytest.raises(ModelsError):
            Measured(**{"device": "a", "profile": "sm_80", "cores": 1, "load": SMALL, **figures})
    with pytest.raises(ModelsError):
        Interval(1.0, 2.0, 3.0)
