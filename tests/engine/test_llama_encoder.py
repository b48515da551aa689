"""Embedders and rerankers from GGUF files: a real MiniLM beside transformers, and tiny models of laws."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_bytes import build
from gguf_encoders import Added, add_to, convert_minilm, minilm_folder, write_bert
from gguf_models import Shape, write_llama
from hypothesis import given
from hypothesis import strategies as st

from models.engines.llama_cpp import LlamaEncoder, LlamaSettings
from models.engines.llama_cpp.encoder import EncoderSizes, together
from models.engines.llama_cpp.encoder_files import LAST, MEAN, RANK, files_of_gguf, task_of
from models.engines.llama_cpp.wordpiece import WordPiece
from models.errors import ContextLengthExceeded, EngineError, UnsafeFile, UnsupportedRequest
from models.gguf import parse_header, read_header

TEXTS = [
    "The pump leaks oil.",
    "Die Pumpe verliert Öl, und zwar größere Mengen als je zuvor!",
    "Le café naïf a coûté 3,50 € à Zürich.",
    "泵漏油了，请检查密封圈。",
    "Насос течёт с понедельника.",
    "펌프에서 기름이 새고 있습니다.",
    "पंप से तेल रिस रहा है।",
    "المضخة تسرب الزيت",
    "ポンプから油が漏れています。",
    "x" * 120,
    "tabs\tand\nlines\u00a0and 😀 and [SEP] and [unused1]",
    " ".join(["pump"] * 300),
]


def opened(path: Path, **settings: Any) -> LlamaEncoder:
    files = files_of_gguf(path)
    assert files is not None
    return LlamaEncoder(files, LlamaSettings(**{"threads": 1, **settings}))


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_minilm(tmp_path_factory.mktemp("minilm") / "minilm.gguf")


@pytest.fixture(scope="module")
def embedder(minilm: Path) -> Iterator[LlamaEncoder]:
    engine = opened(minilm)
    yield engine
    engine.close()


@pytest.mark.model
def test_a_real_embedder_reads_the_ids_and_gives_the_vectors_of_transformers(embedder: LlamaEncoder) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder(), local_files_only=True)
    model = AutoModel.from_pretrained(minilm_folder(), local_files_only=True)
    given = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**given).last_hidden_state
    mask = given["attention_mask"][..., None]
    wanted = ((states * mask).sum(1) / mask.sum(1)).numpy()
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)

    assert (embedder.facts.task, embedder.facts.width, embedder.facts.max_tokens) == ("embed", 384, 512)
    read = embedder.answer(TEXTS)
    assert embedder.tokenize(TEXTS) == [tokenizer(text)["input_ids"] for text in TEXTS]
    assert read.tokens == tuple(given["attention_mask"].sum(1).tolist())
    np.testing.assert_allclose(np.linalg.norm(read.values, axis=1), 1, atol=1e-5)
    assert (read.values * wanted).sum(axis=1).min() > 0.9999


@pytest.fixture(scope="module")
def tokenizers(minilm: Path) -> tuple[WordPiece, Any]:
    """Ours, and the model's own."""
    from tokenizers import Tokenizer

    theirs = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    theirs.no_padding()
    theirs.no_truncation()
    return WordPiece(read_header(minilm)), theirs


@pytest.mark.model
@given(st.text(max_size=40))
def test_any_text_is_read_as_the_models_own_tokenizer_reads_it(
    tokenizers: tuple[WordPiece, Any], text: str
) -> None:
    ours, theirs = tokenizers
    assert ours.tokenize(text, True, True) == theirs.encode(text).ids


@pytest.mark.model
def test_a_reranker_gives_the_scores_of_transformers(minilm: Path, tmp_path: Path) -> None:
    """A cross-encoder of BERT's kind with weights of MiniLM and a head of fixed random numbers.

    llama.cpp tells BERT that both halves of a pair are the first, so the reference is told so too.
    """
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(
        minilm_folder(), num_labels=1, local_files_only=True
    ).eval()
    chance = np.random.default_rng(3)
    head = {
        "cls.weight": chance.normal(0, 0.05, (384, 384)),
        "cls.bias": chance.normal(0, 0.1, 384),
        "cls.output.weight": chance.normal(0, 0.2, (1, 384)),
        "cls.output.bias": np.array([0.3]),
    }
    pooler, classifier = model.bert.pooler.dense, model.classifier
    with torch.no_grad():
        for layer, name in ((pooler, "cls"), (classifier, "cls.output")):
            layer.weight.copy_(torch.from_numpy(head[f"{name}.weight"]))
            layer.bias.copy_(torch.from_numpy(head[f"{name}.bias"]))
        tokenizer = AutoTokenizer.from_pretrained(minilm_folder(), local_files_only=True)
        pairs = [("What leaks?", text) for text in TEXTS[:-1] if "[SEP]" not in text]
        given = tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")
        given["token_type_ids"] = torch.zeros_like(given["token_type_ids"])
        wanted = torch.sigmoid(model(**given).logits[:, 0]).numpy()
    path = add_to(minilm, tmp_path / "rerank.gguf", Added({"bert.pooling_type": RANK}, tensors=head))
    engine = opened(path)
    read = engine.answer(pairs)
    assert read.values.shape == (len(pairs), 1) and engine.facts.task == "rerank"
    assert np.ptp(wanted) > 0.1
    # llama.cpp looks GELU up in a table of half precision.
    np.testing.assert_allclose(read.values[:, 0], wanted, atol=1e-3)
    assert engine.tokenize(pairs) == [tokenizer(*pair)["input_ids"] for pair in pairs]
    (hostile,) = engine.tokenize([("What leaks?", "Oil [SEP] oil")])
    assert hostile.count(tokenizer.sep_token_id) == 2  # what a document writes is text
    engine.close()


def test_an_answer_does_not_depend_on_its_neighbours_or_the_batch(tmp_path: Path) -> None:
    texts = ["pump", "the pump leaks oil .", "good pump", "", "unheard of", *["hot oil is bad"] * 90]
    engine = opened(write_bert(tmp_path / "bert.gguf"), batch_tokens=64, max_sequences=8)
    alone = np.concatenate([engine.answer([text]).values for text in texts])
    read = engine.answer(texts)
    np.testing.assert_allclose(read.values, alone, atol=1e-5)
    assert read.tokens[:5] == (3, 7, 4, 2, 4) and read.truncated == 0
    assert np.abs(read.values[0] - read.values[2]).max() > 0.1
    assert engine.answer([]).values.shape == (0, 32)
    engine.close()
    engine.close()


@pytest.mark.parametrize("pooling", [MEAN, LAST])
def test_a_model_that_looks_back_embeds_a_long_text_in_pieces_or_at_once(
    tmp_path: Path, pooling: int
) -> None:
    llama = write_llama(tmp_path / "llama.gguf", Shape(layers=2, width=64, inner=64, heads=4, kv_heads=2))
    path = add_to(llama, tmp_path / "embed.gguf", Added({"llama.pooling_type": pooling}))
    long = "the cat sat on a mat and saw what was there but not why it came " * 3
    texts = ["the cat", long, "a mat", "why it came from here to you", long[:100]]
    small, large = (opened(path, batch_tokens=tokens, max_sequences=4) for tokens in (16, 256))
    read = small.answer(texts)
    assert max(read.tokens) > 3 * 16
    # llama.cpp keeps its keys and values in half precision.
    np.testing.assert_allclose(read.values, large.answer(texts).values, atol=2e-3)
    np.testing.assert_allclose(read.values[::-1], small.answer(texts[::-1]).values, atol=2e-3)
    header = read_header(path)
    pieces = EncoderSizes.of(header, LlamaSettings(batch_tokens=16), 256).call == 16
    assert pieces == (pooling == LAST)
    with pytest.raises(UnsupportedRequest, match="text 2 of 2 has no tokens"):  # it adds none of its own
        small.answer(["the cat", ""])
    small.close()
    large.close()


def test_a_text_that_is_too_long_is_refused_with_its_number(tmp_path: Path) -> None:
    path = write_bert(tmp_path / "bert.gguf")
    engine = opened(path)
    with pytest.raises(ContextLengthExceeded, match=r"text 2 of 2 has 42 tokens; the model reads 32$"):
        engine.answer(["pump", "pump " * 40])
    assert engine.answer(["pump " * 30]).tokens == (32,)
    engine.close()
    narrow = opened(path, context_tokens=8)
    with pytest.raises(ContextLengthExceeded, match="has 9 tokens; the model reads 8 here, of 32"):
        narrow.answer(["pump " * 7])
    narrow.close()


def test_a_pair_is_joined_by_the_files_template_if_it_has_one(tmp_path: Path) -> None:
    path = write_bert(tmp_path / "bert.gguf", RANK, outputs=1)
    engine = opened(path)
    joined = [("pump", "oil leaks"), ("{document}", "good")]
    cls, sep, pump, leaks, oil = 2, 3, 4, 5, 6
    assert engine.tokenize(joined)[0] == [cls, pump, sep, oil, leaks, sep]
    scores = engine.answer(joined).values
    assert scores.shape == (2, 1) and 0 < scores.min() < scores.max() < 1
    engine.close()
    texts = {"tokenizer.chat_template.rerank": "[CLS] hot {query} is {document} [SEP]"}
    engine = opened(add_to(path, tmp_path / "template.gguf", Added(texts=texts)))
    hot, good, is_, unknown = 7, 9, 11, 1
    braces = [unknown] * 3
    assert engine.tokenize(joined) == [
        [cls, hot, pump, is_, oil, leaks, sep],
        [cls, hot, *braces, is_, good, sep],
    ]
    engine.close()


@pytest.mark.parametrize(
    ("metadata", "head", "task"),
    [
        ({}, (), None),
        ({"x.pooling_type": 0}, (), None),
        ({"x.pooling_type": 3}, (), "embed"),
        ({"x.pooling_type": 1, "x.attention.causal": False}, (), "embed"),
        ({"x.pooling_type": 4}, (("cls.weight", (8, 1)),), "rerank"),
        ({"x.pooling_type": 4}, (("cls.weight", (8, 8)), ("cls.output.weight", (8, 1))), "rerank"),
        ({"x.attention.causal": False}, (("cls.output.weight", (8, 1)),), "rerank"),
        ({"x.attention.causal": False}, (), "an encoder, which writes no text"),
        ({"x.attention.causal": False}, (("cls.output.weight", (8, 3)),), "gives 3 numbers"),
        ({"x.pooling_type": 4}, (), "gives 0 numbers"),
        ({"x.pooling_type": 5}, (), "x.pooling_type is 5"),
    ],
)
def test_a_header_says_what_a_model_is_for(metadata: dict, head: tuple, task: str | None) -> None:
    tensors, offset = [], 0
    for name, shape in head:
        tensors.append((name, shape, 0, offset))
        offset += 4 * shape[0] * shape[1]
    header = parse_header(build({"general.architecture": "x", **metadata}, tensors, data=offset))
    if task in (None, "embed", "rerank"):
        assert task_of(header) == task
    else:
        with pytest.raises(UnsafeFile, match=task):
            task_of(header)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 60), st.integers(1, 8))
def test_texts_are_computed_in_order_and_within_bounds(lengths: list[int], tokens: int, texts: int) -> None:
    parts = list(together(lengths, tokens, texts))
    assert [one for part in parts for one in lengths[part]] == lengths
    for part in parts:
        found, after = lengths[part], lengths[part.stop : part.stop + 1]
        assert 1 <= len(found) <= texts
        assert len(found) == 1 or sum(found) <= tokens
        assert not after or len(found) == texts or sum(found) + after[0] > tokens


def test_what_is_no_embedder_is_refused_and_says_why(tmp_path: Path) -> None:
    llama = write_llama(tmp_path / "llama.gguf", Shape(layers=1, width=32, inner=32, heads=2, kv_heads=1))
    assert files_of_gguf(llama) is None
    with pytest.raises(UnsafeFile, match=r"bare\.gguf: an encoder.*bert\.pooling_type does not say"):
        files_of_gguf(write_bert(tmp_path / "bare.gguf", pooling=None))
    files = files_of_gguf(write_bert(tmp_path / "bert.gguf"))
    assert files is not None
    write_bert(tmp_path / "bert.gguf", RANK, outputs=1)
    with pytest.raises(EngineError, match="made to rerank, not to embed"):
        LlamaEncoder(files, LlamaSettings())
    add_to(tmp_path / "bert.gguf", tmp_path / "none.gguf", Added({"tokenizer.ggml.unknown_token_id": 99}))
    with pytest.raises(UnsafeFile, match=r"none\.gguf: its tokenizer has no .*unknown_token_id"):
        opened(tmp_path / "none.gguf")
