"""Learning from pairs of answers on a Llama of a few thousand weights."""

import json
import math
import random
import tempfile

import pytest
import torch
from small_models import bare_llama

from compile.data.rows import Row
from compile.errors import BadData
from compile.recipe.training import FineTune
from compile.training.examples import Example
from compile.training.preferences import Pair, encode_preferences, train_preferences
from compile.training.run import TrainingRun
from compile.training.scoring import answer_losses

SETTINGS = FineTune(rank=8, alpha=16, epochs=4, batch=4, learning_rate=0.01, preference_strength=0.5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return bare_llama(tmp_path_factory.mktemp("tiny"))


def pairs(count: int, seed: int) -> list[Pair]:
    """Even tokens are preferred to odd ones."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        prompt = tuple(chance.randrange(8, 48) for _ in range(chance.randrange(2, 6)))
        good, bad = 2 * chance.randrange(4, 24), 2 * chance.randrange(4, 23) + 1
        made.append(
            Pair(
                Example((*prompt, good, 1), len(prompt), (1.0, 1.0)),
                Example((*prompt, bad, good, 1), len(prompt), (1.0,) * 3),
            )
        )
    return made


@pytest.mark.parametrize("method", ("lora", "full", "prefix"))
def test_chosen_answers_become_likelier_than_rejected_ones_on_unseen_pairs(tiny, tmp_path, method):
    rate = {"lora": 0.02, "full": 0.01, "prefix": 0.02}[method]
    settings = SETTINGS.model_copy(update={"method": method, "learning_rate": rate, "epochs": 6})
    (tmp_path / "out").mkdir()
    run = TrainingRun(tmp_path / "out", tmp_path / "scratch", 1, lambda: 0.0, lambda done, note: None)
    curve = train_preferences(tiny, pairs(32, 0), pairs(16, 1), settings, run)
    assert min(one.validation_loss for one in curve) < math.log(2) and curve[-1].train_loss < 0.67
    assert json.loads((tmp_path / "out" / "curve.json").read_text())[0]["epoch"] == 1
    unseen = pairs(16, 2)

    def margin(folder, adapter):
        sides = [
            answer_losses(folder, [getattr(one, side) for one in unseen], 1, lambda done, note: None, adapter)
            for side in ("chosen", "rejected")
        ]
        return sum(sides[1].losses) - sum(sides[0].losses)

    whole = method == "full"
    after = margin(tmp_path / "out" if whole else tiny, None if whole else tmp_path / "out")
    assert after > margin(tiny, None)


def test_the_loss_is_that_of_trl(tiny):
    """Half way through training, on the same pairs, against trl's own trainer."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    from compile.training.causal import Answers
    from compile.training.preferences import Preferences, _with_margins

    some = pairs(4, 5)
    run = TrainingRun(tiny, tiny, 1, lambda: 0.0, lambda done, note: None)
    measured = _with_margins(tiny, some, run, None)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    torch.manual_seed(3)
    with torch.no_grad():
        model.lm_head.weight.add_(torch.randn(48, 32) * 0.1)
    objective = Preferences(Answers(model), 0.3)
    with torch.no_grad():
        batch = objective.collate(measured)
        ours = objective.loss(model, batch).item() / len(some)
    names = ["<pad>", "<end>", *(f"w{at}" for at in range(2, 48))]
    words = Tokenizer(models.WordLevel({name: at for at, name in enumerate(names)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>")

    def text(ids):
        return " ".join(names[at] for at in ids)

    rows = [
        {
            "prompt": text(one.chosen.ids[: one.chosen.prompt_length]),
            "chosen": " " + text(one.chosen.ids[one.chosen.prompt_length : -1]),
            "rejected": " " + text(one.rejected.ids[one.rejected.prompt_length : -1]),
        }
        for one in some
    ]
    with tempfile.TemporaryDirectory() as place:
        arguments = DPOConfig(
            output_dir=place,
            beta=0.3,
            use_cpu=True,
            report_to="none",
            per_device_eval_batch_size=4,
            disable_tqdm=True,
            bf16=False,
        )
        theirs = DPOTrainer(
            model=model,
            ref_model=reference,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        ).evaluate()["eval_loss"]
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert abs(ours - math.log(2)) > 1e-3  # and not the loss of an untrained model


def test_rows_without_a_rejected_answer_are_named():
    row = Row(7, ({"role": "user", "content": "x"},), "good")
    with pytest.raises(BadData, match="1 of 1 rows have no rejected answer: rows 7"):
        encode_preferences([row], None, lambda said: "", "", FineTune())
