"""Exports of one model to GenAI beside the original: size, divergence, flips, speed, memory; an adapter.

    python benchmarks/genai.py HF_FOLDER --out FOLDER [--text FILE] [--adapter-steps N] [--prompt TEXT]

The text is scored in windows through the engine that serves; the original's log-probabilities come from
transformers, in float32. With ``--adapter-steps`` a LoRA of rank 8 is trained on a fixed answer, exported
once and attached to every variant. Prints the table of docs/genai.md.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("q_proj", "v_proj", "o_proj")
VARIANTS = {
    "fp32": {"precision": "fp32"},
    "int8 k_quant": {"precision": "int8"},
    "int8 rtn": {"precision": "int8", "algorithm": "rtn"},
    "int8 rtn, float activations": {"precision": "int8", "algorithm": "rtn", "accuracy_level": 1},
    "int4 rtn": {"precision": "int4", "algorithm": "rtn"},
    "int4 k_quant": {"precision": "int4"},
    "int4 k_quant, head int8": {"precision": "int4", "eight_bits": ("lm_head",)},
    "int4 k_quant, block 16": {"precision": "int4", "block_size": 16},
}
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
TAUGHT = "Check the seal, then call the shift lead."


def reference(hf: Path, windows: list[list[int]], target: Path) -> None:
    """Log-probabilities of the original, float16, a row per position but each window's last; top tokens."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(hf, local_files_only=True)
    rows, tops = [], []
    with torch.no_grad():
        for window in windows:
            logits = model(torch.tensor([window])).logits[0, :-1]
            tops.append(logits.argmax(-1).numpy())
            rows.append(torch.log_softmax(logits, -1).numpy().astype(np.float16))
    np.save(target, np.concatenate(rows))
    np.save(target.with_name("tops.npy"), np.concatenate(tops))


def teach(hf: Path, target: Path, steps: int, questions: list[str]) -> None:
    """A LoRA that answers every question alike: easy to learn, plain to see."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(hf, local_files_only=True)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(hf, local_files_only=True), config)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=2e-3)
    answer = tokenizer.encode(TAUGHT + "<|im_end|>", add_special_tokens=False)
    for step in range(steps):
        question = tokenizer.encode(CHAT.format(questions[step % len(questions)]), add_special_tokens=False)
        ids = torch.tensor([question + answer])
        labels = torch.tensor([[-100] * len(question) + answer])
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(target)
    sys.stderr.write(f"adapter trained, loss {loss.item():.3f}\n")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("hf", type=Path)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--text", type=Path)
    options.add_argument("--tokens", type=int, default=1500)
    options.add_argument("--window", type=int, default=250)
    options.add_argument("--adapter-steps", type=int, default=0)
    options.add_argument("--prompt", default="The pump on line 2 leaks oil. What now?")
    options.add_argument("--only", default="", help="names of variants, joined by ;")
    options.add_argument("--part", choices=("reference", "teach"))
    given = options.parse_args()
    sys.path.insert(0, str(ROOT))
    import numpy as np
    from tokenizers import Tokenizer

    from compile.evaluate.measure import TOKENS, measure
    from compile.onnx.genai import GenaiSettings, export, export_adapter
    from models.manifest import AdapterSlots

    given.out.mkdir(parents=True, exist_ok=True)
    text = given.text or given.hf / "text" / "heldout.txt"
    tokenizer = Tokenizer.from_file(str(given.hf / "tokenizer.json"))
    ids = tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids[: given.tokens]
    windows = [ids[at : at + given.window] for at in range(0, len(ids), given.window)]
    windows = [one for one in windows if len(one) > 1]
    questions = [
        "The belt slips.",
        "A fuse blew twice.",
        "Motor 3 hums.",
        "The display is dark.",
        "It smells burnt.",
    ]
    if given.part == "reference":
        return reference(given.hf, windows, given.out / "logprobs.npy")
    if given.part == "teach":
        return teach(given.hf, given.out / "peft", given.adapter_steps, questions)
    # torch stays out of this process; its peak would be taken for the engine's parent's.
    again = [sys.executable, __file__, str(given.hf), "--out", str(given.out), "--text", str(text)]
    again += ["--tokens", str(given.tokens), "--window", str(given.window)]
    subprocess.run([*again, "--part", "reference"], check=True)
    if given.adapter_steps:
        subprocess.run([*again, "--part", "teach", "--adapter-steps", str(given.adapter_steps)], check=True)
    slots = AdapterSlots(max_rank=16, targets=TARGETS) if given.adapter_steps else None
    adapter = None
    theirs = np.load(given.out / "tops.npy")
    print("| variant | MB | mean KL | p99 KL | flips | ppl | tokens/s | peak MB | answer | with adapter |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    wanted = [name for name in VARIANTS if not given.only or name in given.only.split(";")]
    for name, how in ((name, VARIANTS[name]) for name in wanted):
        target, folder = given.out / name.replace(" ", "-"), given.out / f"measured-{name.replace(' ', '-')}"
        for path in (target, folder, given.out / "scratch"):
            path.mkdir(exist_ok=True)
        export(
            given.hf,
            GenaiSettings(slots=slots, **how),
            target,
            given.out / "scratch",
            lambda done, note: None,
        )
        if slots is not None and adapter is None:
            adapter = given.out / "adapter.onnx_adapter"
            export_adapter(given.out / "peft", target, adapter)
        job = {"model": str(target), "adapter": None, "folder": str(folder), "threads": 1, "max_tokens": 24}
        job |= {"prompts": [CHAT.format(given.prompt)], "speed_repeats": 5, "against": str(given.out)}
        job["text"] = {"path": str(text), "tokens": given.tokens, "window": given.window}
        said = measure(job, lambda done, note: None)
        other = ""
        if adapter is not None:
            quick = {key: job[key] for key in ("model", "folder", "threads", "max_tokens", "prompts")}
            other = measure(quick | {"adapter": str(adapter)}, lambda done, note: None)["answers"][0]
            measure(job, lambda done, note: None)
        found = np.load(folder / TOKENS)
        size = sum(path.stat().st_size for path in target.iterdir()) / 1e6
        numbers = [f"{size:.1f}", f"{found['kl'].mean():.4f}", f"{np.percentile(found['kl'], 99):.3f}"]
        numbers += [f"{(found['top'] != theirs).mean():.1%}", f"{np.exp(found['loss'].mean()):.2f}"]
        numbers += [
            f"{np.median(said['speed']):.0f}" if said["speed"] else "",
            f"{said['peak_ram_bytes'] / 1e6:.0f}",
        ]
        texts = [json.dumps(one, ensure_ascii=False)[:70] for one in (said["answers"][0], other)]
        print(f"| {name} | {' | '.join([*numbers, *texts])} |", flush=True)
    return None


if __name__ == "__main__":
    main()
