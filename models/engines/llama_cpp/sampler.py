"""Chooses the tokens of one request, natively: llama.cpp's samplers in the order of its own defaults.

Logit bias, penalties, top-k, top-p, min-p, temperature, then the draw. A grammar lies over all of it.
"""

import ctypes
import math
from typing import TYPE_CHECKING, Any

from models.engines.base import REPEAT_PENALTIES, Sampling, TokenLogprob
from models.engines.llama_cpp.library import last_error
from models.engines.llama_cpp.vocabulary import Vocabulary
from models.errors import UnsupportedRequest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_DRAW_A_SEED = 0xFFFFFFFF
"""llama.cpp's word for "choose a seed yourself" (LLAMA_DEFAULT_SEED)."""
_REPEAT_WINDOW = 64
"""Tokens, of prompt and answer, that ``repeat_penalty`` looks back on: llama.cpp's default."""


def check_sampling(sampling: Sampling, vocabulary: Vocabulary) -> None:
    """Raise ``UnsupportedRequest``, with the option's name, for what cannot be honoured."""
    least, most = REPEAT_PENALTIES
    ranges = (
        ("max_tokens", sampling.max_tokens is None or sampling.max_tokens >= 1, "at least 1"),
        ("temperature", 0 <= sampling.temperature <= 100, "between 0 and 100"),
        ("top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1"),
        ("top_k", 0 <= sampling.top_k < 2**31, "not negative"),
        ("min_p", 0 <= sampling.min_p <= 1, "between 0 and 1"),
        ("presence_penalty", math.isfinite(sampling.presence_penalty), "a finite number"),
        ("frequency_penalty", math.isfinite(sampling.frequency_penalty), "a finite number"),
        ("repeat_penalty", least <= sampling.repeat_penalty <= most, f"between {least} and {most}"),
        ("logit_bias", all(math.isfinite(bias) for _, bias in sampling.logit_bias), "a finite number"),
        ("logprobs", sampling.logprobs is None or 0 <= sampling.logprobs <= vocabulary.size, "not negative"),
    )
    for name, holds, rule in ranges:
        if not holds:
            raise UnsupportedRequest(f"{name} is {rule}", name)
    vocabulary.check([token for token, _ in sampling.logit_bias], "logit_bias")
    if sampling.trigger is not None and (sampling.grammar is None or not sampling.trigger):
        raise UnsupportedRequest("a trigger is some text, and starts a grammar", "trigger")
    if sampling.ignore_eos and sampling.grammar is not None:
        message = "ignore_eos and a grammar exclude each other: a grammar has an end"
        raise UnsupportedRequest(message, "ignore_eos")


class Sampler:
    """Owns native samplers. ``prompt`` is what repetitions are counted from, ``most`` the longest answer.

    Raises ``UnsupportedRequest`` for a grammar that is none.
    """

    def __init__(
        self, lib: Any, vocabulary: Vocabulary, sampling: Sampling, prompt: list[int], most: int
    ) -> None:
        self._lib, self._vocabulary, self._logprobs = lib, vocabulary, sampling.logprobs
        self._rules: _Rules | None = None
        if sampling.grammar is not None:
            self._rules = _Rules(lib, vocabulary, sampling.grammar, sampling.trigger)
        parameters = lib.llama_sampler_chain_default_params()
        parameters.no_perf = True
        self._chain = lib.llama_sampler_chain_init(parameters)
        self._fill_chain(sampling, prompt, most)

    def sample(self, context: Any, row: int) -> int:
        """The token after batch row ``row``. Raises ``UnsupportedRequest`` when the grammar allows none."""
        if self._rules is None:
            token: int = self._lib.llama_sampler_sample(self._chain, context, row)
            return token
        return self._sample_by_rules(self._rules, context, row)

    def logprobs(self, context: Any, row: int, token: int) -> tuple[TokenLogprob, ...]:
        """Of the token that was chosen after batch row ``row``; empty when nobody asked."""
        if self._logprobs is None:
            return ()
        import numpy as np

        logits = self._logits(context, row).astype(np.float64)
        logits -= logits.max()
        logits -= np.log(np.exp(logits).sum())
        count = self._logprobs
        top = np.argpartition(-logits, range(count))[:count] if count else ()
        best = [(float(logits[other]), int(other)) for other in top]
        name = self._vocabulary.name
        likeliest = tuple((name(other), value) for value, other in best)
        return (TokenLogprob(name(token), float(logits[token]), likeliest),)

    def close(self) -> None:
        """Free everything native."""
        self._lib.llama_sampler_free(self._chain)
        if self._rules is not None:
            self._rules.close()

    def _fill_chain(self, sampling: Sampling, prompt: list[int], most: int) -> None:
        lib, size = self._lib, self._vocabulary.size

        def add(sampler: Any) -> None:
            lib.llama_sampler_chain_add(self._chain, sampler)  # the chain owns it from here on

        biases = dict(sampling.logit_bias)
        never = self._vocabulary.ends if sampling.ignore_eos else ()
        biases.update((token, -math.inf) for token in (*self._vocabulary.suppressed, *never))
        if biases:
            given = (lib.llama_logit_bias * len(biases))(*biases.items())
            add(lib.llama_sampler_init_logit_bias(size, len(biases), given))
        if sampling.repeat_penalty != 1:
            repeat = lib.llama_sampler_init_penalties(size, _REPEAT_WINDOW, sampling.repeat_penalty, 0, 0)
            for token in prompt[-_REPEAT_WINDOW:]:
                lib.llama_sampler_accept(repeat, token)
            add(repeat)
        if sampling.frequency_penalty or sampling.presence_penalty:
            penalties = (sampling.frequency_penalty, sampling.presence_penalty)
            add(lib.llama_sampler_init_penalties(size, most, 1, *penalties))
        if sampling.temperature == 0:
            add(lib.llama_sampler_init_greedy())
            return
        if sampling.top_k:
            add(lib.llama_sampler_init_top_k(sampling.top_k))
        if sampling.top_p < 1:
            add(lib.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p:
            add(lib.llama_sampler_init_min_p(sampling.min_p, 1))
        add(lib.llama_sampler_init_temp(sampling.temperature))
        seed = _DRAW_A_SEED if sampling.seed is None else sampling.seed % _DRAW_A_SEED
        add(lib.llama_sampler_init_dist(seed))

    def _sample_by_rules(self, rules: "_Rules", context: Any, row: int) -> int:
        """Draw freely, and only where that breaks a rule lay the grammar over the vocabulary, which is slow.

        The distribution is that of drawing with the grammar over everything, except under top_k, top_p and
        min_p: these look at all tokens first, and again at the allowed ones if the first draw was forbidden,
        so that what passes both times comes more often.
        """
        logits = self._logits(context, row)
        banned: list[int] = []
        token = self._draw(logits, banned, None)
        while not rules.allow(token):
            if token in banned:
                # Who asked for this form is to blame, not the model: it may not count as the model's failure.
                message = "the form that was asked for allows none of the model's tokens here"
                raise UnsupportedRequest(message, "grammar")
            banned.append(token)
            token = self._draw(logits, banned, rules)
        self._lib.llama_sampler_accept(self._chain, token)
        rules.accept(token)
        return token

    def _draw(self, logits: "npt.NDArray[np.float32]", banned: list[int], rules: "_Rules | None") -> int:
        """A token by the chain, which is not told yet that it was chosen."""
        import numpy as np

        lib = self._lib
        # llama_token_data: what the chain takes, and sorts in place.
        data = np.zeros(len(logits), dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        data["id"] = np.arange(len(logits), dtype=np.int32)
        data["logit"] = logits
        data["logit"][banned] = -np.inf
        first = data.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
        candidates = lib.llama_token_data_array(first, len(logits), -1, False)
        if rules is not None:
            rules.restrict(candidates)
        lib.llama_sampler_apply(self._chain, ctypes.byref(candidates))
        return int(candidates.data[candidates.selected].id)

    def _logits(self, context: Any, row: int) -> "npt.NDArray[np.float32]":
        """The model's own, of batch row ``row``: float32 [vocabulary], valid until the next batch."""
        import numpy as np

        logits = self._lib.llama_get_logits_ith(context, row)
        return np.ctypeslib.as_array(logits, shape=(self._vocabulary.size,))


class _Rules:
    """A grammar, and when it begins to hold: at once, or from the first character of ``trigger`` on.

    A token that completes the trigger may go on behind it, and its rest has to fit the grammar too:
    llama.cpp aborts on a token that does not, so the rest is spelled, tried and only then taken.
    """

    def __init__(self, lib: Any, vocabulary: Vocabulary, grammar: str, trigger: str | None) -> None:
        self._lib, self._vocabulary = lib, vocabulary
        self._trigger = trigger.encode() if trigger else None
        self._tail = b""
        self._begun: Any = None
        if self._trigger and vocabulary.spell(self._trigger) is None:
            raise UnsupportedRequest("this model has no tokens for the trigger")
        self._grammar = lib.llama_sampler_init_grammar(vocabulary.handle, grammar.encode(), b"root")
        if not self._grammar:
            raise UnsupportedRequest(f"the grammar cannot be used: {last_error()}")

    def allow(self, token: int) -> bool:
        """Whether the next token may be this one."""
        if self._trigger is None:
            return self._fits(self._grammar, token)
        text = self._tail + self._vocabulary.piece(token)
        start = text.find(self._trigger)
        return start < 0 or self._begin(text[start:])

    def accept(self, token: int) -> None:
        """The next token is this one, which was allowed."""
        if self._trigger is None:
            self._lib.llama_sampler_accept(self._grammar, token)
        elif self._begun is not None:
            self._lib.llama_sampler_free(self._grammar)
            self._grammar, self._begun, self._trigger = self._begun, None, None
        else:
            text = self._tail + self._vocabulary.piece(token)
            self._tail = text[max(0, len(text) - len(self._trigger) + 1) :]

    def restrict(self, candidates: Any) -> None:
        """Make impossible what the grammar forbids; nothing before the trigger."""
        if self._trigger is None:
            self._lib.llama_sampler_apply(self._grammar, ctypes.byref(candidates))

    def close(self) -> None:
        """Free everything native."""
        self._lib.llama_sampler_free(self._grammar)
        if self._begun is not None:
            self._lib.llama_sampler_free(self._begun)

    def _begin(self, text: bytes) -> bool:
        """Whether the grammar allows its first bytes; it is kept, that far, for when they are accepted."""
        tokens = self._vocabulary.spell(text)
        if tokens is None:
            return False
        if self._begun is not None:
            self._lib.llama_sampler_free(self._begun)
        self._begun = self._lib.llama_sampler_clone(self._grammar)
        for token in tokens:
            if not self._fits(self._begun, token):
                self._lib.llama_sampler_free(self._begun)
                self._begun = None
                return False
            self._lib.llama_sampler_accept(self._begun, token)
        return True

    def _fits(self, grammar: Any, token: int) -> bool:
        one = (self._lib.llama_token_data * 1)(self._lib.llama_token_data(token, 1.0, 0.0))
        view = self._lib.llama_token_data_array(one, 1, -1, False)
        self._lib.llama_sampler_apply(grammar, ctypes.byref(view))
        return bool(view.data[0].logit > -math.inf)
