"""Metrics of texts and labels, each with a 95 % interval, alone and paired with another system's.

A metric is a value per sample, sums per sample that are sufficient for the corpus value, and the function
from summed sums to that value. Resampling therefore adds up numbers and never splits a text again, and
metrics of a corpus (BLEU, chrF, macro-F1, perplexity) are resampled as exactly as means. Laws: the corpus
value is that of the library the metric comes from; both systems of a pair are resampled with the same draws.

BLEU and chrF: sacrebleu (Post 2018; Popovic 2015). ROUGE-L: rouge-score (Lin 2004), with a tokenizer for
every script, because its own drops all but Latin letters. Pairing: Koehn, EMNLP 2004.
"""

import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from compile.errors import BadData
from compile.evaluate import statistics
from compile.evaluate.judge import Measured

Array = npt.NDArray[np.float64]

_HAN = "㐀-䶿一-鿿豈-﫿\U00020000-\U0003ffff"
_UNSPACED = "぀-ヿ฀-໿က-႟ក-៿"
"""Kana, Thai, Lao, Burmese, Khmer: scripts without spaces between words."""
_TOKEN = re.compile(f"[{_HAN}{_UNSPACED}]|[^\\W_{_HAN}{_UNSPACED}]+")
_DRAWS = 2_000_000
"""Numbers drawn at a time: bounds the memory."""


@dataclass(frozen=True)
class Scored:
    """One metric of one system. ``sums`` is [samples, k]; ``combine`` takes their total, [k].

    ``outcomes``: values are 0 or 1 and the corpus value is their mean.
    """

    values: Array
    sums: Array
    combine: Callable[[Array], float] = field(repr=False)
    outcomes: bool = False

    @property
    def value(self) -> float:
        """Of the whole corpus."""
        return self.combine(self.sums.sum(0))


def measured(ours: Scored, theirs: Scored | None, rounds: int, seed: int) -> Measured:
    """The corpus value with its interval, and, beside another system, the interval of the difference."""
    count = len(ours.values)
    if count == 0:
        raise BadData("no samples to measure")
    if theirs is not None and len(theirs.values) != count:
        raise BadData(f"{count} samples beside {len(theirs.values)}: a pair needs the same ones")
    sums = ours.sums if theirs is None else np.concatenate([ours.sums, theirs.sums], axis=1)
    width = ours.sums.shape[1]
    values, differences = [], []
    for totals in _resampled(sums, rounds, seed):
        value = ours.combine(totals[:width])
        values.append(value)
        if theirs is not None:
            differences.append(value - theirs.combine(totals[width:]))
    interval, unseen = _interval(values), statistics.never_seen_bound(count)
    if ours.outcomes and ours.value in (0.0, 1.0):
        # What was never seen in so many trials is not thereby impossible.
        interval = (1 - unseen, 1.0) if ours.value == 1.0 else (0.0, unseen)
    if theirs is None:
        return Measured(None, ours.value, None, count, interval)
    low, high = _interval(differences)
    if ours.outcomes:
        change = ours.values - theirs.values
        low -= unseen if not (change < 0).any() else 0.0
        high += unseen if not (change > 0).any() else 0.0
    return Measured(theirs.value, ours.value, (low, high), count, interval)


def compare(
    wanted: Sequence[str],
    said: Sequence[str],
    before: Sequence[str] | None,
    metrics: Sequence[str],
    rounds: int,
    seed: int,
    classes: Sequence[str] = (),
) -> dict[str, Measured]:
    """Metrics by name (those of ``BY_NAME``, and ``macro_f1``) of ``said``, paired with ``before``."""
    makers: dict[str, Callable[[Sequence[str], Sequence[str]], Scored]] = dict(BY_NAME)
    makers["macro_f1"] = lambda texts, right: macro_f1(texts, right, classes or sorted(set(right)))
    result = {}
    for name in metrics:
        ours = makers[name](said, wanted)
        theirs = makers[name](before, wanted) if before is not None else None
        result[name] = measured(ours, theirs, rounds, seed)
    return result


def compare_texts(
    wanted: Sequence[str], said: Sequence[str], reference: Sequence[str], rounds: int, seed: int
) -> dict[str, Measured]:
    """BLEU, chrF, ROUGE-L and exact match of free answers, paired with those of ``reference``."""
    return compare(wanted, said, reference, ("bleu", "chrf", "rouge_l", "exact_match"), rounds, seed)


def perplexity(losses: Sequence[float] | Array, tokens: Sequence[int]) -> Scored:
    """Of answers: ``losses`` are sums of negative log-likelihoods (nats) per answer of so many tokens."""
    sums = np.stack([np.asarray(losses, dtype=np.float64), np.asarray(tokens, dtype=np.float64)], axis=1)
    return Scored(np.exp(sums[:, 0] / sums[:, 1]), sums, lambda total: math.exp(total[0] / total[1]))


def bleu(said: Sequence[str], wanted: Sequence[str], tokenize: str | None = None) -> Scored:
    """BLEU, 0 to 100. ``tokenize`` is sacrebleu's; by default ``bleu_tokenizer`` chooses it."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize=tokenize or bleu_tokenizer(wanted))
    _same_number(said, wanted)
    sums = np.array(metric._extract_corpus_statistics(list(said), [list(wanted)]), dtype=np.float64)

    def score(total: Array, effective: bool) -> float:
        whole = [int(number) for number in total]
        return float(
            BLEU.compute_bleu(
                correct=whole[2:6],
                total=whole[6:10],
                sys_len=whole[0],
                ref_len=whole[1],
                smooth_method="exp",
                effective_order=effective,
            ).score
        )

    values = np.array([score(row, True) for row in sums])
    return Scored(values, sums, lambda total: score(total, False))


def bleu_tokenizer(references: Sequence[str]) -> str:
    """``zh`` where Chinese stands (it leaves other words whole), ``char`` for scripts without spaces."""
    text = "".join(references)
    if re.search(f"[{_UNSPACED}]", text):
        return "char"
    return "zh" if re.search(f"[{_HAN}]", text) else "13a"


def chrf(said: Sequence[str], wanted: Sequence[str]) -> Scored:
    """chrF2, 0 to 100: character 1- to 6-grams, white space aside."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    _same_number(said, wanted)
    sums = np.array(metric._extract_corpus_statistics(list(said), [list(wanted)]), dtype=np.float64)

    def score(total: Array) -> float:
        return float(metric._compute_f_score([int(number) for number in total]))

    return Scored(np.array([score(row) for row in sums]), sums, score)


class _Words:
    """rouge-score's interface of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case; where a script writes no spaces, each character."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())


def rouge_l(said: Sequence[str], wanted: Sequence[str]) -> Scored:
    """ROUGE-L, the F-measure of the longest common subsequence of words, 0 to 1; mean over the samples."""
    from rouge_score.rouge_scorer import RougeScorer

    _same_number(said, wanted)
    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    pairs = zip(wanted, said, strict=True)
    return _mean([scorer.score(right, text)["rougeL"].fmeasure for right, text in pairs], False)


def accuracy(said: Sequence[str], wanted: Sequence[str]) -> Scored:
    """Labels that are right."""
    _same_number(said, wanted)
    return _mean([float(a == b) for a, b in zip(said, wanted, strict=True)], True)


def exact_match(said: Sequence[str], wanted: Sequence[str]) -> Scored:
    """Answers that are right character for character, white space around them and Unicode's forms aside."""
    return accuracy(
        *([unicodedata.normalize("NFC", text.strip()) for text in some] for some in (said, wanted))
    )


def macro_f1(said: Sequence[str], wanted: Sequence[str], classes: Sequence[str]) -> Scored:
    """Mean over the classes that occur of the harmonic mean of precision and recall."""
    _same_number(said, wanted)
    names = np.array(list(classes), dtype=object)
    asked = np.array(list(wanted), dtype=object)[:, None] == names
    given = np.array(list(said), dtype=object)[:, None] == names
    sums = np.concatenate([asked & given, asked, given], axis=1).astype(np.float64)
    values = (asked & given).any(1).astype(np.float64)

    def score(total: Array) -> float:
        hit, there, told = total.reshape(3, -1)
        occurs = there > 0
        return float(np.mean(2 * hit[occurs] / (there + told)[occurs])) if occurs.any() else 0.0

    return Scored(values, sums, score)


def valid_json(said: Sequence[str], wanted: Sequence[str] = ()) -> Scored:
    """Answers that are one JSON object; numbers that JSON does not know (NaN) make none."""
    return _mean([float(_is_object(text)) for text in said], True)


BY_NAME: Mapping[str, Callable[[Sequence[str], Sequence[str]], Scored]] = {
    "bleu": bleu,
    "chrf": chrf,
    "rouge_l": rouge_l,
    "accuracy": accuracy,
    "exact_match": exact_match,
    "valid_json": valid_json,
}


def _is_object(text: str) -> bool:
    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    try:
        return isinstance(json.loads(text, parse_constant=refuse), dict)
    except (ValueError, RecursionError):
        return False


def _mean(values: Sequence[float], outcomes: bool) -> Scored:
    array = np.asarray(values, dtype=np.float64)
    sums = np.stack([array, np.ones_like(array)], axis=1)
    return Scored(array, sums, lambda total: float(total[0] / total[1]), outcomes)


def _resampled(sums: Array, rounds: int, seed: int) -> Any:
    """The totals of ``rounds`` draws with replacement, [rounds, k]."""
    count = len(sums)
    chance = np.random.default_rng(seed)
    at_once = max(1, _DRAWS // count)
    for start in range(0, rounds, at_once):
        size = min(at_once, rounds - start)
        yield from chance.multinomial(count, np.full(count, 1 / count), size=size) @ sums


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _same_number(said: Sequence[str], wanted: Sequence[str]) -> None:
    if len(said) != len(wanted):
        raise BadData(f"{len(said)} answers for {len(wanted)} references")
