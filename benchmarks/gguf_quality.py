"""What each GGUF precision costs, with and without an importance matrix, and mixed precision by measurement.

For every type: mean KL to the F32 reference and top-token flips on held-out text, both with 95 % intervals,
through the engine that serves; and the paired difference of the KL with an importance matrix, from the same
tokens. Files are made in ``--work`` and kept there.

    .venv/bin/python -m benchmarks.gguf_quality REFERENCE.gguf --calibration T.txt --heldout H.txt \
        --work DIR [--kinds Q8_0,Q4_K_M] [--mixed Q4_K_M:Q8_0:0.02] [--tokens 4096] [--out FILE.json]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from compile.evaluate import statistics
from compile.evaluate.measure import TOKENS, measure
from compile.gguf.files import fallbacks
from compile.gguf.importance import importance
from compile.gguf.quantize import quantize
from compile.gguf.sensitivity import (
    Heldout,
    Limits,
    measure_mixture,
    measure_reference,
    plan_mixed,
    sensitivity,
)
from models.gguf import TensorType, read_header

BLOCK = 32
ROUNDS = 2000


def mean_with_interval(values: Any) -> dict[str, float]:
    low, high = statistics.mean_interval(values, ROUNDS, 0, BLOCK)
    return {"mean": float(np.mean(values)), "low": low, "high": high}


def show(one: dict[str, float]) -> str:
    return f"{one['mean']:.5f} ({one['low']:.5f} to {one['high']:.5f})"


def measured(model: Path, reference: Path, text: Heldout, threads: int) -> dict[str, Any]:
    folder = model.with_suffix("")
    folder.mkdir(exist_ok=True)
    job = {
        "model": str(model),
        "adapter": None,
        "folder": str(folder),
        "threads": threads,
        "text": {"path": str(text.path), "tokens": text.tokens, "window": text.window},
        "against": str(reference),
    }
    measure(job, lambda done, note: None)
    return dict(np.load(folder / TOKENS))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("reference", type=Path)
    options.add_argument("--calibration", type=Path, required=True)
    options.add_argument("--heldout", type=Path, required=True)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--kinds", default="Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_0,IQ4_NL,IQ4_XS")
    options.add_argument("--mixed", action="append", default=[], metavar="KIND:HIGH:BUDGET")
    options.add_argument("--by", default="layer-kind", choices=("layer-kind", "layer", "kind"))
    options.add_argument("--tokens", type=int, default=4096)
    options.add_argument("--mixed-tokens", type=int, help="fewer tokens for each of the many mixtures")
    options.add_argument("--calibration-tokens", type=int, default=16_384)
    options.add_argument("--window", type=int, default=256)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    work, threads = chosen.work, chosen.threads
    work.mkdir(parents=True, exist_ok=True)
    text = Heldout(chosen.heldout, chosen.tokens, chosen.window)
    began = time.monotonic()
    reference = work / "reference"
    measure_reference(chosen.reference, text, reference, threads, lambda done, note: None)
    top = np.load(reference / TOKENS)["top"]
    matrix = work / "importance.safetensors"
    facts = importance(
        chosen.reference, chosen.calibration, matrix, threads, chosen.calibration_tokens, chosen.window
    )
    print(f"{len(top)} held-out tokens, {facts.tokens} calibration tokens, {time.monotonic() - began:.0f} s")
    rows = []
    for kind in chosen.kinds.split(",") if chosen.kinds else []:
        tokens = {}
        for weighted in (False, True):
            model = work / f"{kind}{'-importance' if weighted else ''}.gguf"
            quantize(chosen.reference, model, kind, threads, matrix if weighted else None)
            tokens[weighted] = one = measured(model, reference, text, threads)
            row = {
                "kind": kind,
                "importance": weighted,
                "bytes": model.stat().st_size,
                "kl": mean_with_interval(one["kl"]),
                "flips": mean_with_interval((one["top"] != top).astype(float)),
                "fallbacks": len(fallbacks(read_header(model), kind)),
            }
            rows.append(row)
            print(
                f"{kind:7} {'importance' if weighted else 'plain':10} {row['bytes'] / 1e6:7.2f} MB  "
                f"KL {show(row['kl'])}  flips {show(row['flips'])}  {row['fallbacks']} fallbacks",
                flush=True,
            )
        gain = mean_with_interval(tokens[True]["kl"].astype(float) - tokens[False]["kl"].astype(float))
        rows[-1]["kl_minus_plain"] = gain
        print(f"{kind:7} importance minus plain: KL {show(gain)}", flush=True)
    mixed = []
    for wish in chosen.mixed:
        kind, high, budget = wish.split(":")
        part = Heldout(text.path, chosen.mixed_tokens or text.tokens, text.window)
        folder = work / f"mixed-{kind}-{high}"
        folder.mkdir(exist_ok=True)
        measure_reference(chosen.reference, part, folder / "reference", threads, lambda done, note: None)
        arguments = (chosen.reference, folder / "reference", kind, TensorType[high])
        found = sensitivity(
            *arguments,
            part,
            folder,
            threads,
            chosen.by,
            matrix,
            lambda done, note: print(f"{done:.0%} {note}"),
        )
        plan = plan_mixed(
            found,
            TensorType[high],
            Limits(kl=float(budget)),
            measure_mixture(*arguments, found, part, folder, threads, matrix),
        )
        mixed.append(
            {
                "asked": wish,
                "kept": plan.point.kept,
                "overrides": len(plan.overrides),
                "curve": [
                    {
                        "kept": len(one.kept),
                        "bytes": one.bytes,
                        "kl": one.kl,
                        "worst_kl": one.worst_kl,
                        "flips": one.flips,
                        "worst_flips": one.worst_flips,
                    }
                    for one in plan.curve
                ],
            }
        )
        for one in plan.curve:
            mark = "  <- chosen" if one is plan.point else ""
            print(
                f"{kind} with {len(one.kept):3} of {len(found)} groups at {high}: {one}{mark}",
                flush=True,
            )
        print("kept:", ", ".join(plan.point.kept))
    if chosen.out:
        result = {"tokens": len(top), "calibration_tokens": facts.tokens, "kinds": rows, "mixed": mixed}
        chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
