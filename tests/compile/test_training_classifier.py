"""Fine-tuning an encoder on a BERT of a few thousand weights."""

import json
import random
import time

import numpy as np
import pytest
import torch

from compile.data.rows import Row, Splits
from compile.errors import BadData, BadRecipe
from compile.recipe.training import FineTune
from compile.training.classifier import class_weights, predict, train_classifier
from compile.training.run import TrainingRun

SETTINGS = FineTune(method="full", epochs=4, batch=8, learning_rate=5e-3, max_tokens=16, too_long="truncate")
WORDS = {"good": ["fine", "great", "好", "棒"], "bad": ["poor", "awful", "差", "坏"]}
NEUTRAL = ["the", "a", "book", "书", "very", "很"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS["good"], *WORDS["bad"], *NEUTRAL]
    tokenizer = Tokenizer(models.WordLevel({token: at for at, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    config |= {"unk_token": "[UNK]", "model_max_length": 32}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(shape).save_pretrained(folder)
    return folder


def rows(count: int, seed: int, share: float = 0.5) -> tuple[Row, ...]:
    chance = random.Random(seed)
    made = []
    for number in range(1, count + 1):
        label = "good" if chance.random() < share else "bad"
        words = [chance.choice(NEUTRAL) for _ in range(chance.randrange(1, 20))]
        words.insert(0, chance.choice(WORDS[label]))
        text = " ".join(words)
        made.append(Row(number, ({"role": "user", "content": text},), label, label))
    return tuple(made)


def train(encoder, folder, splits, settings=SETTINGS, report=lambda done, note: None):
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    run = TrainingRun(out, folder / "scratch", 1, time.monotonic, report)
    curve = train_classifier(encoder, splits, ("bad", "good"), settings, run)
    return curve, out


SPLITS = Splits(rows(96, 0), rows(24, 1), rows(40, 2))


@pytest.mark.parametrize("method", ("full", "lora"))
def test_it_learns_and_the_folder_is_a_whole_classifier(encoder, tmp_path, method):
    shape = {"method": method, "rank": 8, "epochs": 4 if method == "full" else 10}
    curve, out = train(encoder, tmp_path, SPLITS, SETTINGS.model_copy(update=shape))
    assert max(epoch.metric for epoch in curve) > 0.9
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert {"model.safetensors", "tokenizer.json", "curve.json"} <= {path.name for path in out.iterdir()}
    assert not (out / "adapter_config.json").exists()
    said = predict(out, [row.text for row in SPLITS.test], 16, 1)
    right = [
        ("bad", "good")[index] == row.label for index, row in zip(said.argmax(1), SPLITS.test, strict=True)
    ]
    assert np.mean(right) > 0.9 and said.sum(1) == pytest.approx(np.ones(40), abs=1e-5)


def test_padding_and_order_change_no_probability(encoder, tmp_path):
    _, out = train(encoder, tmp_path, SPLITS, SETTINGS.model_copy(update={"epochs": 1}))
    texts = [row.text for row in SPLITS.test]
    together = predict(out, texts, 16, 1)
    alone = np.concatenate([predict(out, [text], 16, 1) for text in texts[:6]])
    assert together[:6] == pytest.approx(alone, abs=1e-5)


def test_texts_that_the_tokenizer_does_not_know_are_said(encoder, tmp_path):
    strange = tuple(
        Row(one.number, ({"role": "user", "content": one.text + " 机 器 机 器"},), one.label, one.label)
        for one in SPLITS.train
    )
    notes = []
    splits = Splits(strange, SPLITS.validation, ())
    settings = SETTINGS.model_copy(update={"epochs": 1, "max_tokens": 32})
    _, out = train(encoder, tmp_path, splits, settings, lambda done, note: notes.append(note))
    told = json.loads((out / "texts.json").read_text())
    assert 0.1 < told["unknown_tokens"] < 0.6 and told["texts"] == 96
    assert "of the tokens are unknown to this model's tokenizer" in notes[0]


def test_rare_classes_weigh_more_and_balanced_ones_the_same():
    assert class_weights([0, 0, 1, 1, 1], 2, "auto") == (1.0, 1.0)
    assert class_weights([0, 0, 0, 1], 2, "auto") == pytest.approx((2 / 3, 2))
    assert class_weights([0, 0, 0, 1], 2, "none") == (1.0, 1.0)
    with pytest.raises(BadData, match="no example to train on for 1 of 3 labels"):
        class_weights([0, 1], 3, "auto")


def test_mistakes_are_named(encoder, tmp_path):
    strange = Splits(
        (*SPLITS.train[:4], Row(77, SPLITS.train[0].messages, "odd", "odd")), SPLITS.validation, ()
    )
    with pytest.raises(BadData, match=r"labels that the recipe does not name: 'odd' \(rows 77\)"):
        train(encoder, tmp_path, strange)
    with pytest.raises(BadData, match=r"texts are longer than 16 tokens.*too_long: truncate"):
        train(encoder, tmp_path, SPLITS, SETTINGS.model_copy(update={"too_long": "refuse"}))
    with pytest.raises(BadRecipe, match="prefix makes no whole classifier; use full or lora"):
        train(encoder, tmp_path, SPLITS, FineTune(method="prefix"))
