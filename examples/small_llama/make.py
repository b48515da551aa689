"""A small Llama that was never quantized and whose rows divide by 256, made here in minutes.

Trains a byte-level BPE tokenizer and a causal LM on the news text of the package ``gensim``, every tenth
article held out, and writes a Hugging Face folder in float32 (safetensors, tokenizer, ChatML template) with
``text/train.txt``, ``text/heldout.txt`` and ``made.json`` (sizes, losses, seconds). The same seed, sizes and
number of threads give the same bytes. ``--untrained`` writes random weights at once, for what depends only
on sizes::

    python examples/small_llama/make.py --out .cache/small-llama
    python examples/small_llama/make.py --out .cache/llama-24 --layers 24 --untrained

The model is a subject for compilers: it knows the news of one year by heart and little else.
"""

import argparse
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

END, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
_HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class Sizes:
    """What the model is. Rows of every matrix have ``hidden`` or ``intermediate`` or heads x 64 numbers."""

    layers: int = 4
    hidden: int = 256
    intermediate: int = 768
    heads: int = 4
    kv_heads: int = 4
    vocabulary: int = 2048
    context: int = 512


@dataclass(frozen=True)
class Training:
    """How it is trained."""

    epochs: int = 6
    window: int = 128  # tokens that are read together
    batch: int = 4
    learning_rate: float = 1.5e-3
    warmup: float = 0.05  # part of the steps in which the rate rises
    weight_decay: float = 0.1
    seed: int = 0
    threads: int = 1


def news() -> tuple[list[str], list[str]]:
    """The articles that are trained on, and those held out; what tells the same news twice is dropped."""
    spec = importlib.util.find_spec("gensim")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("gensim, whose test data hold the text, is not installed: pip install 'outpost[demo]'")
    path = Path(next(iter(spec.submodule_search_locations))) / "test" / "test_data" / "lee_background.cor"
    articles = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    articles = list(dict.fromkeys(articles))
    held = articles[::_HELD_OUT_EVERY]
    seen = {phrase for article in held for phrase in _phrases(article)}
    train = [one for number, one in enumerate(articles) if number % _HELD_OUT_EVERY]
    return [one for one in train if 5 * len(seen & _phrases(one)) < len(_phrases(one))], held


def _phrases(article: str) -> set[tuple[str, ...]]:
    words = article.lower().split()
    return set(zip(*(words[at:] for at in range(5)), strict=False))


def write_tokenizer(articles: list[str], sizes: Sizes, folder: Path) -> Any:
    """Train byte-level BPE with SmolLM's splitting rule, which llama.cpp knows by the name ``smollm``."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=sizes.vocabulary,
        special_tokens=[
            AddedToken(token, special=True, normalized=False) for token in (END, START_OF_TURN, END_OF_TURN)
        ],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(articles, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "add_bos_token": False,
        "bos_token": START_OF_TURN,
        "eos_token": END_OF_TURN,
        "unk_token": END,
        "pad_token": END_OF_TURN,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": sizes.context,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return tokenizer


def new_model(sizes: Sizes, tokenizer: Any, seed: int) -> Any:
    """A Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.hidden,
            intermediate_size=sizes.intermediate,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.kv_heads,
            max_position_embeddings=sizes.context,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.token_to_id(START_OF_TURN),
            eos_token_id=tokenizer.token_to_id(END_OF_TURN),
            pad_token_id=tokenizer.token_to_id(END_OF_TURN),
        )
    )


def stream(articles: list[str], tokenizer: Any) -> list[int]:
    """The articles as one stream of ids, an end token after each."""
    end = tokenizer.token_to_id(END)
    return [token for article in articles for token in (*tokenizer.encode(article).ids, end)]


def train(
    model: Any, ids: list[int], held: list[int], settings: Training, say: Callable[[float, str], None]
) -> list[dict[str, float]]:
    """AdamW, linear warm-up and cosine; the losses of each epoch in nats per token."""
    import torch

    torch.manual_seed(settings.seed)
    order = torch.Generator().manual_seed(settings.seed)
    decayed = [one for one in model.parameters() if one.dim() > 1]
    plain = [one for one in model.parameters() if one.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
    )
    text = torch.tensor(ids)
    per_epoch = len(ids) // (settings.window * settings.batch)
    total, step, curve = per_epoch * settings.epochs, 0, []
    for epoch in range(settings.epochs):
        model.train()
        # Windows start elsewhere in every epoch, so that no token always stands at an edge.
        start = int(torch.randint(settings.window, (1,), generator=order))
        windows = text[start:].split(settings.window)
        windows = torch.stack([one for one in windows if len(one) == settings.window])
        shuffled = windows[torch.randperm(len(windows), generator=order)]
        losses = []
        for batch in shuffled.split(settings.batch)[:per_epoch]:
            rising = (step + 1) / max(1.0, settings.warmup * total)
            falling = 0.5 * (1 + math.cos(math.pi * step / total))
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * min(rising, max(falling, 0.05))
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            step += 1
            say(step / total, f"epoch {epoch + 1} of {settings.epochs}, loss {losses[-1]:.2f}")
        mean = sum(losses) / max(1, len(losses))
        curve.append(
            {"train_loss": round(mean, 4), "heldout_loss": round(loss_on(model, held, settings.window), 4)}
        )
    return curve


def loss_on(model: Any, ids: list[int], window: int) -> float:
    """Mean loss per token, in nats."""
    import torch

    model.eval()
    loss, count = 0.0, 0
    with torch.no_grad():
        for part in torch.tensor(ids).split(window):
            if len(part) > 1:
                loss += model(input_ids=part[None], labels=part[None]).loss.item() * (len(part) - 1)
                count += len(part) - 1
    return loss / count


def make(
    folder: Path,
    sizes: Sizes = Sizes(),
    settings: Training | None = Training(),
    say: Callable[[float, str], None] = lambda done, note: None,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Write the model into ``folder``, which may exist; random weights when ``settings`` is None."""
    import torch

    began = now()
    folder.mkdir(parents=True, exist_ok=True)
    articles, held = news()
    (folder / "text").mkdir(exist_ok=True)
    (folder / "text" / "train.txt").write_text("\n".join(articles) + "\n", encoding="utf-8")
    (folder / "text" / "heldout.txt").write_text("\n".join(held) + "\n", encoding="utf-8")
    tokenizer = write_tokenizer(articles, sizes, folder)
    model = new_model(sizes, tokenizer, settings.seed if settings else 0)
    made: dict[str, Any] = {
        "sizes": asdict(sizes),
        "parameters": sum(one.numel() for one in model.parameters()),
        "training": None,
    }
    if settings is not None:
        torch.set_num_threads(settings.threads)
        ids, unseen = stream(articles, tokenizer), stream(held, tokenizer)
        made |= {
            "training": asdict(settings),
            "tokens": {"train": len(ids), "heldout": len(unseen)},
            "curve": train(model, ids, unseen, settings, say),
        }
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "made.json").write_text(
        json.dumps(made | {"seconds": round(now() - began, 1)}, indent=1), encoding="utf-8"
    )
    return made


def main() -> None:
    """Read the command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--untrained", action="store_true", help="random weights, at once")
    for kind in (Sizes, Training):
        for name, default in asdict(kind()).items():
            options.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    chosen = vars(options.parse_args())
    sizes = Sizes(**{name: chosen[name] for name in asdict(Sizes())})
    settings = Training(**{name: chosen[name] for name in asdict(Training())})
    began, shown = time.monotonic(), 0.0

    def say(done: float, note: str) -> None:
        nonlocal shown
        spent = time.monotonic() - began
        if spent - shown >= 5 or done >= 1:
            shown = spent
            print(f"{done:4.0%}, {spent / done - spent:.0f} s left: {note}", file=sys.stderr, flush=True)

    made = make(chosen["out"], sizes, None if chosen["untrained"] else settings, say)
    last = made["curve"][-1] if made["training"] else {}
    heldout = f", held-out perplexity {math.exp(last['heldout_loss']):.0f}" if last else ", untrained"
    print(f"{chosen['out']}: {made['parameters'] / 1e6:.1f} million parameters{heldout}")


if __name__ == "__main__":
    main()
