"""Plan, run, run again, refuse: on a tiny model, through the command line, by both executors."""

import json
import re
import shutil
import subprocess
from dataclasses import asdict

import pytest
import yaml
from small_base import COMMAND, ROOT, compile_, make_base

from models.store import verify_release
from models.workloads import workload_of

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def built(recipe):
    cache, out = recipe.parent / "cache", recipe.parent / "out"
    done = compile_("run", recipe, "--cache", cache, "--out", out, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    return recipe, cache, out, done


def test_a_run_ships_the_smallest_variant_that_keeps_its_budget(built):
    _, _, out, done = built
    report = json.loads((out / "report.json").read_text())
    sizes = {one["name"]: one["bytes"] for one in report["variants"]}
    assert report["chosen"] == "q4_0" and sizes["q4_0"] < sizes["q8_0"] < sizes["reference"]
    manifest = verify_release(out / "small-1.0.0")
    assert manifest.precision == "Q4_0" and {one.metric for one in manifest.quality} >= {"kl_mean", "kl_p99"}
    assert re.search(r"\[\d/6\] fidelity-q4_0: about \d+ s", done.stderr)
    assert f"released: {out / 'small-1.0.0'}\nchosen: q4_0; {out / 'report.html'}" in done.stdout
    verified = compile_("verify", out / "small-1.0.0")
    assert verified.returncode == 0 and "1 probe holds" in verified.stdout


def test_a_second_run_does_nothing(built):
    recipe, cache, out, _ = built
    before = (out / "report.json").stat().st_mtime_ns
    again = compile_("run", recipe, "--cache", cache, "--out", out)
    assert again.returncode == 0 and "about" not in again.stderr
    assert (out / "report.json").stat().st_mtime_ns == before


def test_what_devices_measured_corrects_plan_and_report(built, tmp_path):
    recipe, cache, before, _ = built
    plan = ("plan", recipe, "--cache", cache, "--json")
    (sheet,) = json.loads(compile_(*plan).stdout)["devices"]["q4_0"]
    assert sheet["speed_basis"] == sheet["memory_basis"] == "data sheet"

    ran = asdict(workload_of(before / "small-1.0.0" / "model.gguf", "Q4_0", 2048))
    ran |= {"kind": "model", "profile": "arm64-i8mm", "threads": 3, "peak_ram_bytes": 77_000_000}
    ran |= {"prefill_per_second": None, "items_per_second": None}
    speeds = {"a": 120.0, "b": 123.0, "broken": 0.5}
    figures = tmp_path / "figures.json"
    rows = [{**ran, "device": name, "decode_per_second": speed} for name, speed in speeds.items()]
    figures.write_text(json.dumps({"figures": rows}))
    devices = json.loads(compile_(*plan, "--figures", figures).stdout)["devices"]
    (told,) = devices["q4_0"]
    assert (told["profile"], told["cores"], told["speed_basis"]) == ("arm64-i8mm", 3, "measured on 3 devices")
    assert devices["q8_0"][0]["speed_basis"] == "data sheet"  # nobody measured it

    out = tmp_path / "out"
    done = compile_("run", recipe, "--cache", cache, "--out", out, "--figures", figures)
    assert done.returncode == 0, done.stderr
    (told,) = json.loads((out / "report.json").read_text())["devices"]["q4_0"]
    assert told["decode"]["value"] == pytest.approx(120.0)  # of the very file that was measured
    assert told["memory"]["value"] == pytest.approx(77e6)
    assert "measured on 3 devices" in (out / "report.html").read_text()

    figures.write_text('{"figures": [{"device": "a"}]}')
    wrong = compile_(*plan, "--figures", figures)
    assert wrong.returncode == 2 and "not figures as outpost-hub writes them" in wrong.stderr


def test_a_text_in_another_encoding_is_refused_before_anything_runs(recipe):
    (recipe.parent / "latin.txt").write_bytes("Das Öl ist heiß.".encode("latin-1"))
    bad = recipe.parent / "latin.yaml"
    bad.write_text(recipe.read_text().replace("base/text/heldout.txt", "latin.txt"))
    done = compile_("plan", bad)
    assert done.returncode == 2
    assert "evaluate.text.file: latin.txt is not UTF-8: invalid continuation byte at byte 4" in done.stderr


def test_a_file_that_was_cut_is_made_again(built):
    recipe, cache, out, _ = built
    weights = out / "small-1.0.0" / "model.gguf"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert compile_("run", recipe, "--cache", cache, "--out", out).returncode == 0
    assert weights.read_bytes() == whole


def test_a_plan_says_what_is_cached_and_what_a_change_would_repeat(built, tmp_path):
    recipe, cache, _, _ = built
    plan = json.loads(compile_("plan", recipe, "--cache", cache, "--json").stdout)
    assert all(step["cached"] for step in plan["steps"]) and plan["seconds"] == 0
    took = {step["name"]: step["took_ram_bytes"] for step in plan["steps"]}
    assert took["fidelity-q8_0"] > 20_000_000
    changed = recipe.parent / "changed.yaml"
    changed.write_text(recipe.read_text().replace("type: Q4_0", "type: Q5_0"))
    plan = json.loads(compile_("plan", changed, "--cache", cache, "--json").stdout)
    assert [step["name"] for step in plan["steps"] if not step["cached"]] == [
        "quantize-q4_0",
        "fidelity-q4_0",
    ]


def test_a_plan_refuses_what_would_not_find_its_converters(built, tmp_path):
    recipe, cache, _, _ = built
    nowhere = ("--converters", tmp_path / "nowhere")
    done = compile_("plan", recipe, "--cache", tmp_path / "empty", *nowhere)
    assert done.returncode == 3 and "REFUSED: llama.cpp's converters are not in" in done.stdout
    assert compile_("plan", recipe, "--cache", cache, *nowhere).returncode == 0  # nothing left to convert


def test_a_budget_that_nothing_keeps_is_refused_with_numbers_and_no_release(built):
    recipe, cache, _, _ = built
    strict = recipe.parent / "strict.yaml"
    strict.write_text(recipe.read_text().replace("max_rise: 0.05", "max_rise: 0.0000001"))
    out = recipe.parent / "strict-out"
    done = compile_("run", strict, "--cache", cache, "--out", out)
    assert done.returncode == 3 and "kl_mean" in done.stderr and "max_rise allows +1e-07" in done.stderr
    said = done.stderr.split("nearest recipe that would pass: q8_0, with\n")[1]
    assert not list(out.glob("*/release.json")) and "Refused" in (out / "report.html").read_text()
    # The recipe that it names does pass.
    loosened = yaml.safe_load(said)["budgets"]["kl_mean"]["max_rise"]
    strict.write_text(recipe.read_text().replace("max_rise: 0.05", f"max_rise: {loosened}"))
    assert compile_("run", strict, "--cache", cache, "--out", out).returncode == 0


def test_ray_makes_the_same_model(built):
    recipe, _, out, _ = built
    other = recipe.parent / "ray-out"
    done = compile_(
        "run",
        recipe,
        "--cache",
        recipe.parent / "ray-cache",
        "--out",
        other,
        "--executor",
        "ray",
        "--threads",
        1,
    )
    assert done.returncode == 0, done.stderr
    assert (other / "small-1.0.0" / "model.gguf").read_bytes() == (
        out / "small-1.0.0" / "model.gguf"
    ).read_bytes()
    assert "[6/6]" in done.stderr


@pytest.mark.parametrize("during", ["a step", "packaging"])
def test_a_disk_that_fills_up_leaves_what_was_there(built, tmp_path, during):
    """A limit on file sizes stands in for a full disk: the same error from the same write."""
    recipe, cache, out, _ = built
    (out / "build.json").unlink(missing_ok=True)  # so that there is something to do
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    if during == "a step":
        cache, out = tmp_path / "cache", tmp_path / "out"
        cache.mkdir()
    command = [*COMMAND, "run", str(recipe), "--cache", str(cache), "--out", str(out)]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 400; exec "$@"', "bash", *command],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and "File too large" in done.stderr and "Traceback" not in done.stderr
    if during == "a step":
        assert "a new run goes on behind the finished steps" in done.stderr
        assert not out.exists() and [path.name for path in cache.iterdir()] == ["scratch"]
    else:
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_the_error_of_a_step_ends_the_run_and_says_what_is_wrong(recipe, tmp_path, executor):
    shutil.copytree(recipe.parent / "base", tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (tmp_path / "recipe.yaml").write_text(recipe.read_text())
    done = compile_(
        "run", tmp_path / "recipe.yaml", "--cache", tmp_path / "cache", "--out", tmp_path / "out",
        "--executor", executor,
    )  # fmt: skip
    assert done.returncode == 1 and "model.safetensors" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists() and not list((tmp_path / "cache").glob("base-*"))
