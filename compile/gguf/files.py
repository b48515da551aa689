"""GGUF files on disk: their headers, the tokenizer inside, and llama.cpp's converters that write them.

The converters run as processes of their own with their own ``gguf`` library: what they import cannot
meet what this process has imported. Refuses to go on when one fails (``ToolFailed``).
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compile.errors import ToolFailed, UnsupportedBase
from compile.gguf.mixture import IMPORTANCE_TEXT, Override, designed
from compile.gguf.tokenizer import Vocabulary
from models.gguf import GgufHeader
from models.manifest import Fallback

CONVERTERS, CONVERTERS_VERSION = "converters", "llama-cpp-python 0.3.36"
"""What a step that needs them has among its tools."""
_BASE, _ADAPTER = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
_CHILD = Path(__file__).with_name("convert_child.py")


@dataclass(frozen=True)
class Converters:
    """Where llama.cpp's converters lie (``scripts/fetch_converters`` puts them there)."""

    folder: Path

    @property
    def are_there(self) -> bool:
        """Whether the folder holds both."""
        return all((self.folder / script).is_file() for script in (_BASE, _ADAPTER))

    def base(self, hf_folder: Path, target: Path) -> None:
        """Write the model in ``hf_folder`` as an F32 GGUF. Raises ``ToolFailed``."""
        self._convert(target, _BASE, str(hf_folder), "--outtype", "f32")

    def adapter(self, peft_folder: Path, hf_folder: Path, target: Path) -> None:
        """Write a peft LoRA adapter as an F16 GGUF. Raises ``ToolFailed``."""
        self._convert(target, _ADAPTER, str(peft_folder), "--base", str(hf_folder), "--outtype", "f16")

    def _convert(self, target: Path, script: str, *arguments: str) -> None:
        unfinished = target.with_name(f".{target.name}.unfinished")
        try:
            self._run(script, *arguments, "--outfile", str(unfinished))
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)

    def _run(self, script: str, *arguments: str) -> None:
        path = self.folder / script
        if not path.is_file():
            raise ToolFailed(f"{path}: not there; scripts/fetch_converters puts it there")
        environment = {
            name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR", "LANG")
        }
        environment |= {"PYTHONPATH": str(self.folder / "gguf-py"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, str(_CHILD), str(self.folder), script, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            check=False,
        )
        if done.returncode != 0:
            raise ToolFailed(
                f"{script} failed with {done.returncode}:\n{(done.stderr or done.stdout)[-2000:]}"
            )


def vocabulary(header: GgufHeader) -> Vocabulary:
    """The tokenizer that a header carries. Raises ``UnsupportedBase`` when a part is missing."""

    def text(key: str) -> str:
        value = header.text(key)
        if value is None:
            raise UnsupportedBase(f"the GGUF has no {key}")
        return value

    def number(key: str) -> int:
        value = header.integer(key)
        if value is None:
            raise UnsupportedBase(f"the GGUF has no {key}")
        return value

    def many(key: str) -> tuple[object, ...]:
        value = header.metadata.get(key)
        if not isinstance(value, tuple):
            raise UnsupportedBase(f"the GGUF has no {key}")
        return value

    prefix = "tokenizer.ggml."
    return Vocabulary(
        kind=text(prefix + "model"),
        splitter=text(prefix + "pre"),
        tokens=tuple(str(token) for token in many(prefix + "tokens")),
        token_types=tuple(int(str(kind)) for kind in many(prefix + "token_type")),
        merges=tuple(str(merge) for merge in many(prefix + "merges")),
        bos=number(prefix + "bos_token_id"),
        eos=number(prefix + "eos_token_id"),
        unknown=number(prefix + "unknown_token_id"),
        padding=number(prefix + "padding_token_id"),
        add_bos=header.metadata.get(prefix + "add_bos_token") is True,
        chat_template=text("tokenizer.chat_template"),
        context_length=number(f"{header.architecture}.context_length"),
    )


def precision(header: GgufHeader) -> str:
    """The tensor type that holds most of the bytes."""
    weight: Counter[str] = Counter()
    for tensor in header.tensors:
        weight[tensor.type.name] += tensor.size
    return weight.most_common(1)[0][0] if weight else "none"


def fallbacks(header: GgufHeader, asked: str, overrides: Sequence[Override] = ()) -> tuple[Fallback, ...]:
    """The matrices of a quantized file that have another type than its recipe designed for them.

    A "mostly X" file gives some tensors another type on purpose, and an override is a purpose too: the
    ledger lists what a file of the same recipe would have otherwise if its rows divided into blocks of 256.
    Vectors stay F32 by design. Raises ``BadRecipe`` or ``UnsupportedBase`` where the design is not known.
    """
    wanted = designed(header, asked, IMPORTANCE_TEXT in header.metadata, overrides)
    return tuple(
        Fallback(tensor=tensor.name, asked=wanted[tensor.name].name, got=tensor.type.name)
        for tensor in header.tensors
        if tensor.name in wanted and tensor.type is not wanted[tensor.name]
    )
