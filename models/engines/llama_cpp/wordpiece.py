"""BERT's tokenizer, from the vocabulary in a GGUF file.

llama.cpp has one too, which reads some scripts as other tokens than the model has learned: it drops vowel
signs of Hindi as if they were accents, and leaves Korean syllables whole. So texts are read as BERT's own
tokenizer reads them. ``tokenizers`` is imported when one is made.

Algorithm: Devlin et al., "BERT" (2018), as ``BertNormalizer`` and ``WordPiece`` of ``tokenizers`` have it.
"""

from models.engines.foreign import converted
from models.errors import UnsafeFile
from models.gguf import GgufHeader

_CONTROL = 3
"""llama.cpp's number for tokens that are no text."""
_WORD = "\u2581"
"""What llama.cpp's converter writes before a token that begins a word, in place of ``##`` before others."""
_LONGEST_WORD = 100
"""Characters; BERT reads a longer word as one unknown token."""


class WordPiece:
    """Reads text. Raises ``UnsafeFile`` for a vocabulary that is none."""

    def __init__(self, header: GgufHeader) -> None:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        def number(name: str) -> int:
            return _token(header, name, len(names))

        def setting(name: str, otherwise: bool) -> bool:
            value = header.metadata.get(f"tokenizer.ggml.normalizer.{name}", otherwise)
            return value is True

        kinds = header.metadata.get("tokenizer.ggml.token_type")
        tokens = header.metadata.get("tokenizer.ggml.tokens")
        if not isinstance(kinds, tuple) or not isinstance(tokens, tuple) or len(kinds) != len(tokens):
            raise UnsafeFile("its tokenizer has no tokens, or not a type for each")
        control = [kind == _CONTROL for kind in kinds]
        names = [_named(str(text), is_control) for text, is_control in zip(tokens, control, strict=True)]
        self._first, self._last = number("bos"), number("seperator")  # so it is spelled in every file
        unknown = names[number("unknown")]
        lowercase = setting("lowercase", True)
        vocabulary = {name: token for token, name in enumerate(names)}
        with converted("its tokenizer cannot be made", UnsafeFile):
            made = Tokenizer(
                models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=_LONGEST_WORD)
            )
            made.normalizer = normalizers.BertNormalizer(
                lowercase=lowercase, strip_accents=setting("strip_accents", lowercase)
            )
            made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            made.add_special_tokens([name for name, is_one in zip(names, control, strict=True) if is_one])
        self._tokenizer = made

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """See ``Vocabulary.tokenize``. Raises ``EngineError``."""
        self._tokenizer.encode_special_tokens = not parse_special
        with converted("a text cannot be tokenized"):
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self._first, *ids, self._last] if add_special else ids


def _named(text: str, control: bool) -> str:
    """A token as BERT's vocabulary has it."""
    if control:
        return text
    return text[1:] if text.startswith(_WORD) else f"##{text}"


def _token(header: GgufHeader, name: str, size: int) -> int:
    key = f"tokenizer.ggml.{name}_token_id"
    value = header.integer(key)
    if value is None or not 0 <= value < size:
        raise UnsafeFile(f"its tokenizer has no {key}")
    return value
