"""What the steps of an encoder line measured, as findings: every variant against its budgets."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compile.data.rows import Row, read_splits
from compile.evaluate import judge, vectors
from compile.evaluate.judge import Measured, VariantResult
from compile.evaluate.texts import Read, read_measured
from compile.findings import Answer, Case, Compared, Findings, Flips
from compile.line import REFERENCE, device_name, size_ratio, tools_of
from compile.lines.encoder import EncoderLine, evaluated
from compile.lines.encoder_steps import SAID, engine_of, read_made, seeks_answers
from compile.lines.tensorrt import note as tensorrt_note
from compile.onnx.export import EXPORTED
from compile.onnx.files import MODEL, size_of
from compile.recipe.encoder import EmbedRecipe
from compile.steps import Cache
from models.manifest import Fallback

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

SEED = 7
_TEXTS = "texts.json"
_QUERY = 300
"""Characters of a text in a case."""


def find(line: EncoderLine, cache: Cache, command: str) -> Findings:
    """Judge what was measured."""
    recipe = line.recipe
    splits = read_splits(cache.folder(line.data))
    rows = evaluated(recipe, splits)
    read = {name: read_measured(cache.folder(one.measured)) for name, one in line.variants.items()}
    judged = _Judged(line, rows, engine_of(cache.folder(line.exported)).labels, read)
    float_bytes = size_of(cache.folder(line.exported) / MODEL)
    kinds = {variant.name: variant for variant in recipe.variants}
    results = {}
    for name, steps in line.variants.items():
        metrics = judged.metrics(name)
        ledger: tuple[Fallback, ...] = ()
        settings: dict[str, Any] = {}
        size = size_of(cache.folder(steps.model) / MODEL)
        if name != REFERENCE:
            made = read_made(cache.folder(steps.model))
            ledger = tuple(Fallback.model_validate(one) for one in made["ledger"])
            settings = made["settings"] | {"runs_as": _integer_kernels(made["kernels"])}
            metrics["fallback_tensors"] = Measured(0.0, float(len(ledger)), None, made["weights"])
            metrics |= size_ratio(size, float_bytes)
        results[name] = VariantResult(
            name=name,
            precision=kinds[name].precision if name in kinds else "F32",
            bytes=size,
            verdicts=judge.hold(metrics, recipe.budgets if name in kinds else {}),
            speeds=read[name].speeds,
            peak_ram_bytes=read[name].peak_ram_bytes,
            ledger=ledger,
            answers=tuple(judged.said(name)),
            format="onnx",
            speed_unit="texts/s",
            settings=settings,
        )
    candidates = [one for name, one in results.items() if name != REFERENCE]
    cases = judged.cases()
    chosen = judge.choose(candidates)
    return Findings(
        title=f"{recipe.release.name} {recipe.release.version} on {recipe.base.name}",
        command=command,
        device=device_name(line.workshop.threads),
        headline=headline_of(line, rows),
        reference_note=reference_note(line),
        rows=dict(splits.sizes) | {"measured": len(rows)},
        reference=results[REFERENCE],
        variants=tuple(candidates),
        chosen=chosen.name if chosen else None,
        nearest=None if chosen else judge.nearest_recipe(candidates),
        lineage=lineage(line, cache),
        curve=_curve(line, cache),
        beside=_beside(line, cache, rows),
        cases=cases[: recipe.evaluate.shown],
        flips=Flips.of(cases),
        notes=_notes(line, cache, read) + tensorrt_note(recipe, results),
    )


def headline_of(line: EncoderLine, rows: Sequence[Row]) -> str:
    """The metric that plots and summaries show."""
    if not isinstance(line.recipe, EmbedRecipe):
        return "accuracy"
    if seeks_answers(line.recipe, rows):
        return "answer_rank"
    return "retrieval_precision" if all(row.label for row in rows) else "cosine_mean"


def reference_note(line: EncoderLine) -> str:
    """What everything is measured against."""
    tuned = ", fine-tuned" if line.tuned is not None else ""
    return f"the base's weights in F32{tuned}, exported by optimum and compared with torch"


def lineage(line: EncoderLine, cache: Cache) -> dict[str, Any]:
    """Where everything comes from, by digest and by version."""
    exported = json.loads((cache.folder(line.exported) / EXPORTED).read_text(encoding="utf-8"))
    texts = {key: one for key, one in _texts(line, cache).items() if key != "class_weights"}
    return ({"training_texts": texts} if texts else {}) | {
        "base_weights": line.digests["base"],
        "dataset": line.digests["data"],
        "recipe": line.digests["recipe"],
        "reference": reference_note(line),
        "export": {
            "opset": exported["opset"],
            "largest_difference_to_torch": exported["max_difference"],
            "smallest_cosine_to_torch": exported["cosine"],
        },
        "tools": tools_of(line.steps),
    }


class _Judged:
    """The answers of every variant beside the reference's, and what the task makes of them."""

    def __init__(
        self, line: EncoderLine, rows: Sequence[Row], labels: Sequence[str], read: Mapping[str, Read]
    ) -> None:
        self._recipe, self._rows, self._labels = line.recipe, rows, labels
        self._answers: dict[str, Array] = {name: one.answers for name, one in read.items()}
        self._embeds = isinstance(line.recipe, EmbedRecipe)
        self._seeks = seeks_answers(line.recipe, rows)
        self._found = {
            name: self._retrieve(answers) for name, answers in self._answers.items() if self._embeds
        }

    def metrics(self, name: str) -> dict[str, Measured]:
        """All metrics of one variant; of the reference those that do not compare it with itself."""
        rounds = self._recipe.evaluate.bootstrap
        ours, theirs = self._answers[name], self._answers[REFERENCE]
        wanted = [row.label for row in self._rows]
        if not self._embeds:
            found = vectors.classification(wanted, self._labels, ours, theirs, rounds, SEED)
            kept = ("accuracy", "macro_f1")
            return found if name != REFERENCE else {key: found[key] for key in kept}
        mine, reference = self._found[name], self._found[REFERENCE]
        found = {}
        if self._seeks:
            found |= vectors.scored(
                "answer_rank",
                vectors.reciprocal_ranks(mine),
                vectors.reciprocal_ranks(reference),
                rounds,
                SEED,
            )
        elif all(wanted):
            for metric, score in (
                ("retrieval_precision", vectors.precision),
                ("retrieval_accuracy", vectors.first_right),
            ):
                found |= vectors.scored(metric, score(mine, wanted), score(reference, wanted), rounds, SEED)
        if name == REFERENCE:
            return {key: one for key, one in found.items() if not key.endswith("_ratio")}
        found |= vectors.fidelity(ours, theirs, rounds, SEED)
        return found | vectors.agreement(mine, reference, rounds, SEED)

    def said(self, name: str) -> list[str]:
        """One answer per row, as text: a label, or the text that was found."""
        if not self._embeds:
            return vectors.chosen(self._answers[name], self._labels)
        pool = [row.answer if self._seeks else row.text for row in self._rows]
        return [pool[row[0]] for row in self._found[name].nearest]

    def cases(self) -> tuple[Case, ...]:
        """All inputs. Those on which the variants do not agree come first; then those that they get wrong."""
        said = {name: self.said(name) for name in self._answers}
        made = []
        for at, row in enumerate(self._rows):
            answers = {name: self._answer(name, at, texts[at]) for name, texts in said.items()}
            made.append(Case(row.text[:_QUERY], row.label or row.answer, answers))

        def rank(case: Case) -> tuple[bool, bool]:
            answers = case.answers.values()
            return len({one.text for one in answers}) == 1, all(one.right is not False for one in answers)

        return tuple(sorted(made, key=rank))

    def _answer(self, name: str, at: int, text: str) -> Answer:
        row = self._rows[at]
        if not self._embeds:
            return Answer(text, text == row.label)
        if self._seeks:
            return Answer(text[:_QUERY], text == row.answer)
        label = self._rows[self._found[name].nearest[at][0]].label
        return Answer(
            f"{label}: {text[:_QUERY]}" if label else text[:_QUERY], label == row.label if label else None
        )

    def _retrieve(self, answers: "Array") -> vectors.Retrieved:
        if not self._seeks:
            return vectors.retrieve(answers)
        count = len(self._rows)
        return vectors.retrieve_answers(answers[:count], answers[count:], [row.answer for row in self._rows])


def _beside(line: EncoderLine, cache: Cache, rows: Sequence[Row]) -> tuple[Compared, ...]:
    rounds = line.recipe.evaluate.bootstrap
    stored = json.loads((cache.folder(line.baselines) / SAID).read_text(encoding="utf-8"))
    found = []
    wanted = [row.label for row in rows]
    for name, said in stored["labels"].items():
        right = [a == b for a, b in zip(said, wanted, strict=True)]
        found.append(Compared(name, {"accuracy": judge.share(right, rounds, SEED)}))
    for metric, key in (("retrieval_precision", "precision"), ("answer_rank", "ranks")):
        if stored[key]:
            found.append(Compared("TF-IDF vectors", {metric: judge.share(stored[key], rounds, SEED)}))
    if stored["precision"]:
        expected = [(wanted.count(label) - 1) / (len(wanted) - 1) for label in wanted]
        found.append(Compared("chance", {"retrieval_precision": judge.share(expected, rounds, SEED)}))  # type: ignore[arg-type]
    return tuple(found)


def _notes(line: EncoderLine, cache: Cache, read: Mapping[str, Read]) -> tuple[str, ...]:
    notes = _known(line, cache)
    cut = read[REFERENCE].truncated
    if cut:
        notes.append(f"{cut} of {len(read[REFERENCE].answers)} texts were longer than the model reads; cut")
    for name, steps in line.variants.items():
        if name == REFERENCE:
            continue
        settings = read_made(cache.folder(steps.model))["settings"]
        if "attention_measured" in settings:
            tried = settings["attention_measured"]
            notes.append(
                f"{name}: attention's products in {settings['attention']}: loss on held-out texts "
                f"{tried['int8']:.3g} in INT8, {tried['float']:.3g} in float"
            )
        if "kept_in_float" in settings:
            kept = ", ".join(settings["kept_in_float"]) or "nothing"
            reached = "within" if settings["reached"] else "not within"
            notes.append(
                f"{name}: {kept} stays in float: loss {settings['loss_without']:.3g} without, "
                f"{settings['loss_on_held_out']:.3g} with, {reached} the wanted one"
            )
    return tuple(notes)


def _texts(line: EncoderLine, cache: Cache) -> dict[str, Any]:
    """What fine-tuning found out of its texts; empty without."""
    path = cache.folder(line.tuned) / _TEXTS if line.tuned is not None else None
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    return told


def _known(line: EncoderLine, cache: Cache) -> list[str]:
    """A warning where the tokenizer does not know what it reads."""
    told = _texts(line, cache)
    if not told.get("many_unknown"):
        return []
    return [
        f"{told['unknown_tokens']:.0%} of the training rows' tokens are unknown to this model's tokenizer:"
        " it cannot tell them apart. Compare with the TF-IDF baseline before you ship it."
    ]


def _curve(line: EncoderLine, cache: Cache) -> list[dict[str, Any]]:
    if line.tuned is None:
        return []
    path = cache.folder(line.tuned) / "curve.json"
    curve: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return curve


def _integer_kernels(kernels: Mapping[str, int]) -> dict[str, int]:
    """Of what runs, the operators that multiply or look up."""
    return {
        name: count
        for name, count in kernels.items()
        if "MatMul" in name or "Gemm" in name or "Conv" in name or name.endswith("Attention")
    }
