"""The requests for the base, or for one adapter, and the context in which they run.

A lane decides nothing itself: ``models.engines.schedule`` and ``models.engines.prefixes`` do. It lives on
without a context while nobody asks for its adapter.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.engines import schedule
from models.engines.base import Event, Finish, Load, Usage
from models.engines.llama_cpp.context import Context
from models.engines.llama_cpp.media import Piece, Projector, before_media, cut_at_media
from models.engines.llama_cpp.parked import Parked, ParkedPrefixes
from models.engines.llama_cpp.sampler import Sampler
from models.engines.llama_cpp.settings import LlamaSettings
from models.engines.llama_cpp.threads import Threads
from models.engines.llama_cpp.vocabulary import Vocabulary
from models.engines.prefixes import Drop, PrefixTree
from models.engines.stream import TextStream
from models.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_NO_TOKEN = -1
SavedPrefix = tuple[list[int], bytearray]
"""Tokens, and the state of their cells."""


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way: ``tokens`` of prompt and answer so far, of which ``computed`` are in cells.

    ``promised``: for how many there is room while it runs; ``cached``: known once it has run. ``pieces`` of
    pictures and recordings stand among the tokens.
    """

    id: str
    tokens: list[int]
    prompt: int
    most: int
    stream: TextStream
    sampler: Sampler
    arrival: int
    computed: int = 0
    promised: int = 0
    cached: int | None = None
    cancelled: bool = False
    pieces: Sequence[Piece] = ()

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(self.prompt, len(self.tokens) - self.prompt, self.cached or 0)

    def next_promise(self, ahead: int) -> int:
        """Tokens in all for which it asks room next: ``ahead`` more than now, if it may have as many."""
        return min(len(self.tokens) + ahead, self.prompt + self.most)


class Lane:
    """Owns its context, once there is one; ``adapter`` and ``observe`` as in ``Context``."""

    def __init__(
        self,
        lib: Any,
        model: Any,
        vocabulary: Vocabulary,
        settings: LlamaSettings,
        threads: Threads,
        parked: ParkedPrefixes,
        adapter: Any = None,
        observe: Any = None,
        digest: str | None = None,
        projector: Projector | None = None,
    ) -> None:
        self._lib, self._model, self._vocabulary, self._settings = lib, model, vocabulary, settings
        self._threads = threads
        self._parked, self._adapter, self._observe = parked, adapter, observe
        self.digest, self._projector = digest, projector
        self.waiting: deque[Job] = deque()
        self.used = 0
        self._context: Context | None = None
        self._running: dict[int, Job] = {}
        # State of recurrent layers cannot be cut at a prefix.
        self._shares = not (lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model))
        on_gpu = settings.gpu and bool(lib.llama_supports_gpu_offload())
        self._mixes = on_gpu or not settings.kv_unified
        self._tree = self._new_tree()
        self._reach = 0  # about how many cells were in use at once since there were none

    # The context

    @property
    def is_open(self) -> bool:
        """Whether there is a context."""
        return self._context is not None

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.waiting or self._running)

    @property
    def running(self) -> int:
        """How many requests have cells."""
        return len(self._running)

    @property
    def load(self) -> Load:
        """By the books of the tree, so that what is never given back shows."""
        waiting = len(self.waiting)
        if self._context is None:
            return Load(waiting=waiting)
        tree = self._tree
        return Load(tree.running, waiting, tree.cells, tree.used, tree.promised())

    def open(self) -> None:
        """Make the context. Raises ``EngineError`` when llama.cpp cannot."""
        if self._context is None:
            width = self._projector.width if self._projector else 0
            self._context = Context(
                self._lib, self._model, self._settings, self._threads, self._adapter, self._observe, width
            )
            self._tree = self._new_tree()

    def shut(self) -> None:
        """Free the context, in which nothing runs."""
        if self._context is not None:
            self._context.close()
            self._context = None

    def set_aside(self) -> None:
        """Shut the context, in which nothing runs; what it keeps comes back with the next one."""
        if self._context is not None:
            self._park(self._context, 0)
            self.shut()

    def close(self) -> None:
        """Free everything, the adapter too."""
        for sequence in (*self.waiting, *self._running.values()):
            sequence.sampler.close()
        self.waiting.clear()
        self._running.clear()
        self.shut()
        self._parked.drop(self)
        if self._adapter is not None:
            self._lib.llama_adapter_lora_free(self._adapter)
            self._adapter = None

    # Requests

    def cancel(self, request_id: str) -> None:
        """Stop a request within one step."""
        for sequence in (*self.waiting, *self._running.values()):
            if sequence.id == request_id:
                sequence.cancelled = True

    def refuse_waiting(self, error: EngineError) -> list[Event]:
        """Whoever waits gets ``error``."""
        refused, self.waiting = self.waiting, deque()
        for sequence in refused:
            sequence.sampler.close()
        return [Event(one.id, error=error, usage=one.usage) for one in refused]

    def drop_cancelled(self) -> list[Event]:
        """End what was cancelled."""
        dropped = [sequence for sequence in self.waiting if sequence.cancelled]
        self.waiting = deque(sequence for sequence in self.waiting if not sequence.cancelled)
        for sequence in dropped:
            sequence.sampler.close()
        for id, sequence in list(self._running.items()):
            if sequence.cancelled:
                dropped.append(sequence)
                self._release(id)
        return [Event(item.id, finish=Finish.CANCELLED, usage=item.usage) for item in dropped]

    def step(self, before: float) -> list[Event]:
        """One batch: admit what fits and came ``before`` that arrival, compute, sample."""
        if self._context is None:
            return []
        events: list[Event] = []
        try:
            self._admit(self._context, before)
            self._promise_more(self._context)
            if not self._settings.kv_unified:
                self._close_ranks(self._context)
            for batch in self._batches(self._context):
                events += self._compute(self._context, batch)
        except EngineError as error:
            events += self._fail_running(error)
        return events

    def _admit(self, context: Context, before: float) -> None:
        """Give cells to waiting requests in order of arrival; the first that does not fit holds up the rest.

        One whose prefix is being computed waits for it, and lets others pass.
        """
        staying: list[Job] = []
        if not self._running and self._reach > self._tree.used + self._settings.kept_tokens:
            self._pack(context)
        kept = self._settings.kept_tokens if self._settings.kv_unified else 0
        room = self._settings.max_sequences
        while self.waiting and self.waiting[0].arrival < before and len(self._running) < room:
            sequence = self.waiting[0]
            ahead = (
                (other.tokens[: other.prompt], other.computed)
                for other in self._running.values()
                if other.computed < other.prompt and other.arrival < sequence.arrival
            )
            promised = sequence.next_promise(self._settings.ahead_tokens)
            self._recall(context, sequence.tokens, promised)
            known = self._tree.longest(sequence.tokens)
            if self._shares and schedule.is_coming(sequence.tokens, known, ahead):
                staying.append(self.waiting.popleft())
                continue
            start = self._tree.start(sequence.tokens, promised)
            if start is None:
                break
            self.waiting.popleft()
            self._running[start.id] = sequence
            sequence.computed, sequence.promised = start.reuse, promised
            if sequence.cached is None:
                sequence.cached = start.reuse
            context.carry_out(start.changes)
            self._park(context, kept)
        self.waiting.extendleft(reversed(staying))

    # Parking

    def _park(self, context: Context, most: int) -> None:
        """Move kept prefixes out of the cells, the one used longest ago first, until ``most`` cells keep."""
        for id in self._tree.kept():
            if self._tree.kept_cells() <= most:
                break
            tokens, shared = self._tree.tokens(id), self._tree.shared_of(id)
            if not self._parked.covers(self, tokens, shared) and (state := context.read_state(id)):
                self._parked.put(self, Parked(tokens, state, shared))
            context.carry_out(self._tree.give_up(id))

    def _recall(self, context: Context, tokens: list[int], promised: int) -> None:
        """Bring back what is parked of a prompt, if that is more than the cells have of it."""
        one, size = self._parked.longest(self, tokens[:-1])
        if one is None or size - self._tree.longest(tokens[:-1]) < schedule.WORTH_WAITING:
            return
        start = self._tree.start([_NO_TOKEN], max(promised, len(one.tokens)))
        if start is None:
            return
        context.carry_out((*start.changes, *self._tree.make_room(len(one.tokens))))
        if context.write_state(start.id, one.state, len(one.tokens)):
            context.carry_out([Drop(start.id, size), *self._tree.advance(start.id, one.tokens[:size])])
            shared = size if size < len(one.tokens) else one.shared
        else:
            context.carry_out([Drop(start.id)])
            self._parked.drop(self, one.tokens)
            shared = 0
        context.carry_out(self._tree.finish(start.id, shared))

    def _pack(self, context: Context) -> None:
        """Have the cells filled from the first one on again, while nothing runs."""
        self._park(context, 0)
        self._forget()

    def _close_ranks(self, context: Context) -> None:
        """Have those that run under consecutive ids: cells apart are computed together only then."""
        if self._running:
            self._park(context, 0)
        for id in sorted(self._running, reverse=True):
            to, changes = self._tree.move(id)
            if to == id:
                break
            context.carry_out(changes)
            self._running[to] = self._running.pop(id)

    def _promise_more(self, context: Context) -> None:
        """Before a request outgrows its promise, make it another; for want of room the last to come wait.

        So the first to come always goes on. Who waits goes on later, from what is still kept of it by then.
        """
        for id, sequence in sorted(self._running.items(), key=lambda item: item[1].arrival):
            while id in self._running and len(sequence.tokens) > sequence.promised:
                promised = sequence.next_promise(self._settings.ahead_tokens)
                if self._tree.promise(id, promised):
                    sequence.promised = promised
                    break
                last = max(self._running, key=lambda id: self._running[id].arrival)
                self.waiting.append(self._running.pop(last))
                self.waiting = deque(sorted(self.waiting, key=lambda one: one.arrival))
                context.carry_out(self._tree.finish(last))

    def _batches(self, context: Context) -> list[tuple[schedule.Chunk, ...]]:
        """What this step computes; there are cells for it.

        One piece of a picture at most, which is a batch of its own: to encode it takes long.
        """
        pending = [
            schedule.Pending(id, len(sequence.tokens) - sequence.computed, sequence.arrival)
            for id, sequence in self._running.items()
        ]
        words, shown = list[schedule.Chunk](), list[schedule.Chunk]()
        for chunk in schedule.fill(pending, self._settings.batch_tokens, self._settings.beside_tokens):
            one = self._running[chunk.id]
            size, piece = cut_at_media(one.pieces, one.computed, chunk.size)
            cut = schedule.Chunk(chunk.id, size, one.computed + size == len(one.tokens))
            (shown if piece else words).append(cut)
        del shown[1:]
        size = sum(chunk.size for chunk in (*words, *shown))
        context.carry_out(self._tree.make_room(size))
        if self._settings.kv_unified:
            self._reach = max(self._reach, self._tree.used + size)
        return [*schedule.batches(words, mixed=self._mixes), *((chunk,) for chunk in shown)]

    def _compute(self, context: Context, batch: Sequence[schedule.Chunk]) -> list[Event]:
        first = self._running[batch[0].id]
        _, piece = cut_at_media(first.pieces, first.computed, batch[0].size)
        if piece is not None and self._projector is not None:
            return [self._show(context, self._projector, batch[0], piece)]
        rows = []
        batch = sorted(batch, key=lambda chunk: chunk.id)
        for chunk in batch:
            one = self._running[chunk.id]
            part = one.tokens[one.computed : one.computed + chunk.size]
            rows.append(context.add(chunk.id, one.computed, part, outputs=int(chunk.last)))
        context.compute()
        return [self._took(context, chunk, row) for chunk, row in zip(batch, rows, strict=True)]

    def _show(self, context: Context, projector: Projector, chunk: schedule.Chunk, piece: Piece) -> Event:
        one = self._running[chunk.id]
        try:
            embeddings = projector.embed(piece)[one.computed - piece.start :][: chunk.size]
        except EngineError as error:
            self._release(chunk.id)
            return Event(one.id, error=error, usage=one.usage)
        row = context.show(chunk.id, one.computed, embeddings, int(chunk.last), causal=not piece.whole)
        return self._took(context, chunk, row)

    def _took(self, context: Context, chunk: schedule.Chunk, row: int) -> Event:
        """A chunk has been computed; sample when it was the last one of its sequence."""
        sequence = self._running[chunk.id]
        part = sequence.tokens[sequence.computed : sequence.computed + chunk.size]
        context.carry_out(self._tree.advance(chunk.id, part))
        sequence.computed += chunk.size
        if not chunk.last:
            return Event(sequence.id, usage=sequence.usage)
        try:
            event = self._sample(sequence, context.handle, row)
        except EngineError as error:
            event = Event(sequence.id, error=error, usage=sequence.usage)
        if event.done:
            self._release(chunk.id)
        return event

    def _sample(self, sequence: Job, context: Any, row: int) -> Event:
        token = sequence.sampler.sample(context, row)
        if self._vocabulary.is_end(token):
            return Event(sequence.id, sequence.stream.flush(), Finish.STOP, usage=sequence.usage)
        logprobs = sequence.sampler.logprobs(context, row, token)
        sequence.tokens.append(token)
        text = sequence.stream.push(self._vocabulary.piece(token))
        finish = Finish.STOP if sequence.stream.stopped else None
        if finish is None and len(sequence.tokens) - sequence.prompt == sequence.most:
            text += sequence.stream.flush()
            finish = Finish.STOP if sequence.stream.stopped else Finish.LENGTH
        return Event(sequence.id, text, finish, usage=sequence.usage, logprobs=logprobs)

    def _release(self, id: int) -> None:
        """A request has ended; its cells are kept for a later prompt."""
        self._running.pop(id).sampler.close()
        changes = self._tree.finish(id)
        if self._context is not None:
            self._context.carry_out(changes)

    def _fail_running(self, error: EngineError) -> list[Event]:
        failed = list(self._running.values())
        for sequence in failed:
            sequence.sampler.close()
        self._running.clear()
        self._forget()
        return [Event(one.id, error=error, usage=one.usage) for one in failed]

    def _forget(self) -> None:
        if self._context is not None:
            self._context.clear()
        self._tree = self._new_tree()
        self._reach = 0

    def _new_tree(self) -> PrefixTree:
        sizes = self._settings
        return PrefixTree(sizes.ids, sizes.max_sequences, sizes.cache_tokens, self._shares)

    # Evaluation

    def score(self, tokens: Sequence[int], first: int) -> "npt.NDArray[np.float32]":
        """See ``LlamaEngine.score``."""
        import numpy as np

        if self.busy:
            raise EngineError("logits are computed only while no request runs")
        context, size = self._context, self._vocabulary.size
        if context is None:
            raise EngineError("there is no context to compute in")
        self._forget()
        result = np.empty((len(tokens) - first, size), dtype=np.float32)
        try:
            for start in range(0, len(tokens), self._settings.batch_tokens):
                part = tokens[start : start + self._settings.batch_tokens]
                wanted = min(len(part), max(0, start + len(part) - first))
                last = context.add(0, start, part, wanted)
                context.compute()
                if wanted:
                    # Requested rows lie one after the other in the output.
                    logits = self._lib.llama_get_logits_ith(context.handle, last - wanted + 1)
                    block = np.ctypeslib.as_array(logits, shape=(wanted, size))
                    result[start + len(part) - wanted - first :][:wanted] = block
        finally:
            self._forget()
        return result

    # Warm start

    def save(self, most_bytes: int) -> list[SavedPrefix]:
        """The prefixes that more than one request has used, the latest used first, while they fit.

        They end before the first picture: what stands for it means nothing beside another projector.
        What runs is given up.
        """
        saved: list[SavedPrefix] = []
        if self._context is None:
            return saved
        for id in list(self._running):
            self._release(id)
        for one in reversed(self._parked.of(self)):
            self._recall(self._context, [*one.tokens[: one.shared], _NO_TOKEN], one.shared + 1)
        for holder, length in self._tree.shared():
            tokens = before_media(self._tree.tokens(holder)[:length])
            if not tokens or any(other[: len(tokens)] == tokens for other, _ in saved):
                continue
            start = self._tree.start([*tokens, _NO_TOKEN], len(tokens) + 1)
            if start is None:
                break
            self._context.carry_out(start.changes)
            most_bytes -= self._context.state_bytes(start.id)
            state = self._context.read_state(start.id) if most_bytes >= 0 else None
            self._context.carry_out(self._tree.finish(start.id))
            if not state:
                break
            saved.append((tokens, state))
        return saved

    def restore(self, saved: Sequence[SavedPrefix]) -> None:
        """Park saved prefixes, the first one last: they come into cells when a prompt begins with them."""
        if self._shares:
            for tokens, state in reversed(saved):
                if not self._parked.covers(self, tokens, len(tokens)):
                    self._parked.put(self, Parked(tokens, state, len(tokens)))
