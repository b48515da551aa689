"""A small vision transformer, trained here in minutes on the first half of scikit-learn's digits.

Writes a Hugging Face folder (``OUT/model``: ViTForImageClassification in float32, safetensors, its image
processor), the other half as ``OUT/heldout/<digit>/*.png``, which it has never seen, and ``OUT/made.json``
(sizes, losses, accuracy, seconds). The same seed, sizes and number of threads give the same weights::

    python examples/vision/make_vit.py --out .cache/vit-digits

The model is a subject for compilers: no vision transformer ships in a Python package.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digits import write_digits

if TYPE_CHECKING:
    import torch

TRAINED_ON = 900
"""The first so many of 1,797 digits. They come writer by writer, so the others are mostly of other hands."""


@dataclass(frozen=True)
class Sizes:
    """What the model is; ``image`` and ``patch`` are the sides of squares in pixels."""

    layers: int = 6
    hidden: int = 128
    intermediate: int = 512
    heads: int = 4
    image: int = 48
    patch: int = 8


@dataclass(frozen=True)
class Training:
    """How it is trained."""

    epochs: int = 30
    batch: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.1  # part of the steps in which the rate rises
    weight_decay: float = 0.05
    seed: int = 0
    threads: int = 1


def new_model(sizes: Sizes, seed: int) -> Any:
    """A ViT with random weights and ten labels."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    labels = {digit: str(digit) for digit in range(10)}
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=sizes.hidden,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.intermediate,
            image_size=sizes.image,
            patch_size=sizes.patch,
            id2label=labels,
            label2id={name: digit for digit, name in labels.items()},
        )
    )


def processor_of(sizes: Sizes) -> Any:
    """How pictures become the model's input: stretched, bicubic, values in [-1, 1]."""
    from transformers import ViTImageProcessor

    return ViTImageProcessor(
        size={"height": sizes.image, "width": sizes.image},
        resample=3,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def read(folder: Path, processor: Any) -> "tuple[torch.Tensor, torch.Tensor]":
    """Pixels [n, 3, side, side] and labels [n] of ``folder/<digit>/*.png``."""
    import torch
    from PIL import Image

    files = sorted(folder.glob("*/*.png"))
    pictures = [Image.open(file).convert("RGB") for file in files]
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    return pixels, torch.tensor([int(file.parent.name) for file in files])


def moved(pixels: "torch.Tensor", chance: "torch.Generator") -> "torch.Tensor":
    """Each picture turned by up to 10 degrees, scaled by up to a tenth and shifted by up to a tenth."""
    import torch
    from torch.nn import functional

    count = len(pixels)
    turn, scale, right, down = (
        torch.empty(count).uniform_(-1, 1, generator=chance) * most
        for most in (math.radians(10), 0.1, 0.2, 0.2)  # a grid is 2 wide
    )
    along, across = (1 + scale) * turn.cos(), (1 + scale) * turn.sin()
    rows = torch.stack([along, -across, right, across, along, down], dim=1).reshape(count, 2, 3)
    grid = functional.affine_grid(rows, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def train(
    model: Any,
    pixels: "torch.Tensor",
    labels: "torch.Tensor",
    settings: Training,
    say: Callable[[float, str], None],
) -> list[float]:
    """AdamW, linear warm-up and cosine; the mean loss of each epoch."""
    import torch

    chance = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    total = settings.epochs * math.ceil(len(pixels) / settings.batch)
    step, curve = 0, []
    model.train()
    for epoch in range(settings.epochs):
        losses = []
        for batch in torch.randperm(len(pixels), generator=chance).split(settings.batch):
            rising = (step + 1) / max(1.0, settings.warmup * total)
            falling = 0.5 * (1 + math.cos(math.pi * step / total))
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * min(rising, falling)
            loss = model(pixel_values=moved(pixels[batch], chance), labels=labels[batch]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            step += 1
            say(step / total, f"epoch {epoch + 1} of {settings.epochs}, loss {losses[-1]:.2f}")
        curve.append(round(sum(losses) / len(losses), 4))
    return curve


def accuracy(model: Any, pixels: "torch.Tensor", labels: "torch.Tensor") -> float:
    """The share of pictures whose label it says."""
    import torch

    model.eval()
    with torch.inference_mode():
        said = torch.cat([model(pixel_values=part).logits.argmax(dim=1) for part in pixels.split(64)])
    return float((said == labels).double().mean())


def make(out: Path, sizes: Sizes, settings: Training, say: Callable[[float, str], None]) -> dict[str, Any]:
    """Write model and pictures into ``out``, which may exist."""
    import torch

    began = time.monotonic()
    torch.set_num_threads(settings.threads)
    seen, unseen = out / "train", out / "heldout"
    write_digits(seen, stop=TRAINED_ON)
    write_digits(unseen, start=TRAINED_ON)
    model, processor = new_model(sizes, settings.seed), processor_of(sizes)
    curve = train(model, *read(seen, processor), settings, say)
    made = {
        "sizes": asdict(sizes),
        "parameters": sum(one.numel() for one in model.parameters()),
        "training": asdict(settings),
        "losses": curve,
        "heldout_accuracy": accuracy(model, *read(unseen, processor)),
        "seconds": round(time.monotonic() - began, 1),
    }
    for part in (model, processor):
        part.save_pretrained(out / "model")
    (out / "made.json").write_text(json.dumps(made, indent=1), encoding="utf-8")
    return made


def main() -> None:
    """Read the command line."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--out", type=Path, required=True)
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

    made = make(chosen["out"], sizes, settings, say)
    print(
        f"{chosen['out']}: {made['parameters'] / 1e6:.1f} million parameters, "
        f"{made['heldout_accuracy']:.1%} of the digits held out"
    )


if __name__ == "__main__":
    main()
