"""One ONNX base model under ONNX Runtime GenAI, with adapters over the same weights.

Owns the native model, its adapters, and the lane in which requests run. Nothing is shared between requests:
``cached_tokens`` is always 0. Tokens are chosen here, and text is split by ``tokenizers``, the library that
trained with it. Refuses a folder that ``check_folder`` has not passed, and grammars: GenAI reads no GBNF. One
thread owns an engine. The libraries are imported when an engine is made, not with this module.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models.engines.base import Event, GenerateRequest, Load, ModelFacts
from models.engines.limits import check_scored, longest_answer
from models.engines.onnx_genai.adapters import check_adapter, lora_slots
from models.engines.onnx_genai.folder import TOKENIZER_FILE, check_folder, parameters_of
from models.engines.onnx_genai.lane import Job, Lane
from models.engines.onnx_genai.native import NativeModel
from models.engines.onnx_genai.sampler import Sampler, check_sampling
from models.engines.onnx_genai.settings import GenaiSettings
from models.engines.onnx_genai.tokens import Tokens
from models.engines.stream import TextStream
from models.errors import EngineError, UnknownAdapter, UnsupportedRequest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class GenaiEngine:
    """One base model. Implements ``Generate`` and ``TakeAdapters``.

    Raises ``UnsafeFile`` for a folder that is not sound, ``EngineError`` when it cannot be loaded.
    """

    def __init__(self, folder: Path, settings: GenaiSettings) -> None:
        checked = check_folder(folder)
        described = checked.config["model"]
        end = described["eos_token_id"]
        ends = frozenset(end if isinstance(end, list) else [end])
        self._context = min(settings.context_tokens, int(described["context_length"]))
        self._slots = lora_slots(checked.model)
        self._tokens = Tokens(folder / TOKENIZER_FILE, checked.tokenizer)
        self._model = NativeModel(folder, settings.threads, settings.device, checked.for_cuda)
        self.facts = ModelFacts(
            architecture=str(described.get("type", "")),
            name=folder.name,
            parameters=parameters_of(checked.model),
            context_length=int(described["context_length"]),
            context_tokens=self._context,
            vocabulary=int(described["vocab_size"]),
            bos=self._tokens.bos,
            eos=self._tokens.text(min(ends)),
            chat_template=checked.template,
            file_bytes=checked.bytes,
            control_tokens=self._tokens.control,
        )
        self._attached: set[str] = set()
        self._leaving: set[str] = set()
        self._lane = Lane(self._model, self._tokens, settings, ends, self.facts.vocabulary)

    # TakeAdapters

    def attach(self, name: str, path: Path) -> None:
        """Load an ``.onnx_adapter`` under ``name``, beside the base weights that are already there.

        Raises ``UnsafeFile``, or ``EngineError`` when it does not fit the base or the name is taken.
        """
        if name in self._attached or name in self._leaving:
            raise EngineError(f"an adapter {name!r} is already attached")
        check_adapter(path, self._slots)
        self._model.load_adapter(name, path)
        self._attached.add(name)

    def detach(self, name: str) -> None:
        """Take no more requests for an adapter; free it when those that run have ended.

        Raises ``UnknownAdapter``.
        """
        self._known(name)
        self._attached.remove(name)
        self._leaving.add(name)
        self._free_idle_leavers()

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that take requests."""
        return tuple(sorted(self._attached))

    # Generate

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request. Raises ``ContextLengthExceeded``, ``UnknownAdapter``, ``UnsupportedRequest``."""
        if request.adapter is not None:
            self._known(request.adapter)
        if any(request.id == job.id for job in self._lane.jobs):
            raise EngineError(f"a request {request.id!r} is already running")
        sampling = request.sampling
        check_sampling(sampling)
        prompt = self.prompt_tokens(request.prompt, request.literal)
        most = longest_answer(len(prompt), sampling.max_tokens, self._context)
        stream = TextStream(sampling.stop)
        self._lane.add(Job(request.id, prompt, most, request.adapter, stream, Sampler(sampling)))

    def cancel(self, request_id: str) -> None:
        """Stop a request within one step; unknown ids are ignored."""
        for job in self._lane.jobs:
            if job.id == request_id:
                job.cancelled = True

    @property
    def load(self) -> Load:
        """What there is to do; its KV cells are not counted."""
        return self._lane.load

    def step(self) -> list[Event]:
        """Advance every running sequence by one token, or by one chunk of its prompt.

        An empty list means that there is nothing to do.
        """
        events = self._lane.step()
        self._free_idle_leavers()
        return events

    # Evaluation

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids. ``add_special``: BOS/EOS as the model asks; ``parse_special``: read special tokens."""
        return self._tokens.encode(text, add_special, parse_special)

    def prompt_tokens(
        self, prompt: str | Sequence[int], literal: Sequence[tuple[int, int]] = ()
    ) -> list[int]:
        """Token ids of a prompt as a request reads it; ``literal`` as in ``GenerateRequest``.

        Raises ``UnsupportedRequest`` for a token id that is none.
        """
        if isinstance(prompt, str):
            return self._tokens.prompt(prompt, literal)
        if not all(0 <= token < self.facts.vocabulary for token in prompt):
            raise UnsupportedRequest(f"token ids are below {self.facts.vocabulary} and not negative")
        return list(prompt)

    def score(
        self, tokens: Sequence[int], first: int = 0, adapter: str | None = None
    ) -> "npt.NDArray[np.float32]":
        """Logits of one sequence, from position ``first`` on: float32 [len(tokens) - first, vocabulary].

        Row ``i`` predicts the token after ``tokens[first + i]``. Raises ``ContextLengthExceeded``,
        ``UnknownAdapter``, ``EngineError``.
        """
        if adapter is not None:
            self._known(adapter)
        check_scored(tokens, first, self._context, self.facts.vocabulary)
        return self._lane.score(tokens, first, adapter)

    def close(self) -> None:
        """Free everything native. Safe to call twice; nothing else may be called after it."""
        self._lane.clear()
        self._attached.clear()
        self._model.close()

    # Inside

    def _known(self, adapter: str) -> None:
        if adapter not in self._attached:
            raise UnknownAdapter(f"no adapter {adapter!r} is attached")

    def _free_idle_leavers(self) -> None:
        used = {job.adapter for job in self._lane.jobs}
        for name in [name for name in self._leaving if name not in used]:
            self._model.unload_adapter(name)
            self._leaving.remove(name)
