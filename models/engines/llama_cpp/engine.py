"""One base model under llama.cpp, with adapters over the same weights.

Owns the native model, a lane for the base and for each adapter, which of them have a context, and the order
in which they are stepped. Refuses a file that ``models.gguf`` has not passed. One thread owns an engine.

An adapter is loaded before its context is made, because llama.cpp sizes the compute graph then; KV is never
shared between contexts, so an answer can never contain another adapter's state (llama.cpp#26207).
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.engines.base import Event, GenerateRequest, Load, ModelFacts
from models.engines.limits import check_scored, longest_answer
from models.engines.llama_cpp.context import context_bytes
from models.engines.llama_cpp.lane import Job, Lane
from models.engines.llama_cpp.library import build, last_error, library
from models.engines.llama_cpp.media import Piece, Projector, is_media, place
from models.engines.llama_cpp.parked import ParkedPrefixes
from models.engines.llama_cpp.sampler import Sampler, check_sampling
from models.engines.llama_cpp.saved import MOST_BYTES, SavedPrefixes
from models.engines.llama_cpp.settings import LlamaSettings
from models.engines.llama_cpp.threads import Threads
from models.engines.llama_cpp.vocabulary import Vocabulary
from models.engines.stream import TextStream
from models.errors import ContextLengthExceeded, EngineError, UnknownAdapter, UnsupportedRequest
from models.gguf import check_adapter, check_model

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class LlamaEngine:
    """One base model. Implements ``Generate`` and ``TakeAdapters``.

    ``observe`` is shown every computed node: a ``ggml_backend_sched_eval_callback``, kept alive by the
    caller. ``saved``: where prefixes are kept from one run to the next. ``projector``: the file (``mmproj``)
    that lets the model see or hear. Raises ``UnsafeFile`` for a file that is not sound, ``EngineError`` when
    it cannot be loaded or has no room for a context.
    """

    def __init__(
        self,
        path: Path,
        settings: LlamaSettings,
        observe: Any = None,
        saved: SavedPrefixes | None = None,
        projector: Path | None = None,
    ) -> None:
        self._header = check_model(path)
        self._lib = library()
        parameters = self._lib.llama_model_default_params()
        if not settings.gpu:
            parameters.n_gpu_layers = 0
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise EngineError(f"{path.name} cannot be loaded: {last_error()}")
        self._vocabulary = Vocabulary(self._lib, self._model)
        self._lanes: dict[str | None, Lane] = {}
        self._leaving: list[Lane] = []
        self._requests: dict[str, Lane] = {}
        self._arrivals = 0
        self._saved = saved
        self._parked = ParkedPrefixes(settings.parked_bytes)
        self._projector: Projector | None = None
        try:
            if self._lib.llama_model_has_encoder(self._model):
                raise EngineError(f"{path.name} is an encoder: it does not generate text")
            trained = self._lib.llama_model_n_ctx_train(self._model)
            on_gpu = settings.gpu and bool(self._lib.llama_supports_gpu_offload())
            settings = replace(settings, gpu=on_gpu)
            if on_gpu or self._lib.llama_model_n_swa(self._model):
                # The GPU's memory was not asked about; and of a sliding window llama.cpp writes out no cells
                # that the window has left, so that a sequence cannot be copied.
                settings = replace(settings, kv_unified=True)
            self._settings = settings.fitted(trained)
            self.threads = Threads(settings.threads)
            if projector is not None:
                # Nobody watches its threads, so one core is left to others.
                seeing = max(1, settings.threads - 1)
                self._projector = Projector(projector, self._lib, self._model, seeing, settings.gpu)
            self.facts = self._facts(path, trained)
            self.context_bytes = context_bytes(self._settings, self._header)
            self._lanes[None] = self._new_lane(observe=observe)
            self._open(self._lanes[None])
        except BaseException:
            self._free()
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
            raise EngineError(f"{path.name} does not fit the base: {last_error()}")
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if self._saved else None
        self._lanes[name] = self._new_lane(adapter, digest=digest)

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

    @property
    def contexts(self) -> tuple[str | None, ...]:
        """The adapters that have a context, ``None`` for the base."""
        return tuple(name for name, lane in self._lanes.items() if lane.is_open)

    # Generate

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request. Raises ``ContextLengthExceeded``, ``UnknownAdapter``, ``UnsupportedRequest``."""
        lane = self._lane(request.adapter)
        if request.id in self._requests:
            raise EngineError(f"a request {request.id!r} is already running")
        sampling = request.sampling
        check_sampling(sampling, self._vocabulary)
        context = self._settings.context_tokens
        if self._vocabulary.surely_exceeds(request.prompt, context):
            raise ContextLengthExceeded(f"the context has {context} tokens; the prompt takes more")
        prompt, pieces = self._read(request)
        most = longest_answer(len(prompt), sampling.max_tokens, context)
        words = [token for token in prompt if not is_media(token)]
        sampler = Sampler(self._lib, self._vocabulary, sampling, words, most)
        self._arrivals += 1
        stream = TextStream(sampling.stop)
        job = Job(request.id, prompt, len(prompt), most, stream, sampler, self._arrivals, pieces=pieces)
        lane.waiting.append(job)
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
        lanes = (*self._lanes.values(), *self._leaving)
        for lane in lanes:
            events += lane.drop_cancelled()
        held_up = math.inf
        for lane in sorted((lane for lane in lanes if lane.waiting), key=_first_arrival):
            if not lane.is_open and not self._make_way(_first_arrival(lane)):
                held_up = _first_arrival(lane)  # what came later waits too, or this would wait for ever
                break
            try:
                self._open(lane)
            except EngineError as error:
                events += lane.refuse_waiting(error)
        for lane in lanes:
            if lane.busy:
                lane.used = self._arrivals
                events += lane.step(held_up)
        for event in events:
            if event.done:
                del self._requests[event.id]
        self._free_idle_leavers()
        return events

    @property
    def load(self) -> Load:
        """What all lanes have to do."""
        return sum((lane.load for lane in (*self._lanes.values(), *self._leaving)), Load())

    # Evaluation

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids. ``add_special``: BOS/EOS as the model asks; ``parse_special``: read special tokens."""
        return self._vocabulary.tokenize(text, add_special, parse_special)

    def prompt_tokens(
        self, prompt: str | Sequence[int], literal: Sequence[tuple[int, int]] = ()
    ) -> list[int]:
        """See ``Vocabulary.prompt_tokens``."""
        return self._vocabulary.prompt_tokens(prompt, literal)

    def score(
        self, tokens: Sequence[int], first: int = 0, adapter: str | None = None
    ) -> "npt.NDArray[np.float32]":
        """Logits of one sequence, from position ``first`` on: float32 [len(tokens) - first, vocabulary].

        Row ``i`` predicts the token after ``tokens[first + i]``. Raises ``ContextLengthExceeded``,
        ``UnknownAdapter``, and ``EngineError`` while requests run.
        """
        lane = self._lane(adapter)
        check_scored(tokens, first, self._settings.context_tokens, self.facts.vocabulary)
        if not lane.is_open and not self._make_way(math.inf):
            raise EngineError("every context is in use")
        self._open(lane)
        return lane.score(tokens, first)

    def close(self) -> None:
        """Save prefixes, and free everything native. Safe to call twice; nothing else may follow."""
        try:
            for lane in self._lanes.values():
                self._save(lane)
        finally:
            self._free()

    # Contexts

    def _make_way(self, arrival: float) -> bool:
        """Whether one more context may be made, if need be in place of the idle one used longest ago.

        One is idle when nothing runs in it and nothing waits for it that came before ``arrival``.
        """
        lanes = [lane for lane in (*self._lanes.values(), *self._leaving) if lane.is_open]
        idle = [lane for lane in lanes if not lane.running and _first_arrival(lane) >= arrival]
        if len(lanes) >= self._settings.contexts and idle:
            lane = min(idle, key=lambda lane: lane.used)
            lane.set_aside()  # unsaved: the disk would hold up every other request
            lanes.remove(lane)
        return len(lanes) < self._settings.contexts

    def _open(self, lane: Lane) -> None:
        """Make a lane's context, and give it the prefixes of the last time. Raises ``EngineError``."""
        if lane.is_open:
            return
        try:
            lane.open()
        except EngineError as error:
            raise EngineError(
                f"no context of {self._settings.cache_tokens} tokens ({self.context_bytes >> 20} MiB) "
                f"can be made: {error}"
            ) from error
        if self._saved is not None and not lane.restored:
            lane.restore(self._saved.load(self._saved_for(lane)))

    def _save(self, lane: Lane) -> None:
        if self._saved is not None and lane.is_open:
            self._saved.save(self._saved_for(lane), lane.save(MOST_BYTES))

    def saved_for(self, adapter: str | None) -> dict[str, object]:
        """What saved prefixes depend on; whatever differs makes them another's. Raises ``UnknownAdapter``."""
        return self._saved_for(self._lane(adapter))

    def _saved_for(self, lane: Lane) -> dict[str, object]:
        return {
            "weights": self._saved.weights if self._saved else "",
            "adapter": lane.digest,
            "llama.cpp": build(self._lib),
            "cells": self._settings.cache_tokens,
            "ids": self._settings.ids,
            "context": self._settings.context_tokens,
            "unified": self._settings.kv_unified,
        }

    # Inside

    def _read(self, request: GenerateRequest) -> tuple[list[int], list[Piece]]:
        """The ids of a prompt, and the pieces of what it shows."""
        if not request.media:
            return self.prompt_tokens(request.prompt, request.literal), []
        if self._projector is None or not isinstance(request.prompt, str):
            raise UnsupportedRequest("this model takes text alone")
        shown = [self._projector.read(media) for media in request.media]
        inserted = [(media.at, one.ids) for media, one in zip(request.media, shown, strict=True)]
        prompt = self._vocabulary.prompt_tokens(request.prompt, request.literal, inserted)
        pieces = [piece for one in shown for piece in one.pieces]
        place(pieces, prompt)
        batch = self._settings.batch_tokens
        if any(piece.whole and len(piece.ids) > batch for piece in pieces):
            raise UnsupportedRequest(f"a picture takes more than the {batch} tokens of a batch")
        return prompt, pieces

    def _new_lane(self, adapter: Any = None, observe: Any = None, digest: str | None = None) -> Lane:
        return Lane(
            self._lib,
            self._model,
            self._vocabulary,
            self._settings,
            self.threads,
            self._parked,
            adapter,
            observe,
            digest,
            self._projector,
        )

    def _lane(self, adapter: str | None) -> Lane:
        lane = self._lanes.get(adapter)
        if lane is None:
            raise UnknownAdapter(f"no adapter {adapter!r} is attached")
        return lane

    def _free(self) -> None:
        for lane in (*self._lanes.values(), *self._leaving):
            lane.close()
        self._lanes.clear()
        self._leaving.clear()
        self._requests.clear()
        if self._projector is not None:
            self._projector.close()
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None

    def _free_idle_leavers(self) -> None:
        for lane in [lane for lane in self._leaving if not lane.busy]:
            self._leaving.remove(lane)
            lane.close()

    def _facts(self, path: Path, trained: int) -> ModelFacts:
        header, lib, vocabulary = self._header, self._lib, self._vocabulary
        return ModelFacts(
            architecture=header.architecture,
            name=header.text("general.name") or path.stem,
            parameters=lib.llama_model_n_params(self._model),
            context_length=trained,
            context_tokens=self._settings.context_tokens,
            vocabulary=vocabulary.size,
            bos=vocabulary.text(lib.llama_vocab_bos(vocabulary.handle)),
            eos=vocabulary.text(lib.llama_vocab_eos(vocabulary.handle)),
            chat_template=header.text("tokenizer.chat_template"),
            file_bytes=path.stat().st_size,
            control_tokens=vocabulary.controls(),
            takes=self._projector.takes if self._projector else (),
        )


def _first_arrival(lane: Lane) -> float:
    return lane.waiting[0].arrival if lane.waiting else math.inf
