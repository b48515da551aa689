"""What the steps of a vision line measured, as findings: every variant against its budgets."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compile.anomaly.areas import measured_area
from compile.anomaly.threshold import Threshold, calibrate, rate_interval
from compile.data.images import CARD_FILE, ImageSplits
from compile.evaluate import judge, statistics
from compile.evaluate.judge import Measured, VariantResult
from compile.evaluate.pictures import Seen, read_seen
from compile.findings import Answer, Case, Compared, Findings, Flips, Picture
from compile.line import REFERENCE, size_ratio, tools_of
from compile.lines.judgement import Judgement, judgement
from compile.lines.tensorrt import note as tensorrt_note
from compile.lines.vision import BASELINES, LEDGER, MIXTURE, VariantSteps, VisionParts
from compile.lines.vision_scores import alone, class_metrics
from compile.onnx.files import MODEL, open_model, size_of, weighted
from compile.onnx.vision_head import CHOICES
from compile.recipe.vision import ClassifyImageRecipe, InspectRecipe
from compile.steps import Cache
from models.manifest import Fallback

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

_SEED = 7
_PRECISION = {"fp32": "FP32", "int8-static": "INT8", "int8-dynamic": "INT8-dynamic"}
_REFERENCE_NOTE = "the weights as they came, in float32, on the same pictures through the same engine"


@dataclass(frozen=True)
class Inspected:
    """One variant's scores of the calibration parts and the test parts, and its threshold."""

    seen: Seen
    calibration: "Array"
    test: "Array"
    threshold: Threshold

    @property
    def defects(self) -> "npt.NDArray[np.bool_]":
        """Which test parts it takes for defects."""
        found: npt.NDArray[np.bool_] = self.test >= self.threshold.value
        return found


def find(line: VisionParts, cache: Cache, command: str) -> Findings:
    """Judge what was measured. Raises ``Refused`` where no threshold can keep its promise."""
    if isinstance(line.recipe, InspectRecipe):
        return _find_inspection(line, line.recipe, cache, command)
    return _find_classes(line, line.recipe, cache, command)


def inspected(line: VisionParts, recipe: InspectRecipe, cache: Cache, name: str) -> Inspected:
    """What a variant of an inspection said."""
    seen = read_seen(cache.folder(line.variants[name].seen))
    parts = len(line.splits(cache).calibration)
    scores = seen.answers[:parts]
    threshold = calibrate(scores.tolist(), recipe.threshold.false_reject_rate)
    return Inspected(seen, scores, seen.answers[parts:], threshold)


def _find_inspection(line: VisionParts, recipe: InspectRecipe, cache: Cache, command: str) -> Findings:
    splits = line.splits(cache)
    labels = [image.label for image in splits.test]
    said = {name: inspected(line, recipe, cache, name) for name in line.variants}
    results = {}
    for name, steps in line.variants.items():
        metrics = _inspection_metrics(recipe, labels, said[name], said[REFERENCE])
        results[name] = _result(line, cache, name, steps, said[name].seen, metrics)
    judged = judgement(line, command, results)
    shown = judged["chosen"] or REFERENCE
    return _findings(
        line,
        cache,
        judged,
        headline="auroc",
        splits=splits,
        answers={name: _inspection_answers(labels, recipe.data.good, one) for name, one in said.items()},
        beside=_inspection_baselines(line, recipe, cache, labels),
        pictures=_pictures(line, recipe, splits, shown, said[shown]),
        notes=_notes(recipe, shown, said[shown]) + tensorrt_note(recipe, results),
    )


def _inspection_metrics(
    recipe: InspectRecipe, labels: Sequence[str], ours: Inspected, theirs: Inspected
) -> dict[str, Measured]:
    import numpy as np

    rounds = recipe.evaluate.bootstrap
    at = {
        name: np.array([label == name for label in labels])
        for name in (recipe.data.good, *recipe.data.defects)
    }
    good = at[recipe.data.good]

    def area(defects: "npt.NDArray[np.bool_]") -> Measured:
        tests = [one.test[which].tolist() for one in (ours, theirs) for which in (good, defects)]
        return measured_area(*tests)

    def caught(defects: "npt.NDArray[np.bool_]") -> Measured:
        values, others = (one.defects[defects].astype(float).tolist() for one in (ours, theirs))
        return judge.paired(values, others, rounds, _SEED)

    rejected = ours.defects[good]
    rate, asked = float(rejected.mean()), recipe.threshold.false_reject_rate
    low, high = rate_interval(int(rejected.sum()), len(rejected))
    correlation = _correlation(ours.test, theirs.test, rounds)
    same = (ours.defects == theirs.defects).astype(float).tolist()
    metrics = {
        "auroc": area(~good),
        # Beside the rate that was asked for, not beside the reference's: that is the promise.
        "false_reject_rate": Measured(asked, rate, (low - asked, high - asked), len(rejected), (low, high)),
        "detection_rate": caught(~good),
        "score_correlation": correlation,
        "verdict_agreement": judge.paired(same, [1.0] * len(same), rounds, _SEED),
    }
    for label in recipe.data.defects:
        metrics[f"auroc_{label}"] = area(at[label])
        metrics[f"detection_rate_{label}"] = caught(at[label])
    return metrics


def _correlation(ours: "Array", theirs: "Array", rounds: int) -> Measured:
    import numpy as np

    def pearson(at: "npt.NDArray[np.int64]") -> float:
        return float(np.corrcoef(ours[at], theirs[at])[0, 1])

    low, high = statistics.resample(len(ours), pearson, min(rounds, 500), _SEED)
    value = pearson(np.arange(len(ours)))
    return Measured(1.0, value, (low - 1, high - 1), len(ours), (low, high))


def _inspection_answers(labels: Sequence[str], good: str, said: Inspected) -> list[Answer]:
    return [
        Answer("defect" if defect else "good", bool(defect) == (label != good))
        for label, defect in zip(labels, said.defects, strict=True)
    ]


def _inspection_baselines(
    line: VisionParts, recipe: InspectRecipe, cache: Cache, labels: Sequence[str]
) -> tuple[Compared, ...]:
    stored = json.loads((cache.folder(line.baselines) / BASELINES).read_text(encoding="utf-8"))
    compared = []
    for name, scores in stored.items():
        by_label = {
            label: [score for score, one in zip(scores, labels, strict=True) if one == label]
            for label in (recipe.data.good, *recipe.data.defects)
        }
        good = by_label.pop(recipe.data.good)
        kinds = {"auroc": [score for each in by_label.values() for score in each]}
        kinds |= {f"auroc_{label}": each for label, each in by_label.items()}
        metrics = {}
        for metric, defects in kinds.items():
            measured = measured_area(good, defects, good, defects)
            metrics[metric] = Measured(None, measured.value, None, measured.samples, measured.interval)
        compared.append(Compared(name, metrics, "distance to the nearest good picture"))
    return tuple(compared)


def _pictures(
    line: VisionParts, recipe: InspectRecipe, splits: ImageSplits, name: str, said: Inspected
) -> tuple[Picture, ...]:
    """The first test pictures of each label, and the parts that were judged wrong by the widest margin."""
    from compile.anomaly.show import beside

    parts, limit = len(splits.calibration), recipe.data.max_pixels
    threshold = said.threshold.value

    def picture(at: int, why: str) -> Picture:
        image = splits.test[at]
        verdict = "defect" if said.defects[at] else "good"
        heat = said.seen.heat_maps[parts + at].astype("float32")
        return Picture(
            f"{why}{image.label}: score {said.test[at]:.2f}, threshold {threshold:.2f}: {verdict} ({name})",
            beside((line.sources.root / image.file).read_bytes(), heat, threshold, limit),
        )

    first = []
    for label in (recipe.data.good, *recipe.data.defects):
        of_label = [at for at, image in enumerate(splits.test) if image.label == label]
        first += [picture(at, "") for at in of_label[: recipe.evaluate.shown]]
    wrong = [
        at
        for at, image in enumerate(splits.test)
        if bool(said.defects[at]) != (image.label != recipe.data.good)
    ]
    wrong.sort(key=lambda at: -abs(float(said.test[at]) - threshold))
    return (*first, *(picture(at, "Wrong. ") for at in wrong[: 2 * recipe.evaluate.shown]))


def _notes(recipe: InspectRecipe, name: str, said: Inspected) -> tuple[str, ...]:
    one = said.threshold
    low, high = one.interval
    return (
        f"{name}: the threshold {one.value:.4f} comes from {one.parts} good parts that the bank has not "
        f"seen. Over such calibrations it rejects {one.expected:.2%} of good parts (asked: at most "
        f"{one.asked:.2%}); this one rejects {low:.2%} to {high:.2%} with 95 % confidence.",
        f"Trained on {recipe.data.train} good pictures and on nothing else; defects are in the test only.",
    )


def _find_classes(line: VisionParts, recipe: ClassifyImageRecipe, cache: Cache, command: str) -> Findings:
    splits, labels = line.splits(cache), recipe.data.labels
    truth = [image.label for image in splits.test]
    said = {name: _probabilities(line, cache, name, splits) for name in line.variants}
    results = {}
    for name, steps in line.variants.items():
        seen, ours = said[name]
        metrics = class_metrics(recipe, truth, ours, said[REFERENCE][1])
        results[name] = _result(line, cache, name, steps, seen, metrics)
    answers = {
        name: [
            Answer(labels[row.argmax()], labels[row.argmax()] == label)
            for row, label in zip(probabilities, truth, strict=True)
        ]
        for name, (_, probabilities) in said.items()
    }
    stored = json.loads((cache.folder(line.baselines) / BASELINES).read_text(encoding="utf-8"))
    notes = {"majority": "the most frequent label", "pixels": "logistic regression on 16 x 16 grey pixels"}
    beside = tuple(
        Compared(name, alone(truth, found, labels, recipe.evaluate.bootstrap), notes[name])
        for name, found in stored.items()
    )
    return _findings(
        line,
        cache,
        judgement(line, command, results),
        headline="accuracy",
        splits=splits,
        answers=answers,
        beside=beside,
        notes=_head_notes(line, cache) + _attention_notes(results) + tensorrt_note(recipe, results),
    )


def _head_notes(line: VisionParts, cache: Cache) -> tuple[str, ...]:
    if line.head is None:
        return ()
    tried = json.loads((cache.folder(line.head) / CHOICES).read_text(encoding="utf-8"))
    said = ", ".join(f"{one['strength']:g}: {one['calibration_accuracy']:.3f}" for one in tried)
    return (f"The head's strength was chosen on the calibration pictures (accuracy by strength: {said}).",)


def _attention_notes(results: Mapping[str, VariantResult]) -> tuple[str, ...]:
    return tuple(
        f"{name}: attention's products in {one.settings['attention']}: mean KL on held-out pictures "
        f"{tried['int8']:.3g} in INT8, {tried['float']:.3g} in float"
        for name, one in results.items()
        if (tried := one.settings.get("attention measured")) is not None
    )


def _probabilities(line: VisionParts, cache: Cache, name: str, splits: ImageSplits) -> "tuple[Seen, Array]":
    seen = read_seen(cache.folder(line.variants[name].seen))
    return seen, seen.answers[len(splits.calibration) :]


def _result(
    line: VisionParts,
    cache: Cache,
    name: str,
    steps: VariantSteps,
    seen: Seen,
    metrics: dict[str, Measured],
) -> VariantResult:
    size, ledger = size_of(cache.folder(steps.model) / MODEL), ledger_of(cache, steps)
    reference = cache.folder(line.variants[REFERENCE].model) / MODEL
    if name != REFERENCE:
        weights = len(weighted(open_model(reference)))
        metrics["fallback_tensors"] = Measured(0.0, float(len(ledger)), None, weights)
    metrics |= size_ratio(size, size_of(reference))
    variant = steps.variant
    settings: dict[str, Any] = {"type": variant.type}
    if variant.type != "fp32":
        settings |= {"weight bits": 7 if variant.reduce_range else 8}
    if variant.type == "int8-static":
        settings |= {"calibration": variant.calibration, "images": variant.calibration_images}
        settings |= {"symmetric": variant.symmetric}
    if variant.keep:
        settings |= {"keep": list(variant.keep)}
    if (cache.folder(steps.model) / MIXTURE).is_file():
        settings |= json.loads((cache.folder(steps.model) / MIXTURE).read_text(encoding="utf-8"))
    return VariantResult(
        name=name,
        precision=_PRECISION[variant.type],
        bytes=size,
        verdicts=judge.hold(metrics, {} if name == REFERENCE else line.recipe.budgets),
        speeds=seen.speeds,
        peak_ram_bytes=seen.peak_ram_bytes,
        ledger=ledger,
        format="onnx",
        speed_unit="images/s",
        settings=settings,
    )


def ledger_of(cache: Cache, steps: VariantSteps) -> tuple[Fallback, ...]:
    """What is not at the precision that was asked for."""
    path = cache.folder(steps.model) / LEDGER
    if not path.is_file():
        return ()
    stored = json.loads(path.read_text(encoding="utf-8"))
    return tuple(Fallback.model_validate(one) for one in stored)


def _findings(
    line: VisionParts,
    cache: Cache,
    judged: Judgement,
    headline: str,
    splits: ImageSplits,
    answers: Mapping[str, Sequence[Answer]],
    beside: tuple[Compared, ...],
    notes: tuple[str, ...],
    pictures: tuple[Picture, ...] = (),
) -> Findings:
    """``answers``: what every variant made of the test pictures, in their order."""
    cases = tuple(
        Case(image.file, image.label, {name: each[at] for name, each in answers.items()})
        for at, image in enumerate(splits.test)
    )
    return Findings(
        **judged,
        headline=headline,
        reference_note=_REFERENCE_NOTE,
        rows={name: len(getattr(splits, name)) for name in ("train", "calibration", "test")},
        lineage=lineage(line, cache),
        beside=beside,
        cases=cases,
        flips=Flips.of(cases),
        pictures=pictures,
        notes=notes,
    )


def lineage(line: VisionParts, cache: Cache) -> dict[str, Any]:
    """Where a release comes from."""
    card = json.loads((cache.folder(line.data) / CARD_FILE).read_text(encoding="utf-8"))
    splits = line.splits(cache)
    return {
        "base_weights": line.sources.digests["base"],
        "reference": _REFERENCE_NOTE,
        "images": line.sources.digests["data"],
        "dataset": card["digest"],
        "calibration_images": len(splits.calibration),
        "recipe": line.sources.digests["recipe"],
        "tools": tools_of(line.steps),
    }
