"""Text encoders on ONNX Runtime: a real MiniLM, and tiny graphs whose answers can be worked out by hand."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from minilm import write_minilm
from onnx import TensorProto, helper
from onnx_graphs import (
    WORDS,
    text_inputs,
    write_embedder,
    write_graph,
    write_text_classifier,
    write_tokenizer,
)

from models.engines.onnx_files import EncoderFiles, files_of_folder, files_of_release
from models.engines.onnx_session import OnnxSettings
from models.engines.onnx_text import OnnxText, batches
from models.errors import ContextLengthExceeded, EngineError, UnsafeFile, UnsupportedRequest
from models.manifest import Engine, Kind, Manifest, TextInput
from models.store import describe_file

EMBED = Engine(task="embed", text=TextInput(max_tokens=8, pooling="mean", normalize=False))
CLASSIFY = Engine(task="classify", labels=("good", "bad"), text=TextInput(max_tokens=8))
SENTENCES = ["The pump leaks oil.", "Oil is dripping from the pump.", "The invoice is overdue."]


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_minilm(tmp_path_factory.mktemp("minilm"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tokenizer(folder / "tokenizer.json", fixed_padding=True)
    write_embedder(folder / "embed.onnx")
    write_text_classifier(folder / "classify.onnx")
    return folder


def engine_of(folder: Path, graph: str, engine: Engine, **settings) -> OnnxText:
    return OnnxText(EncoderFiles(folder / graph, engine, folder / "tokenizer.json"), OnnxSettings(**settings))


@pytest.mark.model
def test_a_real_embedder_knows_which_sentences_are_alike(minilm: Path):
    engine = OnnxText(files_of_folder(minilm))
    assert (engine.facts.task, engine.facts.width, engine.facts.max_tokens) == ("embed", 384, 256)
    pump, drip, bill = engine.embed(SENTENCES)
    assert np.linalg.norm(pump) == pytest.approx(1, abs=1e-5)
    assert pump @ drip > 0.6 > 0.3 > pump @ bill
    read = engine.answer(SENTENCES)
    assert read.tokens == (7, 9, 10) and read.truncated == 0
    engine.close()


@pytest.mark.model
def test_an_answer_does_not_depend_on_its_neighbours_or_the_batch(minilm: Path):
    """Padding is masked. Quantized graphs scale by batch, so the vectors are near and not the same."""
    texts = [*SENTENCES, "pump " * 60, "x"]
    alone = OnnxText(files_of_folder(minilm), OnnxSettings(batch=1))
    together = OnnxText(files_of_folder(minilm), OnnxSettings(batch=8))
    cosines = (alone.embed(texts) * together.embed(texts)).sum(axis=1)
    assert cosines.min() > 0.98
    reversed_order = together.embed(texts[::-1])[::-1]
    assert (reversed_order * together.embed(texts)).sum(axis=1).min() > 0.9999


def test_vectors_are_the_means_of_the_token_states(tiny: Path):
    table = np.random.default_rng(0).normal(size=(len(WORDS), 8)).astype(np.float32)
    texts = ["pump leaks", "pump is fine hot", ""]
    expected = [table[[2, *map(WORDS.index, text.split()), 3]].mean(axis=0) for text in texts]
    for batch in (1, 2, 16):
        found = engine_of(tiny, "embed.onnx", EMBED, batch=batch).embed(texts)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    first = EMBED.model_copy(update={"text": TextInput(max_tokens=8, pooling="cls", normalize=True)})
    found = engine_of(tiny, "embed.onnx", first).embed(texts)
    np.testing.assert_allclose(found, [table[2] / np.linalg.norm(table[2])] * 3, rtol=1e-5)


def test_padding_of_a_batch_changes_no_class(tiny: Path):
    engine = engine_of(tiny, "classify.onnx", CLASSIFY, batch=4)
    found = engine.classify(["bad", "good pump is fine", "bad bad bad"])
    assert found.argmax(axis=1).tolist() == [1, 0, 1]
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found[0, 1], 1 / (1 + np.exp(-3)), rtol=1e-5)
    assert engine.classify([]).shape[0] == 0


def test_a_text_that_is_too_long_is_refused_or_cut_and_counted(tiny: Path):
    texts = ["pump", "pump leaks " * 5]
    with pytest.raises(ContextLengthExceeded, match="text 2 of 2 has 12 tokens; the model reads 8"):
        engine_of(tiny, "embed.onnx", EMBED).embed(texts)
    read = engine_of(tiny, "embed.onnx", EMBED, truncate=True).answer(texts)
    assert (read.tokens, read.truncated) == ((3, 8), 1)


def test_a_text_without_tokens_is_the_callers_doing(tiny: Path, tmp_path: Path):
    shutil.copyfile(tiny / "embed.onnx", tmp_path / "embed.onnx")
    tokenizer = json.loads((tiny / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    engine = engine_of(tmp_path, "embed.onnx", EMBED)
    assert engine.answer(["pump"]).tokens == (1,)
    with pytest.raises(UnsupportedRequest, match="text 2 of 2 has no tokens"):
        engine.embed(["pump", ""])


def test_unknown_inputs_outputs_and_labels_are_named(tiny: Path, tmp_path: Path):
    with pytest.raises(EngineError, match="2 classes, of which 3 have labels"):
        engine_of(tiny, "classify.onnx", CLASSIFY.model_copy(update={"labels": ("a", "b", "c")}))
    with pytest.raises(EngineError, match=r"none of its outputs is 'logits'"):
        engine_of(tiny, "embed.onnx", CLASSIFY)
    write_tokenizer(tmp_path / "tokenizer.json")
    write_graph(
        tmp_path / "odd.onnx",
        [helper.make_node("Add", ["input_ids", "speaker"], ["logits"])],
        text_inputs("input_ids", "speaker"),
        [("logits", TensorProto.INT64, ["batch", "sequence"])],
        {},
    )
    with pytest.raises(EngineError, match="speaker"):
        engine_of(tmp_path, "odd.onnx", CLASSIFY)
    with pytest.raises(EngineError, match="not to classify"):
        engine_of(tiny, "embed.onnx", EMBED).classify(["x"])


def test_what_is_no_number_is_an_error_and_not_an_answer(tmp_path: Path):
    write_tokenizer(tmp_path / "tokenizer.json")
    write_graph(
        tmp_path / "nan.onnx",
        [
            helper.make_node("Cast", ["input_ids"], ["x"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["x", "x"], ["zero"]),
            helper.make_node("Div", ["zero", "zero"], ["logits"]),
        ],
        text_inputs("input_ids"),
        [("logits", TensorProto.FLOAT, ["batch", "sequence"])],
        {},
    )
    with pytest.raises(EngineError, match="no number"):
        engine_of(tmp_path, "nan.onnx", CLASSIFY)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_mean_that_no_float_holds_is_an_error_and_not_an_answer(tmp_path: Path, normalize: bool):
    write_tokenizer(tmp_path / "tokenizer.json")
    table = np.zeros((len(WORDS), 2), dtype=np.float32)
    table[WORDS.index("hot")] = 3e38  # finite; two of them are more than a float32 holds
    write_graph(
        tmp_path / "large.onnx",
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        text_inputs("input_ids"),
        [("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", 2])],
        {"table": table},
    )
    mean = TextInput(max_tokens=8, pooling="mean", normalize=normalize)
    engine = engine_of(tmp_path, "large.onnx", EMBED.model_copy(update={"text": mean}))
    assert np.isfinite(engine.embed(["pump"])).all()
    with pytest.raises(EngineError, match="no number"):
        engine.embed(["pump", "hot hot"])


def test_a_broken_tokenizer_or_graph_is_refused(tiny: Path, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')
    shutil.copyfile(tiny / "embed.onnx", tmp_path / "embed.onnx")
    with pytest.raises(UnsafeFile, match=r"tokenizer\.json"):
        engine_of(tmp_path, "embed.onnx", EMBED)
    shutil.copyfile(tiny / "tokenizer.json", tmp_path / "tokenizer.json")
    # Sound as a file, and no graph that could run: an operator that does not exist.
    data = (tmp_path / "embed.onnx").read_bytes().replace(b"Gather", b"Gather"[::-1])
    (tmp_path / "embed.onnx").write_bytes(data)
    with pytest.raises(EngineError, match="cannot be loaded"):
        engine_of(tmp_path, "embed.onnx", EMBED)


# Folders and releases


def test_what_a_folder_lacks_is_named(minilm: Path, tmp_path: Path):
    for name, why in [
        ("config.json", "config.json is missing"),
        ("tokenizer.json", "tokenizer.json is missing"),
        ("1_Pooling/config.json", "how tokens become one vector"),
        ("model.onnx", "model.onnx is expected"),
    ]:
        folder = tmp_path / name.replace("/", "-")
        shutil.copytree(minilm, folder)
        (folder / name).unlink()
        with pytest.raises(UnsafeFile, match=why):
            files_of_folder(folder)


def test_a_classifier_as_optimum_writes_it_is_read(tiny: Path, tmp_path: Path):
    shutil.copyfile(tiny / "classify.onnx", tmp_path / "model.onnx")
    shutil.copyfile(tiny / "tokenizer.json", tmp_path / "tokenizer.json")
    config = {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "good", "1": "bad"},
        "max_position_embeddings": 8,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    engine = OnnxText(files_of_folder(tmp_path))
    assert (engine.facts.task, engine.facts.labels) == ("classify", ("good", "bad"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": {"LABEL": "good"}}))
    with pytest.raises(UnsafeFile, match="names no labels"):
        files_of_folder(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(UnsafeFile, match="is no JSON"):
        files_of_folder(tmp_path)


def test_a_release_says_all_that_the_engine_needs(tiny: Path, tmp_path: Path):
    for name, other in (("classify.onnx", "model.onnx"), ("tokenizer.json", "tokenizer.json")):
        shutil.copyfile(tiny / name, tmp_path / other)
    files = [describe_file(tmp_path / "model.onnx", "model.onnx")]
    manifest = Manifest(
        kind=Kind.MODEL,
        name="reviews",
        version="1.0.0",
        format="onnx",
        precision="fp32",
        files=tuple(files),
        engine=CLASSIFY,
        license="MIT",
    )
    with pytest.raises(UnsafeFile, match=r"holds a tokenizer\.json"):
        files_of_release(tmp_path, manifest)
    files.append(describe_file(tmp_path / "tokenizer.json", "tokenizer.json"))
    whole = manifest.model_copy(update={"files": tuple(files)})
    assert files_of_release(tmp_path, whole).model == tmp_path / "model.onnx"
    with pytest.raises(UnsafeFile, match="format gguf"):
        files_of_release(tmp_path, whole.model_copy(update={"format": "gguf"}))


lengths_of_texts = st.lists(st.integers(1, 60), max_size=7)


@given(lengths_of_texts, st.integers(1, 4), st.integers(1, 120), st.integers(0, 40))
def test_batches_hold_every_text_once_and_cost_the_least(lengths, batch, batch_tokens, call_tokens) -> None:
    limits = OnnxSettings(batch=batch, batch_tokens=batch_tokens)

    def cost(parts: list[list[int]]) -> int:
        return sum(call_tokens + len(part) * max(lengths[index] for index in part) for part in parts)

    def fits(part: list[int]) -> bool:
        padded = len(part) * max(lengths[index] for index in part)
        return len(part) == 1 or (len(part) <= batch and padded <= batch_tokens)

    found = batches(lengths, limits, call_tokens)
    assert sorted(itertools.chain.from_iterable(found)) == list(range(len(lengths)))
    assert all(map(fits, found))
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for cuts in itertools.product((False, True), repeat=max(0, len(order) - 1)):
        ends = [number + 1 for number, cut in enumerate(cuts) if cut] + [len(order)]
        parts = [order[begin:end] for begin, end in itertools.pairwise([0, *ends]) if end > begin]
        if all(map(fits, parts)):
            assert cost(found) <= cost(parts)
