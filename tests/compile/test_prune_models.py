"""Pruning on models of a few thousand weights: what is cut, and that nothing else changes."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import encoder, examples, llama, quiet, texts

from compile.errors import BadRecipe, UnsupportedBase
from compile.recipe.distil import Heal, Prune, PruneDepth, PruneWidth
from compile.training import methods, prune
from compile.training.prune_depth import block_influence, choose_layers, prune_depth
from compile.training.prune_heal import prune_causal
from compile.training.prune_width import prune_width
from compile.training.run import TrainingRun

DATA, TEXTS = examples(12, 0), texts(12, 0)
BATCH = {
    "input_ids": torch.tensor([[4, 5, 6, 7, 8], [9, 10, 11, 4, 5]]),
    "attention_mask": torch.ones(2, 5, dtype=torch.long),
}


def output(model):
    with torch.no_grad():
        return model(**BATCH)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return encoder(tmp_path_factory.mktemp("bert"))


@given(st.lists(st.floats(0, 2), min_size=4, max_size=12, unique=True), st.integers(0, 1), st.integers(1, 10))
def test_the_layers_that_go_are_those_of_least_influence(influence, spare, drop):
    free = influence[spare : len(influence) - spare]
    settings = PruneDepth(drop=drop, spare=spare)
    if drop > len(free) or drop == len(influence):
        with pytest.raises(BadRecipe):
            choose_layers(influence, settings)
        return
    kept = choose_layers(influence, settings)
    assert list(kept) == sorted(kept) and len(kept) == len(influence) - drop
    assert kept == choose_layers(influence, PruneDepth(keep=len(influence) - drop, spare=spare))
    gone = [at for at in range(len(influence)) if at not in kept]
    assert max(influence[at] for at in gone) == sorted(free)[drop - 1]


def test_a_layer_that_does_nothing_has_no_influence_and_its_end_changes_no_answer(folder, tmp_path):
    model = prune.load(folder)
    idle = methods.layers_of(model)[1]
    for matrix in (idle.self_attn.o_proj, idle.mlp.down_proj):
        torch.nn.init.zeros_(matrix.weight)
    before = output(model)
    prune.save(model, folder, tmp_path / "idle")
    result = prune_depth(tmp_path / "idle", DATA, PruneDepth(drop=1), tmp_path / "cut", 1, quiet)
    assert result.kept == (0, 2, 3) and result.influence[1] == pytest.approx(0, abs=1e-6)
    assert torch.allclose(output(prune.load(tmp_path / "cut")), before, atol=1e-5)
    assert json.loads((tmp_path / "cut" / "config.json").read_text())["num_hidden_layers"] == 3
    assert (tmp_path / "cut" / "tokenizer.json").is_file()


def test_an_encoder_is_cut_by_its_texts_and_padding_counts_for_nothing(bert, tmp_path):
    result = prune_depth(bert, TEXTS, PruneDepth(keep=2), tmp_path / "cut", 1, quiet)
    assert len(result.kept) == 2 and len(prune.load(tmp_path / "cut").encoder.layer) == 2
    one_by_one = [batch for text in TEXTS for batch in prune.batches(bert, [text], 64, quiet)]
    alone = block_influence(prune.load(bert), one_by_one)
    assert alone == pytest.approx(list(result.influence), abs=1e-5)


@pytest.mark.parametrize("by", ["taylor", "activation"])
def test_the_narrowed_model_is_the_whole_one_with_the_least_important_parts_off(folder, tmp_path, by):
    model = prune.load(folder)
    with torch.no_grad():
        for layer in methods.layers_of(model):
            # Neurons 8 to 39 and the first pair of heads hardly reach the residual stream.
            layer.mlp.down_proj.weight[:, 8:40] *= 1e-4
            layer.self_attn.o_proj.weight[:, :16] *= 1e-4
    prune.save(model, folder, tmp_path / "weak")
    with torch.no_grad():
        for layer in methods.layers_of(model):
            layer.mlp.down_proj.weight[:, 8:40] = 0
            layer.self_attn.o_proj.weight[:, :16] = 0
    off = output(model)
    cut = PruneWidth(neurons=32, heads=2, by=by, multiple=16)
    result = prune_width(tmp_path / "weak", DATA, cut, tmp_path / "cut", 1, quiet)
    assert result.kept_heads == ((1,),) * 4 and (result.neurons, result.heads) == (32, 2)
    narrow = prune.load(tmp_path / "cut")
    assert torch.allclose(output(narrow), off, atol=1e-5)
    assert narrow.config.num_key_value_heads == 1 and result.parameters < result.parameters_before
    widths = {tuple(one.shape)[-1] for one in narrow.parameters() if one.dim() > 1}
    assert all(width % 16 == 0 for width in widths)


def test_the_importance_of_a_neuron_is_what_the_loss_changes_by_without_it(folder):
    """To first order: exact for a neuron whose part is small."""
    from compile.training.prune_width import _layers, _measure

    model = prune.load(folder)
    layers = _layers(model)
    batches = list(prune.batches(folder, DATA[:1], 64, quiet))
    _measure(model, layers, "taylor", batches)

    def loss():
        with torch.no_grad():
            return float(model(**batches[0]).loss) * len(DATA[0].weights)

    before, down = loss(), layers[2].out
    column = down.weight[:, 5].clone()
    with torch.no_grad():
        down.weight[:, 5] = 0.99 * column
    assert abs(loss() - before) * 100 == pytest.approx(float(layers[2].neurons[5]), rel=0.1, abs=2e-4)


def test_neurons_of_an_encoder_go_and_heads_are_refused(bert, tmp_path):
    cut = PruneWidth(neurons=32, by="activation")
    result = prune_width(bert, TEXTS, cut, tmp_path / "cut", 1, quiet)
    assert result.neurons == 32 and prune.load(tmp_path / "cut").config.intermediate_size == 32
    with pytest.raises(UnsupportedBase, match="heads"):
        prune_width(bert, TEXTS, PruneWidth(heads=2, by="activation"), tmp_path / "no", 1, quiet)
    with pytest.raises(BadRecipe, match="taylor needs answers"):
        prune_width(bert, TEXTS, PruneWidth(neurons=32), tmp_path / "no", 1, quiet)


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (PruneDepth(drop=3), "cannot go"),
        (PruneDepth(layers=(4,)), "layers 0 to 3"),
        (PruneWidth(neurons=96), "there are 64"),
        (PruneWidth(heads=3), "2 go together|2 of which go together"),
        (PruneWidth(heads=2), "multiple of 32"),
    ],
)
def test_what_a_model_cannot_be_is_refused_by_key(folder, tmp_path, cut, said):
    with pytest.raises(BadRecipe, match=said):
        (prune_depth if isinstance(cut, PruneDepth) else prune_width)(
            folder, DATA, cut, tmp_path / "no", 1, quiet
        )
    assert not (tmp_path / "no").exists()


def test_depth_then_width_then_healing_leaves_one_folder_that_says_all(folder, tmp_path):
    both = Prune(
        depth=PruneDepth(drop=1),
        width=PruneWidth(neurons=32),
        heal=Heal(training={"epochs": 2, "batch": 4, "learning_rate": 0.01}),
    )
    clock = iter(range(1000))
    target = tmp_path / "healed"
    run = TrainingRun(target, tmp_path / "scratch", 1, lambda: float(next(clock)), quiet)
    curve = prune_causal(folder, both, DATA, examples(6, 1), run)
    said = json.loads((target / "pruned.json").read_text())
    assert [next(iter(one)) for one in said] == ["depth", "width"]
    model = prune.load(target)
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (3, 32)
    assert len(curve) == 2 and (target / "curve.json").is_file() and (target / "tokenizer.json").is_file()
