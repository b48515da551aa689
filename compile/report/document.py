"""``report.json``: what was measured and decided, for programs. Keys are only ever added."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compile.evaluate import judge
from compile.evaluate.judge import Measured, VariantResult
from compile.findings import Findings


def as_json(findings: Findings, releases: Mapping[str, Path]) -> dict[str, Any]:
    """The report: variants (the reference first), the chosen one, lineage, and what stands beside them."""
    everyone = (findings.reference, *findings.variants)
    return {
        "variants": [_variant(one, one is findings.reference) for one in everyone],
        "chosen": findings.chosen,
        "headline": findings.headline,
        "lineage": dict(findings.lineage),
        "reference": findings.reference_note,
        "device": findings.device,
        "rows": dict(findings.rows),
        "baselines": {
            one.name: {metric: _alone(measured) for metric, measured in one.metrics.items()}
            for one in findings.beside
        },
        "learning_curve": [dict(epoch) for epoch in findings.curve],
        "cases": [
            {
                "input": case.input,
                "expected": case.expected,
                "answers": {name: answer.text for name, answer in case.answers.items()},
            }
            for case in findings.cases
        ],
        "flips": {"changed": findings.flips.changed, "compared": findings.flips.compared},
        "notes": list(findings.notes),
        "devices": {name: [asdict(one) for one in told] for name, told in findings.devices.items()},
        "nearest_recipe": dict(findings.nearest) if findings.nearest else None,
        "releases": {name: folder.name for name, folder in releases.items()},
        "command": findings.command,
    }


def _variant(one: VariantResult, is_reference: bool) -> dict[str, Any]:
    median, low, high = judge.spread(one.speeds)
    speed: dict[str, Any] = {"median": median, "spread": [low, high], "unit": one.speed_unit}
    if one.speed_unit == "tokens/s":
        speed["tokens_per_second"] = median
    return {
        "name": one.name,
        "format": one.format,
        "precision": one.precision,
        "bytes": one.bytes,
        "quality": {
            verdict.metric: {
                "reference": verdict.measured.reference,
                "value": _finite(verdict.measured.value),
                "ci95": _span(verdict.measured.ci95),
                "interval": _span(verdict.measured.interval),
                "budget": verdict.budget,
                "samples": verdict.measured.samples,
                "pass": verdict.passed,
                "samples_to_decide": verdict.decides,
            }
            for verdict in one.verdicts
        },
        "speed": speed,
        "peak_ram_bytes": one.peak_ram_bytes,
        "fallback_ledger": [entry.model_dump() for entry in one.ledger],
        "settings": dict(one.settings),
        "pass": one.passed,
        "refusal": one.refusal,
        "is_reference": is_reference,
    }


def _alone(one: Measured) -> dict[str, Any]:
    found = {"value": _finite(one.value), "interval": _span(one.interval), "samples": one.samples}
    return found if one.ci95 is None else found | {"reference": one.reference, "ci95": _span(one.ci95)}


def _finite(value: float) -> float | None:
    """JSON has no infinity and no word for what is no number."""
    return value if math.isfinite(value) else None


def _span(interval: tuple[float, float] | None) -> list[float | None] | None:
    return None if interval is None else [_finite(end) for end in interval]
