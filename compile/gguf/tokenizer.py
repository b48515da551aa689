"""A byte-level BPE tokenizer rebuilt from the vocabulary and the merges that a GGUF carries.

``transformers`` reads such a file as a SentencePiece model and gets other ids; this module builds the
tokenizer from what llama.cpp itself reads, and ``compile.evaluate.tokens`` proves the ids equal. It refuses a
vocabulary of another kind, or a pre-tokenizer whose splitting rule it does not know.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from compile.errors import UnsupportedBase

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF says of its tokenizer (``tokenizer.ggml.*``)."""

    kind: str
    splitter: str
    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    merges: tuple[str, ...]
    bos: int
    eos: int
    unknown: int
    padding: int
    add_bos: bool
    chat_template: str
    context_length: int


def write_tokenizer(vocabulary: Vocabulary, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``.

    Raises ``UnsupportedBase`` when the GGUF's tokenizer is not one that is known to be rebuilt exactly.
    """
    if vocabulary.kind != "gpt2" or vocabulary.splitter != "smollm":
        raise UnsupportedBase(
            f"a tokenizer of kind {vocabulary.kind!r} with splitter {vocabulary.splitter!r} cannot be "
            "rebuilt; known: kind 'gpt2' with splitter 'smollm'"
        )
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pairs = [tuple(merge.split(" ", 1)) for merge in vocabulary.merges]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(vocabulary.tokens)}, merges=pairs)
    )
    # SmolLM splits every digit off first, then splits as GPT-2 does.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        token
        for token, kind in zip(vocabulary.tokens, vocabulary.token_types, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "add_bos_token": vocabulary.add_bos,
        "bos_token": vocabulary.tokens[vocabulary.bos],
        "eos_token": vocabulary.tokens[vocabulary.eos],
        "unk_token": vocabulary.tokens[vocabulary.unknown],
        "pad_token": vocabulary.tokens[vocabulary.padding],
        "chat_template": vocabulary.chat_template,
        "clean_up_tokenization_spaces": False,
        "model_max_length": vocabulary.context_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
