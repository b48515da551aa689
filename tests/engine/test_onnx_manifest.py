"""Manifests and probes of encoders and vision models, beside those that were signed before there were any."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models import canonical
from models.digest import Digest
from models.errors import InvalidManifest
from models.manifest import AnomalyFacts, Engine, File, ImageInput, Kind, Manifest, Probe, TextInput
from models.probes import judge, label_answer, likeness, score_answer, vector_answer

GOLDEN = Path(__file__).parent.parent / "golden" / "ship" / "release.json"
CHAT = Probe(messages=({"role": "user", "content": "x"},), max_tokens=8, expected="{}", tolerance=0.9)
IMAGE = ImageInput(width=224, height=224)
ANOMALY = AnomalyFacts(threshold=2.5, false_reject_rate=0.02, calibrated_on=500)


def manifest(engine: Engine, *probes: Probe) -> Manifest:
    return Manifest(
        kind=Kind.MODEL,
        name="tiny",
        version="1.0.0",
        format="onnx",
        precision="int8",
        files=(File(path="probes/part.png", sha256=Digest.of(b"x"), size=1, chunks=(Digest.of(b"x"),)),),
        engine=engine,
        probes=probes,
        license="MIT",
    )


def test_what_was_signed_before_keeps_its_bytes():
    data = GOLDEN.read_bytes()
    assert Manifest.parse(data).to_bytes() == data
    assert json.loads(CHAT.model_dump_json()).keys() == {"messages", "max_tokens", "expected", "tolerance"}
    assert Engine().model_dump().keys() == {
        "context_length",
        "chat_template",
        "tokenizer",
        "adapter_slots",
        "output_schema",
        "system_prompt",
    }


@pytest.mark.parametrize(
    "engine",
    [
        Engine(task="embed", text=TextInput(max_tokens=256, pooling="mean", normalize=True)),
        Engine(task="classify", labels=("good", "bad"), text=TextInput(max_tokens=128)),
        Engine(task="classify-image", labels=("good", "bad"), image=IMAGE),
        Engine(task="inspect", image=IMAGE, anomaly=ANOMALY),
    ],
)
def test_a_manifest_is_read_back_as_it_was_written(engine: Engine):
    probe = (
        Probe(image="probes/part.png", expected="{}", tolerance=1)
        if engine.image
        else Probe(text="part 3", expected="{}", tolerance=1)
    )
    whole = manifest(engine, probe)
    assert Manifest.parse(whole.to_bytes()) == whole
    assert b"messages" not in whole.to_bytes()
    assert Manifest.parse(whole.to_bytes()).digest == whole.digest


@pytest.mark.parametrize(
    ("engine", "why"),
    [
        ({"task": "embed"}, "embed needs 'text'"),
        ({"task": "classify", "text": {"max_tokens": 8}}, "classify needs 'labels'"),
        ({"task": "inspect", "image": IMAGE.model_dump()}, "inspect needs 'anomaly'"),
        ({"text": {"max_tokens": 8}}, "generate has no use for 'text'"),
        ({"task": "classify-image", "image": IMAGE.model_dump(), "labels": ["a", "a"]}, "listed twice"),
        ({"task": "inspect", "image": {"width": 9, "height": 9, "resize": "shorter-side"}}, "resize_to"),
        ({"task": "dance"}, "task"),
    ],
)
def test_an_engine_that_does_not_fit_its_task_is_refused(engine: dict, why: str):
    value = canonical.decode(manifest(Engine()).to_bytes())
    with pytest.raises(InvalidManifest, match=why):
        Manifest.parse(canonical.encode({**value, "engine": engine}))


def test_a_probe_asks_one_thing_and_what_its_model_is_asked():
    with pytest.raises(ValidationError, match="one thing"):
        Probe(expected="", tolerance=1)
    with pytest.raises(ValidationError, match="one thing"):
        Probe(text="x", image="x.png", expected="", tolerance=1)
    with pytest.raises(ValidationError, match="max_tokens"):
        Probe(text="x", max_tokens=3, expected="", tolerance=1)
    with pytest.raises(ValidationError, match="probe 1 is not asked by text"):
        manifest(Engine(task="embed", text=TextInput(max_tokens=8)), CHAT)
    with pytest.raises(ValidationError, match=r"other\.png is no file"):
        vision = Engine(task="inspect", image=IMAGE, anomaly=ANOMALY)
        manifest(vision, Probe(image="other.png", expected="{}", tolerance=1))


def test_vectors_are_near_by_their_cosine():
    assert likeness(vector_answer([3.0, 4.0]), vector_answer([6.0, 8.0])) == pytest.approx(1)
    assert likeness(vector_answer([1.0, 0.0]), vector_answer([1.0, 1.0])) == pytest.approx(0.5**0.5)
    assert likeness(vector_answer([1.0]), vector_answer([1.0, 0.0])) == 0
    assert likeness('{"vector":[1e999]}', '{"vector":[1]}') == 0


def test_labels_and_verdicts_must_be_the_same_and_their_numbers_near():
    sure, less, other = (label_answer(("a", "b"), p) for p in ((0.9, 0.1), (0.8, 0.2), (0.1, 0.9)))
    assert likeness(sure, less) == pytest.approx(0.9)
    assert likeness(sure, other) == 0
    assert likeness(score_answer(2.0, True), score_answer(1.9, True)) == pytest.approx(0.95)
    assert likeness(score_answer(2.0, True), score_answer(2.0, False)) == 0
    assert likeness(score_answer(0.0, False), score_answer(0.0, False)) == 1
    assert likeness(sure, score_answer(1.0, True)) == 0


def test_a_chat_probe_is_judged_as_text():
    assert judge(CHAT, " {} ").passed
    assert not judge(CHAT.model_copy(update={"expected": "abc"}), "xyz").passed


@given(st.text(), st.text())
def test_any_answer_is_judged(expected: str, answer: str):
    verdict = judge(Probe(text="x", expected=expected, tolerance=0.5), answer)
    assert 0 <= verdict.similarity <= 1


@given(st.lists(st.floats(-1e6, 1e6, width=32).filter(lambda x: abs(x) > 1e-3), min_size=1, max_size=8))
def test_a_vector_is_its_own_likeness(vector: list[float]):
    assert likeness(vector_answer(vector), vector_answer(vector)) == pytest.approx(1, abs=1e-6)
