"""What the steps of a line of readers measured, as findings: every variant against its budgets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compile.data.readings import Reading
from compile.evaluate import judge
from compile.evaluate.error_rates import character_errors, characters, compared, word_errors
from compile.evaluate.judge import Measured, VariantResult
from compile.evaluate.readings import Read, read_measured
from compile.evaluate.text_metrics import words
from compile.findings import Answer, Case, Findings, Flips
from compile.line import REFERENCE, size_ratio, tools_of
from compile.lines.judgement import judgement
from compile.lines.reading import ReadingParts, VariantSteps
from compile.readers.ledger import LEDGER, Ledger
from compile.recipe.reading import OcrVariant
from compile.steps import DONE_FILE, Cache

_SEED = 7
_PRECISION = {
    "fp32": "FP32",
    "int8-dynamic": "INT8",
    "float32": "F32",
    "float16": "F16",
    "int8": "INT8",
    "int8_float32": "INT8",
}
_REFERENCE_NOTE = "the weights as they came, computed in float32, on the same files through the same engine"


def find(line: ReadingParts, cache: Cache, command: str) -> Findings:
    """Judge what was measured. Raises ``BadData`` where there is no word to be right about."""
    readings = line.readings(cache)
    said = {name: read_measured(cache.folder(one.read)) for name, one in line.variants.items()}
    results = {
        name: _result(line, cache, name, readings, said[name], said[REFERENCE]) for name in line.variants
    }
    cases = tuple(
        Case(
            one.file,
            one.text,
            {
                name: Answer(read.texts[at], is_right(line, one, read.texts[at]))
                for name, read in said.items()
            },
        )
        for at, one in enumerate(readings)
    )
    return Findings(
        **judgement(line, command, results),
        headline="character_error_rate" if line.recipe.task == "ocr" else "word_error_rate",
        reference_note=_REFERENCE_NOTE,
        rows={"test": len(readings)},
        lineage=_lineage(line),
        cases=cases,
        flips=Flips.of(cases),
        notes=(_note(line, readings),),
    )


def model_files(folder: Path) -> dict[str, Path]:
    """What ships of a variant's model, by its path in the release."""
    beside = (LEDGER, DONE_FILE)
    return {path.name: path for path in sorted(folder.iterdir()) if path.name not in beside}


def is_right(line: ReadingParts, reading: Reading, text: str) -> bool:
    """Whether a file was read without an error, as error rates count them."""
    if line.recipe.task == "ocr":
        return characters(text) == characters(reading.text)
    return words(text) == words(reading.text)


def _result(
    line: ReadingParts, cache: Cache, name: str, readings: Sequence[Reading], ours: Read, theirs: Read
) -> VariantResult:
    steps, ocr = line.variants[name], line.recipe.task == "ocr"
    folder, rounds = cache.folder(steps.model), line.recipe.evaluate.bootstrap
    wanted = [one.text for one in readings]
    errors = character_errors if ocr else word_errors
    rate = compared(errors(ours.texts, wanted), errors(theirs.texts, wanted), rounds, _SEED)
    alike = characters if ocr else words
    same = [float(alike(a) == alike(b)) for a, b in zip(ours.texts, theirs.texts, strict=True)]
    metrics = {
        "character_error_rate" if ocr else "word_error_rate": rate,
        "text_agreement": judge.paired(same, [1.0] * len(same), rounds, _SEED),
    }
    ledger = Ledger.read(folder)
    if name != REFERENCE:
        metrics["fallback_tensors"] = Measured(0.0, float(len(ledger.fallen)), None, ledger.tensors)
    size = _size(folder)
    metrics |= size_ratio(size, _size(cache.folder(line.variants[REFERENCE].model)))
    return VariantResult(
        name=name,
        precision=_PRECISION[steps.variant.type],
        bytes=size,
        verdicts=judge.hold(metrics, {} if name == REFERENCE else line.recipe.budgets),
        speeds=ours.speeds,
        peak_ram_bytes=ours.peak_ram_bytes,
        ledger=ledger.fallen,
        answers=ours.texts,
        format="onnx" if ocr else "ctranslate2",
        speed_unit="pictures/s" if ocr else "seconds of speech/s",
        settings=_settings(steps),
    )


def _settings(steps: VariantSteps) -> Mapping[str, Any]:
    variant = steps.variant
    if not isinstance(variant, OcrVariant) or variant.type == "fp32":
        return {"type": variant.type}
    return {
        "type": variant.type,
        "networks": list(variant.networks),
        "convolutions": variant.convolutions,
        "weight bits": 7 if variant.reduce_range else 8,
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in model_files(folder).values())


def _note(line: ReadingParts, readings: Sequence[Reading]) -> str:
    if line.recipe.task == "ocr":
        count = sum(len(characters(one.text)) for one in readings)
        return f"{len(readings)} pictures with {count} characters, white space not counted."
    count, seconds = sum(len(words(one.text)) for one in readings), sum(one.amount for one in readings)
    return (
        f"{len(readings)} recordings, {seconds:.0f} s with {count} words, compared in lower case and without "
        "punctuation."
    )


def _lineage(line: ReadingParts) -> dict[str, Any]:
    return {
        "base_weights": line.sources.digests["base"],
        "reference": _REFERENCE_NOTE,
        "dataset": line.sources.digests["data"],
        "recipe": line.sources.digests["recipe"],
        "tools": tools_of(line.steps),
    }
