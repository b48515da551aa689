"""Depth and width pruning of the small Llama, healed with the unpruned model as teacher and without.

Depth: the two of four layers that change their input least go. Width: from 768 to 256 neurons and, by
Taylor importance, from four heads to two. What is left heals on 50 articles; the same without a teacher
(the text's own loss alone), with the same data, order, steps and choice of the best epoch. Tested on
``lee.cor``. About two minutes, and four for the unpruned model, once::

    python examples/distil/pruning.py
"""

import time

from common import Line, articles, losses, options, progress, size_of, small_llama, table


def main() -> None:
    """Prune, heal four times, print two tables."""
    chosen = options(__doc__, epochs=3, articles=50, learning_rate=3e-4, seed=0)
    from compile.recipe.distil import Heal, Prune, PruneDepth, PruneWidth
    from compile.recipe.training import FineTune
    from compile.training.distil_causal import text_examples
    from compile.training.examples import load_tokenizer
    from compile.training.prune_heal import prune_causal
    from compile.training.run import TrainingRun

    whole = small_llama(chosen.threads)
    tokenizer = load_tokenizer(whole)
    train, validation, test = articles()
    lists = [text_examples(texts, tokenizer, 128, 0) for texts in (train[: chosen.articles], validation)]
    settings = FineTune(
        method="full",
        epochs=chosen.epochs,
        batch=8,
        learning_rate=chosen.learning_rate,
        weight_decay=0.1,
        seed=chosen.seed,
    )
    reference = Line("unpruned", losses(whole, test, 128, chosen.threads), size_of(whole))
    cuts = {
        "depth": {"depth": PruneDepth(keep=2)},
        "width": {"width": PruneWidth(neurons=256, heads=2, by="taylor", multiple=128)},
    }
    for what, cut in cuts.items():
        heals = {
            f"{what}, not healed": None,
            f"{what}, healed by teacher": Heal(training=settings),
            f"{what}, healed without": Heal(hard=1.0, training=settings),
        }
        lines = [reference]
        for name, heal in heals.items():
            target = chosen.work / name.replace(",", "").replace(" ", "-")
            prune_causal(
                whole,
                Prune(heal=heal, **cut),
                lists[0],
                lists[1],
                TrainingRun(target, target / "scratch", chosen.threads, time.monotonic, progress(name)),
            )
            lines.append(Line(name, losses(target, test, 128, chosen.threads), size_of(target)))
        names = [line.name for line in lines]
        table(
            "Loss in nats per token, by article,",
            lines,
            [(names[2], names[3]), (names[2], names[1])],
            higher_is_better=False,
        )


if __name__ == "__main__":
    main()
