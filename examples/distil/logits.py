"""Logit distillation: a small Llama teaches a smaller one that has seen a fifth of its text.

Teacher: the model of ``examples/small_llama`` (4 layers of 256, 3.9 million weights) of 263 articles.
Student: 2 layers of 128, fresh weights, trained on 50 of them, with the teacher's distribution and without:
the same weights to begin with, data, order, steps and choice of the best epoch. Tested on the articles of
``lee.cor``, which neither has seen. About two minutes, and four for the teacher, once::

    python examples/distil/logits.py

``--top 64`` keeps so many of the teacher's 2,048 logits of each token on disk instead of running it beside.
"""

import shutil
import time

from common import Line, articles, losses, options, progress, size_of, small_llama, table


def main() -> None:
    """Train both students; print the table."""
    chosen = options(__doc__, epochs=12, articles=50, temperature=2.0, hard=0.3, top=0, seed=0)
    from make import Sizes, new_model

    from compile.recipe.distil import DistilLogits
    from compile.recipe.sections import Source
    from compile.recipe.training import FineTune
    from compile.training.distil_causal import distil_causal, text_examples
    from compile.training.examples import load_tokenizer
    from compile.training.run import TrainingRun

    teacher = small_llama(chosen.threads)
    tokenizer = load_tokenizer(teacher)
    fresh = chosen.work / "fresh"
    new_model(
        Sizes(layers=2, hidden=128, intermediate=384, heads=2, kv_heads=2), tokenizer, chosen.seed
    ).save_pretrained(fresh)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(teacher / name, fresh / name)
    train, validation, test = articles()
    lists = [text_examples(texts, tokenizer, 128, 0) for texts in (train[: chosen.articles], validation)]
    settings = FineTune(
        method="full", epochs=chosen.epochs, batch=8, learning_rate=2e-3, weight_decay=0.1, seed=chosen.seed
    )
    lines = [Line("teacher", losses(teacher, test, 128, chosen.threads), size_of(teacher))]
    for name, hard in (("student with teacher", chosen.hard), ("student without", 1.0)):
        target = chosen.work / name.replace(" ", "-")
        target.mkdir()
        distil_causal(
            teacher,
            fresh,
            lists[0],
            lists[1],
            DistilLogits(
                teacher=Source(file=str(teacher)),
                temperature=chosen.temperature,
                hard=hard,
                top=chosen.top or None,
            ),
            settings,
            TrainingRun(target, target / "scratch", chosen.threads, time.monotonic, progress(name)),
        )
        lines.append(Line(name, losses(target, test, 128, chosen.threads), size_of(target)))
    table(
        "Loss in nats per token, by article,",
        lines,
        [("student with teacher", "student without")],
        higher_is_better=False,
    )


if __name__ == "__main__":
    main()
