"""Projectors with random weights, made at once, and pictures: shapes and rules do not depend on training."""

import io
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

SIDE, PATCH = 32, 8
"""Pixels of a tile, and of a patch of it."""
_WIDTH, _INNER, _HEADS, _LAYERS, _MERGE = 32, 64, 2, 2, 2
TILE = (SIDE // PATCH // _MERGE) ** 2
"""Embeddings of a tile."""

SOUND = 50
"""Embeddings of half a minute of sound."""
_MELS, _STACK = 80, 30
_SOUND_PLACES = 1500
"""Whisper's places in half a minute."""

Kind = Literal["idefics3", "gemma3", "ultravox"]
MARKS = (
    *("<fake_token_around_image>", "<global-img>", "<row_1_col_1>", "<row_1_col_2>", "\n\n"),
    *("<start_of_image>", "<end_of_image>"),
)
"""What idefics3 and gemma3 have around pictures, as control tokens of the text model."""


def write_projector(path: Path, width: int, kind: Kind = "idefics3", seed: int = 0) -> Path:
    """A transformer for embeddings of ``width``.

    idefics3 cuts a picture into tiles and is causal; the places of a gemma3 picture attend to each other;
    ultravox hears.
    """
    from gguf import GGUFWriter

    file = _File(GGUFWriter(path, "clip"), np.random.default_rng(seed))
    file.writer.add_type("mmproj")
    file.writer.add_string("clip.projector_type", kind)
    file.writer.add_bool("clip.use_gelu", True)
    if kind == "ultravox":
        _ear(file, width)
    else:
        _eye(file, width, kind)
    file.writer.write_header_to_file()
    file.writer.write_kv_data_to_file()
    file.writer.write_tensors_to_file()
    file.writer.close()
    return path


@dataclass(frozen=True)
class _File:
    writer: Any
    chance: np.random.Generator

    def tensor(self, name: str, *shape: int, size: float = 1.0, half: bool = False) -> None:
        values = self.chance.standard_normal(shape) * size / np.sqrt(shape[-1])
        self.writer.add_tensor(name, values.astype(np.float16 if half else np.float32))

    def ones(self, name: str, size: int) -> None:
        self.writer.add_tensor(name, np.ones(size, dtype=np.float32))

    def layer_norm(self, name: str) -> None:
        self.ones(f"{name}.weight", _WIDTH)
        self.writer.add_tensor(f"{name}.bias", np.zeros(_WIDTH, dtype=np.float32))

    def sizes(self, kind: str, width: int, **others: int) -> None:
        self.writer.add_bool(f"clip.has_{kind}_encoder", True)
        self.writer.add_float32(f"clip.{kind}.attention.layer_norm_epsilon", 1e-6)
        known = {
            "embedding_length": _WIDTH,
            "feed_forward_length": _INNER,
            "block_count": _LAYERS,
            "attention.head_count": _HEADS,
            "projection_dim": width,
        }
        for key, value in (known | others).items():
            self.writer.add_uint32(f"clip.{kind}.{key}", value)

    def transformer(self, prefix: str, places: int) -> None:
        self.tensor(f"{prefix}.position_embd.weight", places, _WIDTH)
        self.layer_norm(f"{prefix}.post_ln")
        for layer in range(_LAYERS):
            block = f"{prefix}.blk.{layer}"
            self.layer_norm(f"{block}.ln1")
            self.layer_norm(f"{block}.ln2")
            for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
                self.tensor(f"{block}.{name}.weight", _WIDTH, _WIDTH)
                if name != "attn_k":  # as in Whisper
                    self.tensor(f"{block}.{name}.bias", _WIDTH)
            self.tensor(f"{block}.ffn_up.weight", _INNER, _WIDTH)
            self.tensor(f"{block}.ffn_up.bias", _INNER)
            self.tensor(f"{block}.ffn_down.weight", _WIDTH, _INNER)
            self.tensor(f"{block}.ffn_down.bias", _WIDTH)


def _eye(file: _File, width: int, kind: Kind) -> None:
    scale = {"projector.scale_factor": _MERGE, "preproc_image_size": 2 * SIDE}
    file.sizes("vision", width, image_size=SIDE, patch_size=PATCH, **scale)
    file.writer.add_array("clip.vision.image_mean", [0.5] * 3)
    file.writer.add_array("clip.vision.image_std", [0.5] * 3)
    file.tensor("v.patch_embd.weight", _WIDTH, 3, PATCH, PATCH)
    file.tensor("v.patch_embd.bias", _WIDTH)
    file.transformer("v", (SIDE // PATCH) ** 2)
    if kind == "idefics3":
        file.tensor("mm.model.fc.weight", width, _WIDTH * _MERGE**2, size=4.0)
    else:
        file.tensor("mm.input_projection.weight", _WIDTH, width, size=4.0)
        file.ones("mm.soft_emb_norm.weight", _WIDTH)


def _ear(file: _File, width: int) -> None:
    file.sizes("audio", width, num_mel_bins=_MELS, **{"projector.stack_factor": _STACK})
    for number, channels in ((1, _MELS), (2, _WIDTH)):
        file.tensor(f"a.conv1d.{number}.weight", _WIDTH, channels, 3, half=True)
        file.tensor(f"a.conv1d.{number}.bias", _WIDTH, 1)
    file.transformer("a", _SOUND_PLACES)
    file.ones("mm.a.norm_pre.weight", _WIDTH * _STACK)
    file.tensor("mm.a.mlp.1.weight", 2 * _INNER, _WIDTH * _STACK)
    file.ones("mm.a.norm_mid.weight", _INNER)
    file.tensor("mm.a.mlp.2.weight", width, _INNER, size=4.0)


def picture(seed: int, width: int = 2 * SIDE, height: int = SIDE) -> bytes:
    """A PNG of coloured squares; same seed, same bytes."""
    from PIL import Image

    squares = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(squares).resize((width, height), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def sound(tone: float, seconds: float = 1.0) -> bytes:
    """A WAV of one tone, in hertz."""
    rate = 16_000
    wave_form = np.sin(2 * np.pi * tone * np.arange(int(rate * seconds)) / rate)
    file = io.BytesIO()
    with wave.open(file, "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(rate)
        recording.writeframes((wave_form * 20_000).astype("<i2").tobytes())
    return file.getvalue()
