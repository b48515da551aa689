"""How variants come to be: importance, quantization, mixed precision, merging, export to GenAI."""

import json
from collections.abc import Mapping
from pathlib import Path

from compile.errors import BadRecipe, Refused
from compile.gguf.importance import importance
from compile.gguf.quantize import quantize
from compile.line import versions
from compile.lines.language import (
    ADAPTER,
    GENAI,
    GENAI_ADAPTER,
    HF,
    IMPORTANCE,
    MODEL,
    REFERENCE_FILE,
    SETTINGS,
)
from compile.lines.language_sources import Sources
from compile.recipe.language import LanguageVariant, Mixed
from compile.steps import Report, Step
from models.gguf import TensorType
from models.manifest import AdapterSlots

Folders = Mapping[str, Path]

_INTERVAL_BYTES = 60_000_000
"""What bootstrapping the KL of a mixture takes beside the process that measures it."""


class VariantMaker:
    """Makes the steps that end in a variant's files."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._recipe, self._workshop = sources.recipe, sources.workshop

    def importance(self, name: str, root: Step) -> Step:
        """The importance matrix of the calibration text, as ``root`` reads it."""
        settings, text = self._recipe.calibration, self._sources.calibration
        if settings is None or text is None:
            raise BadRecipe("calibration is missing")

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            importance(
                inputs["root"] / REFERENCE_FILE,
                text,
                folder / IMPORTANCE,
                self._workshop.threads,
                settings.tokens,
                report=report,
            )

        forecast = self._sources.forecast("importance")
        return Step(
            name,
            {"text": self._sources.digests["calibration"], "tokens": settings.tokens},
            {"root": root},
            versions("llama-cpp-python") | {"outpost-importance": "1"},
            work,
            seconds=forecast.seconds + settings.tokens * self._sources.base_bytes / 540e6 / 150,
            disk_bytes=forecast.disk_bytes,
            ram_bytes=forecast.ram_bytes,
        )

    def quantized(self, one: LanguageVariant, root: Step, calibrated: Step | None) -> Step:
        """A GGUF of the variant's type, with what is kept higher where it is mixed."""
        after = {"root": root}
        if calibrated is not None and one.importance:
            after["importance"] = calibrated
        mixed, text, calibration = one.mixed, self._sources.calibration, self._recipe.calibration

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            matrix = inputs["importance"] / IMPORTANCE if "importance" in inputs else None
            reference = inputs["root"] / REFERENCE_FILE
            if mixed is None:
                quantize(reference, folder / MODEL, one.type, self._workshop.threads, matrix, report=report)
            elif text is not None and calibration is not None:
                _mix(
                    reference, one.type, mixed, text, calibration.tokens, matrix, self._workshop.threads,
                    folder, scratch, report,
                )  # fmt: skip

        forecast = self._sources.forecast("quantize-gguf", one.type)
        stated: dict[str, object] = {"type": one.type}
        if mixed is not None and calibration is not None:
            stated |= {
                "mixed": mixed.model_dump(mode="json"),
                "text": self._sources.digests["calibration"],
                "tokens": calibration.tokens,
            }
            measured = self._sources.forecast("measure-gguf")
            rounds = {"kind": 9, "layer": self._sources.facts.layers + 2}.get(
                mixed.by, 7 * self._sources.facts.layers
            )
            seconds = rounds * (forecast.seconds + measured.seconds)
            ram = max(forecast.ram_bytes, measured.ram_bytes) + _INTERVAL_BYTES
        else:
            seconds, ram = forecast.seconds, forecast.ram_bytes
        return Step(
            f"quantize-{one.name}",
            stated,
            after,
            versions("llama-cpp-python") | {"outpost-quantize": "2"},
            work,
            seconds=seconds,
            disk_bytes=forecast.disk_bytes,
            ram_bytes=ram,
        )

    def merged(self, root: Step, adapter: Step) -> Step:
        """The reference with the adapter added to its weights."""

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.gguf.survival import merge

            merge(inputs["root"] / REFERENCE_FILE, inputs["adapter"] / ADAPTER, folder / REFERENCE_FILE)

        return Step(
            "merge",
            {},
            {"root": root, "adapter": adapter},
            {"outpost-merge": "1"},
            work,
            seconds=2 + 10 * self._sources.base_bytes / 540e6,
            disk_bytes=self._sources.base_bytes,
            ram_bytes=200_000_000,
        )

    def genai(self, one: LanguageVariant, root: Step) -> Step:
        """A folder for ONNX Runtime GenAI, with slots for adapters where there is one."""
        from compile.onnx.genai import BUILDER_VERSION, GenaiSettings, export

        settings = self._recipe.finetune
        slots = None
        if settings is not None and self._recipe.has_adapter:
            slots = AdapterSlots(max_rank=settings.rank, targets=settings.targets)
        asked = GenaiSettings(one.genai_precision, **one.genai_settings, slots=slots)

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            (folder / GENAI).mkdir()
            export(inputs["root"] / HF, asked, folder / GENAI, scratch, report)

        kind = "export-genai-fp32" if one.type == "genai-fp32" else "export-genai-quantized"
        forecast = self._sources.forecast(kind, one.type)
        return Step(
            f"export-{one.name}",
            asked.as_json(),
            {"root": root},
            {"builder": BUILDER_VERSION, "outpost-genai": "1"},
            work,
            seconds=forecast.seconds,
            disk_bytes=forecast.disk_bytes,
            ram_bytes=forecast.ram_bytes,
        )

    def genai_adapter(self, model: Step, tuned: Step) -> Step:
        """The adapter as GenAI attaches it, for the slots of ``model``."""

        def work(inputs: Folders, folder: Path, scratch: Path, report: Report) -> None:
            from compile.onnx.genai import export_adapter

            export_adapter(inputs["tuned"], inputs["model"] / GENAI, folder / GENAI_ADAPTER)

        return Step(
            "adapter-genai",
            {},
            {"model": model, "tuned": tuned},
            versions("onnxruntime") | {"outpost-genai": "1"},
            work,
            seconds=5,
            disk_bytes=30_000_000,
            ram_bytes=400_000_000,
        )


def _mix(
    reference: Path,
    kind: str,
    mixed: Mixed,
    text: Path,
    tokens: int,
    matrix: Path | None,
    threads: int,
    folder: Path,
    scratch: Path,
    report: Report,
) -> None:
    """Find by measurement which tensors are kept higher, and write the model and what was kept."""
    from compile.gguf.mixture import Override
    from compile.gguf.sensitivity import (
        Heldout,
        Limits,
        measure_mixture,
        measure_reference,
        plan_mixed,
        sensitivity,
    )

    heldout, high = Heldout(text, tokens), TensorType[mixed.higher]
    against = scratch / "reference"
    measure_reference(reference, heldout, against, threads, lambda done, note: report(0.1 * done, note))
    candidates = sensitivity(
        reference,
        against,
        kind,
        high,
        heldout,
        scratch,
        threads,
        mixed.by,
        matrix,
        lambda done, note: report(0.1 + 0.7 * done, note),
    )
    measured = measure_mixture(
        reference, against, kind, high, candidates, heldout, scratch, threads, matrix,
        lambda done, note: report(0.8 + 0.15 * done, note),
    )  # fmt: skip
    said: dict[str, object] = {"kept at": mixed.higher}
    try:
        plan = plan_mixed(candidates, high, Limits(mixed.max_kl, mixed.max_flips), measured)
        overrides, kept = plan.overrides, plan.point.kept
        said["mixtures measured"] = [str(point) for point in plan.curve]
    except Refused as refusal:  # the judge refuses it again, with everything that was measured
        overrides = tuple(Override(name, high) for one in candidates for name in one.tensors)
        kept = tuple(one.name for one in candidates)
        said["mixed precision"] = str(refusal)
    quantize(
        reference, folder / MODEL, kind, threads, matrix, overrides,
        lambda done, note: report(0.95 + 0.05 * done, note),
    )  # fmt: skip
    said["kept higher"] = f"{len(kept)} of {len(candidates)}: {', '.join(kept)}"
    stored = {"settings": said, "overrides": [[one.tensor, one.type.name] for one in overrides]}
    (folder / SETTINGS).write_text(json.dumps(stored, indent=1), encoding="utf-8")
