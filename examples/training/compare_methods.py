"""Train each method of fine-tuning for the same number of answer tokens and print what it gained.

    python examples/training/compare_methods.py HF_FOLDER [--rows 64] [--epochs 1] [--methods lora,full,...]

HF_FOLDER is a causal model with tokenizer and chat template; ``outpost-compile run`` leaves one in its cache.
The rows are the factory tickets; the measured ones are never trained on. Perplexity is that of the wanted
answers, "right" the answers of which every token was the likeliest given those before it, both with 95 %
intervals, paired with the untrained model on the same rows. Trains on the GPU where CUDA sees one; qlora
needs it, and bitsandbytes.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from compile.data.rows import Row
from compile.evaluate import text_metrics
from compile.evaluate.judge import Measured
from compile.recipe.training import FineTune

TICKETS = Path(__file__).parents[1] / "factory" / "tickets.jsonl"
FIELDS = ("class", "severity", "component")
# What few steps need: the fewer weights, the larger their steps.
RATES = {"lora": 1e-3, "qlora": 1e-3, "full": 1e-4, "prefix": 1e-2, "p-tuning": 3e-3, "prompt": 3e-1}


def read_rows(count: int, seed: int) -> list[Row]:
    rows = []
    lines = TICKETS.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        found = json.loads(line)
        fields = {name: found[name] for name in FIELDS}
        messages = (
            {"role": "system", "content": "Classify the ticket."},
            {"role": "user", "content": found["ticket"]},
        )
        answer = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
        rows.append(Row(number=number, messages=messages, answer=answer, fields=fields))
    random.Random(seed).shuffle(rows)
    return rows[:count]


def peak_of_gpu() -> float:
    """The most MB that tensors took on the GPU since this was asked last; 0 without one."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    peak = torch.cuda.max_memory_allocated() / 1e6
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return peak


def compare(
    folder: Path,
    methods: Sequence[str],
    rows: int,
    measured: int,
    epochs: int,
    first_layer: int,
    threads: int,
) -> list[tuple[str, int, float, float, dict[str, Measured]]]:
    """Per method: trained weights, seconds, peak MB on the GPU, metrics."""
    from safetensors.torch import load_file

    from compile.training.causal import train_causal
    from compile.training.examples import encode_rows, load_template, load_tokenizer
    from compile.training.run import TrainingRun
    from compile.training.scoring import AnswerLosses, answer_losses

    tokenizer = load_tokenizer(folder)
    template, end = load_template(folder)
    chosen = read_rows(rows + rows // 8 + measured, 0)
    examples = encode_rows(chosen, tokenizer, template.prompt, end, FineTune(), FIELDS[:1]).examples
    train, validation = examples[:rows], examples[rows : rows + rows // 8]
    test = examples[rows + rows // 8 :]

    def quiet(done: float, note: str) -> None:
        pass

    def scored(losses: AnswerLosses) -> dict[str, text_metrics.Scored]:
        right = ["y" if one else "n" for one in losses.right]
        return {
            "perplexity": text_metrics.perplexity(losses.losses, losses.tokens),
            "right": text_metrics.accuracy(right, ["y"] * len(right)),
        }

    def beside(ours: dict[str, text_metrics.Scored]) -> dict[str, Measured]:
        return {name: text_metrics.measured(ours[name], before[name], 2000, 0) for name in before}

    before = scored(answer_losses(folder, test, threads, quiet))
    result = [("none", 0, 0.0, 0.0, beside(before))]
    with tempfile.TemporaryDirectory() as place:
        for method in methods:
            target, scratch = Path(place) / method, Path(place) / f"{method}-scratch"
            target.mkdir()
            settings = FineTune(
                method=method,
                epochs=epochs,
                batch=4,
                learning_rate=RATES[method],
                first_layer=first_layer if method in ("lora", "full") else 0,
            )
            began = time.monotonic()
            run = TrainingRun(target, scratch, threads, time.monotonic, quiet)
            train_causal(folder, train, validation, settings, run)
            seconds, peak = time.monotonic() - began, peak_of_gpu()
            name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
            weights = sum(tensor.numel() for tensor in load_file(target / name).values())
            whole = method == "full"
            after = answer_losses(
                target if whole else folder, test, threads, quiet, None if whole else target
            )
            result.append((method, weights, seconds, peak, beside(scored(after))))
            print(f"{method}: {seconds:.0f} s", flush=True)
    tokens = sum(len(example.weights) for example in train)
    print(f"\n{rows} rows x {epochs} epochs, {tokens * epochs} answer tokens; measured on {len(test)} rows\n")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--measured", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--first-layer", type=int, default=0, help="for lora and full")
    parser.add_argument("--methods", default=",".join(name for name in RATES if name != "qlora"))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    rows = compare(
        given.folder,
        given.methods.split(","),
        given.rows,
        given.measured,
        given.epochs,
        given.first_layer,
        given.threads,
    )
    print(
        "| method | weights stored | seconds | GPU peak | perplexity of answers | difference | right | "
        "difference |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, weights, seconds, peak, metrics in rows:
        cells = []
        for metric, form in (("perplexity", ".2f"), ("right", ".1%")):
            one = metrics[metric]
            assert one.interval is not None and one.ci95 is not None
            low, high = (format(end, form) for end in one.interval)
            cells.append(f"{one.value:{form}} ({low} to {high})")
            cells.append("" if name == "none" else " to ".join(format(end, "+" + form) for end in one.ci95))
        print(f"| {name} | {weights:,} | {seconds:.0f} | {peak:.0f} MB | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
