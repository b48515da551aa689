"""What the steps of an encoder line measured, as findings: every variant against its budgets."""

import json
from collections.abc import Mapping
from typing import Any

from compile.data.rows import read_splits
from compile.evaluate import judge
from compile.evaluate.judge import Measured, VariantResult
from compile.evaluate.texts import Read, read_measured
from compile.findings import Findings, Flips
from compile.line import REFERENCE, size_ratio, tools_of
from compile.lines.encoder import EncoderParts, engine_of, evaluated, read_made
from compile.lines.encoder_scores import Judged, beside, gain
from compile.lines.judgement import judgement
from compile.lines.tensorrt import note as tensorrt_note
from compile.onnx.export import EXPORTED
from compile.onnx.files import MODEL, size_of
from compile.recipe.distil import TextTeacher
from compile.steps import Cache, Step
from models.manifest import Fallback

_TEXTS, _CURVE, _PRUNED = "texts.json", "curve.json", "pruned.json"


def find(line: EncoderParts, cache: Cache, command: str) -> Findings:
    """Judge what was measured."""
    recipe = line.recipe
    splits = read_splits(cache.folder(line.data))
    rows = evaluated(recipe, splits)
    read = {name: read_measured(cache.folder(one.measured)) for name, one in line.variants.items()}
    labels = engine_of(cache.folder(line.exported)).labels
    judged = Judged(recipe, rows, labels, {name: one.answers for name, one in read.items()})
    results = {name: _result(line, cache, name, read[name], judged) for name in line.variants}
    cases = judged.cases()
    return Findings(
        **judgement(line, command, results),
        headline=judged.headline,
        reference_note=reference_note(line),
        rows=dict(splits.sizes) | {"measured": len(rows)},
        lineage=lineage(line, cache),
        curve=_curve(line, cache),
        beside=beside(line, cache, judged),
        cases=cases[: recipe.evaluate.shown],
        flips=Flips.of(cases),
        notes=_notes(line, cache, read) + gain(line, cache, judged) + tensorrt_note(recipe, results),
    )


def _result(line: EncoderParts, cache: Cache, name: str, read: Read, judged: Judged) -> VariantResult:
    """One variant, held against its budgets; the reference, against none."""
    kinds = {variant.name: variant for variant in line.recipe.variants}
    metrics, steps = judged.metrics(name), line.variants[name]
    ledger: tuple[Fallback, ...] = ()
    settings: dict[str, Any] = {}
    size = size_of(cache.folder(steps.model) / MODEL)
    if name != REFERENCE:
        made = read_made(cache.folder(steps.model))
        ledger = tuple(Fallback.model_validate(one) for one in made["ledger"])
        settings = made["settings"] | {"runs_as": _integer_kernels(made["kernels"])}
        metrics["fallback_tensors"] = Measured(0.0, float(len(ledger)), None, made["weights"])
        metrics |= size_ratio(size, size_of(cache.folder(line.variants[REFERENCE].model) / MODEL))
    return VariantResult(
        name=name,
        precision=kinds[name].precision if name in kinds else "F32",
        bytes=size,
        verdicts=judge.hold(metrics, line.recipe.budgets if name in kinds else {}),
        speeds=read.speeds,
        peak_ram_bytes=read.peak_ram_bytes,
        ledger=ledger,
        answers=tuple(judged.said(name)),
        format="onnx",
        speed_unit="texts/s",
        settings=settings,
    )


def reference_note(line: EncoderParts) -> str:
    """What everything is measured against, and what became of the base."""
    trained = "distilled" if line.recipe.distil is not None else "fine-tuned"
    done = [word for word, step in (("pruned", line.pruned), (trained, line.tuned)) if step is not None]
    if line.recipe.reference == "itself":
        what = ", ".join(["the base's weights in F32", *done])
    else:
        whole = "the whole base" if line.recipe.reference == "base" else "the teacher"
        what = f"{whole} in F32 (the variants' model is {' and '.join(done)})"
    return f"{what}, exported by optimum and compared with torch"


def lineage(line: EncoderParts, cache: Cache) -> dict[str, Any]:
    """Where everything comes from, by digest and by version."""
    exported = json.loads((cache.folder(line.exported) / EXPORTED).read_text(encoding="utf-8"))
    texts = {key: one for key, one in _texts(line, cache).items() if key != "class_weights"}
    found = {"training_texts": texts, "pruned": _cut(line, cache), "distilled": _taught(line)}
    return {key: one for key, one in found.items() if one} | {
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


def _cut(line: EncoderParts, cache: Cache) -> list[dict[str, Any]]:
    """What pruning says that it did, one entry a cut."""
    found: list[dict[str, Any]] = _read(line.pruned, cache, _PRUNED) or []
    return found


def _taught(line: EncoderParts) -> dict[str, Any]:
    """Who taught, how, and what."""
    distil = line.recipe.distil
    if distil is None:
        return {}
    teacher = distil.teacher
    who = {"url": teacher.url, "model": teacher.model} if isinstance(teacher, TextTeacher) else {}
    how = distil.model_dump(mode="json", exclude={"teacher", "texts", "compare"})
    found = {name: line.digests[name] for name in ("teacher", "texts") if name in line.digests}
    return how | (found if "teacher" in found else found | {"teacher": who})


def _changed(line: EncoderParts, cache: Cache) -> list[str]:
    """What became of the base, for people."""
    told = []
    cuts = [next(iter(one[kind] for kind in ("depth", "width") if kind in one)) for one in _cut(line, cache)]
    if cuts:
        before, after = cuts[0]["parameters_before"] / 1e6, cuts[-1]["parameters"] / 1e6
        told.append(f"Pruned from {before:.2f} to {after:.2f} million parameters.")
    distil = line.recipe.distil
    if distil is not None:
        teacher = distil.teacher
        if isinstance(teacher, TextTeacher):
            who = f"{teacher.model} at {teacher.url}" if teacher.file is None else teacher.file.file
        else:
            who = teacher.file
        told.append(
            f"Distilled from {who}, which gave {distil.kind} ({line.digests.get('teacher', 'a url')})."
        )
    return told


def _notes(line: EncoderParts, cache: Cache, read: Mapping[str, Read]) -> tuple[str, ...]:
    notes = [*_known(line, cache), *_changed(line, cache)]
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
            stays = "stay" if len(settings["kept_in_float"]) > 1 else "stays"
            reached = "within" if settings["reached"] else "not within"
            notes.append(
                f"{name}: {kept} {stays} in float: loss {settings['loss_without']:.3g} without, "
                f"{settings['loss_on_held_out']:.3g} with, {reached} the wanted one"
            )
    return tuple(notes)


def _texts(line: EncoderParts, cache: Cache) -> dict[str, Any]:
    """What fine-tuning found out of its texts; empty without."""
    told: dict[str, Any] = _read(line.tuned, cache, _TEXTS) or {}
    return told


def _known(line: EncoderParts, cache: Cache) -> list[str]:
    """A warning where the tokenizer does not know what it reads."""
    told = _texts(line, cache)
    if not told.get("many_unknown"):
        return []
    return [
        f"{told['unknown_tokens']:.0%} of the training rows' tokens are unknown to this model's tokenizer:"
        " it cannot tell them apart. Compare with the TF-IDF baseline before you ship it."
    ]


def _curve(line: EncoderParts, cache: Cache) -> list[dict[str, Any]]:
    """Of the training; without one, of healing after pruning."""
    curve: list[dict[str, Any]] = _read(line.tuned or line.pruned, cache, _CURVE) or []
    return curve


def _read(step: Step | None, cache: Cache, name: str) -> Any:
    """A JSON file that a step may have left; None without."""
    path = cache.folder(step) / name if step is not None else None
    return json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else None


def _integer_kernels(kernels: Mapping[str, int]) -> dict[str, int]:
    """Of what runs, the operators that multiply or look up."""
    return {
        name: count
        for name, count in kernels.items()
        if "MatMul" in name or "Gemm" in name or "Conv" in name or name.endswith("Attention")
    }
