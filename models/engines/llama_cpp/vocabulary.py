"""A loaded model's tokens: text to ids and back."""

import ctypes
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from models.errors import EngineError, UnsupportedRequest


class Vocabulary:
    """Of one loaded model, whose lifetime bounds this one's."""

    def __init__(self, lib: Any, model: Any) -> None:
        self._lib = lib
        self.handle = lib.llama_model_get_vocab(model)
        self.size: int = lib.llama_vocab_n_tokens(self.handle)
        self._pieces: dict[int, bytes] = {}

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids. ``add_special``: BOS/EOS as the model asks; ``parse_special``: read special tokens."""
        raw = text.encode("utf-8", "replace")
        size = len(raw) + 8
        while True:
            tokens = (ctypes.c_int32 * size)()
            count = self._lib.llama_tokenize(
                self.handle, raw, len(raw), tokens, size, add_special, parse_special
            )
            if count >= 0:
                return list(tokens[:count])
            if -count <= size:
                raise EngineError("the text is too long to be tokenized")
            size = -count

    def prompt_tokens(
        self,
        prompt: str | Sequence[int],
        literal: Sequence[tuple[int, int]] = (),
        inserted: Sequence[tuple[int, Sequence[int]]] = (),
    ) -> list[int]:
        """Token ids of a prompt as a request reads it; ``literal`` as in ``GenerateRequest``.

        There, tokens that the file declares as user-defined are still read: they are vocabulary, not control.
        ``inserted``: ids that stand before a character of a text, in order.
        Raises ``UnsupportedRequest`` for a token id that is none.
        """
        if not isinstance(prompt, str):
            self.check(prompt)
            return list(prompt)
        lib = self._lib
        bos, adds_bos = lib.llama_vocab_bos(self.handle), lib.llama_vocab_get_add_bos(self.handle)
        if not literal and not inserted:
            tokens = self.tokenize(prompt, add_special=True, parse_special=True)
        else:
            # The cuts lie where a control token or a picture begins or ends, where nothing is ever joined.
            begins, ends = {first for first, _ in literal}, {last for _, last in literal}
            ids_at = defaultdict[int, list[int]](list)
            for at, ids in inserted:
                ids_at[at] += ids
            cuts = sorted({0, len(prompt), *begins, *ends, *ids_at})
            tokens, inside = [bos] if adds_bos else [], False
            for first, last in zip(cuts, (*cuts[1:], len(prompt)), strict=True):
                tokens += ids_at.get(first, ())
                inside = first in begins or (inside and first not in ends)
                if first < last:
                    tokens += self.tokenize(prompt[first:last], add_special=False, parse_special=not inside)
            tokens += [lib.llama_vocab_eos(self.handle)] if lib.llama_vocab_get_add_eos(self.handle) else []
        # A chat template that writes BOS itself must not get a second one.
        return tokens[1:] if adds_bos and tokens[:2] == [bos, bos] else tokens

    def surely_exceeds(self, prompt: str | Sequence[int], most: int) -> bool:
        """Whether a prompt has more than ``most`` tokens, told by its length alone: reading it takes long."""
        if not isinstance(prompt, str):
            return len(prompt) > most
        if self._longest_name is None:
            return False
        text = prompt.encode("utf-8", "replace")
        size = sum(map(len, text.split())) if self._takes_space else len(text)
        return size > most * self._longest_name

    @cached_property
    def _takes_space(self) -> bool:
        """Whether white space beside some token is in no token; every other byte of a text is in one."""
        lib = self._lib
        kinds = lib.LLAMA_TOKEN_ATTR_LSTRIP | lib.LLAMA_TOKEN_ATTR_RSTRIP
        return any(lib.llama_vocab_get_attr(self.handle, token) & kinds for token in range(self.size))

    @cached_property
    def _longest_name(self) -> int | None:
        """Bytes; ``None`` where text is changed before it is cut into tokens."""
        lib, longest = self._lib, 0
        if lib.llama_vocab_type(self.handle) not in (lib.LLAMA_VOCAB_TYPE_BPE, lib.LLAMA_VOCAB_TYPE_SPM):
            return None
        for token in range(self.size):
            # What the file writes is never shorter than what it stands for, and far sooner read.
            if len(lib.llama_vocab_get_text(self.handle, token)) > longest:
                longest = max(longest, len(self.name(token)))
        return longest

    def check(self, tokens: Sequence[int], option: str | None = None) -> None:
        """Raise ``UnsupportedRequest``, about ``option``, for a token id that is none."""
        if not all(0 <= token < self.size for token in tokens):
            raise UnsupportedRequest(f"token ids are below {self.size} and not negative", option)

    def piece(self, token: int) -> bytes:
        """What a token adds to an answer; nothing for a control token."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._read_piece(token, special=False)
        return known

    def name(self, token: int) -> bytes:
        """A token's own text, also of a control token."""
        return self.piece(token) or self._read_piece(token, special=True)

    def is_end(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return bool(self._lib.llama_vocab_is_eog(self.handle, token))

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """All tokens that end an answer."""
        return tuple(token for token in range(self.size) if self.is_end(token))

    @cached_property
    def suppressed(self) -> tuple[int, ...]:
        """Tokens that the model's file says are never to be chosen."""
        count = ctypes.c_int32()
        tokens = self._lib.llama_vocab_get_suppress_tokens(self.handle, ctypes.byref(count))
        return tuple(tokens[: count.value]) if count.value else ()

    def spell(self, text: bytes) -> list[int] | None:
        """Tokens that write just these bytes, the longest first; ``None`` when there are none."""
        tokens, start = [], 0
        while start < len(text):
            ends = range(min(len(text), start + self._longest), start, -1)
            end = next((end for end in ends if text[start:end] in self._by_piece), None)
            if end is None:
                return None
            tokens.append(self._by_piece[text[start:end]])
            start = end
        return tokens

    def text(self, token: int) -> str:
        """A token as the file writes it; empty for -1, which means none."""
        if token < 0:
            return ""
        text: bytes = self._lib.llama_vocab_get_text(self.handle, token)
        return text.decode("utf-8", "replace")

    def controls(self) -> tuple[str, ...]:
        """What llama.cpp reads as a token only when it is told to parse special ones."""
        lib = self._lib
        kinds = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        return tuple(
            self.text(token)
            for token in range(self.size)
            if lib.llama_vocab_get_attr(self.handle, token) & kinds
        )

    @cached_property
    def _by_piece(self) -> dict[bytes, int]:
        pieces = {self.piece(token): token for token in range(self.size)}
        pieces.pop(b"", None)
        return pieces

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._by_piece))

    def _read_piece(self, token: int, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._lib.llama_token_to_piece(self.handle, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count
