"""Sizes of an engine."""

from dataclasses import dataclass, replace

from models.errors import EngineError

KEPT_IDS = 32
"""Sequence ids beyond the running ones, each of which may keep a prefix."""
SPARE_IDS = 2
"""The same where each takes cells of its own: one to bring a prefix back, one for whom it is brought."""
_STREAM = 256
"""llama.cpp rounds up to a multiple of it what each sequence has for itself."""
_MOST_IDS = 256
"""llama.cpp's limit (LLAMA_MAX_SEQ)."""


@dataclass(frozen=True, slots=True)
class LlamaSettings:
    """Sizes of an engine. ``cache_tokens`` KV cells are shared by the sequences of one context; unless
    ``kv_unified``, each has cells for ``context_tokens`` of its own: more memory, and attention that need
    not pass over those of the others.

    ``beside_tokens``: how many tokens of prompts are computed in a step that also lengthens answers; fewer
    let answers flow more evenly, more let prompts be read sooner. ``contexts``: how many there may be at
    once; idle ones are closed to make room for others.
    ``kept_tokens`` of what has been answered stay in a context's cells when the next request comes, which
    has to pass over them; what was used before waits in ``parked_bytes`` of memory, that of all contexts
    together.
    """

    threads: int = 1
    context_tokens: int = 2048  # positions of one sequence, prompt and answer together
    max_sequences: int = 8  # running at once, in each context
    batch_tokens: int = 256  # computed in one step, prompts and answers together
    beside_tokens: int = 64
    cache_tokens: int = 8192  # at least context_tokens; what running requests may claim together
    ahead_tokens: int = 512  # of an answer, for which a request has room; most end sooner than they must
    kept_tokens: int = 512
    parked_bytes: int = 128 << 20
    contexts: int = 4
    kv_unified: bool = True
    gpu: bool = True  # where there is one, and llama.cpp was built for it

    def __post_init__(self) -> None:
        sizes = (self.threads, self.context_tokens, self.max_sequences, self.batch_tokens)
        if min(*sizes, self.beside_tokens, self.ahead_tokens, self.contexts) < 1:
            raise EngineError(f"every size of an engine is at least 1: {self}")
        if self.batch_tokens < self.max_sequences:
            raise EngineError(f"a batch of {self.batch_tokens} cannot step {self.max_sequences} sequences")
        if self.max_sequences >= _MOST_IDS:
            raise EngineError(f"at most {_MOST_IDS - 1} sequences run at once, not {self.max_sequences}")

    @property
    def ids(self) -> int:
        """Sequence ids of a context: for running requests, and for prefixes that are kept."""
        return min(self.max_sequences + (KEPT_IDS if self.kv_unified else SPARE_IDS), _MOST_IDS)

    def fitted(self, trained: int) -> "LlamaSettings":
        """The same, with no more context than the model was ``trained`` for (0: not known)."""
        context = min(self.context_tokens, trained) if trained > 0 else self.context_tokens
        cells = max(context, min(self.cache_tokens, context * self.max_sequences))
        if not self.kv_unified:
            cells = -(-context // _STREAM) * _STREAM * self.ids
        return replace(self, context_tokens=context, cache_tokens=cells)
