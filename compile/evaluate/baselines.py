"""What every classification score stands beside: the majority class, and TF-IDF with logistic regression."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Baseline:
    """The labels that one baseline gives to the test texts."""

    name: str
    labels: tuple[str, ...]


def baselines(known: Sequence[str], wanted: Sequence[str], texts: Sequence[str]) -> tuple[Baseline, ...]:
    """Both baselines, trained on the texts ``known`` with their labels ``wanted``, asked about ``texts``."""
    label = Counter(wanted).most_common(1)[0][0]
    return (
        Baseline("majority class", (label,) * len(texts)),
        Baseline("TF-IDF + logistic regression", _linear(known, wanted, texts)),
    )


def _linear(known: Sequence[str], wanted: Sequence[str], texts: Sequence[str]) -> tuple[str, ...]:
    """Words and pairs of words, and character 1- to 5-grams: the best of what was tried on these data."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 5), sublinear_tf=True),
    )
    model = make_pipeline(features, LogisticRegression(C=10.0, max_iter=2000))
    model.fit(known, wanted)
    return tuple(str(answer) for answer in model.predict(texts))
