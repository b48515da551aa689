"""Text to token ids and ids to bytes, by the ``tokenizer.json`` that lies beside the model."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.engines.foreign import converted
from models.errors import UnsafeFile


class Tokens:
    """Text to ids and ids to bytes, by the folder's ``tokenizer.json``."""

    def __init__(self, path: Path, described: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        with converted(f"{path.name}: no tokenizer", UnsafeFile):
            # Two of them, for a tokenizer that is told to read special tokens as text says so of itself.
            self._reading, self._literal = (Tokenizer.from_file(str(path)) for _ in range(2))
        for tokenizer in (self._reading, self._literal):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self._literal.encode_special_tokens = True
        added = [one for one in described.get("added_tokens", []) if isinstance(one, dict)]
        self._special = {one["id"]: one["content"] for one in added if one.get("special")}
        self._plain = {one["id"]: one["content"] for one in added if not one.get("special")}
        self.control = tuple(self._special.values())
        begun = self._reading.encode("a", add_special_tokens=True).ids
        plain = self._reading.encode("a", add_special_tokens=False).ids
        self._bos = begun[: begun.index(plain[0])] if plain and plain[0] in begun else []
        self.bos = "".join(self.text(token) for token in self._bos)
        self._byte_level = _is_byte_level(described.get("decoder"), path.name)

    def encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Ids. ``add_special``: BOS/EOS as the model asks; ``parse_special``: read special tokens."""
        tokenizer = self._reading if parse_special else self._literal
        # A lone surrogate is no text; the library would refuse the whole string.
        sound = text.encode("utf-8", "replace").decode("utf-8")
        ids: list[int] = tokenizer.encode(sound, add_special_tokens=add_special).ids
        return ids

    def prompt(self, text: str, literal: Sequence[tuple[int, int]]) -> list[int]:
        """Ids of a prompt; ``literal`` as in ``GenerateRequest``."""
        if not literal:
            tokens = self.encode(text, add_special=True, parse_special=True)
        else:
            # The cuts lie where a control token ends or begins, where nothing is ever joined.
            tokens, start = list(self._bos), 0
            for first, last in literal:
                tokens += self.encode(text[start:first], add_special=False, parse_special=True)
                tokens += self.encode(text[first:last], add_special=False, parse_special=False)
                start = last
            tokens += self.encode(text[start:], add_special=False, parse_special=True)
        # A chat template that writes BOS itself must not get a second one.
        size = len(self._bos)
        return tokens[size:] if size and tokens[: 2 * size] == self._bos * 2 else tokens

    def text(self, token: int) -> str:
        """A token as the tokenizer spells it."""
        return self._reading.id_to_token(token) or ""

    def piece(self, token: int, first: bool) -> bytes:
        """The bytes that a token adds to an answer; none for a control token."""
        if token in self._special:
            return b""
        if token in self._plain:
            return str(self._plain[token]).encode()
        text = self.text(token)
        if self._byte_level:
            return bytes(BYTES[character] for character in text if character in BYTES)
        if byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", text):
            return bytes([int(byte[1], 16)])
        text = text.replace("▁", " ")
        return (text.removeprefix(" ") if first else text).encode()


def _is_byte_level(decoder: Any, name: str) -> bool:
    """Whether tokens are spelt in the alphabet of bytes; else they are SentencePiece's, with ``▁``."""
    parts = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
    kinds = {part.get("type") for part in parts if isinstance(part, dict)}
    if "ByteLevel" in kinds:
        return True
    if kinds & {"ByteFallback", "Metaspace"}:
        return False
    raise UnsafeFile(f"{name}: a decoder of {sorted(map(str, kinds))} is not known")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's: printable bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


BYTES = _byte_alphabet()
"""What each character of the alphabet stands for."""
