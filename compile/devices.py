"""What variants will be on devices: forecasts for plan and report, corrected by what devices measured.

Owns the file of figures that the hub writes, and the words of a forecast. Refuses to forecast: that is
``models.forecast``.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compile.errors import BadFigures
from compile.forecast import CONTEXT
from models.errors import ModelsError
from models.forecast import OVERHEADS, Corrections, Forecast, Interval, Measured, Workload, forecast
from models.machine import this_machine
from models.manifest import Manifest
from models.profiles import PROFILES
from models.workloads import workload_of


def on_devices(
    load: Workload, profiles: Iterable[str], threads: int, corrections: Corrections
) -> tuple[Forecast, ...]:
    """A variant on the profiles that its recipe names and on those that were measured; on this machine's when
    there are none. Processors that were not measured have ``threads`` cores."""
    names = sorted({*profiles, *corrections.cores}) or [this_machine().profile or ""]
    return tuple(
        forecast(PROFILES[name], load, corrections.cores.get(name, threads), corrections)
        for name in names
        if name in PROFILES and PROFILES[name].can_run(load.format, load.precision)
    )


def workload_of_release(folder: Path, manifest: Manifest) -> Workload:
    """What a model's release asks of a device, from headers. Raises ``UnsafeFile``."""
    weights = [file.path for file in manifest.files if file.path.endswith((".gguf", ".onnx"))]
    place = folder / weights[0] if len(weights) == 1 and manifest.format != "onnx-genai" else folder
    return replace(workload_of(place, manifest.precision, CONTEXT), format=manifest.format)


def sentence(told: Forecast) -> tuple[str, str, str]:
    """Memory, speed, and where both come from, for people."""
    memory = f"{_span(told.memory, 1e6)} MB" + (" DOES NOT FIT" if told.fits is False else "")
    if told.decode is not None and told.prefill is not None:
        speed = f"{_span(told.decode)} tokens/s, {_span(told.prefill)} of prompt"
    elif told.items is not None:
        speed = f"{_span(told.items)} inputs/s"
    else:
        return memory, "speed unknown until a device has measured it", told.memory_basis
    same = told.speed_basis == told.memory_basis
    basis = told.memory_basis if same else f"memory {told.memory_basis}, speed {told.speed_basis}"
    return memory, speed, basis


def _span(told: Interval, unit: float = 1.0) -> str:
    low, value, high = (
        f"{end / unit:.0f}" if end >= 100 * unit else f"{end / unit:.3g}"
        for end in (told.low, told.value, told.high)
    )
    return f"{value} ({low} to {high})"


def read_figures(path: Path) -> Corrections:
    """What devices measured, as ``outpost-hub release figures --json`` writes it. Raises ``BadFigures``.

    Adapters are left out, which have their base's sizes, and so are devices of no profile and formats that no
    forecast is for.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))["figures"]
        return Corrections(
            _measured(one)
            for one in told
            if one["kind"] == "model" and one["profile"] in PROFILES and one["format"] in OVERHEADS
        )
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, ModelsError) as error:
        raise BadFigures(f"{path}: not figures as outpost-hub writes them: {error!r:.200}") from error


def _measured(told: Mapping[str, Any]) -> Measured:
    load = Workload(
        told["format"],
        told["precision"].removeprefix("genai-").lower(),
        parameters=told["parameters"],
        weight_bytes=told["weight_bytes"],
        kv_bytes=told["kv_bytes"],
        context_tokens=told["context_tokens"],
        sequences=told["sequences"],
        computes=told["computes"],
    )
    return Measured(
        told["device"],
        told["profile"],
        told["threads"],
        load,
        decode=told["decode_per_second"],
        prefill=told["prefill_per_second"],
        items=told["items_per_second"],
        memory=told["peak_ram_bytes"],
    )
