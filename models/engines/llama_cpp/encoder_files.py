"""What a GGUF file is for: to write text, to embed, or to rerank; and what it needs to be right.

Read from its header alone. Refuses guessing: an encoder that does not say how it pools is not served.
"""

from pathlib import Path
from typing import Literal

from models.engines.onnx_files import EncoderFiles
from models.errors import UnsafeFile
from models.gguf import GgufHeader, check_model
from models.manifest import Engine, TextInput

UNPOOLED, MEAN, CLS, LAST, RANK = range(5)
"""llama.cpp's numbers for ways to pool (``llama_pooling_type``)."""

_MOST_TOKENS = 1 << 20
_HEADS = ("cls.weight", "cls.output.weight")
"""Where there are both, the second reads what the first gives."""


def files_of_gguf(path: Path) -> EncoderFiles | None:
    """An embedder or a reranker; None for a model that writes text. Raises ``UnsafeFile``.

    llama.cpp's graph pools, so that its output is the answer; what OpenAI's clients get has length 1.
    """
    header = check_model(path)
    try:
        task = task_of(header)
    except UnsafeFile as error:
        raise UnsafeFile(f"{path.name}: {error}") from error
    if task is None:
        return None
    longest = header.integer(f"{header.architecture}.context_length") or 0
    if longest < 1:
        raise UnsafeFile(f"{path.name}: does not say how many tokens it reads (context_length)")
    text = TextInput(max_tokens=min(longest, _MOST_TOKENS), normalize=task == "embed")
    return EncoderFiles(path, Engine(task=task, text=text), None, header.text("general.name") or path.stem)


def task_of(header: GgufHeader) -> Literal["embed", "rerank"] | None:
    """What a model is asked for, vectors or relevance; None: for text. Raises ``UnsafeFile``."""
    key = f"{header.architecture}.pooling_type"
    pooling = pooling_of(header)
    if pooling in (MEAN, CLS, LAST):
        return "embed"
    if pooling not in (UNPOOLED, RANK):
        raise UnsafeFile(f"{key} is {pooling}, which is no way to pool")
    # llama.cpp's converter names no pooling for a cross-encoder of BERT's kind; its head says what it is.
    if pooling == RANK or (not is_causal(header) and _judgements(header)):
        wanted = 2 if tells_probability(header) else 1
        if _judgements(header) != wanted:
            raise UnsafeFile(
                f"its head gives {_judgements(header)} numbers for a pair; a reranker's {wanted}"
            )
        return "rerank"
    if is_causal(header):
        return None
    raise UnsafeFile(
        f"an encoder, which writes no text, and {key} does not say how its tokens become one vector: convert "
        f"it with modules.json and 1_Pooling/config.json beside its weights"
    )


def pooling_of(header: GgufHeader) -> int:
    """What the file says, ``UNPOOLED`` when it says nothing."""
    return header.integer(f"{header.architecture}.pooling_type") or UNPOOLED


def is_causal(header: GgufHeader) -> bool:
    """Whether a token sees only those before it, as in models that write text."""
    return header.metadata.get(f"{header.architecture}.attention.causal") is not False


def tells_probability(header: GgufHeader) -> bool:
    """Whether a reranker's graph ends in a softmax over yes and no, as llama.cpp builds it for Qwen3."""
    return header.architecture in ("qwen3", "qwen3vl")


def _judgements(header: GgufHeader) -> int:
    """Numbers that the head gives for a pair; 0 without one."""
    heads = {tensor.name: tensor for tensor in header.tensors if tensor.name in _HEADS}
    last = heads.get(_HEADS[1], heads.get(_HEADS[0]))
    return last.elements // last.shape[0] if last is not None else 0
