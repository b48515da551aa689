"""ONNX Runtime GenAI as a text engine: a folder as its model builder writes it, adapters over one base.

Owns the native model, its adapters, and one generator per running request. GenAI 0.13.2 has a batching
``Engine``, but on a CPU it batches statically (onnxruntime-genai#1580), takes no adapter and gives no
logits; so sequences are stepped in turn, each with its own KV cache, prompts in chunks. Nothing is shared
between requests: ``cached_tokens`` is always 0.

Tokens are chosen here, and text is split by ``tokenizers`` from the folder's ``tokenizer.json``, the library
that trained with it. Refuses a folder whose files lie elsewhere, and grammars: GenAI reads no GBNF. One
thread owns an engine. The libraries are imported when an engine is made, not with this module.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import onnx
from models.engines.base import (
    Event,
    Finish,
    GenerateRequest,
    Load,
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
    UnsafeFile,
    UnsupportedRequest,
)
from models.pickles import refuse_pickle

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CONFIG_FILE = "genai_config.json"
MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
MAX_JSON = 64 << 20
"""Bytes of one JSON file; a tokenizer of 256,000 tokens has some 20 MB."""
MAX_ADAPTER = 2 << 30

_ADAPTER_MAGIC = b"TORT"
_LIBRARIES = re.compile(r"\.(so|dll|dylib|py|pyc|exe|sh)(\.\d+)*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class GenaiSettings:
    """Sizes of an engine. A step computes at most ``batch_tokens`` of one prompt."""

    threads: int = 1
    context_tokens: int = 2048  # positions of one sequence, prompt and answer together
    max_sequences: int = 8  # running at once; each has its own KV cache
    batch_tokens: int = 256

    def __post_init__(self) -> None:
        if min(self.threads, self.context_tokens, self.max_sequences, self.batch_tokens) < 1:
            raise EngineError(f"every size of an engine is at least 1: {self}")


@dataclass(frozen=True, slots=True)
class Slots:
    """The inputs through which a base takes adapters: ``shapes`` by name, the rank left open (``None``)."""

    max_rank: int
    shapes: Mapping[str, tuple[int | None, int | None]]

    @staticmethod
    def dimension(max_rank: int) -> str:
        """How the graph names the open dimension: the bound travels with the file."""
        return f"lora_rank_max_{max_rank}"

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the projections that can be adapted."""
        return tuple(sorted({name.split(".lora_")[0].rpartition(".")[2] for name in self.shapes}))


@dataclass(frozen=True, slots=True)
class Folder:
    """A checked folder: its configuration, its graph, its tokenizer as JSON."""

    config: Mapping[str, Any]
    model: onnx.OnnxModel
    tokenizer: Mapping[str, Any]
    template: str | None
    bytes: int


def lora_slots(model: onnx.OnnxModel) -> Slots | None:
    """The slots of a graph; ``None`` when it takes no adapters. Raises ``UnsafeFile`` for an odd set."""
    shapes: dict[str, tuple[int | None, int | None]] = {}
    bounds: set[int] = set()
    for value in model.optional_inputs:
        if ".lora_A." not in value.name and ".lora_B." not in value.name:
            continue
        open_side = 1 if ".lora_A." in value.name else 0
        rank = value.shape[open_side] if len(value.shape) == 2 else None
        other = value.shape[1 - open_side] if len(value.shape) == 2 else None
        known = re.fullmatch(r"lora_rank_max_(\d{1,5})", rank) if isinstance(rank, str) else None
        if known is None or not isinstance(other, int):
            raise UnsafeFile(f"the input {value.name!r:.200} is no slot of an adapter")
        bounds.add(int(known[1]))
        shapes[value.name] = (other, None) if open_side else (None, other)
    if not shapes:
        return None
    if len(bounds) != 1:
        raise UnsafeFile(f"slots for adapters of several ranks: {sorted(bounds)}")
    return Slots(bounds.pop(), shapes)


def parameters_of(model: onnx.OnnxModel) -> int:
    """Weights, counted as they were before they were packed: four bits are two to a byte."""
    counted = 0
    for tensor in model.initializers:
        if not tensor.name.endswith(("_scale", "_zp", "_cache")):
            counted += tensor.elements * (2 if "_Q4G" in tensor.name else 1)
    return counted


def check_folder(folder: Path) -> Folder:
    """Check every file of a GenAI folder before a native library sees one. Raises ``UnsafeFile``.

    The configuration may name files, providers and libraries; only files beside it are taken, on the CPU.
    """
    size = 0
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise UnsafeFile(f"{folder.name}: cannot be read: {error}") from error
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise UnsafeFile(f"{folder.name}: {path.name} is a link or a folder; only files are taken")
        if _LIBRARIES.search(path.name):
            raise UnsafeFile(f"{folder.name}: {path.name} is code, which is not taken")
        refuse_pickle(path)
        size += path.stat().st_size
    config = _json(folder / CONFIG_FILE)
    decoder = _check_config(config)
    model = onnx.read_model(folder / decoder["filename"])
    tokenizer = _json(folder / TOKENIZER_FILE)
    template = folder / "chat_template.jinja"
    if template.is_file():
        text: str | None = template.read_text(encoding="utf-8", errors="replace")
    elif (folder / "tokenizer_config.json").is_file():
        text = _json(folder / "tokenizer_config.json").get("chat_template")
    else:
        text = None
    if text is not None and not isinstance(text, str):
        raise UnsafeFile(f"{folder.name}: the chat template is no text")
    return Folder(config, model, tokenizer, text, size)


def _check_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    model = config.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(decoder, dict):
        raise UnsafeFile(f"{CONFIG_FILE}: names no decoder")
    for key in ("encoder", "vision", "speech", "embedding", "decoder_pipeline"):
        if key in model:
            raise UnsafeFile(f"{CONFIG_FILE}: model.{key}: only plain language models are taken")
    if "pipeline" in decoder:
        raise UnsafeFile(f"{CONFIG_FILE}: a decoder of several parts is not taken")
    for where, name in _file_names(config, ""):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise UnsafeFile(f"{CONFIG_FILE}: {where}: {name!r:.100} is not the name of a file beside it")
    options = decoder.get("session_options", {})
    if not isinstance(options, dict):
        raise UnsafeFile(f"{CONFIG_FILE}: session_options is no object")
    allowed = {"log_id", "provider_options", "intra_op_num_threads", "inter_op_num_threads"}
    if unknown := sorted(set(options) - allowed):
        # custom_ops_library and its like load code; a profile or a dump writes files.
        raise UnsafeFile(f"{CONFIG_FILE}: session_options.{unknown[0]} is not taken")
    if options.get("provider_options") not in (None, []):
        raise UnsafeFile(f"{CONFIG_FILE}: it was exported for another provider than the CPU")
    for key in ("context_length", "vocab_size", "eos_token_id"):
        if key not in model:
            raise UnsafeFile(f"{CONFIG_FILE}: model.{key} is missing")
    if not isinstance(decoder.get("filename"), str):
        raise UnsafeFile(f"{CONFIG_FILE}: model.decoder.filename is missing")
    return decoder


def _file_names(value: Any, where: str) -> list[tuple[str, str]]:
    """Every setting of the configuration that names a file."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        path = f"{where}.{key}" if where else str(key)
        if isinstance(inner, str) and ("file" in str(key) or "library" in str(key) or "path" in str(key)):
            found.append((path, inner))
        found += _file_names(inner, path)
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON:
            raise UnsafeFile(f"{path.name}: larger than {MAX_JSON} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnsafeFile(f"{path.name}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise UnsafeFile(f"{path.name}: holds no object")
    return value


class GenaiEngine:
    """One base model. Implements ``Generate`` and ``TakeAdapters``.

    Raises ``UnsafeFile`` for a folder that is not sound, ``EngineError`` when it cannot be loaded.
    """

    def __init__(self, folder: Path, settings: GenaiSettings) -> None:
        checked = check_folder(folder)
        self._og = _library()
        self._settings = settings
        self._slots = lora_slots(checked.model)
        self._tokens = _Tokens(folder / TOKENIZER_FILE, checked.tokenizer)
        described = checked.config["model"]
        ends = described["eos_token_id"]
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])
        self._context = min(settings.context_tokens, int(described["context_length"]))
        self._vocabulary = int(described["vocab_size"])
        threads = {"session_options": {"intra_op_num_threads": settings.threads}}
        try:
            config = self._og.Config(str(folder))
            config.overlay(json.dumps({"model": {"decoder": threads}}))
            self._model = self._og.Model(config)
            self._adapters = self._og.Adapters(self._model)
        except RuntimeError as error:  # what GenAI raises, whatever went wrong
            raise EngineError(f"{folder.name} cannot be loaded: {error}") from error
        self.facts = ModelFacts(
            architecture=str(described.get("type", "")),
            name=folder.name,
            parameters=parameters_of(checked.model),
            context_length=int(described["context_length"]),
            context_tokens=self._context,
            vocabulary=self._vocabulary,
            bos=self._tokens.bos,
            eos=self._tokens.text(min(self._ends)),
            chat_template=checked.template,
            file_bytes=checked.bytes,
            control_tokens=self._tokens.control,
        )
        self._attached: set[str] = set()
        self._leaving: set[str] = set()
        self._waiting: list[_Sequence] = []
        self._running: list[_Sequence] = []

    # TakeAdapters

    def attach(self, name: str, path: Path) -> None:
        """Load an ``.onnx_adapter`` under ``name``, beside the base weights that are already there.

        Raises ``UnsafeFile``, or ``EngineError`` when it does not fit the base or the name is taken.
        """
        if name in self._attached or name in self._leaving:
            raise EngineError(f"an adapter {name!r} is already attached")
        _check_adapter(path, self._slots)
        try:
            self._adapters.load(str(path), name)
        except RuntimeError as error:
            raise EngineError(f"{path.name} does not fit the base: {error}") from error
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
        if any(request.id == one.id for one in (*self._waiting, *self._running)):
            raise EngineError(f"a request {request.id!r} is already running")
        sampling = request.sampling
        _check(sampling)
        prompt = self.prompt_tokens(request.prompt, request.literal)
        if not prompt:
            raise UnsupportedRequest("the prompt is empty")
        room = self._context - len(prompt)
        wanted = room if sampling.max_tokens is None else sampling.max_tokens
        if wanted > room or room < 1:
            raise (AnswerTooLong if room >= 1 else ContextLengthExceeded)(
                f"the context has {self._context} tokens; the prompt takes {len(prompt)}"
                + (f" and the answer may take {sampling.max_tokens}" if sampling.max_tokens else "")
            )
        self._waiting.append(
            _Sequence(
                request.id, prompt, wanted, request.adapter, TextStream(sampling.stop), _Chooser(sampling)
            )
        )

    def cancel(self, request_id: str) -> None:
        """Stop a request within one step; unknown ids are ignored."""
        for sequence in (*self._waiting, *self._running):
            if sequence.id == request_id:
                sequence.cancelled = True

    @property
    def load(self) -> Load:
        """What there is to do; its KV cells are not counted."""
        return Load(len(self._running), len(self._waiting))

    def step(self) -> list[Event]:
        """Advance every running sequence by one token, or by one chunk of its prompt.

        An empty list means that there is nothing to do.
        """
        events = []
        for queue in (self._waiting, self._running):
            for sequence in [one for one in queue if one.cancelled]:
                queue.remove(sequence)
                sequence.generator = None
                events.append(Event(sequence.id, finish=Finish.CANCELLED, usage=sequence.usage))
        while self._waiting and len(self._running) < self._settings.max_sequences:
            self._running.append(self._waiting.pop(0))
        for sequence in tuple(self._running):
            try:
                event = self._advance(sequence)
            except RuntimeError as error:
                failure = EngineError(f"ONNX Runtime could not compute a step: {error}")
                event = Event(sequence.id, error=failure, usage=sequence.usage)
            if event.done:
                self._running.remove(sequence)
                sequence.generator = None  # it holds its adapter, which may be waiting to leave
            events.append(event)
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
        import numpy as np

        if adapter is not None:
            self._known(adapter)
        if len(tokens) > self._context:
            raise ContextLengthExceeded(f"{len(tokens)} tokens to score; the context has {self._context}")
        if not 0 <= first < len(tokens):
            raise EngineError(f"cannot score from position {first} of {len(tokens)} tokens")
        if any(not 0 <= token < self._vocabulary for token in tokens):
            raise EngineError("a token to score is outside the vocabulary")
        result = np.empty((len(tokens) - first, self._vocabulary), dtype=np.float32)
        try:
            generator = self._generator(len(tokens) + 1, adapter)
            for start in range(0, len(tokens), self._settings.batch_tokens):
                part = np.asarray(tokens[start : start + self._settings.batch_tokens], dtype=np.int32)
                generator.append_tokens(part)
                if start + len(part) > first:
                    rows = generator.get_output("logits")[0][max(0, first - start) :]
                    result[max(first, start) - first :][: len(rows)] = rows
        except RuntimeError as error:
            raise EngineError(f"ONNX Runtime could not score a sequence: {error}") from error
        return result

    def close(self) -> None:
        """Free everything native. Safe to call twice; nothing else may be called after it."""
        self._waiting.clear()
        self._running.clear()
        self._attached.clear()
        self._adapters = self._model = None

    # Inside

    def _known(self, adapter: str) -> None:
        if adapter not in self._attached:
            raise UnknownAdapter(f"no adapter {adapter!r} is attached")

    def _free_idle_leavers(self) -> None:
        used = {one.adapter for one in (*self._waiting, *self._running)}
        for name in [name for name in self._leaving if name not in used]:
            self._adapters.unload(name)
            self._leaving.remove(name)

    def _generator(self, positions: int, adapter: str | None) -> Any:
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=positions, batch_size=1, num_beams=1)
        generator = self._og.Generator(self._model, parameters)
        if adapter is not None:
            generator.set_active_adapter(self._adapters, adapter)
        return generator

    def _advance(self, sequence: "_Sequence") -> Event:
        import numpy as np

        if sequence.generator is None:
            positions = len(sequence.prompt) + sequence.max_tokens
            sequence.generator = self._generator(positions, sequence.adapter)
        if sequence.computed < len(sequence.prompt):
            part = sequence.prompt[sequence.computed :][: self._settings.batch_tokens]
            sequence.computed += len(part)
        else:
            part = sequence.answer[-1:]
        sequence.generator.append_tokens(np.asarray(part, dtype=np.int32))
        if sequence.computed < len(sequence.prompt):
            return Event(sequence.id, usage=sequence.usage)
        token = sequence.chooser.choose(sequence.generator.get_logits().reshape(-1)[: self._vocabulary])
        if token in self._ends:
            return Event(sequence.id, text=sequence.stream.flush(), finish=Finish.STOP, usage=sequence.usage)
        sequence.answer.append(token)
        text = sequence.stream.push(self._tokens.piece(token, first=len(sequence.answer) == 1))
        finish = None
        if not sequence.stream.stopped and len(sequence.answer) == sequence.max_tokens:
            text += sequence.stream.flush()
            finish = Finish.LENGTH
        if sequence.stream.stopped:
            finish = Finish.STOP
        return Event(sequence.id, text=text, finish=finish, usage=sequence.usage)


@dataclass(slots=True)
class _Sequence:
    """A request on its way: ``computed`` tokens of the prompt are in the generator's cache."""

    id: str
    prompt: list[int]
    max_tokens: int
    adapter: str | None
    stream: TextStream
    chooser: "_Chooser"
    generator: Any = None
    computed: int = 0
    answer: list[int] = field(default_factory=list)
    cancelled: bool = False

    @property
    def usage(self) -> Usage:
        return Usage(len(self.prompt), len(self.answer))


class _Chooser:
    """Chooses tokens for one request. The same seed gives the same choices."""

    def __init__(self, sampling: Sampling) -> None:
        import numpy as np

        self._sampling = sampling
        seed = None if sampling.seed is None else sampling.seed % (1 << 64)  # a client may send -1
        self._random = np.random.default_rng(seed)

    def choose(self, logits: "npt.NDArray[np.float32]") -> int:
        import numpy as np

        if self._sampling.temperature == 0:
            return int(logits.argmax())
        scaled = logits.astype(np.float64) / self._sampling.temperature
        chances = np.exp(scaled - scaled.max())
        chances /= chances.sum()
        if self._sampling.top_p < 1:
            order = np.argsort(-chances, kind="stable")
            # The smallest set that reaches top_p, the token that crosses it included.
            kept = order[: int(np.searchsorted(np.cumsum(chances[order]), self._sampling.top_p)) + 1]
            limited = np.zeros_like(chances)
            limited[kept] = chances[kept]
            chances = limited / limited.sum()
        return int(self._random.choice(len(chances), p=chances))


class _Tokens:
    """Text to ids and ids to bytes, by the folder's ``tokenizer.json``."""

    def __init__(self, path: Path, described: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        try:
            # Two of them, for a tokenizer that is told to read special tokens as text says so of itself.
            self._reading, self._literal = (Tokenizer.from_file(str(path)) for _ in range(2))
        except Exception as error:  # tokenizers raises bare ``Exception``
            raise UnsafeFile(f"{path.name}: no tokenizer: {error}") from error
        for tokenizer in (self._reading, self._literal):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self._literal.encode_special_tokens = True
        added = [one for one in described.get("added_tokens", []) if isinstance(one, dict)]
        self._special = {one["id"]: one["content"] for one in added if one.get("special")}
        self._plain = {one["id"]: one["content"] for one in added if not one.get("special")}
        self.control = tuple(self._special.values())
        begun = self._reading.encode("a", add_special_tokens=True).ids
        plain = self._reading.encode("a", add_special_tokens=False).ids
        self._bos = begun[: begun.index(plain[0])] if plain and plain[0] in begun else []
        self.bos = "".join(self.text(token) for token in self._bos)
        self._byte_level = _is_byte_level(described.get("decoder"), path.name)

    def encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        tokenizer = self._reading if parse_special else self._literal
        # A lone surrogate is no text; the library would refuse the whole string.
        sound = text.encode("utf-8", "replace").decode("utf-8")
        ids: list[int] = tokenizer.encode(sound, add_special_tokens=add_special).ids
        return ids

    def prompt(self, text: str, literal: Sequence[tuple[int, int]]) -> list[int]:
        if not literal:
            tokens = self.encode(text, add_special=True, parse_special=True)
        else:
            # The cuts lie where a control token ends or begins, where nothing is ever joined.
            tokens, start = list(self._bos), 0
            for first, last in literal:
                tokens += self.encode(text[start:first], add_special=False, parse_special=True)
                tokens += self.encode(text[first:last], add_special=False, parse_special=False)
                start = last
            tokens += self.encode(text[start:], add_special=False, parse_special=True)
        # A chat template that writes BOS itself must not get a second one.
        size = len(self._bos)
        return tokens[size:] if size and tokens[: 2 * size] == self._bos * 2 else tokens

    def text(self, token: int) -> str:
        return self._reading.id_to_token(token) or ""

    def piece(self, token: int, first: bool) -> bytes:
        """The bytes that a token adds to an answer; none for a control token."""
        if token in self._special:
            return b""
        if token in self._plain:
            return str(self._plain[token]).encode()
        text = self.text(token)
        if self._byte_level:
            return bytes(_BYTES[character] for character in text if character in _BYTES)
        if byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", text):
            return bytes([int(byte[1], 16)])
        text = text.replace("▁", " ")
        return (text.removeprefix(" ") if first else text).encode()


def _is_byte_level(decoder: Any, name: str) -> bool:
    """Whether tokens are spelt in the alphabet of bytes; else they are SentencePiece's, with ``▁``."""
    parts = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
    kinds = {part.get("type") for part in parts if isinstance(part, dict)}
    if "ByteLevel" in kinds:
        return True
    if kinds & {"ByteFallback", "Metaspace"}:
        return False
    raise UnsafeFile(f"{name}: a decoder of {sorted(map(str, kinds))} is not known")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's: printable bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _check(sampling: Sampling) -> None:
    if sampling.grammar is not None:
        reason = "ONNX Runtime GenAI cannot hold an answer to this grammar or schema"
        raise UnsupportedRequest(reason, "grammar")
    refuse_options(sampling, {"max_tokens", "temperature", "top_p", "seed", "stop"})
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise UnsupportedRequest("max_tokens is at least 1")
    if not 0 <= sampling.temperature <= 100:
        raise UnsupportedRequest("temperature is between 0 and 100")
    if not 0 < sampling.top_p <= 1:
        raise UnsupportedRequest("top_p is above 0 and at most 1")


def _check_adapter(path: Path, slots: Slots | None) -> None:
    """Names and shapes fit the slots. Raises ``UnsafeFile`` or ``EngineError``."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise UnsafeFile(f"{path.name}: cannot be read: {error}") from error
    if head[4:] != _ADAPTER_MAGIC or size > MAX_ADAPTER:
        raise UnsafeFile(f"{path.name} is no ONNX adapter")
    if slots is None:
        raise EngineError(f"{path.name}: the base was exported without slots for adapters")
    import onnxruntime as ort

    try:
        # Its flatbuffer verifier checks every offset before anything is read.
        parameters = ort.AdapterFormat.read_adapter(str(path)).get_parameters()
    except Exception as error:  # onnxruntime's own errors have no common base
        raise UnsafeFile(f"{path.name}: cannot be read as an ONNX adapter: {error}") from error
    if not parameters:
        raise EngineError(f"{path.name} holds no tensors")
    ranks = set()
    for name, value in parameters.items():
        wanted, shape = slots.shapes.get(name), tuple(value.shape())
        if wanted is None:
            raise EngineError(f"{path.name}: the base has no slot {name!r:.200}")
        if len(shape) != 2 or value.data_type() != "tensor(float)":
            raise EngineError(f"{path.name}: {name!r:.200} is no float32 matrix")
        if any(size not in (None, got) for size, got in zip(wanted, shape, strict=True)):
            raise EngineError(f"{path.name}: {name!r:.200} has the shape {shape}, the slot {wanted}")
        ranks.add(shape[wanted.index(None)])
        other = (
            name.replace(".lora_A.", ".lora_B.")
            if ".lora_A." in name
            else name.replace(".lora_B.", ".lora_A.")
        )
        if other not in parameters:
            raise EngineError(f"{path.name}: {name!r:.200} is not half of a LoRA pair")
    if len(ranks) != 1 or not 0 < min(ranks) <= slots.max_rank:
        raise EngineError(
            f"{path.name}: rank {sorted(ranks)}; the base takes one of at most {slots.max_rank}"
        )


def _library() -> Any:
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise EngineError("onnxruntime-genai is missing: pip install 'outpost[edge]'") from error
    return onnxruntime_genai
