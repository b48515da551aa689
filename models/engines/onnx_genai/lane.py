"""The requests for one model, stepped in turn.

GenAI 0.13.2 has a batching ``Engine``, but on a CPU it batches statically (onnxruntime-genai#1580), takes no
adapter and gives no logits; so each request has a generator and a KV cache of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from models.engines.base import Event, Finish, Load, Usage
from models.engines.foreign import converted
from models.engines.onnx_genai.native import NativeModel
from models.engines.onnx_genai.sampler import Sampler
from models.engines.onnx_genai.settings import GenaiSettings
from models.engines.onnx_genai.tokens import Tokens
from models.engines.stream import TextStream
from models.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way: ``computed`` tokens of the prompt are in the generator's cache."""

    id: str
    prompt: list[int]
    most: int
    adapter: str | None
    stream: TextStream
    sampler: Sampler
    generator: Any = None
    computed: int = 0
    answer: list[int] = field(default_factory=list)
    cancelled: bool = False

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(len(self.prompt), len(self.answer))


class Lane:
    """``ends``: tokens that end an answer; ``vocabulary``: how many there are to choose from."""

    def __init__(
        self,
        model: NativeModel,
        tokens: Tokens,
        settings: GenaiSettings,
        ends: frozenset[int],
        vocabulary: int,
    ) -> None:
        self._model, self._tokens, self._settings = model, tokens, settings
        self._ends, self._vocabulary = ends, vocabulary
        self._waiting: list[Job] = []
        self._running: list[Job] = []

    @property
    def jobs(self) -> tuple[Job, ...]:
        """What waits and runs."""
        return (*self._waiting, *self._running)

    @property
    def load(self) -> Load:
        """What there is to do; KV cells are not counted."""
        return Load(len(self._running), len(self._waiting))

    def add(self, job: Job) -> None:
        """Queue a request."""
        self._waiting.append(job)

    def clear(self) -> None:
        """Forget all requests."""
        self._waiting.clear()
        self._running.clear()

    def step(self) -> list[Event]:
        """Advance every running request by one token, or by one chunk of its prompt."""
        events = self._drop_cancelled()
        while self._waiting and len(self._running) < self._settings.max_sequences:
            self._running.append(self._waiting.pop(0))
        for job in tuple(self._running):
            try:
                event = self._advance(job)
            except EngineError as error:
                event = Event(job.id, error=error, usage=job.usage)
            if event.done:
                self._running.remove(job)
                job.generator = None  # it holds its adapter, which may be waiting to leave
            events.append(event)
        return events

    def score(self, tokens: Sequence[int], first: int, adapter: str | None) -> "npt.NDArray[np.float32]":
        """See ``GenaiEngine.score``."""
        import numpy as np

        result = np.empty((len(tokens) - first, self._vocabulary), dtype=np.float32)
        with converted("ONNX Runtime could not score a sequence"):
            generator = self._model.generator(len(tokens) + 1, adapter)
            for start in range(0, len(tokens), self._settings.batch_tokens):
                part = np.asarray(tokens[start : start + self._settings.batch_tokens], dtype=np.int32)
                generator.append_tokens(part)
                if start + len(part) > first:
                    rows = generator.get_output("logits")[0][max(0, first - start) :]
                    result[max(first, start) - first :][: len(rows)] = rows
        return result

    def _drop_cancelled(self) -> list[Event]:
        events = []
        for queue in (self._waiting, self._running):
            for job in [one for one in queue if one.cancelled]:
                queue.remove(job)
                job.generator = None
                events.append(Event(job.id, finish=Finish.CANCELLED, usage=job.usage))
        return events

    def _advance(self, job: Job) -> Event:
        with converted("ONNX Runtime could not compute a step"):
            logits = self._compute(job)
        if logits is None:
            return Event(job.id, usage=job.usage)
        token = job.sampler.sample(logits)
        if token in self._ends:
            return Event(job.id, text=job.stream.flush(), finish=Finish.STOP, usage=job.usage)
        job.answer.append(token)
        text = job.stream.push(self._tokens.piece(token, first=len(job.answer) == 1))
        finish = None
        if job.stream.stopped:
            finish = Finish.STOP
        elif len(job.answer) == job.most:
            text += job.stream.flush()
            finish = Finish.STOP if job.stream.stopped else Finish.LENGTH
        return Event(job.id, text=text, finish=finish, usage=job.usage)

    def _compute(self, job: Job) -> "npt.NDArray[np.float32] | None":
        """Logits of the next token, float32 [vocabulary]; None while more of the prompt is to be read."""
        import numpy as np

        if job.generator is None:
            job.generator = self._model.generator(len(job.prompt) + job.most, job.adapter)
        if job.computed < len(job.prompt):
            part = job.prompt[job.computed :][: self._settings.batch_tokens]
            job.computed += len(part)
        else:
            part = job.answer[-1:]
        job.generator.append_tokens(np.asarray(part, dtype=np.int32))
        if job.computed < len(job.prompt):
            return None
        logits: npt.NDArray[np.float32] = job.generator.get_logits().reshape(-1)[: self._vocabulary]
        return logits
