"""Text encoders on ONNX Runtime: embedding, classification, and reranking by a cross-encoder.

Owns tokenizing, batching, pooling and normalisation as the release says. A text that is too long is refused,
or cut and counted where that is asked for; never cut in silence. The graph takes ``input_ids`` and, if it has
them, ``attention_mask``, ``token_type_ids`` and ``position_ids``; it gives token states [n, tokens, width] to
be pooled, or vectors or logits [n, width]; of a reranker, which reads query and text as one pair, a logit
[n, 1]. One thread owns an engine. ``tokenizers`` and numpy are imported
when an engine is made.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from models.engines.base import EncoderFacts, Reading, TextBatch
from models.engines.foreign import converted
from models.engines.onnx_files import EncoderFiles
from models.engines.onnx_session import OnnxSession, OnnxSettings, sigmoid, softmax
from models.errors import ContextLengthExceeded, EngineError, UnsafeFile, UnsupportedRequest
from models.manifest import TextInput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_TOKENIZER = 64 << 20
"""Bytes of a ``tokenizer.json``; the largest published ones have some 30 MB."""

_KNOWN_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids"})


class _Ids(NamedTuple):
    """Tokens of one reading, and which half of a pair each belongs to."""

    ids: list[int]
    types: list[int]


class OnnxText:
    """An embedder, a text classifier or a reranker, as its task is. See ``Embed``, ``Classify``.

    Raises ``UnsafeFile`` for files that are not sound, ``EngineError`` when they do not fit each other.
    """

    def __init__(self, files: EncoderFiles, settings: OnnxSettings = OnnxSettings()) -> None:
        needs = files.engine
        if needs.task not in ("embed", "classify", "rerank") or needs.text is None or files.tokenizer is None:
            raise EngineError(f"{files.model.name} is no text encoder: its task is {needs.task}")
        self._text: TextInput = needs.text
        self._task = needs.task
        self._tokenizer = _Tokens(files.tokenizer, needs.text.max_tokens, settings.truncate)
        self._session = OnnxSession(
            files.model, settings.threads, settings.device, files.through_tensorrt, settings.engine_cache
        )
        (self._least_rows, rows), (self._least_tokens, tokens) = map(self._session.sizes, (0, 1))
        if needs.text.max_tokens > tokens:
            raise EngineError(f"{files.model.name} takes {tokens} tokens, fewer than {needs.text.max_tokens}")
        self._settings = replace(settings, batch=min(settings.batch, rows))
        unknown = self._session.inputs.keys() - _KNOWN_INPUTS
        if unknown or "input_ids" not in self._session.inputs:
            raise EngineError(f"{files.model.name} wants inputs that no text gives: {sorted(unknown)}")
        pooled = self._task == "embed" and self._text.pooling is not None
        named = {
            "classify": ("logits",),
            "rerank": ("logits",),
            "embed": ("last_hidden_state", "token_embeddings") if pooled else ("sentence_embedding",),
        }
        self._output = self._session.output(named[self._task], 3 if pooled else 2)
        first = self._run([("a", "a") if self._task == "rerank" else "a"])  # also shows that it runs at all
        width = first.values.shape[1]
        if self._task == "classify" and width != len(needs.labels):
            raise EngineError(
                f"{files.model.name} tells {width} classes, of which {len(needs.labels)} have labels"
            )
        if self._task == "rerank" and width != 1:
            raise EngineError(f"{files.model.name} gives {width} numbers for a pair; a reranker gives one")
        self.facts = EncoderFacts(
            task=self._task,
            name=files.name,
            parameters=self._session.model.parameters,
            file_bytes=self._session.file_bytes,
            labels=needs.labels,
            width=width if self._task == "embed" else 0,
            max_tokens=self._text.max_tokens,
        )

    def embed(self, texts: Sequence[str]) -> "npt.NDArray[np.float32]":
        """See ``Embed``."""
        self._must_be("embed")
        return self._run(texts).values

    def classify(self, inputs: Sequence[str] | Sequence[bytes]) -> "npt.NDArray[np.float32]":
        """See ``Classify``."""
        self._must_be("classify")
        texts = [text for text in inputs if isinstance(text, str)]
        if len(texts) != len(inputs):
            raise EngineError("a text classifier was given pictures")
        return self._run(texts).values

    def rerank(self, query: str, texts: Sequence[str]) -> "npt.NDArray[np.float32]":
        """How relevant each text is to the query, sigmoids of logits: float32 [n]. Raises as ``embed``."""
        self._must_be("rerank")
        return self._run([(query, text) for text in texts]).values[:, 0]

    def answer(self, texts: Sequence[Reading]) -> TextBatch:
        """What ``embed``, ``classify`` or ``rerank`` answers, with the tokens that were read; a reranker is
        given pairs.

        Raises ``ContextLengthExceeded``, ``UnsupportedRequest`` for a text without tokens, ``EngineError``.
        """
        return self._run(texts)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids that are read of each text, special tokens included. Raises as ``embed`` does."""
        return [one.ids for one in self._tokenizer.read(texts)[0]]

    def close(self) -> None:
        """Free the weights. Safe to call twice."""
        self._session.close()

    def _must_be(self, task: str) -> None:
        if self._task != task:
            raise EngineError(f"this model is made to {self._task}, not to {task}")

    def _run(self, texts: Sequence[Reading]) -> TextBatch:
        import numpy as np

        read, truncated = self._tokenizer.read(texts)
        lengths = [len(one.ids) for one in read]
        parts: list[npt.NDArray[np.float32]] = []
        order: list[int] = []
        for batch in batches(lengths, self._settings, self._session.call_tokens):
            order += batch
            parts.append(self._forward([read[index] for index in batch]))
        values = np.empty((0, 0), dtype=np.float32)
        if parts:
            values = np.empty_like(joined := np.concatenate(parts))
            values[order] = joined
        return TextBatch(values, tuple(lengths), truncated)

    def _forward(self, read: Sequence[_Ids]) -> "npt.NDArray[np.float32]":
        import numpy as np

        rows = len(read)
        read = [*read, *[read[-1]] * (self._least_rows - rows)]
        longest = max(self._least_tokens, max(len(one.ids) for one in read))
        tokens = np.full((len(read), longest), self._tokenizer.pad, dtype=np.int64)
        mask, types = np.zeros_like(tokens), np.zeros_like(tokens)
        for row, one in enumerate(read):
            tokens[row, : len(one.ids)] = one.ids
            types[row, : len(one.ids)] = one.types
            mask[row, : len(one.ids)] = 1
        made = {
            "input_ids": tokens,
            "attention_mask": mask,
            "token_type_ids": types,
            "position_ids": np.broadcast_to(np.arange(longest, dtype=np.int64), tokens.shape),
        }
        feeds = {
            name: made[name].astype(np.int32 if value.type == "int32" else np.int64, copy=False)
            for name, value in self._session.inputs.items()
        }
        (found,) = self._session.run(feeds, [self._output])
        return self._finish(found, mask)[:rows]

    def _finish(
        self, found: "npt.NDArray[np.float32]", mask: "npt.NDArray[np.int64]"
    ) -> "npt.NDArray[np.float32]":
        import numpy as np

        rank = 3 if self._task == "embed" and self._text.pooling is not None else 2
        if found.ndim != rank or found.shape[0] != len(mask):
            raise EngineError(f"the model answered {list(found.shape)} to {list(mask.shape)} tokens")
        if self._task == "classify":
            return softmax(found)
        if self._task == "rerank":
            return sigmoid(found)
        if self._text.pooling == "mean":
            weights = mask[:, :, None].astype(np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                found = (found * weights).sum(axis=1) / weights.sum(axis=1)
        elif self._text.pooling == "cls":
            found = found[:, 0]
        if not np.isfinite(found).all():  # what the graph gave is finite; a sum of it need not be
            raise EngineError("the model's answer holds what is no number")
        if self._text.normalize:
            found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return np.ascontiguousarray(found, dtype=np.float32)


def batches(lengths: Sequence[int], settings: OnnxSettings, call_tokens: int) -> list[list[int]]:
    """Indices of texts that are computed at once, longest first.

    Texts are padded to the longest of their batch, and a batch costs as much to begin as ``call_tokens``
    tokens cost to compute; of all ways to cut the texts in order of length, this is the one that costs least
    (dynamic programming over where the last batch begins). Laws: every index comes once; a batch of more than
    one text keeps within ``settings.batch`` and ``settings.batch_tokens``.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    # Of the first so many texts: what they cost in tokens, and where their last batch begins.
    least, begins = [0] * (len(order) + 1), [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        costs: list[tuple[int, int]] = []
        for begin in range(end - 1, max(-1, end - 1 - settings.batch), -1):
            padded = max(1, lengths[order[begin]]) * (end - begin)
            if end - begin > 1 and padded > settings.batch_tokens:
                break
            costs.append((least[begin] + call_tokens + padded, begin))
        least[end], begins[end] = min(costs)
    found: list[list[int]] = []
    end = len(order)
    while end:
        found.append(order[begins[end] : end])
        end = begins[end]
    return found[::-1]


class _Tokens:
    """A ``tokenizer.json``, without the padding and cutting that many published ones carry."""

    def __init__(self, path: Path, max_tokens: int, truncate: bool) -> None:
        import tokenizers

        if path.stat().st_size > MAX_TOKENIZER:
            raise UnsafeFile(f"{path.name}: more than {MAX_TOKENIZER} bytes")
        with converted(path.name, UnsafeFile):
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        padding: dict[str, Any] = self._tokenizer.padding or {}
        found = [self._tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>")]
        self.pad: int = padding.get("pad_id", next((id for id in found if id is not None), 0))
        self._max_tokens = max_tokens
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if truncate:
            self._tokenizer.enable_truncation(max_tokens)

    def read(self, texts: Sequence[Reading]) -> tuple[list[_Ids], int]:
        """Tokens of each text, and how many were cut.

        Raises ``ContextLengthExceeded``, ``UnsupportedRequest`` for a text without tokens.
        """
        with converted("a text cannot be tokenized"):
            encoded = self._tokenizer.encode_batch(list(texts))
        for number, one in enumerate(encoded):
            if len(one.ids) > self._max_tokens:
                raise ContextLengthExceeded(
                    f"text {number + 1} of {len(encoded)} has {len(one.ids)} tokens; the model reads "
                    f"{self._max_tokens}"
                )
            if not one.ids:
                raise UnsupportedRequest(f"text {number + 1} of {len(encoded)} has no tokens")
        read = [_Ids(one.ids, one.type_ids) for one in encoded]
        return read, sum(bool(one.overflowing) for one in encoded)
