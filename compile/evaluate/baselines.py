"""What every classification score stands beside: the majority class, and TF-IDF with logistic regression."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from compile.tickets import Ticket


@dataclass(frozen=True)
class Baseline:
    """The answers of one baseline on the test split."""

    name: str
    labels: tuple[str, ...]
    severities: tuple[str, ...]


def baselines(train: Sequence[Ticket], test: Sequence[Ticket]) -> tuple[Baseline, ...]:
    """Both baselines, trained on ``train``."""
    texts = [ticket.text for ticket in test]
    wanted_labels = [ticket.label for ticket in train]
    wanted_severities = [ticket.severity for ticket in train]
    label = Counter(wanted_labels).most_common(1)[0][0]
    severity = Counter(wanted_severities).most_common(1)[0][0]
    known = [ticket.text for ticket in train]
    return (
        Baseline("majority class", (label,) * len(test), (severity,) * len(test)),
        Baseline(
            "TF-IDF + logistic regression",
            _linear(known, wanted_labels, texts),
            _linear(known, wanted_severities, texts),
        ),
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
