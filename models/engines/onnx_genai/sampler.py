"""Which token comes next: drawn here from logits, as GenAI's own search cannot be changed between steps."""

from typing import TYPE_CHECKING

from models.engines.base import Sampling, refuse_options
from models.errors import UnsupportedRequest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def check_sampling(sampling: Sampling) -> None:
    """Raises ``UnsupportedRequest`` for what cannot be honoured, or is out of range."""
    if sampling.grammar is not None:
        reason = "ONNX Runtime GenAI cannot hold an answer to this grammar or schema"
        raise UnsupportedRequest(reason, "grammar")
    refuse_options(sampling, {"max_tokens", "temperature", "top_p", "seed", "stop"})
    ranges = (
        ("max_tokens", sampling.max_tokens is None or sampling.max_tokens >= 1, "at least 1"),
        ("temperature", 0 <= sampling.temperature <= 100, "between 0 and 100"),
        ("top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1"),
    )
    for name, holds, rule in ranges:
        if not holds:
            raise UnsupportedRequest(f"{name} is {rule}", name)


class Sampler:
    """Chooses tokens for one request. The same seed gives the same choices."""

    def __init__(self, sampling: Sampling) -> None:
        import numpy as np

        self._sampling = sampling
        seed = None if sampling.seed is None else sampling.seed % (1 << 64)  # a client may send -1
        self._random = np.random.default_rng(seed)

    def sample(self, logits: "npt.NDArray[np.float32]") -> int:
        """The next token. ``logits``: float32 [vocabulary]."""
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
