"""Measurements of one language model, taken through the engine that will serve it, in a process of their own.

The process is new for every measurement, so that its peak memory is the model's and nobody else's.
``python -m compile.evaluate.measure`` reads one JSON job on stdin and writes its results to the folder that
the job names; a line ``PART NOTE`` on stdout says how far it is.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.child import main, run_job, say
from compile.evaluate.tokens import first_difference, parted
from compile.steps import Report, own_peak_ram
from models.engines.base import Finish, GenerateRequest, Sampling

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from models.engines.llama_cpp import LlamaEngine
    from models.engines.onnx_genai import GenaiEngine

    Engine = LlamaEngine | GenaiEngine

RESULT = "measured.json"
TOKENS = "tokens.npz"
LOGPROBS = "logprobs.npy"
LEAST_CONTEXT, MOST_CONTEXT = 1024, 8192
"""Tokens of one sequence: what is always there, and what prompts alone may ask for."""
_ADAPTER = "adapter"
_SPEED_TOKENS = 48


def measure(job: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Run a job in a new process. Raises ``ToolFailed``.

    Job: ``model``, ``adapter`` (or null), ``folder`` of the results, ``threads``; ``prompts`` and
    ``max_tokens`` (greedy answers, with the adapter if there is one, many at a time or, with ``alone``, one);
    ``probe`` and ``probe_tokens`` (one more); ``wanted``, pairs of a prompt and the answer that is wanted,
    for ``losses``; ``speed_repeats``; ``tokens``, what the reference tokenizer makes of texts
    (``tokens.Reading``); ``text`` with ``path``, ``tokens``, ``window`` (fidelity), perhaps ``ids``, those of
    the reference tokenizer, and ``against``, the folder of the reference's results, or null for the reference
    itself.

    ``tokens_differ`` of the result is not empty where the engine reads a text otherwise than the reference
    tokenizer. There is no fidelity then: it would be that of another model.
    """
    run_job("compile.evaluate.measure", job, report, f"measuring {Path(job['model']).name}")
    return read_measured(Path(job["folder"]))


def read_measured(folder: Path) -> dict[str, Any]:
    """What a measuring step left in its folder."""
    result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return result


def _child(job: Mapping[str, Any]) -> None:
    engine = open_engine(Path(job["model"]), job["threads"], _context(job))
    adapter = None
    if job["adapter"]:
        engine.attach(_ADAPTER, Path(job["adapter"]))
        adapter = _ADAPTER
    result: dict[str, Any] = {}
    if job.get("speed_repeats"):
        result["speed"] = _speed(engine, adapter, job["speed_repeats"])
    if job.get("prompts"):
        asked = [[prompt] for prompt in job["prompts"]] if job.get("alone") else [job["prompts"]]
        result["answers"] = [
            answer for some in asked for answer in greedy(engine, adapter, some, job["max_tokens"])
        ]
    if job.get("probe"):
        result["probe"] = greedy(engine, adapter, [job["probe"]], job["probe_tokens"])[0]
    # Peak memory of serving: read before scores of a whole window are held.
    result["peak_ram_bytes"] = own_peak_ram()
    if job.get("wanted"):
        result["losses"] = [_loss(engine, adapter, *pair) for pair in job["wanted"]]
    result["tokens_differ"] = first_difference(job.get("tokens", ()), engine.tokenize)
    if job.get("text") and not result["tokens_differ"]:
        against = Path(job["against"]) if job["against"] else None
        result["tokens_differ"] = _fidelity(engine, job["text"], Path(job["folder"]), against)
    engine.close()
    target = Path(job["folder"]) / RESULT
    target.write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")


def _context(job: Mapping[str, Any]) -> int:
    """Tokens that one sequence may need: the window, or a prompt (a byte or more each) with its answer."""
    answer = int(job.get("max_tokens", 0))
    lengths = [len(prompt.encode()) + answer for prompt in job.get("prompts") or ()]
    lengths += [len(prompt.encode()) + len(wanted.encode()) for prompt, wanted in job.get("wanted") or ()]
    return max(LEAST_CONTEXT, int(job.get("window", 0)), min(max(lengths, default=0), MOST_CONTEXT))


def open_engine(model: Path, threads: int, context: int) -> "Engine":
    """The engine that serves what lies there: a folder is GenAI's, a file is a GGUF."""
    if model.is_dir():
        from models.engines.onnx_genai import GenaiEngine, GenaiSettings

        return GenaiEngine(
            model, GenaiSettings(threads, context_tokens=context, max_sequences=8, batch_tokens=256)
        )
    from models.engines.llama_cpp import LlamaEngine, LlamaSettings

    sizes: dict[str, Any] = {
        "context_tokens": context,
        "max_sequences": 8,
        "batch_tokens": 256,
        "cache_tokens": 4 * context,
    }
    return LlamaEngine(model, LlamaSettings(threads=threads, **sizes))


def greedy(engine: "Engine", adapter: str | None, prompts: Sequence[str], max_tokens: int) -> list[str]:
    """Greedy answers, many at a time."""
    answers = [""] * len(prompts)
    for index, prompt in enumerate(prompts):
        engine.submit(GenerateRequest(str(index), prompt, Sampling(max_tokens=max_tokens), adapter))
    done = 0
    while events := engine.step():
        for event in events:
            if event.error is not None:
                raise event.error
            answers[int(event.id)] += event.text
            if event.finish is not None:
                done += 1
                say(done / len(prompts), f"answer {done} of {len(prompts)}")
    return answers


def _speed(engine: "Engine", adapter: str | None, repeats: int) -> list[float]:
    """Tokens per second of one sequence, after its first token; one figure per repeat."""
    speeds = []
    for repeat in range(repeats + 1):
        request = GenerateRequest(
            f"speed-{repeat}", "Once upon a time", Sampling(max_tokens=_SPEED_TOKENS), adapter
        )
        engine.submit(request)
        began = ended = 0.0
        made = first = 0
        while events := engine.step():
            event = events[-1]
            if event.usage.completion_tokens and not began:
                began, first = time.perf_counter(), event.usage.completion_tokens
            if event.finish in (Finish.LENGTH, Finish.STOP):
                ended, made = time.perf_counter(), event.usage.completion_tokens
        if repeat and made > first:  # the first round warms the caches
            speeds.append((made - first) / (ended - began))
        say(repeat / repeats, "decoding speed")
    return speeds


def _loss(engine: "Engine", adapter: str | None, prompt: str, answer: str) -> tuple[float, int]:
    """The sum of the losses (nats) of an answer's tokens, given the prompt, and their number."""
    asked, said = engine.prompt_tokens(prompt), engine.tokenize(answer, False, True)
    logprobs = log_softmax(engine.score([*asked, *said], len(asked) - 1, adapter)[:-1])
    return -float(sum(row[token] for row, token in zip(logprobs, said, strict=True))), len(said)


def _fidelity(engine: "Engine", job: Mapping[str, Any], folder: Path, against: Path | None) -> str:
    """Per token of the held-out text: its loss, the top token, and KL(reference || this).

    The reference leaves its log-probabilities as float16, which moves a KL divergence by less than 1e-5.
    Returns where the engine reads the text otherwise than it should; nothing is measured then.
    """
    import numpy as np

    tokens = engine.tokenize(Path(job["path"]).read_text(encoding="utf-8"), False, False)[: job["tokens"]]
    if "ids" in job and tokens != job["ids"]:
        return f"token ids differ for the held-out text: {parted(tokens, job['ids'])}"
    windows = [tokens[at : at + job["window"]] for at in range(0, len(tokens), job["window"])]
    windows = [window for window in windows if len(window) > 1]
    known = None if against is None else np.load(against / LOGPROBS, mmap_mode="r")
    kept, losses, tops, divergences, at = [], [], [], [], 0
    for number, window in enumerate(windows):
        logprobs = log_softmax(engine.score(window)[:-1])
        losses.append(-logprobs[np.arange(len(window) - 1), window[1:]])
        tops.append(logprobs.argmax(axis=1))
        if known is None:
            kept.append(logprobs.astype(np.float16))
        else:
            theirs = known[at : at + len(logprobs)].astype(np.float32)
            divergences.append((np.exp(theirs) * (theirs - logprobs)).sum(axis=1))
        at += len(logprobs)
        say((number + 1) / len(windows), f"window {number + 1} of {len(windows)} of held-out text")
    if known is None:
        np.save(folder / LOGPROBS, np.concatenate(kept))
    divergence = np.concatenate(divergences) if divergences else np.zeros(at, dtype=np.float32)
    np.savez(folder / TOKENS, loss=np.concatenate(losses), top=np.concatenate(tops), kl=divergence)
    return ""


def log_softmax(logits: "npt.NDArray[np.float32]") -> "npt.NDArray[np.float32]":
    """Logits of whole rows as log-probabilities."""
    import numpy as np

    shifted = logits - logits.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


if __name__ == "__main__":
    main(_child)
