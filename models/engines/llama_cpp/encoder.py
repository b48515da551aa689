"""Embedders and rerankers from GGUF files: many texts in one call of llama.cpp, no text written.

Owns reading texts and pairs, and which texts are computed together. llama.cpp pools as the file says. A text
that is too long is refused, never cut. One thread owns an engine.

Texts of one call attend each to itself, under sequence ids of their own, without padding. A model that looks
both ways computes a whole text at once; one that looks back only takes a long text in pieces, for it keeps
keys and values of what it has read.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from models.engines.base import EncoderFacts, Reading, TextBatch
from models.engines.llama_cpp.context import Batch, decode
from models.engines.llama_cpp.encoder_files import (
    LAST,
    RANK,
    is_causal,
    pooling_of,
    task_of,
    tells_probability,
)
from models.engines.llama_cpp.library import last_error, library
from models.engines.llama_cpp.settings import LlamaSettings
from models.engines.llama_cpp.threads import Threads
from models.engines.llama_cpp.vocabulary import Vocabulary
from models.engines.llama_cpp.wordpiece import WordPiece
from models.engines.onnx_files import EncoderFiles
from models.engines.onnx_session import sigmoid
from models.errors import ContextLengthExceeded, EngineError, UnsafeFile, UnsupportedRequest
from models.gguf import GgufHeader, check_model

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

AT_ONCE = 64
"""Texts in one call of llama.cpp, at most."""


class Tokenize(Protocol):
    """Text to token ids."""

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """See ``Vocabulary.tokenize``."""


@dataclass(frozen=True, slots=True)
class EncoderSizes:
    """Tokens: of one text at most, of several that are computed at once together, of one call of llama.cpp.

    A text is one call's, unless the model only looks back and pools the last token.
    """

    text: int
    together: int
    call: int

    @classmethod
    def of(cls, header: GgufHeader, settings: LlamaSettings, trained: int) -> "EncoderSizes":
        """As ``settings`` allow, for a model that was made for ``trained`` tokens."""
        text = min(settings.context_tokens, trained)
        in_pieces = is_causal(header) and pooling_of(header) in (LAST, RANK)
        together = settings.batch_tokens
        return cls(text, together, together if in_pieces else max(text, together))

    @property
    def texts(self) -> int:
        """How many are computed at once."""
        return min(AT_ONCE, self.together)

    def context_bytes(self, header: GgufHeader) -> int:
        """What a context takes beside the weights: the states of a call's tokens and who attends to whom; of
        a model that looks back, keys and values, and logits that llama.cpp computes for nobody.
        """

        def number(key: str) -> int:
            return header.integer(f"{header.architecture}.{key}") or 0

        states = 4 * (number("feed_forward_length") + 3 * number("embedding_length"))
        taken = self.call * (states + 2 * self.call)
        if is_causal(header):
            logits = 4 * header.vocabulary
            taken += self.cells * header.kv_bytes_per_token + 2 * self.call * logits
        return taken

    @property
    def cells(self) -> int:
        """Keys and values, where they are kept."""
        return max(self.text, self.together)


class LlamaEncoder:
    """An embedder or a reranker, as its task is.

    ``settings.context_tokens`` bounds a text, ``batch_tokens`` what several that are computed at once have
    together. Raises ``UnsafeFile`` for a file that is not sound, ``EngineError`` when it cannot be loaded.
    """

    def __init__(self, files: EncoderFiles, settings: LlamaSettings) -> None:
        path, needs = files.model, files.engine
        self._header = header = check_model(path)
        if needs.text is None or needs.task is None or needs.task != task_of(header):
            raise EngineError(f"{path.name} is made to {task_of(header)}, not to {needs.task}")
        self._needs = needs.text
        self._sizes = EncoderSizes.of(header, settings, needs.text.max_tokens)
        self._lib = lib = library()
        self._handle = None
        parameters = lib.llama_model_default_params()
        if not settings.gpu:
            parameters.n_gpu_layers = 0
        self._model = lib.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise EngineError(f"{path.name} cannot be loaded: {last_error()}")
        try:
            self._vocabulary = Vocabulary(lib, self._model)
            self._tokens = self._tokenizer(path.name)
            self._threads = Threads(settings.threads)
            self._handle = self._context()
        except BaseException:
            self.close()
            raise
        self._batch = Batch(lib, self._sizes.call)
        self._reranks = needs.task == "rerank"
        model = self._model
        self._width: int = (lib.llama_model_n_cls_out if self._reranks else lib.llama_model_n_embd_out)(model)
        self.facts = EncoderFacts(
            task=needs.task,
            name=files.name,
            parameters=lib.llama_model_n_params(model),
            file_bytes=path.stat().st_size,
            width=0 if self._reranks else self._width,
            max_tokens=self._sizes.text,
        )

    def answer(self, texts: Sequence[Reading]) -> TextBatch:
        """Vectors [n, width]; of a reranker, which is given pairs, relevance in (0, 1) [n, 1].

        Raises ``ContextLengthExceeded``, ``UnsupportedRequest`` for a text without tokens, ``EngineError``.
        """
        import numpy as np

        read = self._read(texts)
        lengths = [len(one) for one in read]
        values = np.empty((len(read), self._width), dtype=np.float32)
        for part in together(lengths, self._sizes.together, self._sizes.texts):
            self._compute(read[part])
            values[part] = self._pooled(len(values[part]))
        return TextBatch(self._finish(values), tuple(lengths))

    def tokenize(self, texts: Sequence[Reading]) -> list[list[int]]:
        """The token ids that are read of each text or pair, special tokens included. Raises as ``answer``."""
        return self._read(texts)

    def close(self) -> None:
        """Free everything native. Safe to call twice."""
        if self._handle:
            self._lib.llama_free(self._handle)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._handle = self._model = None

    # Reading

    def _tokenizer(self, name: str) -> Tokenize:
        if self._header.text("tokenizer.ggml.model") != "bert":
            return self._vocabulary
        try:
            return WordPiece(self._header)
        except UnsafeFile as error:
            raise UnsafeFile(f"{name}: {error}") from error

    def _read(self, texts: Sequence[Reading]) -> list[list[int]]:
        longest, read = self._sizes.text, []
        made_for = self._needs.max_tokens
        limit = f"the model reads {longest}" + (f" here, of {made_for}" if made_for > longest else "")
        for number, one in enumerate(texts, start=1):
            which = f"text {number} of {len(texts)} has"
            if self._vocabulary.surely_exceeds(one if isinstance(one, str) else "".join(one), longest):
                raise ContextLengthExceeded(f"{which} more tokens than fit; {limit}")
            ids = self._tokens.tokenize(one, True, True) if isinstance(one, str) else self._pair(*one)
            if len(ids) > longest:
                raise ContextLengthExceeded(f"{which} {len(ids)} tokens; {limit}")
            if not ids:
                raise UnsupportedRequest(f"{which} no tokens")
            read.append(ids)
        return read

    def _pair(self, query: str, text: str) -> list[int]:
        """A query and a text as llama.cpp's server joins them: by the file's template, or by separators."""
        if template := self._header.text("tokenizer.chat_template.rerank"):
            words = {"{query}": query, "{document}": text}
            filled = re.sub(r"\{query\}|\{document\}", lambda found: words[found[0]], template)
            return self._tokens.tokenize(filled, add_special=False, parse_special=True)
        lib, vocabulary = self._lib, self._vocabulary.handle
        between, end = lib.llama_vocab_sep(vocabulary), lib.llama_vocab_eos(vocabulary)
        first = [lib.llama_vocab_bos(vocabulary)] if lib.llama_vocab_get_add_bos(vocabulary) else []
        last = [between if end < 0 else end] if lib.llama_vocab_get_add_eos(vocabulary) else []
        middle = [between] if lib.llama_vocab_get_add_sep(vocabulary) else []
        asked, judged = (self._tokens.tokenize(one, False, False) for one in (query, text))
        return [*first, *asked, *last, *middle, *judged, *last]

    # Computing

    def _context(self) -> Any:
        lib, sizes = self._lib, self._sizes
        parameters = lib.llama_context_default_params()
        parameters.embeddings = True
        parameters.pooling_type = RANK if task_of(self._header) == "rerank" else pooling_of(self._header)
        parameters.n_ctx = sizes.cells
        parameters.n_batch = parameters.n_ubatch = sizes.call
        parameters.n_seq_max = sizes.texts
        parameters.n_threads = parameters.n_threads_batch = self._threads.most
        parameters.kv_unified = True  # a long text may have all cells
        parameters.no_perf = True
        handle = lib.llama_init_from_model(self._model, parameters)
        if not handle:
            raise EngineError(f"no context of {sizes.cells} tokens can be made: {last_error()}")
        return handle

    def _compute(self, texts: Sequence[Sequence[int]]) -> None:
        """Texts that are computed at once, or a long one in pieces. Raises ``EngineError``."""
        lib, call = self._lib, self._sizes.call
        if memory := lib.llama_get_memory(self._handle):
            lib.llama_memory_clear(memory, False)
        for start in range(0, max(map(len, texts)), call):
            for id, tokens in enumerate(texts):
                piece = tokens[start : start + call]
                self._batch.add(id, start, piece, len(piece))
            decode(lib, self._handle, self._batch.take(), self._threads)

    def _pooled(self, count: int) -> "npt.NDArray[np.float32]":
        """What llama.cpp made of the texts that it computed last: float32 [count, width], not normalised."""
        import numpy as np

        rows = []
        for id in range(count):
            row = self._lib.llama_get_embeddings_seq(self._handle, id)
            if not row:
                raise EngineError("llama.cpp pooled no vector")
            rows.append(np.ctypeslib.as_array(row, (self._width,)).copy())
        return np.stack(rows)

    def _finish(self, found: "npt.NDArray[np.float32]") -> "npt.NDArray[np.float32]":
        import numpy as np

        if not np.isfinite(found).all():
            raise EngineError("the model's answer holds what is no number")
        if self._reranks:
            relevance = found[:, :1]
            return relevance if tells_probability(self._header) else sigmoid(relevance)
        if self._needs.normalize:
            found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return found


def together(lengths: Sequence[int], most_tokens: int, most_texts: int) -> Iterator[slice]:
    """Which texts are computed at once.

    Laws: every text comes once, in order; no slice is empty or has more than ``most_texts``; one of more than
    one text keeps within ``most_tokens``, and the text after a slice would not have fitted in.
    """
    begin = tokens = 0
    for end, length in enumerate(lengths):
        if end > begin and (tokens + length > most_tokens or end - begin == most_texts):
            yield slice(begin, end)
            begin, tokens = end, 0
        tokens += length
    if begin < len(lengths):
        yield slice(begin, len(lengths))
