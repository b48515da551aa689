"""Recipes that train, on a tiny model: preferences, adapters for two engines, merging, distillation."""

import hashlib
import json
import random
import shutil
import time

import openai
import pytest
import yaml
from edge_command import serving
from small_base import ROOT, compile_, make_base

from compile.errors import BadRecipe
from models.manifest import Kind
from models.onnx import read_model
from models.store import read_release, verify_release

pytestmark = [pytest.mark.model, pytest.mark.slow]

PARTS = ("pump", "valve", "belt", "motor", "bearing", "filter", "switch", "sensor", "seal", "gear")
PLACES = ("line one", "line two", "hall three", "the old press", "dock four", "the north roof")
CHOSEN, REJECTED = "Stop the line and call the shift lead.", "Go on as if nothing happened."
EVALUATE = {
    "text": {"file": "base/text/heldout.txt"},
    "text_tokens": 256,
    "window": 64,
    "speed_repeats": 3,
    "bootstrap": 200,
}
BASE = {"name": "small", "version": "1.0.0", "license": "Apache-2.0", "file": "base"}
PREFERENCES = {
    "base": BASE,
    "data": {"path": "pairs.jsonl", "near_duplicate": 1.0},
    "finetune": {"rank": 4, "alpha": 8, "epochs": 2, "learning_rate": 0.02, "preference_strength": 0.5},
    "variants": [
        {"name": "merged", "type": "Q4_0", "merged": True},
        {"name": "q4_0", "type": "Q4_0"},
        {"name": "gi8", "type": "genai-int8", "genai": {"algorithm": "rtn", "block_size": 64}},
    ],
    "evaluate": EVALUATE | {"before_rows": 4, "max_tokens": 12},
    "budgets": {"answer_kl": {"max_rise": 0.05}},
    "release": {"name": "calm", "version": "1.0.0", "probes": 2},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    make_base(folder)
    rows = [(part, where) for part in PARTS for where in PLACES]
    random.Random(0).shuffle(rows)
    asked = [f"The {part} of {where} is loud." for part, where in rows]
    pairs = [{"prompt": text, "chosen": CHOSEN, "rejected": REJECTED} for text in asked]
    plain = [{"question": text, "answer": CHOSEN} for text in asked]
    for name, some in (("pairs", pairs), ("plain", plain)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in some))
    return folder


def run(place, name, recipe, cache="cache"):
    """``outpost-compile run``; what it ended with, its folder and its report."""
    path, out = place / f"{name}.yaml", place / name
    path.write_text(yaml.safe_dump(recipe))
    done = compile_("run", path, "--cache", place / cache, "--out", out, "--jobs", 2, "--threads", 1)
    assert (out / "report.json").is_file(), done.stderr
    report = json.loads((out / "report.json").read_text())
    return done, out, report | {"variants": {one["name"]: one for one in report["variants"]}}


@pytest.fixture(scope="module")
def calm(place):
    done, out, report = run(place, "calm", PREFERENCES)
    assert done.returncode == 0, done.stderr
    return place, out, report


def test_preferences_are_learned_and_the_report_says_what_was_before(calm):
    _, _, report = calm
    assert report["learning_curve"][-1]["metric"] == 1.0  # every pair is told apart better than before
    before = report["baselines"]["before training"]
    after = report["baselines"]["after training, not quantized"]
    assert set(before) == {"bleu", "chrf", "rouge_l", "exact_match", "answer_perplexity"} == set(after)
    assert all(one["interval"] is not None for one in (*before.values(), *after.values()))
    wanted = after["answer_perplexity"]
    assert wanted["reference"] == before["answer_perplexity"]["value"] > wanted["value"]
    assert wanted["ci95"][1] < 0 and report["variants"]["gi8"]["quality"]["answer_perplexity"]["value"] > 1


def test_the_adapter_of_each_engine_names_the_weights_it_learned_upon_and_the_bases_it_rides_on(calm):
    place, out, _ = calm
    made = [verify_release(path.parent) for path in out.glob("*/release.json")]
    bases = {one.format: one for one in made if one.kind is Kind.MODEL}
    adapters = {one.format: one for one in made if one.kind is Kind.ADAPTER}
    assert set(bases) == set(adapters) == {"gguf", "onnx-genai"}
    (reference,) = (place / "cache").glob("base-*/reference-f32.gguf")
    weights = f"sha256:{hashlib.sha256(reference.read_bytes()).hexdigest()}"
    for engine, adapter in adapters.items():
        assert adapter.adapter.trained_on == weights == bases[engine].lineage["reference_weights"]
        assert adapter.adapter.checked_against == (bases[engine].digest,)


def ask(url, model, text):
    """A chat with an agent: what the model said, and the receipt."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        found = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": text}], temperature=0, max_tokens=12
        )
    return found.choices[0].message.content, found.model_extra["outpost"]


def test_an_adapter_of_other_data_rides_on_the_same_base_beside_it(calm):
    place, out, report = calm
    pairs = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    turned = [one | {"chosen": one["rejected"], "rejected": one["chosen"]} for one in pairs]
    (place / "turned.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in turned))
    changes = {
        "data": PREFERENCES["data"] | {"path": "turned.jsonl"},
        "variants": [{"name": "q4_0", "type": "Q4_0"}],
        "release": PREFERENCES["release"] | {"name": "hasty"},
    }
    done, other, turned_report = run(place, "hasty", PREFERENCES | changes)
    assert done.returncode == 0, done.stderr
    folder = out / "small-1.0.0-q4-0"
    base = read_release(folder)[0].digest
    assert read_release(other / folder.name)[0].digest == base
    riders = {"calm": out / "calm-1.0.0", "hasty": other / "hasty-1.0.0"}
    measured = {
        name: {case["input"]: case["answers"]["q4_0"] for case in one["cases"]}
        for name, one in (("calm", report), ("hasty", turned_report))
    }
    asked = sorted(set(measured["calm"]) & set(measured["hasty"]))
    with serving(f"base={folder}", adapters=[f"{name}={place}" for name, place in riders.items()]) as (
        url,
        _,
    ):
        assert asked
        for text in asked:  # the adapters in turn: neither reads what the other left in a cache
            alone, _ = ask(url, "base", text)
            for name, rider in riders.items():
                said, receipt = ask(url, f"base:{name}", text)
                assert said == measured[name][text] != alone
                assert (receipt["release"], receipt["adapter"]) == (base, read_release(rider)[0].digest)
            assert measured["calm"][text] != measured["hasty"][text]


def test_the_onnx_adapter_makes_the_genai_base_answer_as_the_adapter_and_not_as_itself(calm):
    from compile.evaluate.measure import greedy, open_engine

    _, out, report = calm
    assert compile_("verify", out / "calm-onnx-1.0.0", "--threads", 1).returncode == 0
    prompts = [
        f"<|im_start|>user\n{case['input']}<|im_end|>\n<|im_start|>assistant\n" for case in report["cases"]
    ]
    engine = open_engine(out / "small-1.0.0-gi8", 1, 256)
    engine.attach("calm", out / "calm-onnx-1.0.0" / "adapter.onnx_adapter")
    adapted, alone = (greedy(engine, name, prompts, 12) for name in ("calm", None))
    engine.close()
    assert adapted == [case["answers"]["gi8"] for case in report["cases"]]
    assert not set(adapted) & set(alone)


def test_the_genai_base_and_its_adapter_are_served(calm):
    _, out, report = calm
    base, rider = out / "small-1.0.0-gi8", out / "calm-onnx-1.0.0"
    digest = read_release(base)[0].digest
    with serving(f"small={base}", adapters=[f"calm={rider}"]) as (url, _):
        for case in report["cases"]:
            alone, receipt = ask(url, "small", case["input"])
            assert (receipt["release"], receipt["adapter"]) == (digest, None)
            said, receipt = ask(url, "small:calm", case["input"])
            assert (receipt["release"], receipt["adapter"]) == (digest, read_release(rider)[0].digest)
            assert said == case["answers"]["gi8"] != alone


def test_the_genai_base_is_quantized_as_the_recipe_says(calm):
    _, out, report = calm
    model = read_model(out / "small-1.0.0-gi8" / "model.onnx")
    packed = [one.name for one in model.initializers if one.name.endswith("_Q8G64")]
    assert packed and not any("_Q8G32" in one.name for one in model.initializers)
    assert report["variants"]["gi8"]["settings"] == {"algorithm": "rtn", "block_size": 64}


def test_merging_is_advised_by_measurement_and_the_advice_is_followed(calm):
    place, out, report = calm
    (note,) = report["notes"]
    assert "ship the adapter separate" in note and "95 % interval" in note
    assert report["variants"]["merged"]["pass"] and report["chosen"] == "q4_0"
    alone = [one for one in PREFERENCES["variants"] if one["name"] != "q4_0"]
    done, out, report = run(place, "alone", PREFERENCES | {"variants": alone})
    assert done.returncode == 0 and report["chosen"] == "merged" and not report["notes"]
    (release,) = out.glob("*/release.json")
    manifest = verify_release(release.parent)
    assert manifest.kind is Kind.MODEL and manifest.name == "calm" and manifest.adapter is None
    assert compile_("verify", release.parent, "--threads", 1).returncode == 0


def test_what_is_too_far_from_the_adapter_is_refused_merged_or_not(calm):
    place, _, _ = calm
    strict = PREFERENCES | {"budgets": {"answer_kl": {"max_rise": 1e-9}}}
    done, out, report = run(place, "strict", strict)
    assert done.returncode == 3 and report["chosen"] is None and not list(out.glob("*/release.json"))
    assert all("answer_kl" in report["variants"][name]["refusal"] for name in ("merged", "q4_0", "gi8"))


def test_a_variant_that_reads_text_otherwise_is_refused_and_the_others_go_on(calm):
    place, _, _ = calm
    shutil.copytree(place / "cache", place / "other-cache")
    (tokenizer,) = (place / "other-cache").glob("export-gi8-*/genai/tokenizer.json")
    read = json.loads(tokenizer.read_text())
    tokenizer.write_text(json.dumps(read | {"normalizer": {"type": "Lowercase"}}))
    (measured,) = (place / "other-cache").glob("fidelity-gi8-*")
    shutil.rmtree(measured)
    done, out, report = run(place, "other", PREFERENCES, "other-cache")
    assert done.returncode == 0 and report["chosen"] == "q4_0"
    refused = report["variants"]["gi8"]
    assert not refused["pass"] and "token ids differ for 'Bearing 6205-2RS" in refused["refusal"]
    assert refused["refusal"].split(": ", 1)[1] in (out / "report.html").read_text().replace("&#x27;", "'")
    assert not list(out.glob("*-gi8")) and not list(out.glob("calm-onnx-*"))


def test_a_student_distilled_on_text_says_it_better_and_is_held_against_itself(calm):
    import torch
    from safetensors.torch import load_file, save_file

    place, _, _ = calm
    shutil.copytree(place / "base", place / "teacher")
    weights = load_file(place / "teacher" / "model.safetensors")
    torch.manual_seed(0)
    noisy = {name: one + 0.02 * torch.randn_like(one) for name, one in weights.items()}
    save_file(noisy, place / "teacher" / "model.safetensors", metadata={"format": "pt"})
    recipe = {
        "base": BASE,
        "calibration": {"text": {"file": "base/text/train.txt"}, "tokens": 4096},
        "distil": {"kind": "logits", "teacher": {"file": "teacher"}, "top": 16},
        "finetune": {"method": "full", "epochs": 1, "learning_rate": 0.002},
        "variants": [{"name": "q8_0", "type": "Q8_0"}],
        "evaluate": EVALUATE,
        "budgets": {"kl_mean": {"max_rise": 0.05}},
        "release": {"name": "student", "version": "1.0.0"},
    }
    done, out, report = run(place, "student", recipe)
    assert done.returncode == 0, done.stderr
    learned = report["baselines"]["after training, not quantized"]["perplexity"]
    assert learned["reference"] == report["baselines"]["before training"]["perplexity"]["value"]
    assert learned["ci95"][1] < 0 and learned["value"] < 0.9 * learned["reference"]
    manifest = verify_release(out / "student-1.0.0")
    assert manifest.lineage["teacher"] != manifest.lineage["base_weights"]
    kept = {one.metric: one for one in manifest.quality}["perplexity"]
    assert kept.reference == pytest.approx(learned["value"], rel=1e-5)


def test_a_student_is_trained_on_what_a_teacher_here_answers(calm):
    from compile.data.rows import read_splits
    from compile.line import Workshop
    from compile.lines.language_line import LanguageLine
    from compile.steps import Cache, in_order

    place, _, _ = calm
    (merged,) = (place / "cache").glob("merge-*/reference-f32.gguf")
    shutil.copyfile(merged, place / "teacher.gguf")
    teacher = {"file": {"file": "teacher.gguf"}, "max_tokens": 4}
    recipe = PREFERENCES | {
        "distil": {"kind": "sequences", "keep_answers": False, "teacher": teacher},
        "finetune": {"method": "full", "epochs": 1, "learning_rate": 0.002},
        "variants": [{"name": "q8_0", "type": "Q8_0"}],
        "budgets": {"kl_mean": {"max_rise": 0.05}},
    }
    cache = Cache(place / "cache")

    def tuned(rows):
        (place / "pupil.yaml").write_text(yaml.safe_dump(recipe | {"data": PREFERENCES["data"] | rows}))
        workshop = Workshop(ROOT / ".cache" / "llama.cpp-0.3.36", 1, time.monotonic)
        line = LanguageLine.make(place / "pupil.yaml", workshop)
        for step in in_order([line.tuned]):
            cache.run(step, lambda done, note: None)
        return line.tuned

    step = tuned({"path": "plain.jsonl"})
    answered = read_splits(cache.folder(step.after["data"])).train
    assert answered and not {row.answer for row in answered} & {CHOSEN, REJECTED}
    assert (cache.folder(step) / "model.safetensors").is_file()
    with pytest.raises(BadRecipe, match="preferences, which are learned without a teacher"):
        tuned({"path": "pairs.jsonl"})
