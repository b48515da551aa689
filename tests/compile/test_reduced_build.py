"""The reduced recipe, whole: from the package's GGUF to release folders that verify.

Steps are kept in the working copy's ``.cache``, so only the first run takes minutes.
"""

import json
import shutil

import pytest
from small_base import ROOT, compile_

from models.manifest import Kind
from models.store import read_release

RECIPE = ROOT / "examples" / "factory" / "tickets-ci.yaml"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("built")
    done = compile_("run", RECIPE, "--out", out, "--json", timeout=1200)
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


@pytest.mark.model
@pytest.mark.slow
def test_a_run_leaves_a_report_and_releases_that_name_each_other(built):
    out, report = built
    assert report == json.loads((out / "report.json").read_text())
    chosen = next(one for one in report["variants"] if one["name"] == report["chosen"])
    assert chosen["pass"] and chosen["bytes"] < 0.3 * report["variants"][0]["bytes"]
    assert chosen["quality"]["kl_mean"]["ci95"][1] <= chosen["quality"]["kl_mean"]["budget"]
    manifests = [read_release(folder)[0] for folder in out.iterdir() if (folder / "release.json").is_file()]
    bases = {one.digest for one in manifests if one.kind is Kind.MODEL}
    (adapter,) = (one for one in manifests if one.kind is Kind.ADAPTER)
    assert set(adapter.adapter.checked_against) == bases and adapter.adapter.trained_on
    assert adapter.engine.output_schema["required"] == ["class", "severity", "component"]
    assert "dequantized" in adapter.lineage["reference"] and len(adapter.probes) == 3
    page = (out / "report.html").read_text()
    assert "<svg" in page and "http-equiv" not in page and "<script" not in page and "src=" not in page


@pytest.mark.model
@pytest.mark.slow
def test_an_adapter_verifies_and_a_copy_with_another_promise_is_refused(built, tmp_path):
    out, _ = built
    shutil.copytree(out, tmp_path / "releases")
    folder = next((tmp_path / "releases").glob("tickets-*"))
    done = compile_("verify", folder, "--threads", 1)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((folder / "release.json").read_text())
    manifest["probes"][0]["expected"] = '{"class":"x"}'
    (folder / "release.json").write_text(json.dumps(manifest))
    done = compile_("verify", folder, "--threads", 1)
    assert done.returncode == 3 and "probes fail" in done.stderr


@pytest.mark.model
@pytest.mark.slow
def test_a_budget_that_nothing_meets_ends_with_3_and_the_nearest_recipe(built, tmp_path):
    text = RECIPE.read_text().replace("kl_mean: {max_rise: 0.35}", "kl_mean: {max_rise: 0.0001}")
    recipe = tmp_path / "strict.yaml"
    recipe.write_text(text)
    shutil.copy(RECIPE.parent / "tickets.jsonl", tmp_path)
    out = tmp_path / "out"
    done = compile_("run", recipe, "--out", out, timeout=300)
    assert done.returncode == 3 and "nearest recipe that would pass" in done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["chosen"] is None and report["nearest_recipe"]["budgets"]["kl_mean"]
    assert not list(out.glob("*/release.json"))
