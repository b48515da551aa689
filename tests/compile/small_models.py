"""Models of a few thousand weights in Hugging Face folders, with tokenizers of words."""

import json
import random
from pathlib import Path

import torch

from compile.training.examples import Example

WORDS = (
    "pump",
    "belt",
    "valve",
    "sensor",
    "leaks",
    "slips",
    "sticks",
    "drifts",
    "the",
    "on",
    "line",
    "again",
)


def tokenizer(
    folder: Path, words: tuple[str, ...] = WORDS, special: tuple[str, ...] = ("[PAD]", "[UNK]")
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: at for at, word in enumerate((*special, "[CLS]", "[SEP]", *words))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def llama(folder: Path, seed: int = 0, layers: int = 4, heads: int = 4, kv_heads: int = 2, **more) -> Path:
    tokenizer(folder)
    shape = {"layers": layers, "heads": heads, "kv_heads": kv_heads, "vocab_size": len(WORDS) + 4}
    return bare_llama(folder, seed, **shape, max_position_embeddings=64, tie_word_embeddings=True, **more)


def bare_llama(folder: Path, seed: int = 1, layers=2, heads=2, kv_heads=1, **more) -> Path:
    """Without a tokenizer, for training on token ids."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers}
    config |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    LlamaForCausalLM(LlamaConfig(**config | more)).save_pretrained(folder)
    return folder


def encoder(folder: Path, seed: int = 0, layers: int = 4, width: int = 32) -> Path:
    from transformers import BertConfig, BertModel

    tokenizer(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,  # at the usual 0.02 fresh layers change next to nothing
    )
    BertModel(config).save_pretrained(folder)
    return folder


def examples(count: int, seed: int) -> list[Example]:
    """The text repeats its first token at the end: learnable, and of varied length."""
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        text = [chance.randrange(4, 16) for _ in range(chance.randrange(4, 10))]
        ids = (*text, text[0], 3)
        made.append(Example(ids, 1, (1.0,) * (len(ids) - 1)))
    return made


def texts(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randrange(3, 9))) for _ in range(count)]


def quiet(done: float, note: str) -> None:
    """A report that says nothing."""
