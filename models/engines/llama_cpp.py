"""llama.cpp as a text engine: continuous batching over many sequences, adapters over shared weights.

Owns the native model, one context per adapter (and one for the base), their samplers, and the order in
which contexts are stepped. Refuses a file that ``models.gguf`` has not passed. One thread owns an
engine. ``llama_cpp`` and numpy are imported when an engine is made, not with this module.

An adapter is loaded before its context is made, because llama.cpp sizes the compute graph then; KV is
never shared between contexts, so an answer can never contain another adapter's state (llama.cpp#26207).
"""

import ctypes
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.engines import schedule
from models.engines.base import (
    Event,
    Finish,
    GenerateRequest,
    ModelFacts,
    Sampling,
    Usage,
    refuse_options,
)
from models.engines.stream import TextStream
from models.errors import (
    AnswerTooLong,
    ContextLengthExceeded,
    EngineError,
    UnknownAdapter,
    UnsupportedRequest,
)
from models.gguf import check_adapter, check_model

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_DRAW_A_SEED = 0xFFFFFFFF
"""llama.cpp's word for "choose a seed yourself" (LLAMA_DEFAULT_SEED)."""


@dataclass(frozen=True, slots=True)
class LlamaSettings:
    """Sizes of an engine. ``cache_tokens`` KV cells are shared by the sequences of one context."""

    threads: int = 1
    context_tokens: int = 2048  # positions of one sequence, prompt and answer together
    max_sequences: int = 8  # running at once, in each context
    batch_tokens: int = 256  # computed in one step, prompts and answers together
    cache_tokens: int = 8192  # at least context_tokens; what running requests may claim together

    def __post_init__(self) -> None:
        if min(self.threads, self.context_tokens, self.max_sequences, self.batch_tokens) < 1:
            raise EngineError(f"every size of an engine is at least 1: {self}")
        if self.batch_tokens < self.max_sequences:
            raise EngineError(f"a batch of {self.batch_tokens} cannot step {self.max_sequences} sequences")


class LlamaEngine:
    """One base model. Implements ``Generate`` and ``TakeAdapters``.

    ``observe`` is shown every computed node: a ``ggml_backend_sched_eval_callback``, kept alive by the
    caller. Raises ``UnsafeFile`` for a file that is not sound, ``EngineError`` when it cannot be loaded.
    """

    def __init__(self, path: Path, settings: LlamaSettings, observe: Any = None) -> None:
        self._header = check_model(path)
        self._lib = _library()
        parameters = self._lib.llama_model_default_params()
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise EngineError(f"{path.name} cannot be loaded: {_last_error()}")
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self._lanes: dict[str | None, _Lane] = {}
        self._leaving: list[_Lane] = []
        self._requests: dict[str, _Lane] = {}
        self._arrivals = 0
        try:
            if self._lib.llama_model_has_encoder(self._model):
                raise EngineError(f"{path.name} is an encoder: it does not generate text")
            trained = self._lib.llama_model_n_ctx_train(self._model)
            self._settings = _fit(settings, trained)
            self.facts = self._facts(path, trained)
            self._lanes[None] = _Lane(self._lib, self._model, self._settings, None, observe)
        except BaseException:
            self.close()
            raise

    # TakeAdapters

    def attach(self, name: str, path: Path) -> None:
        """Load a LoRA adapter under ``name``, beside the base weights that are already there.

        Raises ``UnsafeFile``, or ``EngineError`` when it does not fit the base or the name is taken.
        """
        if name in self._lanes:
            raise EngineError(f"an adapter {name!r} is already attached")
        check_adapter(path, self._header)
        adapter = self._lib.llama_adapter_lora_init(self._model, str(path).encode())
        if not adapter:
            raise EngineError(f"{path.name} does not fit the base: {_last_error()}")
        try:
            self._lanes[name] = _Lane(self._lib, self._model, self._settings, adapter)
        except EngineError:
            self._lib.llama_adapter_lora_free(adapter)
            raise

    def detach(self, name: str) -> None:
        """Take no more requests for an adapter; free it when those that run have ended.

        Raises ``UnknownAdapter``.
        """
        self._lane(name)
        self._leaving.append(self._lanes.pop(name))
        self._free_idle_leavers()

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that take requests."""
        return tuple(name for name in self._lanes if name is not None)

    # Generate

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request. Raises ``ContextLengthExceeded``, ``UnknownAdapter``, ``UnsupportedRequest``."""
        lane = self._lane(request.adapter)
        if request.id in self._requests:
            raise EngineError(f"a request {request.id!r} is already running")
        sampling = request.sampling
        _check(sampling)
        prompt = self.prompt_tokens(request.prompt, request.literal)
        if not prompt:
            raise UnsupportedRequest("the prompt is empty")
        room = self._settings.context_tokens - len(prompt)
        wanted = room if sampling.max_tokens is None else sampling.max_tokens
        if wanted > room or room < 1:
            raise (AnswerTooLong if room >= 1 else ContextLengthExceeded)(
                f"the context has {self._settings.context_tokens} tokens; the prompt takes {len(prompt)}"
                + (f" and the answer may take {sampling.max_tokens}" if sampling.max_tokens else "")
            )
        sampler = _Sampler(self._lib, self._vocab, sampling)
        self._arrivals += 1
        sequence = _Sequence(request.id, prompt, wanted, TextStream(sampling.stop), sampler, self._arrivals)
        lane.waiting.append(sequence)
        self._requests[request.id] = lane

    def cancel(self, request_id: str) -> None:
        """Stop a request within one step; unknown ids are ignored."""
        lane = self._requests.get(request_id)
        if lane is not None:
            lane.cancel(request_id)

    def step(self) -> list[Event]:
        """Advance every context that has work by one batch.

        A sequence whose prompt is still being read gives an event without text; so an empty list means
        that there is nothing to do.
        """
        events: list[Event] = []
        for lane in (*self._lanes.values(), *self._leaving):
            events += lane.step(self._piece)
        for event in events:
            if event.done:
                del self._requests[event.id]
        self._free_idle_leavers()
        return events

    # Evaluation

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids. ``add_special``: BOS/EOS as the model asks; ``parse_special``: read special tokens."""
        raw = text.encode("utf-8", "replace")
        size = len(raw) + 8
        while True:
            tokens = (ctypes.c_int32 * size)()
            count = self._lib.llama_tokenize(
                self._vocab, raw, len(raw), tokens, size, add_special, parse_special
            )
            if count >= 0:
                return list(tokens[:count])
            if -count <= size:
                raise EngineError("the text is too long to be tokenized")
            size = -count

    def prompt_tokens(
        self, prompt: str | Sequence[int], literal: Sequence[tuple[int, int]] = ()
    ) -> list[int]:
        """Token ids of a prompt as a request reads it; ``literal`` as in ``GenerateRequest``.

        There, tokens that the file declares as user-defined are still read: they are vocabulary, not control.
        Raises ``UnsupportedRequest`` for a token id that is none.
        """
        if not isinstance(prompt, str):
            if not all(0 <= token < self.facts.vocabulary for token in prompt):
                raise UnsupportedRequest(f"token ids are below {self.facts.vocabulary} and not negative")
            return list(prompt)
        text = prompt
        lib, vocab = self._lib, self._vocab
        bos, adds_bos = lib.llama_vocab_bos(vocab), lib.llama_vocab_get_add_bos(vocab)
        if not literal:
            tokens = self.tokenize(text, add_special=True, parse_special=True)
        else:
            # The cuts lie where a control token ends or begins, where nothing is ever joined.
            tokens, start = [bos] if adds_bos else [], 0
            for first, last in literal:
                tokens += self.tokenize(text[start:first], add_special=False, parse_special=True)
                tokens += self.tokenize(text[first:last], add_special=False, parse_special=False)
                start = last
            tokens += self.tokenize(text[start:], add_special=False, parse_special=True)
            tokens += [lib.llama_vocab_eos(vocab)] if lib.llama_vocab_get_add_eos(vocab) else []
        # A chat template that writes BOS itself must not get a second one.
        return tokens[1:] if adds_bos and tokens[:2] == [bos, bos] else tokens

    def score(
        self, tokens: Sequence[int], first: int = 0, adapter: str | None = None
    ) -> "npt.NDArray[np.float32]":
        """Logits of one sequence, from position ``first`` on: float32 [len(tokens) - first, vocabulary].

        Row ``i`` predicts the token after ``tokens[first + i]``. Raises ``ContextLengthExceeded``,
        ``UnknownAdapter``, and ``EngineError`` while requests run.
        """
        lane = self._lane(adapter)
        if len(tokens) > self._settings.context_tokens:
            raise ContextLengthExceeded(
                f"{len(tokens)} tokens to score; the context has {self._settings.context_tokens}"
            )
        if not 0 <= first < len(tokens):
            raise EngineError(f"cannot score from position {first} of {len(tokens)} tokens")
        if any(not 0 <= token < self.facts.vocabulary for token in tokens):
            raise EngineError("a token to score is outside the vocabulary")
        return lane.score(tokens, first, self.facts.vocabulary)

    def close(self) -> None:
        """Free everything native. Safe to call twice; nothing else may be called after it."""
        for lane in (*self._lanes.values(), *self._leaving):
            lane.close()
        self._lanes.clear()
        self._leaving.clear()
        self._requests.clear()
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None

    # Inside

    def _lane(self, adapter: str | None) -> "_Lane":
        lane = self._lanes.get(adapter)
        if lane is None:
            raise UnknownAdapter(f"no adapter {adapter!r} is attached")
        return lane

    def _free_idle_leavers(self) -> None:
        for lane in [lane for lane in self._leaving if not lane.busy]:
            self._leaving.remove(lane)
            lane.close()

    def _piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def _token_text(self, token: int) -> str:
        if token < 0:
            return ""
        text: bytes = self._lib.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", "replace")

    def _facts(self, path: Path, trained: int) -> ModelFacts:
        header, lib = self._header, self._lib
        return ModelFacts(
            architecture=header.architecture,
            name=header.text("general.name") or path.stem,
            parameters=lib.llama_model_n_params(self._model),
            context_length=trained,
            context_tokens=self._settings.context_tokens,
            vocabulary=lib.llama_vocab_n_tokens(self._vocab),
            bos=self._token_text(lib.llama_vocab_bos(self._vocab)),
            eos=self._token_text(lib.llama_vocab_eos(self._vocab)),
            chat_template=header.text("tokenizer.chat_template"),
            file_bytes=path.stat().st_size,
            control_tokens=self._control_tokens(),
        )

    def _control_tokens(self) -> tuple[str, ...]:
        """What llama.cpp reads as a token only when it is told to parse special ones."""
        lib, vocab = self._lib, self._vocab
        kinds = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        tokens = range(lib.llama_vocab_n_tokens(vocab))
        return tuple(self._token_text(t) for t in tokens if lib.llama_vocab_get_attr(vocab, t) & kinds)


def _fit(settings: LlamaSettings, trained: int) -> LlamaSettings:
    """The settings, with no more context than the model was made for."""
    context = min(settings.context_tokens, trained) if trained > 0 else settings.context_tokens
    return LlamaSettings(
        threads=settings.threads,
        context_tokens=context,
        max_sequences=settings.max_sequences,
        batch_tokens=settings.batch_tokens,
        cache_tokens=max(context, min(settings.cache_tokens, context * settings.max_sequences)),
    )


_HONOURED = frozenset({"max_tokens", "temperature", "top_p", "seed", "stop", "grammar"})


def _check(sampling: Sampling) -> None:
    refuse_options(sampling, _HONOURED)
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise UnsupportedRequest("max_tokens is at least 1")
    if not 0 <= sampling.temperature <= 100:
        raise UnsupportedRequest("temperature is between 0 and 100")
    if not 0 < sampling.top_p <= 1:
        raise UnsupportedRequest("top_p is above 0 and at most 1")


@dataclass(slots=True)
class _Sequence:
    """A request on its way: ``prompt`` and answer so far, of which ``_Slot.tokens`` is computed."""

    id: str
    prompt: list[int]
    max_tokens: int
    stream: TextStream
    sampler: "_Sampler"
    arrival: int
    answer: list[int] = field(default_factory=list)
    cached: int = 0
    cancelled: bool = False

    @property
    def usage(self) -> Usage:
        return Usage(len(self.prompt), len(self.answer), self.cached)

    def token_at(self, position: int) -> int:
        inside = position - len(self.prompt)
        return self.prompt[position] if inside < 0 else self.answer[inside]


@dataclass(slots=True)
class _Slot:
    """One sequence id of a context: the tokens whose KV it holds, and who runs in it."""

    index: int
    tokens: list[int] = field(default_factory=list)
    sequence: _Sequence | None = None
    used: int = 0

    def view(self) -> schedule.SlotView:
        reserved = len(self.sequence.prompt) + self.sequence.max_tokens if self.sequence else 0
        return schedule.SlotView(self.index, self.tokens, reserved, self.used)


class _Lane:
    """One context: the base alone, or the base with one adapter. Owns both natively."""

    def __init__(
        self, lib: Any, model: Any, settings: LlamaSettings, adapter: Any, observe: Any = None
    ) -> None:
        self._lib, self._settings, self._adapter = lib, settings, adapter
        self.waiting: deque[_Sequence] = deque()
        self._slots = [_Slot(index) for index in range(settings.max_sequences)]
        self._clock = 0
        # State of recurrent layers cannot be cut at a prefix.
        self._can_reuse = not (lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model))
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = settings.cache_tokens
        parameters.n_batch = parameters.n_ubatch = settings.batch_tokens
        parameters.n_seq_max = settings.max_sequences
        parameters.n_threads = parameters.n_threads_batch = settings.threads
        parameters.kv_unified = True  # sequences share prefixes cell by cell
        parameters.swa_full = True  # a sliding window would lose the prefix that is to be reused
        parameters.no_perf = True
        if observe is not None:
            parameters.cb_eval = observe
        self._context = lib.llama_init_from_model(model, parameters)
        if not self._context:
            raise EngineError(f"no memory for a context of {settings.cache_tokens} tokens: {_last_error()}")
        if adapter is not None:
            adapters = (lib.llama_adapter_lora_p_ctypes * 1)(adapter)
            if lib.llama_set_adapters_lora(self._context, adapters, 1, (ctypes.c_float * 1)(1.0)):
                lib.llama_free(self._context)
                raise EngineError(f"the adapter cannot be used in a context: {_last_error()}")
        self._memory = lib.llama_get_memory(self._context)
        self._batch = lib.llama_batch_init(settings.batch_tokens, 0, 1)

    @property
    def busy(self) -> bool:
        return bool(self.waiting) or any(slot.sequence for slot in self._slots)

    def cancel(self, request_id: str) -> None:
        running = (slot.sequence for slot in self._slots if slot.sequence)
        for sequence in (*self.waiting, *running):
            if sequence.id == request_id:
                sequence.cancelled = True

    def step(self, piece: Any) -> list[Event]:
        """One batch: drop what was cancelled, admit what fits, compute, sample."""
        if not self.busy:
            return []
        events = self._drop_cancelled()
        self._admit()
        pending = [
            schedule.Pending(
                slot.index,
                len(slot.sequence.prompt) + len(slot.sequence.answer) - len(slot.tokens),
                slot.sequence.arrival,
            )
            for slot in self._slots
            if slot.sequence
        ]
        chunks = schedule.fill(pending, self._settings.batch_tokens)
        if not chunks:
            return events
        rows = self._load(chunks)
        status = self._lib.llama_decode(self._context, self._batch)
        if status:
            return events + self._fail_running(f"llama.cpp could not compute a batch ({status})")
        for chunk, row in zip(chunks, rows, strict=True):
            slot = self._slots[chunk.slot]
            sequence = slot.sequence
            if sequence is None:
                continue
            start = len(slot.tokens)
            slot.tokens += [sequence.token_at(start + offset) for offset in range(chunk.size)]
            if chunk.last:
                event = self._sample(sequence, row, piece)
            else:
                event = Event(sequence.id, usage=sequence.usage)
            if event.done:
                self._release(slot)
            events.append(event)
        return events

    def score(self, tokens: Sequence[int], first: int, vocabulary: int) -> "npt.NDArray[np.float32]":
        import numpy as np

        if self.busy:
            raise EngineError("logits are computed only while no request runs")
        self._forget_everything()
        result = np.empty((len(tokens) - first, vocabulary), dtype=np.float32)
        try:
            for start in range(0, len(tokens), self._settings.batch_tokens):
                part = tokens[start : start + self._settings.batch_tokens]
                self._batch.n_tokens = 0
                for offset, token in enumerate(part):
                    self._add(token, start + offset, 0, start + offset >= first)
                if self._lib.llama_decode(self._context, self._batch):
                    raise EngineError(f"llama.cpp could not score a sequence: {_last_error()}")
                wanted = [row for row in range(len(part)) if start + row >= first]
                if wanted:
                    # Requested rows lie one after the other in the output.
                    logits = self._lib.llama_get_logits_ith(self._context, wanted[0])
                    block = np.ctypeslib.as_array(logits, shape=(len(wanted), vocabulary))
                    result[start + wanted[0] - first :][: len(wanted)] = block
        finally:
            self._forget_everything()
        return result

    def close(self) -> None:
        for sequence in self.waiting:
            sequence.sampler.close()
        for slot in self._slots:
            if slot.sequence:
                slot.sequence.sampler.close()
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        if self._adapter is not None:
            self._lib.llama_adapter_lora_free(self._adapter)

    def _drop_cancelled(self) -> list[Event]:
        dropped = [sequence for sequence in self.waiting if sequence.cancelled]
        self.waiting = deque(sequence for sequence in self.waiting if not sequence.cancelled)
        for sequence in dropped:
            sequence.sampler.close()
        for slot in self._slots:
            if slot.sequence and slot.sequence.cancelled:
                dropped.append(slot.sequence)
                self._release(slot)
        return [Event(item.id, finish=Finish.CANCELLED, usage=item.usage) for item in dropped]

    def _admit(self) -> None:
        """Give slots to waiting requests in order of arrival; the first that does not fit waits."""
        while self.waiting:
            sequence = self.waiting[0]
            place = schedule.place(
                [slot.view() for slot in self._slots],
                sequence.prompt,
                len(sequence.prompt) + sequence.max_tokens,
                self._settings.cache_tokens,
            )
            if place is None:
                return
            self.waiting.popleft()
            target, source = self._slots[place.target], self._slots[place.source]
            reuse = place.reuse if self._can_reuse else 0
            tokens = source.tokens[:reuse]
            if target is source:
                if not self._lib.llama_memory_seq_rm(self._memory, target.index, reuse, -1):
                    self._forget(target)
                    tokens = []
            else:
                self._forget(target)
                if reuse:
                    self._lib.llama_memory_seq_cp(self._memory, source.index, target.index, 0, reuse)
            for index in place.evict:
                self._forget(self._slots[index])
            target.tokens = tokens
            target.sequence = sequence
            sequence.cached = len(tokens)

    def _load(self, chunks: Sequence[schedule.Chunk]) -> list[int]:
        """Write the batch; return the row of each chunk's last token."""
        self._batch.n_tokens = 0
        rows = []
        for chunk in chunks:
            slot = self._slots[chunk.slot]
            sequence = slot.sequence
            if sequence is None:
                raise EngineError(f"slot {chunk.slot} was scheduled without a sequence")
            start = len(slot.tokens)
            for position in range(start, start + chunk.size):
                last = chunk.last and position == start + chunk.size - 1
                self._add(sequence.token_at(position), position, slot.index, last)
            rows.append(self._batch.n_tokens - 1)
        return rows

    def _add(self, token: int, position: int, slot: int, output: bool) -> None:
        batch, row = self._batch, self._batch.n_tokens
        batch.token[row] = token
        batch.pos[row] = position
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = slot
        batch.logits[row] = output
        batch.n_tokens = row + 1

    def _sample(self, sequence: _Sequence, row: int, piece: Any) -> Event:
        token = sequence.sampler.sample(self._context, row)
        if sequence.sampler.is_end(token):
            return Event(sequence.id, text=sequence.stream.flush(), finish=Finish.STOP, usage=sequence.usage)
        sequence.answer.append(token)
        text = sequence.stream.push(piece(token))
        finish = None
        if not sequence.stream.stopped and len(sequence.answer) == sequence.max_tokens:
            text += sequence.stream.flush()
            finish = Finish.LENGTH
        if sequence.stream.stopped:
            finish = Finish.STOP
        return Event(sequence.id, text=text, finish=finish, usage=sequence.usage)

    def _release(self, slot: _Slot) -> None:
        """The request has ended; the slot keeps its cells for a later prompt."""
        if slot.sequence:
            slot.sequence.sampler.close()
        slot.sequence = None
        self._clock += 1
        slot.used = self._clock

    def _forget(self, slot: _Slot) -> None:
        self._lib.llama_memory_seq_rm(self._memory, slot.index, -1, -1)
        slot.tokens = []

    def _forget_everything(self) -> None:
        for slot in self._slots:
            self._forget(slot)

    def _fail_running(self, reason: str) -> list[Event]:
        events = []
        for slot in self._slots:
            if slot.sequence:
                events.append(Event(slot.sequence.id, error=EngineError(reason), usage=slot.sequence.usage))
                self._release(slot)
        self._forget_everything()
        return events


class _Sampler:
    """Chooses tokens for one request, natively.

    With a grammar a token is first drawn freely and only checked; the grammar is laid over the whole
    vocabulary, which is slow, only when the check fails. The outcome has the same distribution.
    """

    def __init__(self, lib: Any, vocab: Any, sampling: Sampling) -> None:
        self._lib, self._vocab = lib, vocab
        self._grammar: Any = None
        self._constrained: Any = None
        grammar: Any = None
        if sampling.grammar is not None:
            grammar = lib.llama_sampler_init_grammar(vocab, sampling.grammar.encode(), b"root")
            if not grammar:
                raise UnsupportedRequest(f"the grammar cannot be used: {_last_error()}")
        self._free = self._chain(sampling, None)
        if grammar:
            self._grammar = grammar
            self._constrained = self._chain(sampling, grammar)

    def _chain(self, sampling: Sampling, grammar: Any) -> Any:
        lib = self._lib
        parameters = lib.llama_sampler_chain_default_params()
        parameters.no_perf = True
        chain = lib.llama_sampler_chain_init(parameters)
        if grammar:
            lib.llama_sampler_chain_add(chain, grammar)  # the chain owns it from here on
        if sampling.temperature == 0:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
            return chain
        seed = _DRAW_A_SEED if sampling.seed is None else sampling.seed % _DRAW_A_SEED
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(sampling.temperature))
        if sampling.top_p < 1:
            lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(sampling.top_p, 1))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(seed))
        return chain

    def sample(self, context: Any, row: int) -> int:
        """The token after batch row ``row``; the grammar, if any, has advanced over it."""
        token: int = self._lib.llama_sampler_sample(self._free, context, row)
        if self._grammar is None:
            return token
        if self._allows(token):
            self._lib.llama_sampler_accept(self._grammar, token)
            return token
        constrained: int = self._lib.llama_sampler_sample(self._constrained, context, row)
        return constrained

    def is_end(self, token: int) -> bool:
        """Whether the token ends the answer."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def _allows(self, token: int) -> bool:
        one = (self._lib.llama_token_data * 1)(self._lib.llama_token_data(token, 1.0, 0.0))
        view = self._lib.llama_token_data_array(one, 1, -1, False)
        self._lib.llama_sampler_apply(self._grammar, ctypes.byref(view))
        return bool(view.data[0].logit > float("-inf"))

    def close(self) -> None:
        self._lib.llama_sampler_free(self._free)
        if self._constrained is not None:
            self._lib.llama_sampler_free(self._constrained)


_ERROR_LEVEL = 4
_errors: deque[str] = deque(maxlen=4)
_loading = threading.Lock()


def _last_error() -> str:
    """What llama.cpp logged as errors since it was asked last."""
    lines = "; ".join(_errors)
    _errors.clear()
    return lines or "llama.cpp gave no reason"


def _library() -> Any:
    with _loading:
        return _load_library()


@cache
def _load_library() -> Any:
    try:
        from llama_cpp import llama_cpp as lib
    except ImportError as error:
        raise EngineError("llama-cpp-python is missing: pip install 'outpost[edge]'") from error
    lib.llama_log_set(_keep_errors(lib), None)
    lib.llama_backend_init()
    return lib


@cache
def _keep_errors(lib: Any) -> Any:
    """A log callback that is silent and remembers errors. Cached: C keeps a pointer to it."""

    def callback(level: int, text: bytes, user_data: Any) -> None:
        if level == _ERROR_LEVEL:
            _errors.append(text.decode("utf-8", "replace").strip())

    return lib.llama_log_callback(callback)
