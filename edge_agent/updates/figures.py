"""What a release takes on this device and how fast it is, taken while its probes are replayed.

Owns the arithmetic from timed probes to figures (pure), and the look at an engine's process. Refuses to call
anything speed that was not computed here: tokens of a prompt that were cached count for nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from edge_agent.engines.files import EngineFiles
from models.engines.base import EncoderFacts, ModelFacts
from models.forecast import Workload
from models.machine import peak_memory
from models.workloads import workload_of
from sync.protocol import Figures


@dataclass(frozen=True, slots=True)
class Timed:
    """One probe. Text: ``prompt`` tokens computed in ``prompt_seconds``, then ``answer`` tokens after the
    first in ``answer_seconds``. Of an encoder: one item in ``item_seconds``."""

    prompt: int = 0
    prompt_seconds: float = 0.0
    answer: int = 0
    answer_seconds: float = 0.0
    item_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Footprint:
    """What an engine was asked to hold, and the most memory its process has had; None when it has none."""

    load: Workload
    threads: int
    peak_ram_bytes: int | None


Weigh = Callable[[EngineFiles, str, ModelFacts | EncoderFacts, int | None], Footprint]
"""Looks at an engine: its files, their precision, what was loaded, and its process. Raises ``UnsafeFile``."""


def weigher(threads: int) -> Weigh:
    """Looks at engines that run on ``threads``."""

    def weigh(
        files: EngineFiles, precision: str, facts: ModelFacts | EncoderFacts, pid: int | None
    ) -> Footprint:
        if isinstance(facts, ModelFacts):
            load = workload_of(files.path, precision, facts.context_tokens)
        else:  # of any number of files; it keeps nothing between two inputs
            sizes = max(1, facts.parameters), max(1, facts.file_bytes)
            load = Workload(files.format, precision.lower(), *sizes)
        return Footprint(load, threads, peak_memory(pid) if pid is not None else None)

    return weigh


def figures_of(footprint: Footprint, timed: Sequence[Timed], load_seconds: float | None) -> Figures:
    """The rates of the probe in the middle: the first warms caches, any may be held up by what else runs."""
    return Figures(
        **{name: value for name, value in asdict(footprint.load).items() if name != "read_bytes"},
        threads=footprint.threads,
        load_seconds=load_seconds,
        decode_per_second=_middle([one.answer / one.answer_seconds for one in timed if one.answer_seconds]),
        prefill_per_second=_middle([one.prompt / one.prompt_seconds for one in timed if one.prompt_seconds]),
        items_per_second=_middle([1 / one.item_seconds for one in timed if one.item_seconds]),
        peak_ram_bytes=footprint.peak_ram_bytes,
    )


def _middle(rates: Sequence[float]) -> float | None:
    """The median of what was more than nothing."""
    found = [rate for rate in rates if rate > 0]
    return median(found) if found else None
