"""Does an adapter survive the quantization of its base, and is it better kept apart or merged?

The yardstick is the unquantized reference with the adapter: its greedy answers, and its distribution at
every token of them. A quantized base with the adapter must stay near that and be nearer than the same base
without the adapter, or the adapter has silently stopped to matter (``survives``). Merging first, quantizing
then, is measured the same way, and ``advise`` says which of the two is nearer, when the data can tell.

``python -m compile.gguf.survival`` is the child that measures through the serving engine, one JSON job on
stdin. ``merge`` is exact arithmetic on GGUF files: ``W + (alpha / rank) * B A``, tensor by tensor.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compile.child import main, run_job, say
from compile.errors import ToolFailed, UnsupportedBase
from compile.evaluate import statistics
from compile.gguf.dequantize import rows_of
from compile.steps import Report
from models.gguf import GgufHeader, Tensor, TensorType, check_adapter, check_model

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ANSWERS = "answers.json"
LOGPROBS = "answers.npy"
_ROUNDS = 2000
_LEAST_CONTEXT = 1024


@dataclass(frozen=True)
class Mean:
    """A mean over answer tokens with its 95 % interval; answers are what was drawn."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Nearness:
    """How far a model is from the yardstick: per answer, the summed KL and the tokens with another top."""

    tokens: tuple[int, ...]
    kl: tuple[float, ...]
    flips: tuple[int, ...]

    @property
    def mean_kl(self) -> Mean:
        """KL(reference with adapter || this) per answer token."""
        return _mean(self.kl, self.tokens)

    @property
    def flip_rate(self) -> Mean:
        """The part of answer tokens whose most likely token is another."""
        return _mean(self.flips, self.tokens)


@dataclass(frozen=True)
class Survival:
    """A quantized base with the adapter and without it, both against the yardstick."""

    adapted: Nearness
    alone: Nearness

    @property
    def margin(self) -> Mean:
        """Mean KL without the adapter minus mean KL with it, paired: what the adapter still does."""
        return difference(self.alone, self.adapted)

    @property
    def survives(self) -> bool:
        """The pair behaves like the adapter and not like the base: nearer to it, and beyond doubt."""
        return self.margin.low > 0 and self.adapted.mean_kl.high < self.alone.mean_kl.low


def difference(one: Nearness, other: Nearness) -> Mean:
    """Mean KL of ``one`` minus that of ``other`` over the same answers, with its paired interval."""
    return _mean([a - b for a, b in zip(one.kl, other.kl, strict=True)], one.tokens)


def advise(separate: Nearness, merged: Nearness) -> tuple[Literal["separate", "merged"], str]:
    """Which of the two to ship, and why. What cannot be told apart stays separate: one base serves many."""
    gap = difference(merged, separate)
    said = f"KL merged minus separate {gap.value:+.4g}, 95 % interval {gap.low:+.4g} to {gap.high:+.4g}"
    if gap.high < 0:
        return "merged", f"merging is nearer to the reference: {said}"
    if gap.low > 0:
        return "separate", f"merging loses more: {said}"
    return "separate", f"the data cannot tell them apart, and a separate adapter shares its base: {said}"


def yardstick(
    reference: Path,
    adapter: Path,
    prompts: Sequence[str],
    folder: Path,
    threads: int,
    max_tokens: int,
    report: Report,
) -> None:
    """Leave in ``folder`` the reference's greedy answers with the adapter, and its distributions over them.

    Raises ``UnsafeFile``, ``EngineError`` for an adapter that does not fit, ``ToolFailed``.
    """
    check_adapter(adapter, check_model(reference))
    job = {"prompts": list(prompts), "max_tokens": max_tokens, "folder": str(folder)}
    _measure(job | {"model": str(reference), "adapter": str(adapter), "threads": threads}, report)


def survival(
    model: Path, adapter: Path, against: Path, folder: Path, threads: int, report: Report
) -> Survival:
    """Measure a quantized base with ``adapter`` and without, against the ``yardstick`` in ``against``."""
    if not model.is_dir():  # a GenAI folder is checked by its engine
        check_adapter(adapter, check_model(model))
    job = {"model": str(model), "adapter": str(adapter), "folder": str(folder), "threads": threads}
    found = _measure(job | {"against": str(against)}, report)
    return Survival(_nearness(found["adapted"]), _nearness(found["alone"]))


def nearness(model: Path, against: Path, folder: Path, threads: int, report: Report) -> Nearness:
    """Measure a model as it stands, such as one with the adapter merged in, against the ``yardstick``."""
    check_model(model)
    job = {"model": str(model), "adapter": None, "folder": str(folder), "threads": threads}
    return _nearness(_measure(job | {"against": str(against)}, report)["alone"])


def merge(reference: Path, adapter: Path, target: Path) -> None:
    """Write the F32 ``reference`` with the LoRA ``adapter`` added to its weights.

    Raises ``UnsafeFile``, ``EngineError`` for an adapter that does not fit, ``UnsupportedBase`` for a base
    that is quantized or an adapter on the embeddings, which is applied to rows and not to columns.
    """
    base = check_model(reference)
    lora = check_adapter(adapter, base)
    pairs = _pairs(base, lora)
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        shutil.copyfile(reference, unfinished)
        with unfinished.open("r+b") as file, adapter.open("rb") as halves:
            for tensor, a, b, scale in pairs:
                _add(file, tensor, halves, a, b, scale)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _pairs(base: GgufHeader, lora: GgufHeader) -> list[tuple[Tensor, Tensor, Tensor, float]]:
    known = {tensor.name: tensor for tensor in base.tensors}
    halves = {tensor.name: tensor for tensor in lora.tensors}
    alpha = lora.metadata.get("adapter.lora.alpha")
    result = []
    for name, a in halves.items():
        if not name.endswith(".lora_a"):
            continue
        tensor, b = known[name.removesuffix(".lora_a")], halves.get(name.removesuffix("a") + "b")
        if b is None or tensor.name == "token_embd.weight":
            raise UnsupportedBase(f"{name}: an adapter on the embeddings, or half a pair, cannot be merged")
        if tensor.type is not TensorType.F32:
            raise UnsupportedBase(f"{tensor.name} is {tensor.type.name}; merge into the F32 reference")
        if (a.shape[0], b.shape[1], a.shape[1]) != (*tensor.shape, b.shape[0]):
            raise UnsupportedBase(f"{name}: shapes {a.shape} and {b.shape} do not fit {tensor.shape}")
        rank = b.shape[0]
        # llama.cpp: an alpha of zero means that none was given.
        scale = float(alpha) / rank if isinstance(alpha, float) and alpha else 1.0
        result.append((tensor, a, b, scale))
    return result


def _add(file: Any, tensor: Tensor, halves: Any, a: Tensor, b: Tensor, scale: float) -> None:
    import numpy as np

    low = np.concatenate(list(rows_of(halves, a)))  # [rank, row length]
    high = np.concatenate(list(rows_of(halves, b)))  # [rows, rank]
    at = 0
    for slab in list(rows_of(file, tensor)):
        changed = slab + (high[at : at + len(slab)] @ low) * np.float32(scale)
        file.seek(tensor.offset + at * tensor.shape[0] * 4)
        file.write(changed.astype("<f4").tobytes())
        at += len(slab)


def _measure(job: Mapping[str, Any], report: Report) -> dict[str, Any]:
    Path(job["folder"]).mkdir(exist_ok=True)
    run_job("compile.gguf.survival", job, report, f"measuring {Path(job['model']).name}")
    result: dict[str, Any] = json.loads((Path(job["folder"]) / "survival.json").read_text(encoding="utf-8"))
    return result


def _child(job: Mapping[str, Any]) -> None:
    from compile.evaluate.measure import open_engine

    engine = open_engine(Path(job["model"]), job["threads"], _context(job))
    if job["adapter"]:
        engine.attach("adapter", Path(job["adapter"]))
    folder = Path(job["folder"])
    if "against" not in job:
        result: dict[str, Any] = {}
        _leave_yardstick(engine, job, folder)
    else:
        result = {"alone": _distances(engine, None, Path(job["against"]))}
        if job["adapter"]:
            result["adapted"] = _distances(engine, "adapter", Path(job["against"]))
    engine.close()
    (folder / "survival.json").write_text(json.dumps(result), encoding="utf-8")


def _context(job: Mapping[str, Any]) -> int:
    """Tokens of the longest prompt with its answer; a token has a byte or more."""
    if "against" not in job:
        longest = max(len(prompt.encode()) for prompt in job["prompts"]) + int(job["max_tokens"])
    else:
        stored = json.loads((Path(job["against"]) / ANSWERS).read_text(encoding="utf-8"))
        longest = max(len(one["prompt"]) + len(one["answer"]) for one in stored) + 1
    return max(_LEAST_CONTEXT, longest)


def _leave_yardstick(engine: Any, job: Mapping[str, Any], folder: Path) -> None:
    import numpy as np

    from compile.evaluate.measure import greedy

    answers = greedy(engine, "adapter", job["prompts"], job["max_tokens"])
    stored, kept = [], []
    for prompt, answer in zip(job["prompts"], answers, strict=True):
        asked = engine.prompt_tokens(prompt)
        said = engine.tokenize(answer, False, True)
        if said:
            stored.append({"prompt": asked, "answer": said, "text": answer})
            kept.append(_answer_logprobs(engine, "adapter", asked, said).astype(np.float16))
    if not stored:
        raise ToolFailed("the reference with its adapter answers nothing to any prompt")
    (folder / ANSWERS).write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")
    np.save(folder / LOGPROBS, np.concatenate(kept))


def _distances(engine: Any, adapter: str | None, against: Path) -> dict[str, Any]:
    import numpy as np

    stored = json.loads((against / ANSWERS).read_text(encoding="utf-8"))
    known = np.load(against / LOGPROBS, mmap_mode="r")
    tokens, kl, flips, at = [], [], [], 0
    for number, one in enumerate(stored):
        ours = _answer_logprobs(engine, adapter, one["prompt"], one["answer"])
        theirs = known[at : at + len(ours)].astype(np.float32)
        at += len(ours)
        tokens.append(len(ours))
        kl.append(float((np.exp(theirs) * (theirs - ours)).sum()))
        flips.append(int((theirs.argmax(axis=1) != ours.argmax(axis=1)).sum()))
        say((number + 1) / len(stored), f"answer {number + 1} of {len(stored)}")
    return {"tokens": tokens, "kl": kl, "flips": flips}


def _answer_logprobs(
    engine: Any, adapter: str | None, prompt: list[int], answer: list[int]
) -> "npt.NDArray[np.float32]":
    from compile.evaluate.measure import log_softmax

    return log_softmax(engine.score([*prompt, *answer], len(prompt) - 1, adapter)[:-1])


def _nearness(found: Mapping[str, Any]) -> Nearness:
    return Nearness(tuple(found["tokens"]), tuple(found["kl"]), tuple(found["flips"]))


def _mean(sums: Sequence[float], counts: Sequence[int]) -> Mean:
    import numpy as np

    total, size = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)

    def ratio(at: Any) -> float:
        return float(total[at].sum() / size[at].sum())

    low, high = statistics.resample(len(total), ratio, _ROUNDS, 0)
    return Mean(float(total.sum() / size.sum()), low, high)


if __name__ == "__main__":
    main(_child)
