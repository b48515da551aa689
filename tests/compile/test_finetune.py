"""The trainer on a Llama of a few thousand weights: its laws do not depend on size."""

import json
import random

import pytest
import torch
from small_models import bare_llama

from compile.errors import BadRecipe, Refused, TrainingFailed
from compile.recipe.training import FineTune
from compile.training.causal import Answers, train_causal, write_fixed
from compile.training.examples import Example
from compile.training.run import TrainingRun
from compile.training.trainer import Epoch, batches, ended, schedule

METHODS = ("lora", "full", "prefix", "p-tuning", "prompt")
SETTINGS = FineTune(rank=4, alpha=8, epochs=3, batch=4, learning_rate=0.01, dropout=0.1, deterministic=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    shape = {"layers": 3, "max_position_embeddings": 64, "tie_word_embeddings": True}
    return bare_llama(tmp_path_factory.mktemp("tiny"), **shape)


def examples(count: int, seed: int) -> list[Example]:
    """The answer repeats the first token of the prompt: learnable, and of varied length."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        prompt = [chance.randrange(8, 48) for _ in range(chance.randrange(3, 9))]
        made.append(Example((*prompt, prompt[0], 1), len(prompt), (1.0, 0.2)))
    return made


class Ticks:
    """A clock that moves by ``step`` seconds whenever it is read."""

    def __init__(self, step=1.0):
        self._step, self._at = step, 0.0

    def __call__(self):
        self._at += self._step
        return self._at


def train(tiny, folder, settings=SETTINGS, report=lambda done, note: None, start=None, step=1.0):
    from safetensors.torch import load_file

    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    lists = examples(24, 0), examples(8, 1)
    curve = train_causal(
        tiny, *lists, settings, TrainingRun(out, folder / "scratch", 1, Ticks(step), report), start_from=start
    )
    name = "model.safetensors" if settings.method == "full" else "adapter_model.safetensors"
    return curve, load_file(out / name)


def logits(tiny, folder):
    """What a saved model says, loaded anew."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if (folder / "adapter_config.json").is_file():
        base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(torch.tensor([examples(1, 5)[0].ids])).logits[0, -3:]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns_saves_reloads_and_changes_what_the_model_says(tiny, tmp_path, method):
    settings = SETTINGS.model_copy(update={"method": method, "epochs": 2})
    curve, _ = train(tiny, tmp_path, settings)
    assert curve[-1].train_loss < curve[0].train_loss
    written = json.loads((tmp_path / "out" / "curve.json").read_text())
    assert [set(epoch) for epoch in written] == [
        {"epoch", "train_loss", "validation_loss", "metric", "seconds"}
    ] * 2
    assert not torch.allclose(logits(tiny, tmp_path / "out"), logits(tiny, tiny), atol=1e-4)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


@pytest.mark.parametrize("method", ("lora", "p-tuning", "full"))
@pytest.mark.parametrize("step", (1.0, 301.0), ids=("checkpoint-per-epoch", "checkpoint-within"))
def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(tiny, tmp_path, method, step):
    class Cut(Exception):
        pass

    reports = []

    def cut(done, note):
        reports.append(done)
        if done > 0.6:
            raise Cut

    settings = SETTINGS.model_copy(update={"method": method})
    with pytest.raises(Cut):
        train(tiny, tmp_path / "a", settings, cut, step=step)
    after = []
    curve, resumed = train(tiny, tmp_path / "a", settings, lambda done, note: after.append(done), step=step)
    whole_curve, whole = train(tiny, tmp_path / "b", settings, step=step)
    assert after[0] > (0.5 if step > 1 else 0.33)  # not from the beginning
    assert [(e.epoch, e.train_loss, e.validation_loss, e.metric) for e in curve] == [
        (e.epoch, e.train_loss, e.validation_loss, e.metric) for e in whole_curve
    ]
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_run_that_had_ended_is_only_written_and_other_settings_begin_anew(tiny, tmp_path):
    _, first = train(tiny, tmp_path)
    reports = []
    _, again = train(tiny, tmp_path, report=lambda done, note: reports.append(note))
    assert not reports and all(torch.equal(first[name], again[name]) for name in first)
    train(tiny, tmp_path, SETTINGS.model_copy(update={"seed": 5}), lambda done, note: reports.append(note))
    assert len(reports) == 18


def test_the_best_epoch_is_kept_and_training_stops_when_none_is_better(tiny, tmp_path):
    settings = SETTINGS.model_copy(
        update={"method": "full", "epochs": 30, "patience": 2, "learning_rate": 0.02}
    )
    curve, _ = train(tiny, tmp_path, settings)
    assert len(curve) < 30
    losses = [epoch.validation_loss for epoch in curve]
    assert losses.index(min(losses)) == len(curve) - 3
    held = [logits_of(tiny, tmp_path / "out", example) for example in examples(8, 1)]
    assert sum(held) / 16 == pytest.approx(min(losses), rel=1e-4)


def logits_of(tiny, folder, example):
    """The loss of the answer, summed, by the plain way."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        said = model(torch.tensor([example.ids])).logits[0, example.prompt_length - 1 : -1]
    wanted = torch.tensor(example.ids[example.prompt_length :])
    return torch.nn.functional.cross_entropy(said, wanted, reduction="sum").item()


def test_accumulated_batches_give_the_steps_of_the_batch_that_they_are_together(tiny, tmp_path):
    plain = SETTINGS.model_copy(update={"dropout": 0.0, "epochs": 1, "batch": 24})
    parts = plain.model_copy(update={"batch": 4, "accumulate": 6})
    one, weights = train(tiny, tmp_path / "a", plain)
    other, again = train(tiny, tmp_path / "b", parts)
    assert other[0].train_loss == pytest.approx(one[0].train_loss, rel=1e-5)
    assert all(torch.allclose(weights[name], again[name], atol=1e-5) for name in weights)


def test_what_is_kept_of_the_fixed_layers_changes_no_result(tiny, tmp_path, monkeypatch):
    upper = SETTINGS.model_copy(update={"first_layer": 2, "dropout": 0.0})
    curve, kept = train(tiny, tmp_path / "a", upper)
    # The same layers are trained over the whole model when what enters them is not kept.
    from compile.training import causal

    (tmp_path / "b" / "scratch").mkdir(parents=True)
    (kept_file,) = (tmp_path / "a" / "scratch").glob("fixed-*.safetensors")
    (tmp_path / "b" / "scratch" / kept_file.name).write_bytes(kept_file.read_bytes())
    monkeypatch.setattr(causal, "take_out", lambda model, first: None)
    monkeypatch.setattr(
        causal, "_read_fixed", lambda path, name, some: [causal._Placed(example) for example in some]
    )
    plain_curve, plain = train(tiny, tmp_path / "b", upper)
    assert kept and all(".layers.2." in name for name in kept)
    assert all(torch.allclose(kept[name], plain[name], atol=1e-5) for name in plain)
    assert curve[-1].validation_loss == pytest.approx(plain_curve[-1].validation_loss, rel=1e-5)


def test_a_second_run_continues_an_adapter(tiny, tmp_path):
    upper = SETTINGS.model_copy(update={"first_layer": 2})
    _, first = train(tiny, tmp_path / "a", upper)
    slow = upper.model_copy(update={"epochs": 1, "learning_rate": 1e-9})
    _, second = train(tiny, tmp_path / "b", slow, start=tmp_path / "a" / "out")
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    with pytest.raises(BadRecipe, match="prefix cannot go on from an adapter of type LORA"):
        train(tiny, tmp_path / "c", FineTune(method="prefix"), start=tmp_path / "a" / "out")


@pytest.mark.parametrize("method", METHODS)
def test_logits_are_those_of_the_plain_model_where_there_is_a_loss(tiny, method):
    from compile.training.causal import _Placed
    from compile.training.methods import load_causal

    some = [_Placed(example) for example in examples(5, 3)]
    model = load_causal(tiny, FineTune(method=method, rank=4)).eval()
    answers = Answers(model)
    with torch.no_grad():
        got = answers.logits(model, answers.collate(some))
        at = 0
        for placed in some:
            example = placed.example
            alone = model(input_ids=torch.tensor([example.ids])).logits[0, -3:-1]
            assert torch.allclose(got[at : at + 2], alone, atol=1e-5)
            at += 2


@pytest.mark.parametrize("method", ("prefix", "prompt"))
def test_virtual_tokens_begin_as_real_ones(tiny, method):
    from transformers import AutoModelForCausalLM

    from compile.training.methods import begin_with, load_causal

    settings = FineTune(method=method, virtual_tokens=5)
    model = load_causal(tiny, settings).eval()
    begin_with(model, settings, (9, 30, 12))
    plain = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    with torch.no_grad():
        ours = model(input_ids=torch.tensor([[20, 21, 22]])).logits[0, -3:]
        theirs = plain(torch.tensor([[9, 30, 12, 9, 30, 20, 21, 22]])).logits[0, -3:]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_every_example_once_per_epoch_and_a_rate_that_rises_then_falls():
    made = batches([5, 3, 9, 1, 7], 2, 0)
    assert sorted(index for batch in made for index in batch) == [0, 1, 2, 3, 4]
    rates = [schedule(step, 100, 0.1) for step in range(100)]
    assert rates[0] < rates[9] == max(rates) and rates[-1] == min(rates[10:]) > 0


def test_patience_counts_epochs_since_the_best_one():
    def curve(*losses):
        return [Epoch(at, 0.0, loss, -loss, 0.0) for at, loss in enumerate(losses, start=1)]

    settings = FineTune(epochs=9, patience=2)
    assert not ended(curve(3, 2, 2.5), settings) and ended(curve(3, 2, 2.5, 2), settings)
    assert not ended(curve(3, 2, 2.5, 1.9, 2), settings.model_copy(update={"best_by": "metric"}))
    assert ended(curve(*range(9)), FineTune(epochs=9))


def test_mistakes_are_named(tiny, tmp_path):
    with pytest.raises(ValueError, match="first_layer goes with lora and full, not with prompt"):
        FineTune(method="prompt", first_layer=3)
    with pytest.raises(BadRecipe, match="first_layer: 3, but the model has 3 layers"):
        train(tiny, tmp_path, SETTINGS.model_copy(update={"first_layer": 3}))
    with pytest.raises(BadRecipe, match=r"the model has no query; it has down_proj, .*v_proj"):
        train(tiny, tmp_path, SETTINGS.model_copy(update={"targets": ("q_proj", "query")}))
    if not torch.cuda.is_available():
        with pytest.raises(Refused, match=r"qlora needs an NVIDIA GPU.* Use method: lora"):
            train(tiny, tmp_path, FineTune(method="qlora"))


def test_a_run_whose_loss_is_no_number_is_a_named_failure(tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    model.model.norm.weight.data[0] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(TrainingFailed, match=r"epoch 1.*diverged; a learning_rate below 0.01"):
        train(tmp_path / "broken", tmp_path)


def test_an_architecture_whose_upper_layers_do_not_stand_alone_is_refused(tmp_path):
    from transformers import GemmaConfig, GemmaForCausalLM, GPT2Config, GPT2LMHeadModel

    from compile.errors import UnsupportedBase

    torch.manual_seed(0)
    # Gemma multiplies whatever enters its first layer.
    gemma = GemmaConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    GemmaForCausalLM(gemma).save_pretrained(tmp_path / "gemma")
    gpt2 = GPT2Config(vocab_size=48, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    GPT2LMHeadModel(gpt2).save_pretrained(tmp_path / "gpt2")
    for name, error in (("gemma", UnsupportedBase), ("gpt2", BadRecipe)):
        with pytest.raises(error, match="leave it at 0"):
            lists = {"train": examples(4, 0)}
            write_fixed(tmp_path / name, 1, lists, tmp_path / "f", 1, lambda done, note: None)
