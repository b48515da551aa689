"""The trainer on a Llama of a few thousand weights: its laws do not depend on size."""

import random

import pytest
import torch

from compile.training.finetune import Example, _batches, _schedule, finetune, write_fixed
from compile.recipe.schema import FineTune


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def examples(count: int, seed: int) -> list[Example]:
    """The answer repeats the first token of the prompt: learnable, and of varied length."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        prompt = [chance.randrange(8, 48) for _ in range(chance.randrange(3, 9))]
        made.append(Example((*prompt, prompt[0], 1), len(prompt), (1.0, 0.2)))
    return made


def train(tiny, folder, settings, report=lambda done, note: None, scratch=None, start=None):
    folder.mkdir(exist_ok=True)
    scratch = scratch or folder / "scratch"
    scratch.mkdir(exist_ok=True)
    ticks = iter(range(10_000))
    fixed = folder / "fixed.safetensors"
    lists = {"train": examples(24, 0), "validation": examples(8, 1)}
    write_fixed(tiny, settings.first_layer, lists, fixed, 1, lambda done, note: None)
    curve = finetune(
        tiny,
        fixed,
        start,
        settings,
        lists["train"],
        lists["validation"],
        folder / "out",
        scratch,
        1,
        lambda: float(next(ticks)),
        report,
    )
    from safetensors.torch import load_file

    return curve, load_file(folder / "out" / "adapter_model.safetensors")


SETTINGS = FineTune(rank=4, alpha=8, epochs=3, batch=4, learning_rate=0.01)


def test_it_learns_and_another_run_gives_the_same_weights(tiny, tmp_path):
    curve, weights = train(tiny, tmp_path / "a", SETTINGS)
    assert curve[-1].validation_loss < curve[0].validation_loss
    _, again = train(tiny, tmp_path / "b", SETTINGS)
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_run_that_was_cut_goes_on_to_the_same_weights(tiny, tmp_path):
    class Cut(Exception):
        pass

    def cut(done, note):
        if "epoch 2" in note:
            raise Cut

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(Cut):
        train(tiny, tmp_path / "a", SETTINGS, cut, scratch)
    curve, resumed = train(tiny, tmp_path / "a", SETTINGS, scratch=scratch)
    _, whole = train(tiny, tmp_path / "b", SETTINGS)
    assert len(curve) == 3
    assert all(torch.allclose(resumed[name], whole[name], atol=1e-6) for name in whole)


def test_layers_below_the_first_are_not_trained_and_a_second_run_continues(tiny, tmp_path):
    upper = SETTINGS.model_copy(update={"first_layer": 2})
    _, first = train(tiny, tmp_path / "a", upper)
    assert first and all(".layers.2." in name for name in first)
    slow = upper.model_copy(update={"epochs": 1, "learning_rate": 1e-9})
    _, second = train(tiny, tmp_path / "b", slow, start=tmp_path / "a" / "out")
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_what_is_kept_of_the_fixed_layers_changes_no_result(tiny):
    from transformers import AutoModelForCausalLM

    from compile.training.finetune import _adapted, _Trunk

    batch = examples(5, 3)
    model = _adapted(tiny, None, SETTINGS.model_copy(update={"first_layer": 2}))
    trunk = _Trunk(model, 2)
    logits, wanted, _ = trunk.answers(batch, trunk.fixed(batch, lambda part: None), range(5))
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    at = 0
    for example in batch:
        alone = plain(torch.tensor([example.ids])).logits[0, example.prompt_length - 1 : -1]
        assert torch.allclose(logits[at : at + 2], alone, atol=1e-5)
        assert wanted[at : at + 2].tolist() == list(example.ids[example.prompt_length :])
        at += 2


def test_every_example_once_per_epoch_and_a_rate_that_rises_then_falls():
    batches = _batches([5, 3, 9, 1, 7], 2, 0)
    assert sorted(index for batch in batches for index in batch) == [0, 1, 2, 3, 4]
    rates = [_schedule(step, 100, 0.1) for step in range(100)]
    assert rates[0] < rates[9] == max(rates) and rates[-1] == min(rates[10:]) > 0
