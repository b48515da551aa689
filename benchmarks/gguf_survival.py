"""What a recipe's adapter still does on quantized bases, kept apart and merged.

Runs the recipe's steps up to the adapter (from the cache where they are there), answers test rows with the
unquantized reference and the adapter, and measures along those answers how far each quantized base is with
the adapter, without it, and with the adapter merged in before quantizing.

    .venv/bin/python -m benchmarks.gguf_survival RECIPE.yaml --work DIR [--kinds Q8_0,Q4_0,IQ4_NL,Q4_1]
"""

import argparse
import json
import os
import time
from pathlib import Path

from compile.gguf.quantize import quantize
from compile.gguf.survival import Mean, advise, difference, merge, nearness, survival, yardstick
from compile.line import Workshop
from compile.lines.language import ADAPTER, REFERENCE_FILE, chat, template_of
from compile.lines.language_line import LanguageLine
from compile.lines.make import make_line
from compile.steps import Cache, in_order

ROOT = Path(__file__).resolve().parent.parent


def quiet(done: float, note: str) -> None:
    pass


def show(one: Mean) -> str:
    return f"{one.value:.4f} ({one.low:.4f} to {one.high:.4f})"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("recipe", type=Path)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("--cache", type=Path, default=ROOT / ".cache" / "outpost")
    options.add_argument("--kinds", default="Q8_0,Q4_0,IQ4_NL,Q4_1")
    options.add_argument("--rows", type=int, default=48)
    options.add_argument("--max-tokens", type=int, default=48)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    work, threads = chosen.work, chosen.threads
    work.mkdir(parents=True, exist_ok=True)
    workshop = Workshop(ROOT / ".cache" / "llama.cpp-0.3.36", threads, time.monotonic, os.environ)
    line, cache = make_line(chosen.recipe, workshop), Cache(chosen.cache)
    if not isinstance(line, LanguageLine) or line.adapter is None or line.data is None:
        raise SystemExit(f"{chosen.recipe} makes no adapter")
    for step in in_order([line.root, line.data, line.adapter]):
        cache.run(step, quiet)
        print(f"{step.name}: done", flush=True)
    reference = cache.folder(line.root) / REFERENCE_FILE
    adapter = cache.folder(line.adapter) / ADAPTER
    from compile.data.rows import read_splits, spread

    rows = spread(read_splits(cache.folder(line.data)).test, chosen.rows)
    template = template_of(cache.folder(line.root))
    prompts = [template.render(chat(line.recipe, row)) for row in rows]
    compare(reference, adapter, prompts, chosen)


def compare(reference: Path, adapter: Path, prompts: list[str], chosen: argparse.Namespace) -> None:
    work, threads = chosen.work, chosen.threads
    against = work / "yardstick"
    yardstick(reference, adapter, prompts, against, threads, chosen.max_tokens, quiet)
    merge(reference, adapter, work / "merged-f32.gguf")
    exact = nearness(work / "merged-f32.gguf", against, work / "merged-f32", threads, quiet)
    tokens = sum(exact.tokens)
    print(f"{len(exact.tokens)} answers, {tokens} tokens; merged F32: KL {show(exact.mean_kl)}", flush=True)
    result = []
    for kind in chosen.kinds.split(","):
        model, merged = work / f"{kind}.gguf", work / f"{kind}-merged.gguf"
        quantize(reference, model, kind, threads)
        found = survival(model, adapter, against, work / f"{kind}-apart", threads, quiet)
        quantize(work / "merged-f32.gguf", merged, kind, threads)
        inside = nearness(merged, against, work / f"{kind}-merged", threads, quiet)
        choice, why = advise(found.adapted, inside)
        print(
            f"{kind:6} apart: KL {show(found.adapted.mean_kl)} flips {show(found.adapted.flip_rate)}\n"
            f"       base alone: KL {show(found.alone.mean_kl)}; survives: {found.survives}\n"
            f"       merged: KL {show(inside.mean_kl)} flips {show(inside.flip_rate)}\n"
            f"       {choice}: {why}",
            flush=True,
        )
        result.append(
            {
                "kind": kind,
                "apart": vars_of(found.adapted.mean_kl),
                "apart_flips": vars_of(found.adapted.flip_rate),
                "alone": vars_of(found.alone.mean_kl),
                "survives": found.survives,
                "merged": vars_of(inside.mean_kl),
                "merged_minus_apart": vars_of(difference(inside, found.adapted)),
                "advice": choice,
            }
        )
        model.unlink()
        merged.unlink()
    if chosen.out:
        stored = {"answers": len(exact.tokens), "tokens": tokens, "kinds": result}
        chosen.out.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def vars_of(one: Mean) -> dict[str, float]:
    return {"value": one.value, "low": one.low, "high": one.high}


if __name__ == "__main__":
    main()
