"""Predictions of peak memory, beside the peaks that were measured."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from genai_folders import exported, hf_folder

from compile.errors import BadRecipe
from compile.forecast import COSTS, Facts, facts_of, predict
from compile.plan import describe, make_plan
from compile.steps import Cache, Step
from models.forecast import fitting_profiles, memory_needed
from models.machine import memory_limit, this_machine
from models.profiles import PROFILES
from models.workloads import workload_of

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")

TEXT = 360_082  # bytes of the news text of gensim
MODELS = {
    "small": Facts(3_934_464, 2048, 4, 256, 524_288, 256, window=128, text_bytes=TEXT),
    "mid": Facts(28_320_256, 2048, 8, 512, 1_048_576, 512, window=128, text_bytes=TEXT),
    "big": Facts(111_698_688, 2048, 16, 768, 1_769_472, 256, window=128, text_bytes=TEXT),
    "smollm2": Facts(134_515_008, 49_152, 30, 576, 28_311_552, 192, window=128, text_bytes=TEXT),
}
BITS = {"iq4_nl": 4.5, "ref": 32, "q8_0": 8.5, "q4_0": 4.5, "gfp32": 32, "gint8": 9, "gint4": 5}


def measured() -> list[tuple[str, str, int]]:
    """Model, step and peak in MB: the table of the page."""
    rows = re.findall(r"^\| (small|mid|big|smollm2) \| ([^|]+) \| (\d+) \|", DOC, re.MULTILINE)
    return [(model, step, int(peak)) for model, step, peak in rows]


def kind_and_facts(model: str, step: str) -> tuple[str, Facts]:
    facts = MODELS[model]
    if found := re.fullmatch(r"(finetune-\w+), (\d+) tokens", step):
        return found[1], replace(facts, batch=int(found[2]))
    name, _, variant = step.partition("-")
    if name == "measure":
        engine = "genai" if variant.startswith("g") else "gguf"
        return f"measure-{engine}", replace(facts, weight_bytes=int(facts.parameters * BITS[variant] / 8))
    if name in ("answers", "survival"):  # with an adapter; the latter holds the logits of an answer
        held = 0 if name == "answers" else 64
        weights = int(facts.parameters * BITS[variant] / 8)
        return "measure-gguf-adapter", replace(facts, weight_bytes=weights, window=held)
    if name == "quantize":
        return "quantize-gguf", facts
    if name == "export":
        return f"export-genai-{'fp32' if variant == 'fp32' else 'quantized'}", facts
    return step, facts


def test_the_table_is_there() -> None:
    kinds = {kind_and_facts(model, step)[0] for model, step, _ in measured()}
    assert len(measured()) > 55
    assert kinds == set(COSTS)


@pytest.mark.parametrize(("model", "step", "peak"), measured())
def test_every_peak_is_predicted_within_a_quarter(model: str, step: str, peak: int) -> None:
    told = predict(*kind_and_facts(model, step))
    assert abs(told.ram_bytes / (peak * 1e6) - 1) < 0.25
    assert told.ram.low < peak * 1e6 < told.ram.high
    assert told.seconds > 0


def test_unknown_kinds_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="measure-gguf"):
        predict("brew-coffee", MODELS["small"])
    with pytest.raises(BadRecipe, match=r"config\.json"):
        facts_of(tmp_path)


def test_every_profile_and_kind_is_on_the_page() -> None:
    for name in PROFILES:
        assert f"`{name}`" in DOC
    assert this_machine().profile in PROFILES


def test_scratch_is_counted_once_and_results_all(tmp_path: Path) -> None:
    """Two results of 10 MB that take 100 and 300 MB while they are made: 320 MB, or 420 side by side."""

    def step(name: str, scratch: int) -> Step:
        return Step(name, {}, {}, {}, lambda *given: None, 1.0, 10**7, 10**6, scratch * 10**6)

    line = SimpleNamespace(steps=[step("a", 100), step("b", 300)], workloads={})
    for jobs, megabytes in ((1, 320), (2, 420)):
        plan = make_plan(line, Cache(tmp_path), tmp_path, jobs)
        assert plan.disk_bytes == megabytes * 10**6 and plan.refusals == ()
    assert "310 MB" in describe(plan)  # of one step: its result, and what lies beside it


def test_memory_is_bounded_by_the_control_groups_above(tmp_path: Path) -> None:
    whole = memory_limit(tmp_path)
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("4:memory:/old\n0::/slice/unit\n")
    unit = tmp_path / "sys" / "fs" / "cgroup" / "slice" / "unit"
    unit.mkdir(parents=True)
    assert memory_limit(tmp_path) == whole
    (unit / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path) == whole
    (unit.parent / "memory.max").write_text("5000000\n")
    assert memory_limit(tmp_path) == 5_000_000
    (unit.parent.parent / "memory.max").write_text("4000000\n")
    assert memory_limit(tmp_path) == 4_000_000


@pytest.mark.model
@pytest.mark.slow
def test_a_real_peak_is_within_a_quarter_of_its_prediction(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text((hf_folder() / "text" / "heldout.txt").read_text(encoding="utf-8"), encoding="utf-8")
    job = {"model": str(exported("fp32", slots=True)), "adapter": None, "folder": str(tmp_path), "threads": 1}
    job |= {"text": {"path": str(text), "tokens": 256, "window": 128}, "against": None}
    job |= {"prompts": ["Once upon a time"], "max_tokens": 8}
    code = (
        "from compile.evaluate.measure import measure\nfrom compile.steps import peak_ram\n"
        f"measure({job!r}, lambda done, note: None)\nprint(peak_ram())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    told = predict("measure-genai", facts_of(hf_folder(), window=128, text_bytes=text.stat().st_size))
    assert abs(told.ram_bytes / int(done.stdout) - 1) < 0.25


@pytest.mark.model
@pytest.mark.slow
def test_a_workload_is_read_from_headers() -> None:
    full, small = (workload_of(exported(name, slots=True), name, 256) for name in ("fp32", "int4"))
    assert full.parameters == small.parameters
    assert memory_needed(full) > memory_needed(small)
    facts = facts_of(hf_folder())
    assert full.kv_bytes == 2 * facts.layers * facts.kv_width * 4
    assert "jetson-orin-nano-8g" in fitting_profiles(small)
    assert "sm_90" not in fitting_profiles(small)  # exported for the CPU
