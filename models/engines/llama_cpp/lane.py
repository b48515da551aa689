"""The requests for the base, or for one adapter, and the context in which they run.

What a batch holds is decided in ``models.engines.schedule``, and which cells hold what in
``models.engines.prefixes``; who enters in which order is decided here. A lane lives on without a context
while nobody asks for its adapter.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.engines import schedule
from models.engines.base import Event, Finish, Load, Usage
from models.engines.llama_cpp.cells import Cells, SavedPrefix
from models.engines.llama_cpp.context import Context
from models.engines.llama_cpp.media import Piece, Projector, cut_at_media
from models.engines.llama_cpp.parked import ParkedPrefixes
from models.engines.llama_cpp.sampler import Sampler
from models.engines.llama_cpp.settings import LlamaSettings
from models.engines.llama_cpp.threads import Threads
from models.engines.llama_cpp.vocabulary import Vocabulary
from models.engines.stream import TextStream
from models.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


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
        self.cells: Cells | None = None
        self.restored = False
        self._running: dict[int, Job] = {}
        # State of recurrent layers cannot be cut at a prefix.
        self._shares = not (lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model))
        self._mixes = settings.gpu or not settings.kv_unified

    # The context

    @property
    def is_open(self) -> bool:
        """Whether there is a context."""
        return self.cells is not None

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
        """What it has to do."""
        own = Load(waiting=len(self.waiting))
        return own if self.cells is None else own + self.cells.load

    def open(self) -> None:
        """Make the context. Raises ``EngineError`` when llama.cpp cannot."""
        if self.cells is None:
            width = self._projector.width if self._projector else 0
            context = Context(
                self._lib, self._model, self._settings, self._threads, self._adapter, self._observe, width
            )
            self.cells = Cells(context, self._settings, self._parked, self, self._shares)

    def shut(self) -> None:
        """Free the context, in which nothing runs."""
        if self.cells is not None:
            self.cells.context.close()
            self.cells = None

    def set_aside(self) -> None:
        """Shut the context, in which nothing runs; what it keeps comes back with the next one."""
        if self.cells is not None:
            self.cells.park_all()
            self.shut()

    def close(self) -> None:
        """Free everything, the adapter too."""
        for job in (*self.waiting, *self._running.values()):
            job.sampler.close()
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
        for job in (*self.waiting, *self._running.values()):
            if job.id == request_id:
                job.cancelled = True

    def refuse_waiting(self, error: EngineError) -> list[Event]:
        """Whoever waits gets ``error``."""
        refused, self.waiting = self.waiting, deque()
        return _failed(refused, error)

    def drop_cancelled(self) -> list[Event]:
        """End what was cancelled."""
        dropped = [job for job in self.waiting if job.cancelled]
        self.waiting = deque(job for job in self.waiting if not job.cancelled)
        for job in dropped:
            job.sampler.close()
        events = [_cancelled(job) for job in dropped]
        try:
            for id, job in list(self._running.items()):
                if job.cancelled:
                    events.append(_cancelled(job))
                    self._release(id)
        except EngineError as error:
            events += self._fail(error)
        return events

    def step(self, before: float) -> list[Event]:
        """One batch: admit what fits and came ``before`` that arrival, compute, sample."""
        if self.cells is None:
            return []
        events: list[Event] = []  # what happened before an error happened all the same
        try:
            self._admit(self.cells, before)
            self._promise_more(self.cells)
            for id, to in self.cells.close_ranks(self._running):
                self._running[to] = self._running.pop(id)
            for batch in self._batches(self.cells):
                self._compute(self.cells, batch, events)
        except EngineError as error:
            events += self._fail(error)
        return events

    def _admit(self, cells: Cells, before: float) -> None:
        """Give cells to waiting requests in order of arrival; the first that does not fit holds up the rest.

        One whose prefix is being computed waits for it, and lets others pass.
        """
        staying: list[Job] = []
        if not self._running:
            cells.settle()
        room = self._settings.max_sequences
        try:
            while self.waiting and self.waiting[0].arrival < before and len(self._running) < room:
                job = self.waiting[0]
                ahead = (
                    (other.tokens[: other.prompt], other.computed)
                    for other in self._running.values()
                    if other.computed < other.prompt and other.arrival < job.arrival
                )
                promised = job.next_promise(self._settings.ahead_tokens)
                known = cells.known(job.tokens, promised)
                if self._shares and schedule.is_coming(job.tokens, known, ahead):
                    staying.append(self.waiting.popleft())
                    continue
                start = cells.start(job.tokens, promised)
                if start is None:
                    break
                self.waiting.popleft()
                self._running[start.id] = job
                job.computed, job.promised = start.reuse, promised
                if job.cached is None:
                    job.cached = start.reuse
                cells.enter(start)
        finally:
            self.waiting.extendleft(reversed(staying))

    def _promise_more(self, cells: Cells) -> None:
        """Before a request outgrows its promise, make it another; for want of room the last to come wait.

        So the first to come always goes on. Who waits goes on later, from what is still kept of it by then.
        """
        for id, job in sorted(self._running.items(), key=lambda item: item[1].arrival):
            while id in self._running and len(job.tokens) > job.promised:
                promised = job.next_promise(self._settings.ahead_tokens)
                if cells.promise(id, promised):
                    job.promised = promised
                    break
                last = max(self._running, key=lambda id: self._running[id].arrival)
                self.waiting.append(self._running.pop(last))
                self.waiting = deque(sorted(self.waiting, key=lambda one: one.arrival))
                cells.finish(last)

    def _batches(self, cells: Cells) -> list[tuple[schedule.Chunk, ...]]:
        """What this step computes; there are cells for it.

        One piece of a picture at most, which is a batch of its own: to encode it takes long.
        """
        pending = [
            schedule.Pending(id, len(job.tokens) - job.computed, job.arrival)
            for id, job in self._running.items()
        ]
        words, shown = list[schedule.Chunk](), list[schedule.Chunk]()
        for chunk in schedule.fill(pending, self._settings.batch_tokens, self._settings.beside_tokens):
            one = self._running[chunk.id]
            size, piece = cut_at_media(one.pieces, one.computed, chunk.size)
            cut = schedule.Chunk(chunk.id, size, one.computed + size == len(one.tokens))
            (shown if piece else words).append(cut)
        del shown[1:]
        cells.make_room(sum(chunk.size for chunk in (*words, *shown)))
        return [*schedule.batches(words, mixed=self._mixes), *((chunk,) for chunk in shown)]

    def _compute(self, cells: Cells, batch: Sequence[schedule.Chunk], events: list[Event]) -> None:
        """Compute a batch; what comes of each of its chunks is added to ``events``, one by one."""
        first = self._running[batch[0].id]
        _, piece = cut_at_media(first.pieces, first.computed, batch[0].size)
        if piece is not None and self._projector is not None:
            self._happened(batch[0].id, self._show(cells, self._projector, batch[0], piece), events)
            return
        rows = []
        batch = sorted(batch, key=lambda chunk: chunk.id)
        for chunk in batch:
            job = self._running[chunk.id]
            part = job.tokens[job.computed : job.computed + chunk.size]
            rows.append(cells.context.add(chunk.id, job.computed, part, outputs=int(chunk.last)))
        cells.context.compute()
        for chunk, row in zip(batch, rows, strict=True):
            self._happened(chunk.id, self._took(cells, chunk, row), events)

    def _happened(self, id: int, event: Event, events: list[Event]) -> None:
        events.append(event)
        if event.done:
            self._release(id)

    def _show(self, cells: Cells, projector: Projector, chunk: schedule.Chunk, piece: Piece) -> Event:
        job = self._running[chunk.id]
        try:
            embeddings = projector.embed(piece)[job.computed - piece.start :][: chunk.size]
        except EngineError as error:
            return Event(job.id, error=error, usage=job.usage)
        row = cells.context.show(chunk.id, job.computed, embeddings, int(chunk.last), causal=not piece.whole)
        return self._took(cells, chunk, row)

    def _took(self, cells: Cells, chunk: schedule.Chunk, row: int) -> Event:
        """A chunk has been computed; sample when it was the last one of its job."""
        job = self._running[chunk.id]
        part = job.tokens[job.computed : job.computed + chunk.size]
        cells.advance(chunk.id, part)
        job.computed += chunk.size
        if not chunk.last:
            return Event(job.id, usage=job.usage)
        try:
            return self._sample(job, cells.context.handle, row)
        except EngineError as error:
            return Event(job.id, error=error, usage=job.usage)

    def _sample(self, job: Job, context: Any, row: int) -> Event:
        token = job.sampler.sample(context, row)
        if self._vocabulary.is_end(token):
            return Event(job.id, job.stream.flush(), Finish.STOP, usage=job.usage)
        logprobs = job.sampler.logprobs(context, row, token)
        job.tokens.append(token)
        text = job.stream.push(self._vocabulary.piece(token))
        finish = Finish.STOP if job.stream.stopped else None
        if finish is None and len(job.tokens) - job.prompt == job.most:
            text += job.stream.flush()
            finish = Finish.STOP if job.stream.stopped else Finish.LENGTH
        return Event(job.id, text, finish, usage=job.usage, logprobs=logprobs)

    def _release(self, id: int) -> None:
        """A request has ended; its cells are kept for a later prompt."""
        self._running.pop(id).sampler.close()
        if self.cells is not None:
            self.cells.finish(id)

    def _fail(self, error: EngineError) -> list[Event]:
        """The cells are in doubt: whoever runs gets ``error``, or whoever waits if nobody does."""
        failed, self._running = self._running, {}
        if self.cells is not None:
            self.cells.forget()
        return _failed(failed.values(), error) or self.refuse_waiting(error)

    # Evaluation

    def score(self, tokens: Sequence[int], first: int) -> "npt.NDArray[np.float32]":
        """See ``LlamaEngine.score``."""
        import numpy as np

        if self.busy:
            raise EngineError("logits are computed only while no request runs")
        cells, size = self.cells, self._vocabulary.size
        if cells is None:
            raise EngineError("there is no context to compute in")
        context = cells.context
        cells.forget()
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
            cells.forget()
        return result

    # Warm start

    def save(self, most_bytes: int) -> list[SavedPrefix]:
        """See ``Cells.save``. What runs is given up."""
        if self.cells is None:
            return []
        for id in list(self._running):
            self._release(id)
        return self.cells.save(most_bytes)

    def restore(self, saved: Sequence[SavedPrefix]) -> None:
        """See ``Cells.restore``. Once is enough: what a lane had is parked while it has no context."""
        self.restored = True
        if self.cells is not None:
            self.cells.restore(saved)


def _failed(jobs: Iterable[Job], error: EngineError) -> list[Event]:
    events = []
    for job in jobs:
        job.sampler.close()
        events.append(Event(job.id, error=error, usage=job.usage))
    return events


def _cancelled(job: Job) -> Event:
    return Event(job.id, finish=Finish.CANCELLED, usage=job.usage)
